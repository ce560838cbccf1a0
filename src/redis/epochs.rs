//! Contains [`Epochs`]: since when what is known of a principal is true.
//!
//! When an operator has changed a bucket, what this process knows of it is true no more, and no
//! reply that is still on its way is worth knowing. So everything that is known has the epoch in
//! which Redis was asked, and a change starts the next one. Principals share epochs: forgetting
//! what is still true costs a call.

use std::sync::atomic::{AtomicU32, Ordering};

use super::names::Principal;

pub(super) struct Epochs([AtomicU32; SHARED]);

/// The number of epochs.
const SHARED: usize = 1_024;

/// The time between two changes of what is known of a principal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Epoch(u32);

impl Epochs {
    pub(super) fn new() -> Self {
        Self([const { AtomicU32::new(0) }; SHARED])
    }

    pub(super) fn of(&self, principal: Principal) -> Epoch {
        Epoch(self.0[principal.select(SHARED)].load(Ordering::Acquire))
    }

    /// Whatever is known of the principal is true no more.
    pub(super) fn end(&self, principal: Principal) {
        self.0[principal.select(SHARED)].fetch_add(1, Ordering::AcqRel);
    }

    /// Ends this epoch, if it has not ended yet, and returns the next one.
    pub(super) fn end_this(&self, principal: Principal, Epoch(epoch): Epoch) -> Option<Epoch> {
        let next = epoch.wrapping_add(1);
        let shared = &self.0[principal.select(SHARED)];
        shared.compare_exchange(epoch, next, Ordering::AcqRel, Ordering::Acquire).is_ok().then_some(Epoch(next))
    }

    /// Whatever is known is true no more.
    pub(super) fn end_all(&self) {
        for epoch in &self.0 {
            epoch.fetch_add(1, Ordering::AcqRel);
        }
    }
}
