//! Contains [`Resets`]: which keys of one policy an operator has reset or unblocked, and when, so
//! that a snapshot from before brings nothing of it back.
//!
//! This file must not know of buckets or snapshots.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    clock::{Clock, Timestamp},
    key::Key,
    snapshot::ResetMark,
    store::{AtCap, Cap, Expiring, Placement, Store, Sweepable},
    sweeper::Sweeping,
};

impl Expiring for ResetMark {
    fn is_over(self, now: Timestamp) -> bool {
        self.until <= now
    }
}

pub(crate) struct Resets {
    store: Arc<Store<ResetMark>>,
    /// Ended when this is dropped.
    _sweeping: Option<Sweeping>,
}

/// How many keys are remembered, and how many of one network. Beyond that a snapshot may bring back
/// what was reset, which is stricter and never looser.
const CAP: Cap = Cap { max_keys: 65_536, per_network: Some(1_024), beyond: AtCap::Deny };

impl Resets {
    /// Swept under the name `swept_as`, if it is given.
    pub(super) fn new(clock: &Clock, swept_as: Option<&Arc<str>>) -> Self {
        let store = Arc::new(Store::new(CAP, clock.clone()));
        let sweeping = swept_as.map(|name| {
            let weak: Weak<Store<ResetMark>> = Arc::downgrade(&store);
            Sweeping::start(format!("{name} (resets)").into(), weak, Duration::from_secs(60))
        });
        Self { store, _sweeping: sweeping }
    }

    pub(super) fn remember(&self, key: Key, mark: ResetMark) {
        let mut guard = self.store.guard(key);
        if guard.placement() == Placement::Own {
            let before = guard.value();
            guard.write(before.or_later(mark));
        }
    }

    pub(super) fn of(&self, key: Key) -> ResetMark {
        if self.store.len() == 0 {
            ResetMark::default()
        } else {
            self.store.get(key).map(|mark| *mark).unwrap_or_default()
        }
    }

    pub(super) fn all(&self) -> Vec<(Key, ResetMark)> {
        self.store.all()
    }

    pub(super) fn sweep(&self) {
        self.store.sweep();
    }
}
