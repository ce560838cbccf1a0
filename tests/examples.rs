//! Every example, run as its users run it: the binary that `cargo test` has built, over a socket.

#[path = "support/example.rs"]
mod example;
#[path = "support/wire.rs"]
mod wire;

use std::process::Command;

use example::{Example, path};
use wire::{Connection, statuses};

fn get(example: &Example, fields: &[(&str, &str)], times: usize) -> Vec<u16> {
    statuses(example.address, "/", fields, times)
}

/// As many 200s as the burst, or a few more for the time that passed; then nothing but 429s.
fn burst_then_refusals(statuses: &[u16], burst: usize) {
    let admitted = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses[..burst].iter().all(|status| *status == 200), "{statuses:?}");
    assert!(admitted < statuses.len(), "nothing was refused: {statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
}

#[test]
fn quickstart() {
    let example = Example::run("quickstart");
    burst_then_refusals(&get(&example, &[], 200), 20);
    // One cell in an hour: none comes back while the answer is read.
    let example = Example::run_with("quickstart", &[("QUOTA", "1/h")]);
    assert_eq!(get(&example, &[], 1), [200]);
    let refusal = Connection::open(example.address).send("GET", "/", &[]);
    assert_eq!(refusal.status, 429);
    let seconds: u64 = refusal.field("retry-after").unwrap().parse().unwrap();
    assert!((3_000..=3_600).contains(&seconds), "{refusal:?}");
    assert_eq!(refusal.field("cache-control"), Some("no-store"));
    assert_eq!(refusal.field("content-type"), Some("application/problem+json"));
    assert_eq!(refusal.field("ratelimit-policy"), Some(r#""per-ip";q=1;w=3600"#));
}

#[test]
fn global() {
    burst_then_refusals(&get(&Example::run("global"), &[], 100), 5);
}

#[test]
fn api_keys() {
    let example = Example::run("api_keys");
    let unknown = Connection::open(example.address).send("GET", "/", &[]);
    assert_eq!((unknown.status, unknown.field("www-authenticate").is_some()), (401, true));
    assert_eq!(get(&example, &[("x-api-key", "wrong")], 1), [403]);
    assert_eq!(get(&example, &[("x-api-key", "free-1")], 5), [200, 200, 200, 429, 429]);
    assert_eq!(get(&example, &[("x-api-key", "free-2")], 1), [200], "another key, another bucket");
    assert_eq!(get(&example, &[("x-api-key", "pro-1")], 20), [200; 20]);
    let guessed = get(&example, &[("x-api-key", "guess")], 200);
    assert!(guessed.contains(&429), "guessing keys is limited by address");
}

#[test]
fn per_route() {
    let example = Example::run("per_route");
    let login = || Connection::open(example.address).send("POST", "/login", &[]).status;
    assert_eq!([login(), login(), login(), login()], [200, 200, 429, 429]);
    let mut reads = Vec::new();
    for _ in 0..4 {
        reads.extend(statuses(example.address, "/search", &[], 1));
        reads.extend(statuses(example.address, "/items", &[], 1));
    }
    assert_eq!(reads[..6], [200; 6]);
    assert!(reads[6..].contains(&429), "{reads:?}");
    assert_eq!(statuses(example.address, "/health", &[], 20), [200; 20]);
}

#[test]
fn windows() {
    let example = Example::run("windows");
    let key = [("x-api-key", "k1")];
    burst_then_refusals(&get(&example, &key, 80), 10);
    assert_eq!(get(&example, &[("x-api-key", "k2")], 1), [200]);
    assert_eq!(get(&example, &[], 1), [401]);
}

#[test]
fn hyper() {
    let example = Example::run("hyper");
    burst_then_refusals(&get(&example, &[], 100), 5);
}

#[test]
fn a_quota_that_cannot_be_read_ends_the_example_with_the_reason() {
    let output = Command::new(path("quickstart")).env("QUOTA", "0/s").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("ZeroCells"), "{output:?}");
}

#[test]
fn behind_proxy() {
    let example = Example::run("behind_proxy");
    let through = |list: &str| Connection::open(example.address).send("GET", "/", &[("x-forwarded-for", list)]);
    for _ in 0..5 {
        let reply = through("203.0.113.7");
        assert_eq!((reply.status, reply.body.as_str()), (200, "Hello, 203.0.113.7!\n"));
    }
    assert_eq!(through("203.0.113.7").status, 429);
    assert_eq!(through("203.0.113.8").status, 200, "another client");
    assert_eq!(through("6.6.6.6, 203.0.113.7").status, 429, "a forgery");
}

#[test]
fn cors() {
    let example = Example::run("cors");
    let call = |method: &str| {
        let fields = [
            ("origin", "http://elsewhere.example"),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "x-call"),
        ];
        Connection::open(example.address).send(method, "/api", &fields)
    };
    for _ in 0..10 {
        assert_eq!(call("OPTIONS").status, 200);
    }
    assert_eq!([(); 4].map(|()| call("GET").status), [200, 200, 200, 429]);
    let refusal = call("GET");
    assert_eq!(refusal.field("access-control-allow-origin"), Some("*"));
    assert_eq!(refusal.field("access-control-expose-headers"), Some("ratelimit,ratelimit-policy,retry-after"));
}

#[test]
fn custom_response() {
    let example = Example::run("custom_response");
    let accept = |kind| Connection::open(example.address).send("GET", "/", &[("accept", kind)]);
    assert_eq!(accept("*/*").status, 200);
    let json = accept("*/*");
    assert_eq!((json.status, json.field("content-type")), (429, Some("application/json")));
    let error: serde_json::Value = serde_json::from_str(&json.body).unwrap();
    assert_eq!(error["error"]["policies"], serde_json::json!(["per-ip"]));
    let html = accept("text/html,application/xhtml+xml");
    assert_eq!((html.status, html.field("content-type")), (429, Some("text/html; charset=utf-8")));
    for refusal in [json, html] {
        assert_eq!(refusal.field("cache-control"), Some("no-store"));
        assert_eq!(refusal.field("ratelimit-policy"), Some(r#""per-ip";q=1;w=10"#));
        assert!(refusal.field("retry-after").is_some());
    }
}

#[test]
fn grpc() {
    let example = Example::run("grpc");
    let client = Command::new(path("grpc")).arg(format!("http://{}", example.address)).output().unwrap();
    let said = String::from_utf8(client.stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..5], ["Serving"; 5]);
    let told = "ResourceExhausted: Too many requests for the policy \"per-ip\". Retry in 5 s. Retry delay: Some(";
    assert!(lines[5].starts_with(told), "{said}");
}
