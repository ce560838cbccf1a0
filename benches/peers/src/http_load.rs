//! P8: a whole server over sockets, with the layer and without, under `wrk` (HTTP/1.1) and `h2load` (HTTP/2).
//!
//! The server has one thread, the load another: on two cores they disturb each other least. Beside requests a second, the
//! processor time that the server spent on each request, which the load cannot disturb.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use crate::{
    budget::{Bound, Budget},
    rounds::median,
    server::CRATES,
};

const ROUNDS: usize = 5;
const SECONDS: &str = "2";

/// Requests a second, and microseconds of the server's processor for each.
type Rate = (f64, f64);

pub fn measure() -> Vec<Budget> {
    let mut budgets = Vec::new();
    for (protocol, load) in [("HTTP/1.1", wrk as fn(&str) -> (f64, f64)), ("HTTP/2", h2load)] {
        // The first two deny nothing; they stand beside both.
        let kinds: Vec<(&str, &str)> = CRATES
            .iter()
            .flat_map(|which| ["allowed", "denied"].map(|traffic| (*which, traffic)))
            .filter(|(which, traffic)| !CRATES[..2].contains(which) || *traffic == "allowed")
            .collect();
        let mut servers: Vec<Server> = kinds.iter().map(|(which, traffic)| Server::start(which, traffic)).collect();
        let mut rates: Vec<Vec<Rate>> = vec![Vec::new(); servers.len()];
        for _round in 0..ROUNDS {
            for (server, rates) in servers.iter_mut().zip(&mut rates) {
                rates.push(server.under(load));
            }
        }
        let medians: Vec<Rate> = rates
            .iter()
            .map(|rounds| {
                let of = |pick: fn(&Rate) -> f64| median(&mut rounds.iter().map(pick).collect::<Vec<_>>());
                (of(|rate| rate.0), of(|rate| rate.1))
            })
            .collect();
        println!("{protocol:<36}{:>12}{:>8}{:>14}{:>8}", "requests/s", "", "server µs", "");
        let bare = medians[0];
        for ((which, traffic), rate) in kinds.iter().zip(&medians) {
            let name = format!("{which}, {traffic}");
            let (requests, cpu) = (rate.0 / bare.0, rate.1 / bare.1);
            println!("{name:<36}{:>12.0}{requests:>8.2}{:>14.2}{cpu:>8.2}", rate.0, rate.1);
        }
        let rate = |name: (&str, &str)| medians[kinds.iter().position(|kind| *kind == name).unwrap()].0;
        for (traffic, what, least) in [
            ("allowed", format!("requests a second of a server, {protocol}, allowed"), 0.97),
            ("denied", "… denied".to_owned(), 0.95),
        ] {
            let ours = rate(("tower-quota", traffic));
            budgets.push(Budget {
                id: "P8",
                what: what.leak(),
                ours: format!("{ours:.0}"),
                peer: "no layer",
                theirs: format!("{:.0}", bare.0),
                ratio: ours / bare.0,
                bound: Bound::AtLeast(least),
            });
            let quiet = rate(("tower-quota, quiet", traffic));
            for (what, ours, peer) in [
                ("… told no fields", quiet, "bare"),
                ("…", ours, "tower_governor"),
                ("… told no fields", quiet, "tower_governor"),
                ("…", ours, "axum-governor"),
            ] {
                let theirs = if peer == "bare" { bare.0 } else { rate((peer, traffic)) };
                budgets.push(Budget {
                    id: "",
                    what,
                    ours: format!("{ours:.0}"),
                    peer: if peer == "bare" { "no layer" } else { peer },
                    theirs: format!("{theirs:.0}"),
                    ratio: ours / theirs,
                    bound: Bound::None,
                });
            }
        }
    }
    budgets
}

struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(which: &str, traffic: &str) -> Self {
        let own = env::current_exe().unwrap();
        let mut process = Command::new(own).args(["serve", which, traffic]).stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { process, address: address.trim().to_owned() }
    }

    fn under(&mut self, load: fn(&str) -> (f64, f64)) -> Rate {
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
    let out = output(Command::new("wrk").args(["-t1", "-c64", &format!("-d{SECONDS}s"), url]));
    let before = |mark: &str| out.split(mark).next().unwrap().split_whitespace().last().unwrap().parse().unwrap();
    let after = |mark: &str| out.split(mark).nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    (before(" requests in "), after("Requests/sec:"))
}

fn h2load(url: &str) -> (f64, f64) {
    let out = output(Command::new("h2load").args(["-t1", "-c8", "-m16", "--duration", SECONDS, url]));
    let before = |mark: &str| out.split(mark).next().unwrap().split_whitespace().last().unwrap();
    let done = before(" done,");
    (done.parse().unwrap(), before(" req/s,").parse().unwrap())
}

fn output(command: &mut Command) -> String {
    let name = command.get_program().to_owned();
    match command.output() {
        Ok(output) => String::from_utf8(output.stdout).unwrap(),
        Err(error) => panic!("{name:?} does not start ({error}): apt-get install wrk nghttp2-client"),
    }
}
