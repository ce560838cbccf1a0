//! Contains [`TopDenied`]: which keys are denied most, counted in bounded memory.
//!
//! This file must not know of policies but their index.
//!
//! The algorithm is Space-Saving (Metwally, Agrawal, El Abbadi, 2005): a key that is not tracked
//! replaces the one with the smallest count, and inherits that count. So a count is never too
//! small, and too large by at most `overestimate`. With `n` places, a key with more than one in `n`
//! of all denials is always tracked.

use std::sync::{Arc, Mutex, PoisonError};

use crate::key::Key;

#[derive(Debug)]
pub(super) struct TopDenied {
    places: usize,
    keys: Mutex<Vec<TrackedKey>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct TrackedKey {
    pub(super) policy: usize,
    pub(super) key: Key,
    pub(super) count: u64,
    pub(super) overestimate: u64,
}

impl TopDenied {
    pub(super) fn new(places: usize) -> Self {
        Self { places, keys: Mutex::new(Vec::with_capacity(places)) }
    }

    /// The same keys, with the numbers that their policies have now. Those of policies that are
    /// gone are left out.
    pub(super) fn renumbered(&self, number: impl Fn(usize) -> Option<usize>) -> Self {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = keys.iter().filter_map(|tracked| Some(TrackedKey { policy: number(tracked.policy)?, ..*tracked }));
        Self { places: self.places, keys: Mutex::new(keys.collect()) }
    }

    pub(super) fn count(&self, policy: usize, key: Key) {
        // Not counted while another thread counts: in a flood a sample is as good, and no thread
        // waits.
        let Ok(mut keys) = self.keys.try_lock() else { return };
        if let Some(tracked) = keys.iter_mut().find(|tracked| tracked.key == key && tracked.policy == policy) {
            tracked.count += 1;
        } else if keys.len() < self.places {
            keys.push(TrackedKey { policy, key, count: 1, overestimate: 0 });
        } else if let Some(least) = keys.iter_mut().min_by_key(|tracked| tracked.count) {
            *least = TrackedKey { policy, key, count: least.count + 1, overestimate: least.count };
        }
    }

    /// Sorted from the largest count.
    pub(super) fn top(&self) -> Vec<TrackedKey> {
        let mut top = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        top.sort_by_key(|tracked| std::cmp::Reverse(tracked.count));
        top
    }
}

/// A key that was denied often. Made by
/// [`Limiter::top_denied`](crate::Limiter::top_denied).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeniedKey {
    /// The policy that denied it.
    pub policy: Arc<str>,
    /// The key.
    pub key: Key,
    /// The number of denials. It is never too small, except for denials that came while another one
    /// was being counted.
    pub denials: u64,
    /// By how much the number may be too large.
    pub overestimate: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{IntoKey as _, KeyHasher};

    #[test]
    fn the_most_denied_keys_are_tracked_among_many_and_never_counted_too_low() {
        let (top_denied, hasher) = (TopDenied::new(16), KeyHasher::random());
        let key = |n: u64| n.key(&hasher);
        for n in 0..10_000 {
            top_denied.count(0, key(1_000 + n));
            if n % 2 == 0 {
                top_denied.count(0, key(1));
            }
            if n % 4 == 0 {
                top_denied.count(0, key(2));
            }
        }
        let top = top_denied.top();
        assert_eq!(top.len(), 16);
        assert_eq!(top.iter().map(|tracked| tracked.count).sum::<u64>(), 17_500, "each denial is counted once");
        assert_eq!([top[0].key, top[1].key], [key(1), key(2)]);
        for (tracked, truth) in top.iter().zip([5_000, 2_500]) {
            assert!(tracked.count >= truth && tracked.count - tracked.overestimate <= truth, "{tracked:?}");
        }
    }
}
