//! Giving back the memory of keys that owe nothing.

use super::Store;

impl Store {
    /// Removes the buckets that time has emptied and gives back memory that is mostly unused. Returns how many were
    /// removed.
    ///
    /// # Locking behaviour
    ///
    /// Locks one shard at a time, also to shrink it. A bucket is tested under the lock that removes it, against a reading
    /// of the clock from before: what was empty then is empty now, and an empty bucket equals no bucket.
    pub(crate) fn sweep(&self) -> usize {
        let now = self.clock.now();
        let mut removed = 0;
        self.map.retain(|key, bucket| {
            let idle = bucket.is_idle(now);
            if idle {
                removed += 1;
                self.capacity.release(self.map.hasher(), *key);
            }
            !idle
        });
        let needed = self.len().max(SMALL);
        if self.map.capacity() / 4 > needed {
            self.map.shrink_to_fit();
        }
        removed
    }
}

/// Room that is not worth giving back.
const SMALL: usize = 1_024;

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        bucket::Bucket,
        clock::ManualClock,
        key::{IntoKey as _, KeyHasher},
        store::{AtCap, shards},
    };

    #[test]
    fn mem05_memory_is_given_back_after_a_flood() {
        let clock = ManualClock::new();
        let store = Store::new(1_000_000, AtCap::Overflow, clock.clone().into());
        let keys = KeyHasher::random();
        for n in 0..200_000_u64 {
            store.hold(n.into_key(&keys)).write(Bucket::from_bits(if n < 100 { u64::MAX } else { 1 }));
        }
        assert!(store.map.capacity() >= 200_000);
        clock.advance(Duration::from_secs(1));
        assert_eq!(store.sweep(), 199_900);
        assert_eq!((store.len(), store.map.len()), (100, 100));
        assert!(store.map.capacity() <= 4 * SMALL, "room for {} keys is kept", store.map.capacity());
        assert_eq!(store.sweep(), 0);
    }

    /// Else it would be made again for the next clients.
    #[test]
    fn memory_that_is_mostly_used_is_kept() {
        let clock = ManualClock::new();
        let store = Store::new(100_000, AtCap::Overflow, clock.clone().into());
        let keys = KeyHasher::random();
        for n in 0..8_000_u64 {
            store.hold(n.into_key(&keys)).write(Bucket::from_bits(if n < 5_000 { u64::MAX } else { 1 }));
        }
        let room = store.map.capacity();
        clock.advance(Duration::from_secs(1));
        assert_eq!(store.sweep(), 3_000);
        assert_eq!(store.map.capacity(), room);
    }

    #[test]
    fn swp04_a_shard_holds_4096_to_8192_keys_at_the_cap() {
        for max_keys in [1_000_000, 4_000_000, 100_000_000] {
            assert!((4_096..=8_192).contains(&(max_keys / shards(max_keys))), "{max_keys}");
        }
    }
}
