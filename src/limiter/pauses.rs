//! Contains [`Pauses`]: until when the keys of one policy are paused.
//!
//! In a pause nothing comes back to a bucket: decisions stand at its end. This file must not know
//! of buckets, which whoever pauses a key moves by as much.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    clock::{Clock, Nanos, Timestamp},
    decision::{DecidedLimit, Level, WindowLeft},
    key::Key,
    quota::Quota,
    store::{AtCap, Cap, Expiring, Placement, Store, Sweepable},
    sweeper::Sweeping,
};

/// The pauses of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pause {
    /// When the last one ends.
    pub(crate) until: Timestamp,
    /// The length of all of them. What was reserved meanwhile comes later by what was added since.
    pub(crate) total: Nanos,
}

/// What is known of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct KnownPause {
    pause: Pause,
    /// Until when somebody may wait who has to know of the total.
    remembered_until: Timestamp,
}

impl Pause {
    /// Where a decision stands that is made at `now`.
    #[inline(always)]
    pub(crate) fn stands_at(self, now: Timestamp) -> Timestamp {
        now.max(self.until)
    }

    /// The length of the pauses since the total was this.
    pub(crate) fn since(self, total: Nanos) -> Nanos {
        self.total.saturating_sub(total)
    }

    /// The pause that also lasts for `time` from now on, and never shorter than before.
    fn extended(self, now: Timestamp, time: Nanos) -> Self {
        let until = self.until.max(now.saturating_add(time));
        let total = self.total.saturating_add(until.since(self.stands_at(now)));
        Self { until, total }
    }

    /// A backlog at the end of the pause, as it is shown at `now`: a paused key has no cells, and
    /// the next one comes no earlier than the end.
    pub(crate) fn shown(self, backlog: Nanos, quota: Quota, now: Timestamp) -> Nanos {
        let left = self.until.since(now);
        if left.is_zero() {
            return backlog;
        }
        let all_but_one = quota.burst_nanos().saturating_sub(quota.cell_nanos());
        backlog.max(all_but_one).saturating_add(left)
    }
}

impl Pause {
    /// The same of a window: in a pause it is used up, and nothing comes back before both have
    /// ended.
    pub(crate) fn shown_in_window(self, quota: Quota, backlog: Nanos, window: WindowLeft, now: Timestamp) -> Level {
        let left = self.until.since(now);
        if left.is_zero() {
            return Level { limit: DecidedLimit::of(quota, Some(window)), backlog };
        }
        let window = WindowLeft { left: window.left.max(left), ..window };
        Level { limit: DecidedLimit::of(quota, Some(window)), backlog: backlog.max(quota.burst_nanos()) }
    }
}

impl Expiring for KnownPause {
    fn is_over(self, now: Timestamp) -> bool {
        self.pause.until.max(self.remembered_until) <= now
    }
}

pub(crate) struct Pauses {
    store: Arc<Store<KnownPause>>,
    /// Ended when this is dropped.
    _sweeping: Option<Sweeping>,
}

/// How many keys can be paused, and how many of one network.
const CAP: Cap = Cap { max_keys: 65_536, per_network: Some(1_024), beyond: AtCap::Deny };

impl Pauses {
    /// Swept under the name `swept_as`, if it is given.
    pub(crate) fn new(clock: &Clock, swept_as: Option<&Arc<str>>) -> Self {
        let store = Arc::new(Store::new(CAP, clock.clone()));
        let sweeping = swept_as.map(|name| {
            // Named apart from the policy's own keys, for the report of a store near its cap.
            let weak: Weak<Store<KnownPause>> = Arc::downgrade(&store);
            Sweeping::start(format!("{name} (pauses)").into(), weak, Duration::from_secs(60))
        });
        Self { store, _sweeping: sweeping }
    }

    /// The pauses of `key`. Reads a counter as long as no key is paused.
    pub(crate) fn of(&self, key: Key) -> Pause {
        let known = if self.store.len() == 0 { None } else { self.store.get(key) };
        known.map(|known| known.pause).unwrap_or_default()
    }

    /// Pauses `key` for `time` from now on, and returns the pause before and the one that it is
    /// now. `None` where there is no place for another key.
    pub(super) fn extend(&self, key: Key, now: Timestamp, time: Nanos) -> Option<(Pause, Pause)> {
        let mut guard = self.store.guard(key);
        let has_place = guard.placement() == Placement::Own;
        let known = guard.value();
        let (before, after) = (known.pause, known.pause.extended(now, time));
        if has_place && after != before {
            // Whoever waits does so for as much longer.
            let remembered_until = known.remembered_until.saturating_add(after.since(before.total));
            guard.write(KnownPause { pause: after, remembered_until });
        }
        has_place.then_some((before, after))
    }

    /// Replaces what is known of `key`, if there is a place for it, and remembers it until then.
    #[cfg(feature = "redis")]
    pub(crate) fn record(&self, key: Key, pause: Pause, remembered_until: Timestamp) {
        let mut guard = self.store.guard(key);
        if guard.placement() == Placement::Own {
            guard.write(KnownPause { pause, remembered_until });
        }
    }

    /// Remembers the total of `key` until then.
    pub(super) fn remember(&self, key: Key, until: Timestamp) {
        if let Some(mut known) = self.store.get(key) {
            known.remembered_until = known.remembered_until.max(until);
        }
    }

    /// Ends the pause of `key`, and takes the rest of it out of the total. True if it was paused.
    pub(crate) fn end(&self, key: Key, now: Timestamp) -> bool {
        self.store.get(key).is_some_and(|mut known| {
            let rest = known.pause.until.since(now);
            known.pause.until = known.pause.until.min(now);
            known.pause.total = known.pause.total.saturating_sub(rest);
            !rest.is_zero()
        })
    }

    /// The keys that are paused, and until when.
    pub(super) fn save(&self) -> Vec<(Key, Timestamp)> {
        self.store.all().into_iter().map(|(key, known)| (key, known.pause.until)).collect()
    }

    pub(super) fn sweep(&self) {
        self.store.sweep();
    }
}
