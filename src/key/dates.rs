//! Contains [`DateWatch`], which notices texts that contain a date of this year.
//!
//! Such a key is new every day. Under a quota that takes long to come back, the keys of each day
//! stay for as long, until the map is full and new clients share overflow buckets. This file must
//! not know of policies.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
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
    seen: Mutex<Seen>,
}

/// Texts with one date, as hashes under a seed.
#[derive(Debug, Default)]
struct Seen {
    date: [u8; 4],
    texts: Vec<u64>,
    seed: RandomState,
}

/// How many texts are examined.
const TO_EXAMINE: u32 = 10_000;

/// How many different texts have the same date, one after another, before it seems to be that of
/// the day: the dates of accounts differ.
const DATED: usize = 10;

impl DateWatch {
    pub(super) fn new(policies: String) -> Self {
        let to_examine = AtomicU32::new(TO_EXAMINE);
        Self { watched: Arc::new(Watched { policies, to_examine, seen: Mutex::default() }) }
    }

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
        let Some(date) = date_of(this_year(), text) else { return };
        // Not examined while another thread examines: there are enough.
        let Ok(mut seen) = self.seen.try_lock() else { return };
        if seen.date != date {
            (seen.date, seen.texts) = (date, Vec::new());
        }
        let text = seen.seed.hash_one(text);
        if seen.texts.contains(&text) {
            return;
        }
        seen.texts.push(text);
        if seen.texts.len() == DATED {
            drop(seen);
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

/// The month and day of the first day of this year in a text: `2026-11-27`, or with another
/// separator, or without.
fn date_of(year: u64, text: &[u8]) -> Option<[u8; 4]> {
    let year = year.to_string();
    let digits = |part: &[u8]| match part {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some([*tens, *ones]),
        _ => None,
    };
    let number = |[tens, ones]: [u8; 2]| 10 * (tens - b'0') + (ones - b'0');
    let date = |at: usize| {
        let rest = &text[at + year.len()..];
        let width = usize::from(rest.first().is_some_and(|first| b"-/._".contains(first)));
        let part = |from: usize| rest.get(from..from + 2).and_then(digits);
        let (month, day, end) = (part(width)?, part(2 * width + 2)?, 2 * width + 4);
        let separated = width == 0 || rest.get(width + 2) == rest.first();
        let bounded = !rest.get(end).is_some_and(u8::is_ascii_digit)
            && !at.checked_sub(1).is_some_and(|before| text[before].is_ascii_digit());
        let is_date = (1..=12).contains(&number(month)) && (1..=31).contains(&number(day));
        (separated && bounded && is_date).then_some([month[0], month[1], day[0], day[1]])
    };
    let years = text.windows(year.len()).enumerate().filter(|(_, window)| *window == year.as_bytes());
    years.map(|(at, _)| at).find_map(date)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_a_day_of_this_year() {
        let date = |text: &str| date_of(2026, text.as_bytes());
        assert_eq!(date("ann:2026/01/31"), Some(*b"0131"));
        for dated in ["2026-11-27", "20261127", "k_2026_11_27_x", "2026-2026-11-27"] {
            assert_eq!(date(dated), Some(*b"1127"), "{dated}");
        }
        for other in ["", "2026", "2026-13-01", "2026-00-10", "2025-11-27", "2026-11"] {
            assert_eq!(date(other), None, "{other}");
        }
        for other in ["120261127", "202611279", "2026-11/27", "2026-1-2", "2026-11-32"] {
            assert_eq!(date(other), None, "{other}");
        }
        assert!((2026..2200).contains(&this_year()));
    }
}
