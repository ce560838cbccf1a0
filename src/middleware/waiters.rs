//! Contains [`Waiters`], how many requests wait in one layer, and how many may.
//!
//! This file must not know what a request waits for.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many requests wait in a layer, and how many may.
pub(crate) struct Waiters {
    max: usize,
    waiting: AtomicUsize,
}

impl Waiters {
    pub(crate) fn at_most(max: usize) -> Self {
        Self { max, waiting: AtomicUsize::new(0) }
    }

    /// The same bound, of requests that are counted anew.
    pub(crate) fn anew(&self) -> Self {
        Self::at_most(self.max)
    }

    /// Counts one more, which [leaves](Self::leave) later. Returns false where as many wait as may.
    pub(crate) fn enter(&self) -> bool {
        let more = |waiting| (waiting < self.max).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    pub(crate) fn leave(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}
