//! P8: a whole server over sockets, with the layer and without, under `wrk` (HTTP/1.1) and `h2load` (HTTP/2).
//!
//! The server has one thread and a core of its own, the load has another (`taskset`). The candidates take turns. Beside
//! requests a second, the processor time that the server spent on each request, which the load cannot disturb.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use crate::{
    rounds::median,
    server::CRATES,
    table::{Bound, Row, Way},
};

const ROUNDS: usize = 9;
const SECONDS: &str = "1";
const SERVER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

/// Of one server: requests a second, and microseconds of its processor for each.
#[derive(Default)]
struct Rounds {
    rates: Vec<f64>,
    costs: Vec<f64>,
}

impl Rounds {
    fn best(&self) -> f64 {
        self.rates.iter().copied().fold(0.0, f64::max)
    }

    fn median(&self) -> f64 {
        median(&mut self.rates.clone())
    }

    fn cost(&self) -> f64 {
        median(&mut self.costs.clone())
    }
}

pub fn measure() -> Vec<Row> {
    let http1 =
        under("HTTP/1.1", wrk, ["HTTP/1.1, allowed, no fields", "HTTP/1.1, allowed, with fields", "HTTP/1.1, denied"]);
    let http2 =
        under("HTTP/2", h2load, ["HTTP/2, allowed, no fields", "HTTP/2, allowed, with fields", "HTTP/2, denied"]);
    http1.into_iter().chain(http2).collect()
}

fn under(protocol: &str, load: fn(&str) -> (f64, f64), what: [&'static str; 3]) -> Vec<Row> {
    // The first two deny nothing; they stand beside both.
    let kinds: Vec<(&str, &str)> = CRATES
        .iter()
        .flat_map(|which| ["allowed", "denied"].map(|traffic| (*which, traffic)))
        .filter(|(which, traffic)| !CRATES[..2].contains(which) || *traffic == "allowed")
        .collect();
    let mut servers: Vec<Server> = kinds.iter().map(|(which, traffic)| Server::start(which, traffic)).collect();
    let mut measured: Vec<Rounds> = kinds.iter().map(|_| Rounds::default()).collect();
    for _round in 0..ROUNDS {
        for (server, rounds) in servers.iter_mut().zip(&mut measured) {
            let (rate, cost) = server.under(load);
            rounds.rates.push(rate);
            rounds.costs.push(cost);
        }
    }
    let bare = &measured[0];
    println!("{protocol:<36}{:>12}{:>8}{:>12}{:>8}{:>12}{:>8}", "best /s", "", "median /s", "", "server µs", "");
    for ((which, traffic), rounds) in kinds.iter().zip(&measured) {
        println!(
            "{:<36}{:>12.0}{:>8.3}{:>12.0}{:>8.3}{:>12.2}{:>8.3}",
            format!("{which}, {traffic}"),
            rounds.best(),
            rounds.best() / bare.best(),
            rounds.median(),
            rounds.median() / bare.median(),
            rounds.cost(),
            rounds.cost() / bare.cost()
        );
    }
    let of = |which: &str, traffic: &str| {
        &measured[kinds.iter().position(|kind| *kind == (which, traffic)).expect("is measured")]
    };
    let row = |id, what, (ours, theirs): (&Rounds, &Rounds), peer, bound| Row {
        id,
        what,
        peer,
        ways: vec![
            Way::new("best round", ours.best(), theirs.best()),
            Way::of_rounds("median of rounds", &ours.rates, &theirs.rates),
        ],
        allocations: None,
        bound,
        is_cost: false,
    };
    let mut rows = Vec::new();
    for (what, ours, traffic, least) in [
        (what[0], "tower-quota, quiet", "allowed", 0.985),
        (what[1], "tower-quota", "allowed", 0.97),
        (what[2], "tower-quota", "denied", 0.95),
    ] {
        let rounds = of(ours, traffic);
        rows.push(row("P8", what, (rounds, bare), "no layer", Bound::AtLeast(least)));
        let does_nothing = "a layer that does nothing";
        rows.push(row("", what, (rounds, of(does_nothing, "allowed")), does_nothing, Bound::None));
        for peer in ["tower_governor", "axum-governor"] {
            rows.push(row("", what, (rounds, of(peer, traffic)), peer, Bound::None));
        }
    }
    rows
}

struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(which: &str, traffic: &str) -> Self {
        let own = env::current_exe().unwrap();
        let mut command = Command::new("taskset");
        command.args(["-c", SERVER_CORE]).arg(own).args(["serve", which, traffic]).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { process, address: address.trim().to_owned() }
    }

    fn under(&mut self, load: fn(&str) -> (f64, f64)) -> (f64, f64) {
        let before = self.processor_seconds();
        let (requests, per_second) = load(&format!("http://{}/", self.address));
        (per_second, (self.processor_seconds() - before) * 1e6 / requests)
    }

    /// User and system, in hundredths (`man 5 proc`).
    fn processor_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let after_name = stat.rsplit(')').next().unwrap();
        let ticks = after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap());
        ticks.sum::<f64>() / 100.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How many requests, and how many a second.
fn wrk(url: &str) -> (f64, f64) {
    let out = output(&["wrk", "-t1", "-c64", &format!("-d{SECONDS}s"), url]);
    let before = |mark: &str| out.split(mark).next().unwrap().split_whitespace().last().unwrap().parse().unwrap();
    let after = |mark: &str| out.split(mark).nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    (before(" requests in "), after("Requests/sec:"))
}

fn h2load(url: &str) -> (f64, f64) {
    let out = output(&["h2load", "-t1", "-c8", "-m16", "--duration", SECONDS, url]);
    let before = |mark: &str| out.split(mark).next().unwrap().split_whitespace().last().unwrap();
    let done = before(" done,");
    (done.parse().unwrap(), before(" req/s,").parse().unwrap())
}

/// What the load generator prints, on the core that the server does not have.
fn output(load: &[&str]) -> String {
    let output = Command::new("taskset").args(["-c", LOAD_CORE]).args(load).output();
    let output = output.expect("taskset starts (Debian: util-linux)");
    assert!(output.status.success(), "{} does not run: apt-get install wrk nghttp2-client", load[0]);
    String::from_utf8(output.stdout).unwrap()
}
