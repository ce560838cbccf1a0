//! Contains the sweep of a store: it removes the numbers that time has emptied and returns memory.

use super::{Store, capacity::Capacity, expiring::Expiring};
use crate::clock::Timestamp;

/// A store, as the sweeper sees it.
pub(crate) trait Sweepable: Send + Sync {
    /// The size of the map, and its cap. `None` where there is no map.
    fn capacity(&self) -> Option<&Capacity>;

    /// Removes the numbers that are over, returns memory that is mostly unused, and returns how
    /// many were removed.
    ///
    /// # Locking behaviour
    ///
    /// Locks one shard at a time, also to shrink it. A number is tested under the lock that removes
    /// it, against an earlier reading of the clock: what was over then is over now.
    fn sweep(&self) -> usize;

    /// Whether over 80 % of the cap are used.
    fn is_near_cap(&self) -> bool {
        self.capacity().is_some_and(Capacity::is_near)
    }
}

impl<V: Expiring + Send + Sync> Sweepable for Store<V> {
    fn capacity(&self) -> Option<&Capacity> {
        Some(&self.capacity)
    }

    fn sweep(&self) -> usize {
        self.sweep_until(self.clock.now())
    }
}

impl<V: Expiring> Store<V> {
    /// Removes the numbers that are over at this time.
    pub(crate) fn sweep_until(&self, now: Timestamp) -> usize {
        let mut removed = 0;
        self.map.retain(|key, value| {
            let over = value.is_over(now);
            if over {
                removed += 1;
                self.capacity.release(self.map.hasher(), (*key).into());
            }
            !over
        });
        let needed = self.len().max(SMALL);
        if self.map.capacity() / 4 > needed {
            self.map.shrink_to_fit();
        }
        removed
    }
}

/// The number of places that are not worth returning.
const SMALL: usize = 1_024;

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        bucket::Bucket,
        clock::{ManualClock, Timestamp},
        key::{IntoKey as _, KeyHasher},
        store::{AtCap, Cap, shards},
    };

    #[test]
    fn mem05_memory_is_returned_after_a_flood() {
        let clock = ManualClock::new();
        let store = Store::new(Cap::new(1_000_000, AtCap::Overflow), clock.clone().into());
        let keys = KeyHasher::random();
        for n in 0..200_000_u64 {
            store.guard(n.key(&keys)).write(Bucket::from_bits(if n < 100 { u64::MAX } else { 1 }));
        }
        assert!(store.map.capacity() >= 200_000);
        clock.advance(Duration::from_secs(1));
        assert_eq!(store.sweep(), 199_900);
        assert_eq!((store.len(), store.map.len()), (100, 100));
        assert!(store.map.capacity() <= 4 * SMALL, "memory for {} keys remains", store.map.capacity());
        assert_eq!(store.sweep(), 0);
    }

    /// Otherwise it would be allocated again for the next clients.
    #[test]
    fn memory_that_is_mostly_used_stays() {
        let clock = ManualClock::new();
        let store = Store::new(Cap::new(100_000, AtCap::Overflow), clock.clone().into());
        let keys = KeyHasher::random();
        for n in 0..8_000_u64 {
            store.guard(n.key(&keys)).write(Bucket::from_bits(if n < 5_000 { u64::MAX } else { 1 }));
        }
        let before = store.map.capacity();
        clock.advance(Duration::from_secs(1));
        assert_eq!(store.sweep(), 3_000);
        // A removal may leave a mark that takes a place; a smaller table would have half of them.
        assert!(store.map.capacity() > before * 3 / 4, "{} of {before}", store.map.capacity());
    }

    #[test]
    fn the_ends_of_blocks_are_removed_when_they_are_over() {
        let clock = ManualClock::new();
        let store = Store::new(Cap::new(100, AtCap::Deny), clock.clone().into());
        let keys = KeyHasher::random();
        for second in 1..=3_u64 {
            store.guard(second.key(&keys)).write(Timestamp::from_nanos(second * 1_000_000_000));
        }
        clock.advance(Duration::from_secs(2));
        assert_eq!((store.sweep(), store.len()), (2, 1));
    }

    #[test]
    fn swp04_a_shard_has_4096_to_8192_keys_at_the_cap() {
        for max_keys in [1_000_000, 4_000_000, 100_000_000] {
            assert!((4_096..=8_192).contains(&(max_keys / shards(max_keys))), "{max_keys}");
        }
    }
}
