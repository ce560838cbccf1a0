//! What was measured beside a peer, the budget of it, and the tables of all that.

use std::fmt::Write as _;

use crate::rounds::median;

/// One figure of ours beside one of a peer's, measured in one run, in one way or in several.
pub struct Row {
    /// The budget's name, where there is one.
    pub id: &'static str,
    pub what: &'static str,
    pub peer: &'static str,
    pub ways: Vec<Way>,
    /// Ours and theirs, for each request.
    pub allocations: Option<(u64, u64)>,
    pub bound: Bound,
    /// Whether less is better.
    pub is_cost: bool,
}

/// The same comparison in one way of measuring it: the name of a column.
pub struct Way {
    pub column: String,
    pub ours: f64,
    pub theirs: f64,
    ratio: f64,
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Reported beside the others.
    None,
}

impl Way {
    pub fn new(column: impl Into<String>, ours: f64, theirs: f64) -> Self {
        Self { column: column.into(), ours, theirs, ratio: ours / theirs }
    }

    /// The medians, and the median of the ratios round by round: what disturbs a round disturbs both.
    pub fn of_rounds(column: impl Into<String>, ours: &[f64], theirs: &[f64]) -> Self {
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        let [ours, theirs] = [ours, theirs].map(|rounds| median(&mut rounds.to_vec()));
        Self { column: column.into(), ours, theirs, ratio: median(&mut ratios) }
    }
}

impl Row {
    pub fn cost(id: &'static str, what: &'static str, peer: &'static str, bound: Bound, ways: Vec<Way>) -> Self {
        Self { id, what, peer, ways, allocations: None, bound, is_cost: true }
    }

    /// Of one way, which has no name.
    pub fn single(
        id: &'static str,
        what: &'static str,
        peer: &'static str,
        bound: Bound,
        ours: f64,
        theirs: f64,
    ) -> Self {
        Self::cost(id, what, peer, bound, vec![Way::new("", ours, theirs)])
    }

    /// Whether the peer does better in one of the ways.
    fn is_behind(&self) -> bool {
        self.ways.iter().any(|way| if self.is_cost { way.ratio > 1.0 } else { way.ratio < 1.0 })
    }

    fn verdict(&self) -> String {
        let all = |met: &dyn Fn(f64) -> bool| {
            let met = self.ways.iter().filter(|way| met(way.ratio)).count();
            match met {
                met if met == self.ways.len() => "met".to_owned(),
                0 => "missed".to_owned(),
                met => format!("met in {met} of {}", self.ways.len()),
            }
        };
        match self.bound {
            Bound::AtMost(most) => format!("≤ {most}: {}", all(&|ratio| ratio <= most)),
            Bound::AtLeast(least) => format!("≥ {least}: {}", all(&|ratio| ratio >= least)),
            Bound::None => String::new(),
        }
    }

    fn peer(&self) -> String {
        match self.allocations {
            Some((ours, theirs)) => format!("{} ({ours} and {theirs} allocations)", self.peer),
            None => self.peer.to_owned(),
        }
    }
}

/// Prints the rows that have one of these columns, those first where a peer does better.
pub fn print(title: &str, rows: &[Row], columns: &[&str]) {
    let has = |row: &Row| row.ways.iter().any(|way| columns.contains(&way.column.as_str()));
    let (behind, ahead): (Vec<&Row>, Vec<&Row>) = rows.iter().filter(|row| has(row)).partition(|row| row.is_behind());
    if behind.is_empty() && ahead.is_empty() {
        return;
    }
    let heads: String = columns.iter().fold(String::new(), |mut line, column| {
        let _ = write!(line, " {column} |");
        line
    });
    println!("\n{title}\n\n| | | beside |{heads} budget |\n|---|---|---|{}---|", "--:|".repeat(columns.len()));
    for row in behind.into_iter().chain(ahead) {
        let cells: String = columns.iter().fold(String::new(), |mut line, column| {
            let _ = match row.ways.iter().find(|way| way.column == **column) {
                Some(way) => write!(line, " {:.2} ({} / {}) |", way.ratio, short(way.ours), short(way.theirs)),
                None => write!(line, " |"),
            };
            line
        });
        println!("| {} | {} | {} |{cells} {} |", row.id, row.what, row.peer(), row.verdict());
    }
}

fn short(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// Prints the ways of all rows, for [`merge`] in another process.
pub fn send(rows: &[Row]) {
    for (index, row) in rows.iter().enumerate() {
        for Way { column, ours, theirs, .. } in &row.ways {
            println!("way\t{index}\t{column}\t{ours}\t{theirs}");
        }
    }
}

/// Adds the ways that another process has printed of the same rows, under columns with `suffix`.
pub fn merge(rows: &mut [Row], printed: &str, suffix: &str) {
    for line in printed.lines() {
        let mut parts = line.split('\t');
        if parts.next() != Some("way") {
            continue;
        }
        let mut part = || parts.next().expect("five parts");
        let (index, column): (usize, _) = (part().parse().unwrap(), format!("{}{suffix}", part()));
        rows[index].ways.push(Way::new(column, part().parse().unwrap(), part().parse().unwrap()));
    }
}
