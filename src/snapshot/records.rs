//! Contains what a snapshot says, apart from how it is written.

use crate::{
    bucket::Bucket,
    clock::{Nanos, Timestamp},
    key::Key,
    policy::Basis,
    quota::Quota,
};

/// The state of a limiter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Records {
    /// When it was taken, by the wall clock.
    pub(crate) wall: Timestamp,
    /// The same, by the limiter's clock.
    pub(crate) now: Timestamp,
    pub(crate) policies: Vec<PolicyRecord>,
}

/// The state of one policy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PolicyRecord {
    pub(crate) name: String,
    pub(crate) is_global: bool,
    pub(crate) has_windows: bool,
    /// When the current window ends, by the wall clock. The start of 1970 for a policy with a rate.
    pub(crate) window_end: Timestamp,
    /// How far ahead requests may have acquired cells.
    pub(crate) slack: Nanos,
    /// What buckets were decided by.
    pub(crate) bases: Vec<Basis>,
    pub(crate) buckets: Vec<(Key, SavedBucket)>,
    /// The number of slots for keys without a place of their own, and those that are used.
    pub(crate) overflow_len: u32,
    pub(crate) overflow: Vec<(u32, SavedBucket)>,
    pub(crate) penalties: PenaltyRecord,
    pub(crate) pauses: Vec<(Key, Timestamp)>,
    pub(crate) resets: Vec<(Key, ResetMark)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SavedBucket {
    pub(crate) bucket: Bucket,
    /// The number of what it was decided by, counted from one. Zero where that is not known.
    pub(crate) basis: u16,
}

/// Blocks, and what bans remember.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PenaltyRecord {
    pub(crate) blocks: Vec<(Key, Timestamp)>,
    pub(crate) bans: Option<BanRecord>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BanRecord {
    /// By which strikes are counted.
    pub(crate) strikes_by: Quota,
    pub(crate) blocks: Vec<(Key, Timestamp)>,
    pub(crate) severity: Vec<(Key, Timestamp)>,
    pub(crate) strikes: Vec<(Key, Bucket)>,
}

/// When a key was reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResetMark {
    /// When its bucket was filled.
    pub(crate) bucket: Timestamp,
    /// When its blocks and its pause were ended.
    pub(crate) block: Timestamp,
    /// Until when this may matter.
    pub(crate) until: Timestamp,
}

impl ResetMark {
    /// The same on another clock.
    pub(crate) fn shifted(self, shift: impl Fn(Timestamp) -> Timestamp) -> Self {
        Self { bucket: shift(self.bucket), block: shift(self.block), until: shift(self.until) }
    }

    pub(crate) fn or_later(self, other: Self) -> Self {
        Self {
            bucket: self.bucket.max(other.bucket),
            block: self.block.max(other.block),
            until: self.until.max(other.until),
        }
    }
}
