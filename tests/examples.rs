//! Every example, run as its users run it: the binary that `cargo test` has built, over a socket.

#[path = "support/wire.rs"]
mod wire;

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use wire::{Connection, statuses};

/// An example that is running, and ends with the test.
struct Example {
    process: Child,
    address: SocketAddr,
}

impl Example {
    fn run(name: &str) -> Self {
        Self::run_with(name, &[])
    }

    fn run_with(name: &str, environment: &[(&str, &str)]) -> Self {
        // target/debug/deps/this-test -> target/debug/examples/name
        let path = env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join(name);
        let mut process = Command::new(&path)
            .env("PORT", "0")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; `cargo test` builds the examples", path.display()));
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{name} said {line:?}"));
        Self { address: address.parse().unwrap(), process }
    }

    fn get(&self, fields: &[(&str, &str)], times: usize) -> Vec<u16> {
        statuses(self.address, "/", fields, times)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
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
    burst_then_refusals(&example.get(&[], 200), 20);
    // One cell in an hour: none comes back while the answer is read.
    let example = Example::run_with("quickstart", &[("QUOTA", "1/h")]);
    assert_eq!(example.get(&[], 1), [200]);
    let refusal = Connection::open(example.address).send("GET", "/", &[]);
    assert_eq!(refusal.status, 429);
    let seconds: u64 = refusal.field("retry-after").unwrap().parse().unwrap();
    assert!((3_000..=3_600).contains(&seconds), "{refusal:?}");
    assert_eq!(refusal.field("cache-control"), Some("no-store"));
    assert!(refusal.body.starts_with("Too many requests for the policy \"per-ip\"."), "{refusal:?}");
}

#[test]
fn global() {
    burst_then_refusals(&Example::run("global").get(&[], 100), 5);
}

#[test]
fn api_keys() {
    let example = Example::run("api_keys");
    let unknown = Connection::open(example.address).send("GET", "/", &[]);
    assert_eq!((unknown.status, unknown.field("www-authenticate").is_some()), (401, true));
    assert_eq!(example.get(&[("x-api-key", "wrong")], 1), [403]);
    assert_eq!(example.get(&[("x-api-key", "free-1")], 5), [200, 200, 200, 429, 429]);
    assert_eq!(example.get(&[("x-api-key", "free-2")], 1), [200], "another key, another bucket");
    assert_eq!(example.get(&[("x-api-key", "pro-1")], 20), [200; 20]);
    let guessed = example.get(&[("x-api-key", "guess")], 200);
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
    burst_then_refusals(&example.get(&key, 80), 10);
    assert_eq!(example.get(&[("x-api-key", "k2")], 1), [200]);
    assert_eq!(example.get(&[], 1), [401]);
}

#[test]
fn hyper() {
    let example = Example::run("hyper");
    burst_then_refusals(&example.get(&[], 100), 5);
}

#[test]
fn a_quota_that_cannot_be_read_ends_the_example_with_the_reason() {
    let path = env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("quickstart");
    let output = Command::new(path).env("QUOTA", "0/s").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("ZeroCells"), "{output:?}");
}
