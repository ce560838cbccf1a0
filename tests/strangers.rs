//! What newcomers see: small crates of their own, with the features that they chose, built and run as they would.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Mutex,
};

/// One after the other: they share a target folder.
static ONE: Mutex<()> = Mutex::new(());

/// A crate that depends on this one.
struct Stranger {
    folder: PathBuf,
}

impl Stranger {
    /// `features` of this crate, and the text of `main.rs`.
    fn new(name: &str, features: &[&str], main: &str) -> Self {
        Self::with(name, features, "", main)
    }

    /// The same, with a further line of dependencies.
    fn with(name: &str, features: &[&str], dependency: &str, main: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("target/strangers").join(name);
        fs::create_dir_all(folder.join("src")).unwrap();
        let manifest = format!(
            "[package]\nname = \"{name}\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
             axum = {{ version = \"0.8\", default-features = false, features = [\"http1\", \"tokio\"] }}\n\
             tokio = {{ version = \"1\", features = [\"macros\", \"rt\"] }}\n\
             tower = {{ version = \"0.5\", features = [\"util\"] }}\n\
             tower-quota = {{ path = {:?}, features = {features:?} }}\n{dependency}\n",
            root.display().to_string()
        );
        fs::write(folder.join("Cargo.toml"), manifest).unwrap();
        fs::write(folder.join("src/main.rs"), main).unwrap();
        // The same versions, so that nothing is looked for.
        fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
        Self { folder }
    }

    fn cargo(&self, command: &str) -> Output {
        let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
            .args([command, "--quiet"])
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", self.folder.with_file_name("target"))
            .env("CARGO_TERM_COLOR", "never")
            .env_remove("RUSTFLAGS")
            .output()
            .unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The errors of a build, without code and hints.
fn errors(output: &Output) -> Vec<String> {
    assert!(!output.status.success(), "it compiles");
    text(&output.stderr).lines().filter(|line| line.starts_with("error")).map(str::to_owned).collect()
}

#[test]
fn the_compiler_names_the_feature_first_where_axum_is_not_enabled() {
    let main = r#"
        use axum::{Router, routing::get};
        use tower_quota::{Quota, RateLimitLayer};

        fn main() {
            let _app: Router = Router::new()
                .route("/", get(|| async { "Hello!" }))
                .layer(RateLimitLayer::per_ip(Quota::per_second(10)));
        }
    "#;
    let errors = errors(&Stranger::new("without_axum", &[], main).cargo("check"));
    assert!(errors[0].contains(": enable the feature `axum` of `tower-quota`"), "{errors:?}");
}

/// A limit outside of compression, whose body is not axum's.
const COMPRESSED: &str = r#"
    use axum::{Router, routing::get};
    use tower::ServiceBuilder;
    use tower_http::compression::CompressionLayer;
    use tower_quota::{Quota, RateLimitLayer};

    fn main() {
        let limited = ServiceBuilder::new()
            .layer(RateLimitLayer::per_ip(Quota::per_second(10)))
            .layer(CompressionLayer::new());
        let _app: Router = Router::new().route("/", get(|| async { "Hello!" })).layer(limited);
    }
"#;

#[test]
fn the_compiler_names_the_feature_for_a_body_of_tower_http_and_with_it_the_stack_compiles() {
    let tower_http = "tower-http = { version = \"0.6\", default-features = false, features = [\"compression-gzip\"] }";
    let errors = errors(&Stranger::with("without_tower_http", &["axum"], tower_http, COMPRESSED).cargo("check"));
    assert!(errors[0].contains(": enable the feature `tower-http` of `tower-quota`"), "{errors:?}");
    let output = Stranger::with("with_tower_http", &["axum", "tower-http"], tower_http, COMPRESSED).cargo("check");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// The plan that a request has is not among those of the file: that is said, once, although `tracing` is off.
#[test]
fn a_plan_that_is_not_known_is_named_on_the_standard_error() {
    let main = r#"
        use tower_quota::{Limiter, Policy, Quota};

        fn main() {
            let policy = Policy::global(Quota::per_second(10)).plans([("pro", Quota::per_second(20))]);
            let limiter = Limiter::new(policy.plan_by(|head| head.headers().get("plan")?.to_str().ok()));
            for plan in ["pro", "enterprise", "enterprise"] {
                let request = axum::http::Request::builder().header("plan", plan).body(()).unwrap();
                println!("{}", limiter.decide(&request).is_allowed());
            }
        }
    "#;
    let output = Stranger::new("unknown_plan", &[], main).cargo("run");
    let errors = text(&output.stderr);
    assert_eq!(text(&output.stdout), "true\ntrue\ntrue\n", "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains(r#"the plan "enterprise", which the policy "global" does not know"#), "{errors}");
}

/// It compiles, and serves nobody: that is said, once, although `tracing` is off.
#[test]
fn a_server_that_refuses_everybody_says_why_on_the_standard_error() {
    let main = r#"
        use axum::{Router, body::{Body, to_bytes}, http::Request, routing::get};
        use tower::ServiceExt as _;
        use tower_quota::{Policy, Quota, RateLimitLayer, key::FromExtension};

        #[tokio::main(flavor = "current_thread")]
        async fn main() {
            let per_ip = RateLimitLayer::per_ip(Quota::per_second(10)).any_body();
            let per_user = RateLimitLayer::new(Policy::per(FromExtension::<u64>::new(), Quota::per_second(10))).any_body();
            for layer in [per_ip, per_user] {
                let app = Router::new().route("/", get(|| async { "Hello!" })).layer(layer);
                for _request in 0..3 {
                    let response = app.clone().oneshot(Request::new(Body::empty())).await.unwrap();
                    println!("{}", response.status().as_u16());
                    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
                    println!("{}", String::from_utf8_lossy(&body).trim_end());
                }
            }
        }
    "#;
    let output = Stranger::new("without_peer", &[], main).cargo("run");
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{errors}");
    assert_eq!(said.lines().filter(|line| *line == "500").count(), 6, "{said}");
    assert_eq!(said.matches("Its log, or its standard error, says what is missing.").count(), 6, "{said}");
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines.len(), 2, "each fault once: {errors}");
    assert!(lines[0].starts_with("tower-quota: ") && lines[0].contains("enable the feature `axum`"), "{errors}");
    assert!(lines[1].contains("apply the layer that inserts the extension"), "{errors}");
}
