//! The house: a file imports only from what stands above it, no files of a folder import each other in a circle, a
//! type has one name and a name one type, and no retired word comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// From the top. `docs/architecture.md` shows the same order.
const ORDER: [&str; 20] = [
    "sync",
    "clock",
    "quota",
    "window",
    "limit",
    "observe",
    "key",
    "bucket",
    "store",
    "sweeper",
    "policy",
    "snapshot",
    "config",
    "decision",
    "limiter",
    "response",
    "middleware",
    "in_flight",
    "redis",
    "guide",
];

/// A path that some code names, such as `crate::key::{Key}`, in segments.
type ImportPath = Vec<String>;

/// The code of a file, without comments and without its inline tests.
fn code(source: &str) -> String {
    let lines = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    let lines = lines.take_while(|line| !["mod tests {", "mod models {"].contains(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths of a use tree (`a::{b, c::D}`), which may end anywhere in `text`.
fn tree(text: &str, prefix: &ImportPath, found: &mut Vec<ImportPath>) -> usize {
    let mut path = prefix.clone();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let skipped = rest.len() - rest.trim_start().len();
        at += skipped;
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            loop {
                at += tree(&text[at..], &path, found);
                let rest = text[at..].trim_start();
                at = text.len() - rest.len();
                match rest.chars().next() {
                    Some(',') => at += 1,
                    Some('}') => return at + 1,
                    _ => return at,
                }
            }
        }
        let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '*')).collect();
        if word.is_empty() {
            return at;
        }
        at += word.len();
        path.push(word);
        if text[at..].starts_with("::") {
            at += 2;
        } else {
            found.push(path);
            return at;
        }
    }
}

/// The paths that begin with `root` (`crate`, `super`, `self`), with whether they are re-exported.
fn paths(code: &str, root: &str) -> Vec<(ImportPath, bool)> {
    let start = format!("{root}::");
    let mut all = Vec::new();
    for (at, _) in code.match_indices(&start) {
        let before = &code[..at];
        if before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':')) {
            continue;
        }
        let statement = before.rsplit(['\n', ';']).next().unwrap_or_default().trim_start();
        let reexported = statement.starts_with("pub") && statement.contains("use ");
        let mut found = Vec::new();
        tree(&code[at + start.len()..], &Vec::new(), &mut found);
        all.extend(found.into_iter().map(|path| (path, reexported)));
    }
    all
}

/// The code without its `use` statements: where a name occurs in it, it is used.
fn without_uses(code: &str) -> String {
    let mut kept = String::new();
    let mut in_use = false;
    for line in code.lines() {
        let trimmed = line.trim_start();
        let starts = trimmed.starts_with("use ") || (trimmed.starts_with("pub") && trimmed.contains(" use "));
        in_use |= starts;
        if !in_use {
            kept.push_str(line);
            kept.push('\n');
        }
        in_use &= !trimmed.ends_with(';');
    }
    kept
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|other| other == word)
}

struct Folder {
    /// The module's name; empty for the root.
    module: String,
    /// The code of each file, by its module's name; `mod` for the folder's own.
    files: BTreeMap<String, String>,
}

impl Folder {
    fn imports_of(&self, file: &str) -> BTreeSet<String> {
        let code = &self.files[file];
        let used = without_uses(code);
        let mut imports = BTreeSet::new();
        let inside = paths(code, "crate").into_iter().filter_map(|(path, reexported)| {
            let (first, rest) = path.split_first()?;
            (*first == self.module).then(|| (rest.to_vec(), reexported))
        });
        let by_super = if file == "mod" { Vec::new() } else { paths(code, "super") };
        let by_self = if file == "mod" { paths(code, "self") } else { Vec::new() };
        for (path, reexported) in inside.chain(by_super).chain(by_self) {
            let Some(first) = path.first() else { continue };
            let name = path.last().unwrap_or(first);
            // A facade does not use what it only passes on.
            if reexported && !has_word(&used, name) {
                continue;
            }
            let target = if self.files.contains_key(first) { first.clone() } else { self.source_of(first) };
            if target != file {
                imports.insert(target);
            }
        }
        imports
    }

    /// The file of an item that is named by way of the folder's `mod.rs`.
    fn source_of(&self, item: &str) -> String {
        let facade = self.files.get("mod").map(|code| paths(code, "self")).unwrap_or_default();
        let from = facade.iter().find(|(path, _)| path.len() > 1 && path.last().is_some_and(|last| last == item));
        from.map_or("mod".to_owned(), |(path, _)| path[0].clone())
    }

