//! Contains [`Remembered`]: what a bucket was last decided by.

use crate::{clock::Nanos, policy::Basis, quota::Quota};

/// What a bucket was last decided by, beside what it is asked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remembered {
    /// The same.
    Asked,
    /// Nothing that is known: then its backlog counts as if it were the same.
    Nothing,
    /// Another quota, whose cells take so long.
    Other(Nanos),
}

impl Remembered {
    #[inline(always)]
    pub(super) fn of(basis: Basis, asked: Basis) -> Self {
        if basis == asked { Self::Asked } else { Self::Other(basis.quota.cell_nanos()) }
    }

    /// The time of a cell.
    pub(super) fn cell(self, asked: Quota) -> Nanos {
        match self {
            Self::Asked | Self::Nothing => asked.cell_nanos(),
            Self::Other(cell) => cell,
        }
    }
}
