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
