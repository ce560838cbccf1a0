//! What a measured ratio may be, and the table that says whether it is.

pub struct Budget {
    pub id: &'static str,
    pub what: &'static str,
    pub ours: String,
    pub peer: &'static str,
    pub theirs: String,
    pub ratio: f64,
    pub bound: Bound,
}

pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Reported beside the others.
    None,
}

impl Bound {
    fn verdict(&self, ratio: f64) -> (String, &'static str) {
        let said = |met| if met { "met" } else { "missed" };
        match self {
            Self::AtMost(most) => (format!("≤ {most}"), said(ratio <= *most)),
            Self::AtLeast(least) => (format!("≥ {least}"), said(ratio >= *least)),
            Self::None => (String::new(), ""),
        }
    }
}

pub fn print(budgets: &[Budget]) {
    println!("\n| | | tower-quota | peer | | ratio | budget | |");
    println!("|---|---|--:|---|--:|--:|--:|---|");
    for Budget { id, what, ours, peer, theirs, ratio, bound } in budgets {
        let (bound, verdict) = bound.verdict(*ratio);
        println!("| {id} | {what} | {ours} | {peer} | {theirs} | {ratio:.2} | {bound} | {verdict} |");
    }
}
