//! The budgets of the crate, measured beside its peers in one run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml            # all, and the table of the README
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- layer   # decisions, layer, memory, growth or http
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- growth docs/latency.svg
//! cargo +nightly run --release --manifest-path benches/peers/Cargo.toml --features tower-rate-limiter   # with Rust 1.96
//! ```
//!
//! Candidates take turns in rounds, so that what disturbs the machine disturbs all; figures are medians of rounds. What
//! counts is the ratio: times of one machine say little about another. `http` needs `wrk` and `h2load` (Debian: `wrk`,
//! `nghttp2-client`).

mod budget;
mod decisions;
mod growth;
mod http_load;
mod layer;
mod memory;
mod rounds;
mod server;

use std::{env, path::Path};

use budget::Budget;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let plot = |file: Option<&&str>| file.map(|file| Path::new(*file).to_owned());
    let budgets: Vec<Budget> = match arguments.as_slice() {
        [] | ["all", ..] => {
            let mut all = decisions::measure();
            all.extend(layer::measure());
            all.extend(memory::measure());
            all.extend(growth::measure(plot(arguments.get(1)).as_deref()));
            all.extend(http_load::measure());
            all
        }
        ["decisions"] => decisions::measure(),
        ["layer"] => layer::measure(),
        ["memory"] => memory::measure(),
        ["growth", ..] => growth::measure(plot(arguments.get(1)).as_deref()),
        ["http"] => http_load::measure(),
        // What `growth` and `http` start.
        ["round", which] => return growth::round_of(which),
        ["serve", which, traffic] => return server::run(which, traffic),
        unknown => panic!("what is {unknown:?}? See the head of this file"),
    };
    budget::print(&budgets);
}
