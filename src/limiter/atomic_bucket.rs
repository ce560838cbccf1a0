//! Contains [`AtomicBucket`], the bucket of the only global policy. It changes by compare-exchange,
//! so that the one bucket that all requests share is never locked.
//!
//! This file must not know of decisions over several policies.

use std::sync::PoisonError;

use crate::{
    bucket::Bucket,
    clock::Nanos,
    quota::Quota,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// A bucket, and the time of a cell of the quota that it was last decided by.
///
/// The two are read one after the other, and belong together if the bucket has not changed since: a
/// conversion closes the bucket while it changes the time of a cell, and leaves another number.
pub(super) struct AtomicBucket {
    bits: AtomicU64,
    cell: AtomicU64,
    /// Locked while the bucket is closed.
    converting: Mutex<()>,
}

/// In place of a bucket that is being converted. No bucket is as far ahead.
const CLOSED: u64 = u64::MAX;

impl AtomicBucket {
    /// An empty bucket, of a quota whose cells take `cell`.
    pub(super) fn new(cell: Nanos) -> Self {
        Self { bits: AtomicU64::new(0), cell: AtomicU64::new(cell.get()), converting: Mutex::new(()) }
    }

    /// The bucket and the time of a cell, which belong together if the bucket [is still](Self::is)
    /// the same afterwards, or is exchanged. While it is converted, the bucket is as far ahead as
    /// numbers go.
    #[inline(always)]
    pub(super) fn read_unchecked(&self) -> (Bucket, Nanos) {
        let bits = self.bits.load(Ordering::Acquire);
        // Acquire: a later change of the time of a cell comes with a later change of the bucket.
        let cell = self.cell.load(Ordering::Acquire);
        (Bucket::from_bits(bits), Nanos::new(cell))
    }

    /// The bucket, and the time of a cell.
    pub(super) fn read(&self) -> (Bucket, Nanos) {
        loop {
            let found = self.read_unchecked();
            if found.0.to_bits() == CLOSED {
                // Waits until it is converted.
                drop(self.converting.lock().unwrap_or_else(PoisonError::into_inner));
            } else if self.is(found.0) {
                return found;
            }
        }
    }

    /// Whether the bucket is still as it was `found`: a conversion leaves it different.
    #[inline]
    pub(super) fn is(&self, found: Bucket) -> bool {
        self.bits.load(Ordering::Acquire) == found.to_bits()
    }

    /// Exchanges the bucket if it is still as it was `found`. True where it was.
    #[inline(always)]
    pub(super) fn exchange(&self, found: Bucket, after: Bucket) -> bool {
        let (found, after) = (found.to_bits(), after.to_bits().min(CLOSED - 1));
        self.bits.compare_exchange(found, after, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Changes the bucket, and whatever `change` does with it, while nobody else reads or exchanges
    /// it. Whoever has read it before exchanges it no more. `None` leaves it as it was.
    #[cold]
    pub(super) fn change_closed(&self, change: impl FnOnce(Bucket) -> Option<Bucket>) {
        let _closed = self.converting.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.bits.swap(CLOSED, Ordering::AcqRel);
        let after = change(Bucket::from_bits(found)).map_or(found, |after| unlike(after, found));
        self.bits.store(after, Ordering::Release);
    }

    /// Exchanges the bucket for one that `quota` has decided, if it is still as it was `found`.
    /// True where it was.
    #[cold]
    pub(super) fn convert(&self, found: Bucket, after: Bucket, quota: Quota) -> bool {
        if self.cell.load(Ordering::Acquire) == quota.cell_nanos().get() {
            return self.exchange(found, after);
        }
        let _closed = self.converting.lock().unwrap_or_else(PoisonError::into_inner);
        let found = found.to_bits();
        if self.bits.compare_exchange(found, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        self.cell.store(quota.cell_nanos().get(), Ordering::Release);
        // Different, so that no thread that has read the time of a cell before exchanges it.
        self.bits.store(unlike(after, found), Ordering::Release);
        true
    }
}

/// The number of a bucket, or the next one where it would be this.
fn unlike(after: Bucket, found: u64) -> u64 {
    match after.to_bits().min(CLOSED - 1) {
        same if same == found && same < CLOSED - 1 => same + 1,
        same if same == found => same - 1,
        after => after,
    }
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use super::*;

    /// Otherwise whoever reads it next waits for ever.
    #[test]
    fn no_bucket_is_as_far_ahead_as_a_closed_one() {
        let [old, new] = [Quota::per_hour(1), Quota::per_hour(2)];
        for bits in CLOSED - 3..=CLOSED {
            let bucket = AtomicBucket::new(old.cell_nanos());
            assert!(bucket.exchange(Bucket::default(), Bucket::from_bits(bits)));
            for quota in [new, old] {
                let (found, _) = bucket.read_unchecked();
                assert!(found.to_bits() < CLOSED && bucket.convert(found, Bucket::from_bits(bits), quota));
                assert!(bucket.read().0 != found, "a conversion leaves another number");
            }
        }
    }
}

#[cfg(all(test, tower_quota_loom))]
mod models {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    use crate::clock::Timestamp;

    /// Two threads acquire by one quota while a third converts to another one: what is in the
    /// bucket afterwards are as many cells as were acquired, whatever the order.
    #[test]
    fn loom_no_cell_is_added_in_the_time_of_the_wrong_quota() {
        const NOW: Timestamp = Timestamp::ORIGIN;
        fn acquire(bucket: &AtomicBucket, quota: Quota) {
            loop {
                let (found, cell) = bucket.read();
                let (from, to) = (cell, quota.cell_nanos());
                let converted = if from == to { found } else { found.converted(NOW, from, to) };
                let after = Bucket::with_backlog(NOW, converted.backlog(NOW).saturating_add(to));
                if if from == to { bucket.exchange(found, after) } else { bucket.convert(found, after, quota) } {
                    return;
                }
            }
        }
        loom::model(|| {
            let [old, new] = [Quota::per_hour(10), Quota::per_hour(1_000)];
            let bucket = Arc::new(AtomicBucket::new(old.cell_nanos()));
            acquire(&bucket, old);
            let threads = [old, new].map(|quota| {
                let bucket = Arc::clone(&bucket);
                thread::spawn(move || acquire(&bucket, quota))
            });
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            let (found, cell) = bucket.read();
            assert_eq!(found.backlog(NOW).get(), 3 * cell.get());
        });
    }

    /// Otherwise a cell of an hour may be read as many of a second.
    #[test]
    fn loom_what_is_read_beside_a_conversion_belongs_together() {
        loom::model(|| {
            let [old, new] = [10, 1_000].map(|cells| Quota::per_hour(cells).cell_nanos());
            let of = |cell| Bucket::with_backlog(Timestamp::ORIGIN, cell);
            let bucket = Arc::new(AtomicBucket::new(old));
            assert!(bucket.exchange(Bucket::default(), of(old)));
            let converting = thread::spawn({
                let bucket = Arc::clone(&bucket);
                move || assert!(bucket.convert(of(old), of(new), Quota::per_hour(1_000)))
            });
            let (found, cell) = bucket.read();
            assert_eq!(found.backlog(Timestamp::ORIGIN), cell);
            converting.join().unwrap();
        });
    }
}
