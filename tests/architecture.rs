//! The direction of dependencies: a file imports only from what stands above it.

use std::{fs, path::Path};

/// From the top. `docs/architecture.md` shows the same order.
const ORDER: [&str; 20] = [
    "sync", "quota", "clock", "observe", "key", "bucket", "store", "sweeper", "policy", "config", "decision",
    "limiter", "headers", "response", "front", "future", "service", "delay", "layer", "redis",
];

fn rank(module: &str) -> usize {
    ORDER.iter().position(|known| *known == module).unwrap_or_else(|| panic!("{module} is not in the order"))
}

/// The modules that the code of a file names behind `crate::`, also in a braced list. Comments do not count.
fn imports(source: &str) -> Vec<String> {
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(rest),
            Some(list) => {
                let mut depth = 0;
                let mut item = true;
                for (at, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => item = true,
                        c if item && c.is_alphanumeric() => {
                            found.push(&list[at..]);
                            item = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    let name = |rest: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(rest).to_owned();
    found.into_iter().map(name).filter(|name| name.starts_with(char::is_lowercase)).collect()
}

fn check(folder: &Path, module: Option<&str>, files: &mut usize) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let module = module.unwrap_or(&stem);
        if path.is_dir() {
            check(&path, Some(module), files);
        } else if stem != "lib" {
            *files += 1;
            for import in imports(&fs::read_to_string(&path).unwrap()) {
                assert!(rank(&import) <= rank(module), "{} imports {import}, which stands below it", path.display());
            }
        }
    }
}

#[test]
fn no_file_imports_from_below() {
    let mut files = 0;
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut files);
    assert!(files >= ORDER.len(), "{files} files were read");
}

#[test]
fn the_check_sees_what_it_should() {
    let source = "use crate::{\n    key::{Key, head::Parts},\n    layer, policy::Policy,\n};\n// crate::service\nfn f() { crate::store::x() }";
    assert_eq!(imports(source), ["key", "layer", "policy", "store"]);
}
