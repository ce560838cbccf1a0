//! An example as its users run it: the binary that `cargo test` has built.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    env,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
};

/// An example that is running, and ends with the test.
pub(crate) struct Example {
    process: Child,
    output: BufReader<ChildStdout>,
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
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut example = Self { process, output, address: SocketAddr::from(([0; 4], 0)) };
        let line = example.line();
        let address = line.strip_prefix("listening on http://").unwrap_or_else(|| panic!("{name} said {line:?}"));
        example.address = address.parse().unwrap();
        example
    }

    /// The next line that it prints; empty at the end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.process.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end, which is a success.
    pub(crate) fn ended(&mut self) {
        assert!(self.process.wait().unwrap().success());
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
