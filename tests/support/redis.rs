//! Servers of the tests' own: Redis and Valkey, started on a free port in a directory of their own, and ended with the test.
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "port.rs"]
mod port;

#[path = "waiting.rs"]
mod waiting;

use std::{
    env, fs,
    future::Future,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

pub(crate) use waiting::within_a_minute;

pub(crate) use port::free_port;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Redis,
    Valkey,
}

pub(crate) const ENGINES: [Engine; 2] = [Engine::Redis, Engine::Valkey];

pub(crate) struct Server {
    engine: Engine,
    process: Option<Child>,
    directory: PathBuf,
    pub(crate) port: u16,
    more: Vec<String>,
    /// Of a sentinel: it needs a file.
    settings: Option<PathBuf>,
    /// The file with the time that it has in place of the system's.
    clock: Option<PathBuf>,
}

impl Server {
    pub(crate) fn start(engine: Engine) -> Self {
        Self::start_with(engine, &[])
    }

    pub(crate) fn start_with(engine: Engine, more: &[&str]) -> Self {
        let mut server = Self::prepare(engine, more);
        server.run();
        server
    }

    fn prepare(engine: Engine, more: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("tower-quota-redis-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let more = more.iter().map(|argument| (*argument).to_owned()).collect();
        Self { engine, process: None, directory, port: free_port(), more, settings: None, clock: None }
    }

    /// One whose clock the test sets. Valkey: Debian's Redis does not run with it.
    pub(crate) fn with_clock(engine: Engine, more: &[&str]) -> Self {
        let mut server = Self::prepare(engine, more);
        server.clock = Some(server.directory.join("clock"));
        server.step_clock(0);
        server.run();
        server
    }

    /// Three primaries of one cluster, with one clock, which the test sets through the first.
    pub(crate) fn cluster_with_clock() -> [Self; 3] {
        let mut clock = None;
        let nodes = [(); 3].map(|()| {
            let bus = free_port().to_string();
            // The clock takes leaps that no node takes for an outage.
            let more = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "100000000"];
            let more = [&more[..], &["--cluster-require-full-coverage", "no"]].concat();
            let mut node = Self::prepare(Engine::Valkey, &more);
            node.clock = Some(clock.get_or_insert_with(|| node.directory.join("clock")).clone());
            node.step_clock(0);
            node.run();
            node
        });
        let slots = [["0", "5460"], ["5461", "10922"], ["10923", "16383"]];
        for (number, (node, [first, last])) in nodes.iter().zip(slots).enumerate() {
            assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", first, last]), "OK");
            assert_eq!(node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]), "OK");
        }
        for other in &nodes[1..] {
            nodes[0].meet(other);
        }
        for node in &nodes {
            within_a_minute(|| {
                let (info, nodes) = (node.cli(&["CLUSTER", "INFO"]), node.cli(&["CLUSTER", "NODES"]));
                info.contains("cluster_slots_assigned:16384") && nodes.lines().count() == 3
            });
        }
        nodes
    }

    /// So many seconds from the system's time.
    pub(crate) fn step_clock(&self, seconds: i64) {
        self.step_clock_by_micros(seconds * 1_000_000);
    }

    /// So many microseconds from the system's time. The server never reads half of it.
    pub(crate) fn step_clock_by_micros(&self, micros: i64) {
        let clock = self.clock.as_ref().expect("it has a clock");
        let new = clock.with_extension("new");
        let (sign, micros) = (if micros < 0 { '-' } else { '+' }, micros.unsigned_abs());
        fs::write(&new, format!("{sign}{}.{:06}s", micros / 1_000_000, micros % 1_000_000)).unwrap();
        fs::rename(new, clock).unwrap();
    }

    /// A sentinel that alone decides over the primary of this name.
    pub(crate) fn sentinel(name: &str, primary: u16, password: &str) -> Self {
        Self::sentinel_with(name, primary, password, "")
    }

    pub(crate) fn sentinel_with(name: &str, primary: u16, password: &str, more: &str) -> Self {
        let mut server = Self::prepare(Engine::Redis, &[]);
        let file = server.directory.join("sentinel.conf");
        let login = if password.is_empty() { String::new() } else { format!("sentinel auth-pass {name} {password}\n") };
        let settings = format!(
            "{more}sentinel monitor {name} 127.0.0.1 {primary} 1\n{login}sentinel down-after-milliseconds {name} 500\n\
             sentinel failover-timeout {name} 2000\n"
        );
        fs::write(&file, settings).unwrap();
        server.more = vec!["--sentinel".to_owned()];
        server.settings = Some(file);
        server.run();
        server
    }

    /// Primaries of one cluster, with a third of the slots each, and behind the first one a replica.
    pub(crate) fn cluster(engine: Engine) -> ([Self; 3], Self) {
        let start = || Self::cluster_node(engine);
        let (primaries, replica) = ([(); 3].map(|()| start()), start());
        let slots = ["0 5460", "5461 10922", "10923 16383"];
        for ((number, primary), slots) in primaries.iter().enumerate().zip(slots) {
            let (first, last) = slots.split_once(' ').unwrap();
            assert_eq!(primary.cli(&["CLUSTER", "ADDSLOTSRANGE", first, last]), "OK");
            assert_eq!(primary.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]), "OK");
        }
        for other in primaries[1..].iter().chain([&replica]) {
            let (port, bus) = (other.port.to_string(), &other.more[3]);
            assert_eq!(primaries[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]), "OK");
        }
        let first = primaries[0].cluster_id();
        within_a_minute(|| replica.cli(&["CLUSTER", "NODES"]).contains(&first));
        assert_eq!(replica.cli(&["CLUSTER", "REPLICATE", &first]), "OK");
        within_a_minute(|| replica.cli(&["INFO", "replication"]).contains("master_link_status:up"));
        for node in primaries.iter().chain([&replica]) {
            within_a_minute(|| {
                let (info, nodes) = (node.cli(&["CLUSTER", "INFO"]), node.cli(&["CLUSTER", "NODES"]));
                info.contains("cluster_state:ok") && nodes.lines().count() == 4 && nodes.contains("slave")
            });
        }
        (primaries, replica)
    }

    /// Primaries of one cluster, which announce their ports of TLS.
    pub(crate) fn cluster_of_tls(settings: &[&str]) -> ([Self; 3], [u16; 3]) {
        let nodes = [(); 3].map(|()| {
            let (bus, port) = (free_port().to_string(), free_port());
            let port_text = port.to_string();
            let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--tls-port", &port_text];
            (Self::start_with(Engine::Redis, &[&cluster[..], settings].concat()), port)
        });
        for (number, (node, _)) in nodes.iter().enumerate() {
            let (first, last) = [("0", "5460"), ("5461", "10922"), ("10923", "16383")][number];
            assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", first, last]), "OK");
            assert_eq!(node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]), "OK");
        }
        for (other, port) in &nodes[1..] {
            let (port, bus) = (port.to_string(), &other.more[3]);
            assert_eq!(nodes[0].0.cli(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]), "OK");
        }
        for (node, _) in &nodes {
            within_a_minute(|| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
        }
        let ports = [nodes[0].1, nodes[1].1, nodes[2].1];
        (nodes.map(|(node, _)| node), ports)
    }

    /// One that is not in a cluster yet.
    pub(crate) fn cluster_node(engine: Engine) -> Self {
        let bus = free_port().to_string();
        let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "1000"];
        // Those that are there go on for their slots.
        Self::start_with(engine, &[&settings[..], &["--cluster-require-full-coverage", "no"]].concat())
    }

    /// Brings another one into its cluster.
    pub(crate) fn meet(&self, other: &Self) {
        let (port, bus) = (other.port.to_string(), &other.more[3]);
        assert_eq!(self.cli(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]), "OK");
        within_a_minute(|| other.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
        within_a_minute(|| self.cli(&["CLUSTER", "NODES"]).contains(&other.cluster_id()));
    }

    pub(crate) fn cluster_id(&self) -> String {
        self.cli(&["CLUSTER", "MYID"])
    }

    /// Starts it, on the port that it had.
    pub(crate) fn run(&mut self) {
        let port = self.port.to_string();
        let mut command = Command::new(path_of(if self.engine == Engine::Redis { "redis" } else { "valkey" }));
        if let Some(clock) = &self.clock {
            command.env("LD_PRELOAD", path_of("clock")).env("FAKETIME_TIMESTAMP_FILE", clock);
            command.envs([("FAKETIME_NO_CACHE", "1"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]);
        }
        command.args(&self.settings).args(["--port", &port, "--bind", "127.0.0.1", "--daemonize", "no"]);
        if self.settings.is_none() {
            command.args(["--save", "", "--appendonly", "no"]);
        }
        command.args(&self.more).current_dir(&self.directory).stdout(Stdio::null());
        self.process = Some(command.spawn().unwrap());
        within_a_minute(|| self.cli(&["PING"]).contains("PONG"));
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What the server answers, as `redis-cli` prints it.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let port = self.port.to_string();
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port, "--no-auth-warning"]).args(arguments);
        if let Some(at) = self.more.iter().position(|argument| argument == "--requirepass") {
            command.env("REDISCLI_AUTH", &self.more[at + 1]);
        }
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).trim().to_owned()
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.cli(&["KEYS", "*"])
            .lines()
            .filter(|key| !key.is_empty() && !key.contains(":probe"))
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

/// As the script says.
pub(crate) fn path_of(name: &str) -> String {
    // Also for measurements, which are packages of their own below this one.
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let script = above.find_map(|folder| Some(folder.join("tests/support/redis.sh")).filter(|file| file.exists()));
    let script = script.expect("the script stands beside this file");
    let output = Command::new("sh").arg(script).arg(name).output().unwrap();
    assert!(output.status.success(), "no {name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[expect(clippy::disallowed_methods, reason = "a condition of another process is polled")]
pub(crate) async fn eventually<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
