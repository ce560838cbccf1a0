//! [`Sketch`]: which keys are refused most, in bounded memory.
//!
//! Owns the counting. Knows nothing of policies but their index.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi, 2005): a key that is not tracked takes the place of the one with the
//! smallest count, and its count. So a count is never too small, too large by no more than `overestimate`, and a key with
//! more than its share of all refusals (one of as many as there are places) is never missed.

use std::sync::{Mutex, PoisonError};

use crate::key::Key;

#[derive(Debug)]
pub(super) struct Sketch {
    places: usize,
    entries: Mutex<Vec<Entry>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) policy: usize,
    pub(super) key: Key,
    pub(super) count: u64,
    pub(super) overestimate: u64,
}

impl Sketch {
    pub(super) fn new(places: usize) -> Self {
        Self { places, entries: Mutex::new(Vec::with_capacity(places)) }
    }

    pub(super) fn count(&self, policy: usize, key: Key) {
        // Not counted while another thread counts: under a flood a sample is as good, and nobody waits.
        let Ok(mut entries) = self.entries.try_lock() else { return };
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key == key && entry.policy == policy) {
            entry.count += 1;
        } else if entries.len() < self.places {
            entries.push(Entry { policy, key, count: 1, overestimate: 0 });
        } else if let Some(least) = entries.iter_mut().min_by_key(|entry| entry.count) {
            *least = Entry { policy, key, count: least.count + 1, overestimate: least.count };
        }
    }

    /// From the largest count.
    pub(super) fn top(&self) -> Vec<Entry> {
        let mut top = self.entries.lock().unwrap_or_else(PoisonError::into_inner).clone();
        top.sort_by_key(|entry| std::cmp::Reverse(entry.count));
        top
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{IntoKey as _, KeyHasher};

    #[test]
    fn the_heaviest_are_found_among_many_and_never_counted_too_low() {
        let (sketch, hasher) = (Sketch::new(16), KeyHasher::random());
        let key = |n: u64| n.into_key(&hasher);
        for n in 0..10_000 {
            sketch.count(0, key(1_000 + n));
            if n % 2 == 0 {
                sketch.count(0, key(1));
            }
            if n % 4 == 0 {
                sketch.count(0, key(2));
            }
        }
        let top = sketch.top();
        assert_eq!(top.len(), 16);
        assert_eq!(top.iter().map(|entry| entry.count).sum::<u64>(), 17_500, "each refusal is in one place");
        assert_eq!([top[0].key, top[1].key], [key(1), key(2)]);
        for (entry, truth) in top.iter().zip([5_000, 2_500]) {
            assert!(entry.count >= truth && entry.count - entry.overestimate <= truth, "{entry:?}");
        }
    }
}
