//! Contains [`KeyedBuckets`], the map of one keyed policy: for each key a bucket, and the number of
//! the quota by which it was last decided.
//!
//! This file must not know of decisions.

use std::sync::Arc;

use super::{
    quota_table::{QuotaId, QuotaTable},
    remembered::Remembered,
    window_clock::WindowClock,
};
use crate::{
    bucket::Bucket,
    clock::{Clock, Timestamp},
    key::{Key, KeyHasher},
    policy::Basis,
    store::{Cap, Capacity, Expiring, Placement, Store, StoreGuard, Sweepable},
};

/// A bucket with the number of its quota, in ten bytes: an entry of the map takes 24.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed(2))]
pub(super) struct NumberedBucket {
    bucket: Bucket,
    quota: QuotaId,
}

impl NumberedBucket {
    #[inline(always)]
    pub(super) fn bucket(self) -> Bucket {
        self.bucket
    }

    #[inline(always)]
    pub(super) fn quota(self) -> QuotaId {
        self.quota
    }

    /// The same, with another bucket under the same quota.
    #[inline(always)]
    pub(super) fn with_bucket(self, bucket: Bucket) -> Self {
        Self { bucket, ..self }
    }
}

impl Expiring for NumberedBucket {
    #[inline(always)]
    fn is_over(self, now: Timestamp) -> bool {
        self.bucket().is_idle(now)
    }
}

pub(super) struct KeyedBuckets {
    store: Store<NumberedBucket>,
    quotas: QuotaTable,
    window: Option<Arc<WindowClock>>,
}

impl KeyedBuckets {
    pub(super) fn new(cap: Cap, clock: Clock, hasher: KeyHasher, window: Option<Arc<WindowClock>>) -> Arc<Self> {
        Arc::new(Self { store: Store::with_overflow(cap, clock, hasher), quotas: QuotaTable::new(), window })
    }

    #[inline(always)]
    pub(super) fn store(&self) -> &Store<NumberedBucket> {
        &self.store
    }

    #[inline(always)]
    pub(super) fn quotas(&self) -> &QuotaTable {
        &self.quotas
    }

    #[inline(always)]
    pub(super) fn guard(&self, key: Key) -> KeyedGuard<'_> {
        KeyedGuard { guard: self.store.guard(key), quotas: &self.quotas }
    }

    /// Lists `limit` keys from position `from` on.
    pub(super) fn list(&self, from: usize, limit: usize) -> Vec<Key> {
        self.store.list(from, limit).into_iter().map(|(key, _)| key).collect()
    }
}

impl Sweepable for KeyedBuckets {
    fn capacity(&self) -> Option<&Capacity> {
        self.store.capacity()
    }

    fn sweep(&self) -> usize {
        let removed = match &self.window {
            // Not until now: what was used in this window is used until its end.
            Some(window) => {
                window.follow();
                self.store.sweep_until(window.start())
            }
            None => self.store.sweep(),
        };
        self.quotas.reclaim(|see| self.store.see_all(|numbered| see(numbered.quota())));
        removed
    }
}

/// One bucket, locked until this is dropped.
pub(super) struct KeyedGuard<'a> {
    guard: StoreGuard<'a, NumberedBucket>,
    quotas: &'a QuotaTable,
}

impl<'a> KeyedGuard<'a> {
    /// The guard of the slot of the overflow table that `key` uses.
    pub(super) fn overflow(buckets: &'a KeyedBuckets, key: Key) -> Self {
        Self { guard: StoreGuard::Overflow(buckets.store.overflow_slot(key)), quotas: &buckets.quotas }
    }

    /// The guard of the slot at this index of the overflow table.
    pub(super) fn slot(buckets: &'a KeyedBuckets, index: usize) -> Self {
        Self { guard: StoreGuard::Overflow(buckets.store.lock_overflow(index)), quotas: &buckets.quotas }
    }

    #[inline(always)]
    pub(super) fn placement(&self) -> Placement {
        self.guard.placement()
    }

    /// The bucket, and what it was last decided by.
    #[inline(always)]
    pub(super) fn read(&self, asked: Basis) -> (Bucket, Remembered) {
        let numbered = self.guard.value();
        let same = self.quotas.is(numbered.quota(), asked);
        (numbered.bucket(), if same { Remembered::Asked } else { self.remembered(asked) })
    }

    #[cold]
    fn remembered(&self, asked: Basis) -> Remembered {
        self.basis().map_or(Remembered::Nothing, |basis| Remembered::of(basis, asked))
    }

    /// What the bucket was last decided by, if that is known.
    pub(super) fn basis(&self) -> Option<Basis> {
        self.quotas.get(self.guard.value().quota())
    }

    /// Writes a bucket that `basis` has decided. `None` leaves what is remembered.
    #[inline(always)]
    pub(super) fn write(&mut self, bucket: Bucket, basis: Option<Basis>) {
        match basis {
            Some(basis) => self.guard.write(NumberedBucket { bucket, quota: self.quotas.id(basis) }),
            None => self.guard.change(|numbered| numbered.with_bucket(bucket)),
        }
    }
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use super::*;
    use crate::{clock::ManualClock, key::IntoKey as _, quota::Quota, store::AtCap};

    #[test]
    fn the_sweeper_frees_the_numbers_of_quotas_that_no_bucket_has() {
        let clock = ManualClock::new();
        let buckets =
            KeyedBuckets::new(Cap::new(100_000, AtCap::Deny), clock.clone().into(), KeyHasher::random(), None);
        let (keys, ahead) = (KeyHasher::random(), Bucket::from_bits(u64::MAX));
        // An application that computes a quota for each request.
        for n in 0..200_000_u32 {
            let basis = Basis { quota: Quota::per_hour(n + 1), planned: true };
            let mut guard = buckets.guard((n % 100).key(&keys));
            guard.write(ahead, Some(basis));
            drop(guard);
            let read = buckets.guard((n % 100).key(&keys)).read(basis);
            assert!(matches!(read, (bucket, Remembered::Asked) if bucket == ahead), "{n}: {read:?}");
            if n % 20_000 == 0 {
                buckets.sweep();
                buckets.sweep();
            }
        }
    }
}
