//! Contains [`Waiters`], how many requests wait in one layer and how many may, and [`WaiterSlot`],
//! one of them.
//!
//! This file must not know what a request waits for.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

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

    /// How many wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }
}

/// One of the requests that may wait, until this is dropped. `Q` is what the services of a layer
/// share.
pub(crate) struct WaiterSlot<Q: AsRef<Waiters>> {
    queue: Arc<Q>,
}

impl<Q: AsRef<Waiters>> WaiterSlot<Q> {
    /// `None` where as many wait as may.
    pub(crate) fn take(queue: &Arc<Q>) -> Option<Self> {
        let Waiters { max, waiting } = (**queue).as_ref();
        let more = |waiting| (waiting < *max).then_some(waiting + 1);
        let counted = waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        counted.is_ok().then(|| Self { queue: Arc::clone(queue) })
    }

    pub(crate) fn queue(&self) -> &Q {
        &self.queue
    }
}

impl<Q: AsRef<Waiters>> Drop for WaiterSlot<Q> {
    fn drop(&mut self) {
        (*self.queue).as_ref().waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