    /// Files that import each other in a circle, if there are any.
    fn circle(&self) -> Option<Vec<String>> {
        fn visit(folder: &Folder, file: &str, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
            if way.iter().any(|earlier| earlier == file) {
                way.push(file.to_owned());
                return true;
            }
            if done.contains(file) {
                return false;
            }
            way.push(file.to_owned());
            if folder.imports_of(file).iter().any(|import| visit(folder, import, way, done)) {
                return true;
            }
            way.pop();
            done.insert(file.to_owned());
            false
        }
        let (mut way, mut done) = (Vec::new(), BTreeSet::new());
        self.files.keys().any(|file| visit(self, file, &mut way, &mut done)).then_some(way)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// All files below a folder whose name ends so.
fn files(folder: &Path, ends: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, ends, found);
        } else if ends.iter().any(|end| path.to_str().unwrap().ends_with(end)) {
            found.push(path);
        }
    }
}

fn folders() -> Vec<Folder> {
    let (mut found, source) = (Vec::new(), root().join("src"));
    files(&source, &[".rs"], &mut found);
    let mut folders = BTreeMap::<String, BTreeMap<String, String>>::new();
    for path in found {
        let folder = path.parent().unwrap().strip_prefix(&source).unwrap().to_str().unwrap().to_owned();
        let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
        folders.entry(folder).or_default().insert(file, code(&fs::read_to_string(&path).unwrap()));
    }
    folders.into_iter().map(|(module, files)| Folder { module, files }).collect()
}

fn rank(module: &str) -> usize {
    ORDER.iter().position(|known| *known == module).unwrap_or_else(|| panic!("{module} is not in the order"))
}

#[test]
fn no_file_imports_from_below() {
    let mut seen = 0;
    for folder in folders() {
        for (file, code) in folder.files.iter().filter(|(file, _)| *file != "lib") {
            seen += 1;
            let module = if folder.module.is_empty() { file } else { &folder.module };
            let from_root = if folder.module.is_empty() || file == "mod" { paths(code, "super") } else { Vec::new() };
            for (path, _) in paths(code, "crate").into_iter().chain(from_root) {
                // What begins with a capital letter is re-exported by the root.
                let Some(import) = path.first().filter(|first| first.starts_with(char::is_lowercase)) else { continue };
                assert!(rank(import) <= rank(module), "{module}/{file}.rs imports {import}, which stands below it");
            }
        }
    }
    assert!(seen > 60, "{seen} files were read");
}

#[test]
fn no_files_of_a_folder_import_each_other_in_a_circle() {
    for folder in folders() {
        assert_eq!(folder.circle(), None, "in {}", folder.module);
    }
}

#[test]
fn the_checks_see_what_they_should() {
    let source = "use crate::{\n    key::{Key, head::Parts},\n    layer, policy::Policy,\n};\n// crate::service\nfn f() { crate::store::x() }\nmod tests {\n    use crate::tests::y;\n}";
    let found: Vec<_> = paths(&code(source), "crate").into_iter().map(|(path, _)| path.join("::")).collect();
    assert_eq!(found, ["key::Key", "key::head::Parts", "layer", "policy::Policy", "store::x"]);

    let folder = |files: &[(&str, &str)]| Folder {
        module: "shop".to_owned(),
        files: files.iter().map(|(file, source)| ((*file).to_owned(), code(source))).collect(),
    };
    let facade = ("mod", "mod a;\nmod b;\npub use self::{a::A, b::B};");
    let above = folder(&[facade, ("a", "pub struct A;"), ("b", "use super::A;\npub struct B(A);")]);
    assert_eq!(above.imports_of("b"), BTreeSet::from(["a".to_owned()]), "by way of the facade");
    assert_eq!(above.circle(), None);
    let planted =
        folder(&[facade, ("a", "use super::b::B;\npub struct A(B);"), ("b", "use crate::shop::A;\npub struct B(A);")]);
    assert_eq!(planted.circle().unwrap(), ["a", "b", "a"]);
    let by_mod = folder(&[
        ("mod", "mod a;\npub use self::a::A;\npub struct Shop(A);"),
        ("a", "use super::Shop;\npub struct A(Shop);"),
    ]);
    assert_eq!(by_mod.circle().unwrap(), ["a", "mod", "a"], "a facade that uses what it passes on is none");
}

