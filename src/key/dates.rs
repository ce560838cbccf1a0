//! Contains [`DateWatch`], which notices texts that contain a date of this year.
//!
//! Such a key is new every day. Under a quota that takes long to come back, the keys of each day
//! stay for as long, until the map is full and new clients share overflow buckets. This file must
//! not know what becomes of a key.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::{clock, observe::events};

/// Examines the first texts of a limiter, so that the others cost nothing.
#[derive(Clone, Debug)]
pub(super) struct DateWatch {
    watched: Arc<Watched>,
}

#[derive(Debug)]
struct Watched {
    /// The names of the policies whose buckets take long to come back.
    policies: String,
    to_examine: AtomicU32,
    dated: AtomicU32,
}

/// How many texts are examined.
const TO_EXAMINE: u32 = 10_000;

/// How many of them have a date before that seems to be the rule.
const DATED: u32 = 10;

impl DateWatch {
    pub(super) fn new(policies: String) -> Self {
        let (to_examine, dated) = (AtomicU32::new(TO_EXAMINE), AtomicU32::new(0));
        Self { watched: Arc::new(Watched { policies, to_examine, dated }) }
    }

    #[inline]
    pub(super) fn examine(&self, text: &[u8]) {
        if self.watched.to_examine.load(Ordering::Relaxed) > 0 {
            self.watched.examine(text);
        }
    }
}

impl Watched {
    #[cold]
    fn examine(&self, text: &[u8]) {
        let less = |left: u32| left.checked_sub(1);
        let _ = self.to_examine.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if !contains_date_of(this_year(), text) {
            return;
        }
        if self.dated.fetch_add(1, Ordering::Relaxed) + 1 == DATED {
            self.to_examine.store(0, Ordering::Relaxed);
            events::dates_in_keys(&self.policies);
        }
    }
}

/// To a day or so, which is enough.
fn this_year() -> u64 {
    const SECONDS_OF_A_YEAR: u64 = 31_556_952;
    1970 + clock::unix_seconds() / SECONDS_OF_A_YEAR
}

/// Whether a text contains a day of this year: `2026-11-27`, or with another separator, or without.
fn contains_date_of(year: u64, text: &[u8]) -> bool {
    let year = year.to_string();
    let number = |digits: &[u8]| match digits {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some(10 * (tens - b'0') + (ones - b'0')),
        _ => None,
    };
    let is_date = |at: usize| {
        let rest = &text[at + year.len()..];
        let width = usize::from(rest.first().is_some_and(|first| b"-/._".contains(first)));
        let part = |from: usize| rest.get(from..from + 2).and_then(number);
        let (month, day, end) = (part(width), part(2 * width + 2), 2 * width + 4);
        let separated = width == 0 || rest.get(width + 2) == rest.first();
        let bounded = !rest.get(end).is_some_and(u8::is_ascii_digit)
            && !at.checked_sub(1).is_some_and(|before| text[before].is_ascii_digit());
        separated
            && bounded
            && month.is_some_and(|month| (1..=12).contains(&month))
            && day.is_some_and(|day| (1..=31).contains(&day))
    };
    text.windows(year.len()).enumerate().any(|(at, window)| window == year.as_bytes() && is_date(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_a_day_of_this_year() {
        for dated in ["2026-11-27", "ann:2026/01/31", "20261127", "k_2026_12_01_x", "2026-2026-02-03"] {
            assert!(contains_date_of(2026, dated.as_bytes()), "{dated}");
        }
        for other in [
            "",
            "2026",
            "2026-13-01",
            "2026-00-10",
            "2025-11-27",
            "2026-11",
            "120261127",
            "202611279",
            "2026-11/27",
            "2026-1-2",
        ] {
            assert!(!contains_date_of(2026, other.as_bytes()), "{other}");
        }
        assert!((2026..2200).contains(&this_year()));
    }
}
