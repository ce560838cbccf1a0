//! Contains [`BucketGuard`], one locked bucket, however it is stored.
//!
//! This file must not know of decisions.

use std::sync::PoisonError;

use super::{atomic_bucket::AtomicBucket, keyed_buckets::KeyedGuard, remembered::Remembered};
use crate::{
    bucket::Bucket,
    policy::Basis,
    quota::Quota,
    store::Placement,
    sync::{Mutex, MutexGuard},
};

/// One bucket, locked, unless it is the atomic one.
pub(super) enum BucketGuard<'a> {
    Atomic(&'a AtomicBucket),
    Keyed(KeyedGuard<'a>),
    Locked(MutexGuard<'a, (Bucket, Basis)>),
    /// No bucket, for a request that cannot have one.
    Nothing,
}

impl BucketGuard<'_> {
    /// The bucket as it is, and what it was last decided by.
    #[inline(always)]
    pub(super) fn read(&self, asked: Basis) -> (Bucket, Remembered) {
        match self {
            Self::Atomic(atomic) => {
                let (bucket, cell) = atomic.read();
                let same = cell == asked.quota.cell_nanos();
                (bucket, if same { Remembered::Asked } else { Remembered::Other(cell) })
            }
            Self::Keyed(guard) => guard.read(asked),
            Self::Locked(locked) => (locked.0, Remembered::of(locked.1, asked)),
            Self::Nothing => (Bucket::default(), Remembered::Nothing),
        }
    }

    /// Whether the bucket is still as it was `found`, and so belongs to what was read since.
    pub(super) fn is(&self, found: Bucket) -> bool {
        if let Self::Atomic(atomic) = self { atomic.is(found) } else { true }
    }

    /// The quota that was chosen for the key.
    pub(super) fn plan(&self) -> Option<Quota> {
        match self {
            Self::Keyed(guard) => chosen(guard.basis()),
            Self::Locked(locked) => chosen(Some(locked.1)),
            Self::Atomic(_) | Self::Nothing => None,
        }
    }

    #[inline(always)]
    pub(super) fn placement(&self) -> Placement {
        match self {
            Self::Keyed(guard) => guard.placement(),
            Self::Atomic(_) | Self::Locked(_) | Self::Nothing => Placement::Own,
        }
    }

    /// Writes a bucket that `basis` has decided, unless it is atomic and no longer as it was
    /// `found`. True where it was written. `None` leaves what the bucket remembers.
    #[inline(always)]
    pub(super) fn write(&mut self, found: Bucket, bucket: Bucket, basis: Option<Basis>) -> bool {
        match self {
            Self::Atomic(atomic) => {
                return match basis {
                    None => atomic.exchange(found, bucket),
                    Some(basis) => atomic.convert(found, bucket, basis.quota),
                };
            }
            Self::Keyed(guard) => guard.write(bucket, basis),
            Self::Locked(locked) => **locked = (bucket, basis.unwrap_or(locked.1)),
            Self::Nothing => {}
        }
        true
    }
}

/// The quota, if it was chosen for the key and is not the policy's own.
pub(super) fn chosen(basis: Option<Basis>) -> Option<Quota> {
    basis.filter(|basis| basis.planned).map(|basis| basis.quota)
}

/// No panic can leave a bucket half-written, because nothing panics while it is locked.
pub(super) fn lock(bucket: &Mutex<(Bucket, Basis)>) -> MutexGuard<'_, (Bucket, Basis)> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}
