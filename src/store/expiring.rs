//! Contains [`Expiring`], what a store can contain.

use crate::{bucket::Bucket, clock::Timestamp};

/// A number that means nothing after some time.
pub(crate) trait Expiring: Copy + Default {
    /// Whether the number equals no number at all, now and at any later time.
    fn is_over(self, now: Timestamp) -> bool;
}

impl Expiring for Bucket {
    #[inline(always)]
    fn is_over(self, now: Timestamp) -> bool {
        self.is_idle(now)
    }
}

/// The end of a block, for instance.
impl Expiring for Timestamp {
    #[inline(always)]
    fn is_over(self, now: Timestamp) -> bool {
        self <= now
    }
}
