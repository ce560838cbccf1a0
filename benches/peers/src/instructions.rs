//! P9 and P10: instructions of a decision and of a layer, which do not depend on what else the machine does. The counting
//! is `.ci/instructions`.

use std::process::{Command, Stdio};

use crate::{
    HERE,
    table::{Bound, Row, Way},
};

const PLANNED: &str = "planned";

pub fn measure() -> Vec<Row> {
    let mut bash = Command::new("bash");
    let output = bash.arg(format!("{HERE}/../../.ci/instructions")).stderr(Stdio::inherit()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    print!("{printed}");
    let count = |name: &str| {
        let line = printed.lines().find(|line| line.split_whitespace().next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok()).expect("each case is counted")
    };
    let beside = |id, what, peer, bound, ours: f64, theirs| {
        Row::cost(id, what, peer, bound, vec![Way::new("instructions", ours, theirs)])
    };
    let planned = [
        ("a decision", "decide", 380.0),
        ("a denial", "decide-denied", 620.0),
        ("a decision by three policies", "decide-three", 1_900.0),
        ("a decision by a forwarded address", "decide-client-ip", 1_150.0),
        ("the layer", "layer", 520.0),
        ("the layer with fields", "layer-fields", 2_000.0),
        ("a denial of the layer", "layer-denied", 3_300.0),
    ]
    .map(|(what, case, planned)| beside("P9", what, PLANNED, Bound::AtMost(1.0), count(case), planned));
    let of_ours =
        [("a window", "decide-window", "a rate", 1.1), ("`acquire`", "acquire", "a decision, its key extracted", 1.0)]
            .map(|(what, case, peer, most)| {
                beside("P10", what, peer, Bound::AtMost(most), count(case), count("decide"))
            });
    planned.into_iter().chain(of_ours).collect()
}