/// Two types with one name make a reader look twice.
#[test]
fn a_name_belongs_to_one_type() {
    let mut owners = BTreeMap::<String, Vec<String>>::new();
    for folder in folders() {
        for (file, code) in &folder.files {
            // The model of dashmap has dashmap's names.
            if file == "model" {
                continue;
            }
            for line in code.lines() {
                // Associated types are indented.
                let words: Vec<_> = line.split_whitespace().skip_while(|word| word.starts_with("pub")).collect();
                let ["struct" | "enum" | "trait" | "type", name, ..] = &words[..] else { continue };
                let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
                if !line.starts_with(' ') || line.trim_start().starts_with("pub struct") {
                    owners.entry(name).or_default().push(format!("{}/{file}.rs", folder.module));
                }
            }
        }
    }
    assert!(owners.len() > 100, "{} types were found", owners.len());
    owners.retain(|_, files| files.len() > 1);
    assert!(owners.is_empty(), "{owners:#?}");
}

/// The words of the first edition, each with a standard term in its place (`docs/architecture.md`, "Words").
const RETIRED: [&str; 27] = [
    "draw", "draws", "drawn", "drew", "put_back", "putback", "claim", "claims", "trial", "trials", "hold", "holds",
    "holding", "held", "kept", "sole", "alone", "judge", "judges", "judged", "culprit", "front", "manner", "excess",
    "sentence", "told", "refusal",
];

#[test]
fn no_retired_word_is_used() {
    let mut found = Vec::new();
    files(&root().join("src"), &[".rs", ".lua"], &mut found);
    files(&root().join("docs"), &[".md"], &mut found);
    found.extend(["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|file| root().join(file)));
    assert!(found.len() > 70, "{} files were read", found.len());
    let mut uses = Vec::new();
    for path in &found {
        for (number, line) in fs::read_to_string(path).unwrap().lines().enumerate() {
            // A method of the standard library's, and a product.
            let line = line.to_lowercase().replace(".front()", "").replace("front door", "").replace("front-door", "");
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            uses.extend(
                words
                    .filter(|word| RETIRED.contains(word))
                    .map(|word| format!("{}:{}: {word}", path.strip_prefix(root()).unwrap().display(), number + 1)),
            );
        }
    }
    // Tests: their names.
    let mut tests = Vec::new();
    files(&root().join("tests"), &[".rs"], &mut tests);
    files(&root().join("src"), &[".rs"], &mut tests);
    for path in &tests {
        for line in fs::read_to_string(path).unwrap().lines() {
            let Some(name) = line.trim_start().strip_prefix("fn ").or(line.trim_start().strip_prefix("async fn "))
            else {
                continue;
            };
            let name = name.split('(').next().unwrap_or_default();
            if name.split('_').any(|word| RETIRED.contains(&word)) || name.contains("put_back") {
                uses.push(format!("{}: {name}", path.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(uses.is_empty(), "{} uses:\n{}", uses.len(), uses.join("\n"));
}

/// Prose in the source is as wide as rustfmt's comments are. Tables and code cannot be broken.
#[test]
fn comments_are_at_most_100_columns_wide() {
    let mut found = Vec::new();
    files(&root().join("src"), &[".rs", ".lua"], &mut found);
    let mut long = Vec::new();
    for path in &found {
        let mut in_code = false;
        for (number, line) in fs::read_to_string(path).unwrap().lines().enumerate() {
            let text = line.trim_start();
            let comment = text.starts_with("//") || text.starts_with("--");
            in_code = comment && (in_code != text.contains("```"));
            if comment && !in_code && !text.contains(" | ") && line.chars().count() > 100 {
                long.push(format!("{}:{}", path.strip_prefix(root()).unwrap().display(), number + 1));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

/// The lines of a page that are neither code nor tables, with their numbers.
fn prose(page: &str) -> Vec<(usize, &str)> {
    let mut in_code = false;
    let mut prose = Vec::new();
    for (number, line) in (1..).zip(page.lines()) {
        let fence = line.trim_start().starts_with("```");
        if !fence && !in_code && !line.starts_with('|') {
            prose.push((number, line));
        }
        in_code ^= fence;
    }
    prose
}

#[test]
fn the_readme_is_two_pages() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let words: usize = prose(&readme).iter().map(|(_, line)| line.split_whitespace().count()).sum();
    assert!((100..=1_000).contains(&words), "{words} words beside code and tables");
}

#[test]
fn the_readme_and_the_guide_are_at_most_140_columns_wide() {
    let mut pages = vec![root().join("README.md")];
    files(&root().join("docs/guide"), &[".md"], &mut pages);
    assert!(pages.len() > 15, "{} pages were read", pages.len());
    let mut long = Vec::new();
    for path in &pages {
        let page = fs::read_to_string(path).unwrap();
        let wide = prose(&page).into_iter().filter(|(_, line)| line.chars().count() > 140 && !line.contains("]("));
        long.extend(wide.map(|(number, _)| format!("{}:{number}", path.strip_prefix(root()).unwrap().display())));
    }
    assert!(long.is_empty(), "{long:#?}");
}
