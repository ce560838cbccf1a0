//! Contains [`Demand`]: what one request, or a caller that names a key, asks of one policy.

use crate::{key::Key, quota::Quota};

/// The quota that a bucket is decided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Basis {
    pub(crate) quota: Quota,
    /// Whether [`Policy::quota_by`](super::Policy::quota_by) chose it, or a caller has named it.
    /// Otherwise it is the policy's own.
    pub(crate) planned: bool,
}

/// What one request asks of one policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) key: Key,
    pub(crate) quota: Quota,
    pub(crate) cells: u32,
    /// Whether the quota was chosen for the request.
    pub(crate) planned: bool,
    pub(crate) shadow: bool,
}

impl Demand {
    #[inline(always)]
    pub(crate) fn basis(&self) -> Basis {
        Basis { quota: self.quota, planned: self.planned }
    }
}
