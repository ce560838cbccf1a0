//! The budgets of the crate, measured beside its peers in one run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml            # all, in both builds: the tables of the README
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- layer   # decisions, layer, memory, growth or http
//! cargo run --profile shipped --manifest-path benches/peers/Cargo.toml -- layer   # with thin LTO and one codegen unit
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- growth docs/latency.svg
//! cargo +nightly run --release --manifest-path benches/peers/Cargo.toml --features tower-rate-limiter   # with Rust 1.96
//! ```
//!
//! Candidates take turns in rounds, so that what disturbs the machine disturbs all; figures are medians of rounds. What
//! counts is the ratio: times of one machine say little about another. `http` needs `wrk`, `h2load` and `taskset` (Debian:
//! `wrk`, `nghttp2-client`, `util-linux`); all of it needs valgrind too, for the instructions.

mod decisions;
mod growth;
mod http_load;
mod instructions;
mod layer;
mod memory;
mod peers;
mod rounds;
mod server;
mod table;

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use table::Row;

const HERE: &str = env!("CARGO_MANIFEST_DIR");
/// After the names of the columns of the other build.
const LTO: &str = ", LTO";

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let plot = |file: Option<&&str>| file.map(|file| Path::new(*file).to_owned());
    let rows: Vec<Row> = match arguments.as_slice() {
        [] | ["all", ..] => {
            let mut rows = times();
            table::merge(&mut rows, &times_of_other_build(), LTO);
            rows.extend(memory::measure());
            rows.extend(growth::measure(plot(arguments.get(1)).as_deref()));
            rows.extend(http_load::measure());
            rows.extend(instructions::measure());
            rows
        }
        ["decisions"] => decisions::measure(),
        ["layer"] => layer::measure(),
        ["memory"] => memory::measure(),
        ["growth", ..] => growth::measure(plot(arguments.get(1)).as_deref()),
        ["http"] => http_load::measure(),
        ["instructions"] => instructions::measure(),
        // What `all`, `growth` and `http` start.
        ["times"] => return table::send(&times()),
        ["round", which] => return growth::round_of(which),
        ["serve", which, traffic] => return server::run(which, traffic),
        unknown => panic!("what is {unknown:?}? See the head of this file"),
    };
    let warm_and_cold = ["warm", "cold", &format!("warm{LTO}"), &format!("cold{LTO}")];
    let measured = |column| rows.iter().any(|row| row.ways.iter().any(|way| way.column == column));
    let columns: Vec<&str> = warm_and_cold.into_iter().filter(|column| measured(*column)).collect();
    table::print("Times, of one request or decision: the ratio (ours / theirs, in ns)", &rows, &columns);
    table::print("Memory, and the slowest decision", &rows, &[""]);
    table::print("Axum's hello over sockets, in requests a second", &rows, &["best round", "median of rounds"]);
    table::print("Instructions (`.ci/instructions`), beside what was planned", &rows, &["instructions"]);
}

/// What the compiler's options change.
fn times() -> Vec<Row> {
    let mut rows = decisions::measure();
    rows.extend(layer::measure());
    rows
}

/// The output of `times` with thin LTO and one codegen unit.
fn times_of_other_build() -> String {
    println!("with thin LTO and one codegen unit:");
    let features: &[&str] =
        if cfg!(feature = "tower-rate-limiter") { &["--features", "tower-rate-limiter"] } else { &[] };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--profile", "shipped", "--manifest-path", &format!("{HERE}/Cargo.toml")]);
    let output = cargo.args(features).args(["--", "times"]).stderr(Stdio::inherit()).output().expect("cargo starts");
    assert!(output.status.success(), "the other build does not run");
    let printed = String::from_utf8(output.stdout).expect("text");
    printed.lines().filter(|line| !line.starts_with("way\t")).for_each(|line| println!("{line}"));
    printed
}
