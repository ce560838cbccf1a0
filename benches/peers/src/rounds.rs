//! Candidates that take turns.

/// A name, and what measures one round of it.
pub struct Candidate<'a> {
    pub name: &'static str,
    pub round: Box<dyn FnMut() -> f64 + 'a>,
}

impl<'a> Candidate<'a> {
    pub fn new(name: &'static str, round: impl FnMut() -> f64 + 'a) -> Self {
        Self { name, round: Box::new(round) }
    }
}

/// The median of each, in their order.
pub fn medians(rounds: usize, candidates: &mut [Candidate<'_>]) -> Vec<f64> {
    let mut measured = vec![Vec::with_capacity(rounds); candidates.len()];
    for _round in 0..rounds {
        for (candidate, measured) in candidates.iter_mut().zip(&mut measured) {
            measured.push((candidate.round)());
        }
    }
    measured.iter_mut().map(|rounds| median(rounds)).collect()
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Numbers below `n`, in no order that a cache could guess.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}
