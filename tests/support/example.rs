//! An example as its users run it: the binary that `cargo test` has built.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// An example that is running, and ends with the test.
pub(crate) struct Example {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl Example {
    pub(crate) fn run(name: &str) -> Self {
        Self::run_with(name, &[])
    }

    pub(crate) fn run_with(name: &str, environment: &[(&str, &str)]) -> Self {
        let path = path(name);
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
}

impl Drop for Example {
    fn drop(&mut self) {
        // An error is a process that has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// target/debug/deps/this-test -> target/debug/examples/name
pub(crate) fn path(name: &str) -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join(name)
}
