//! Contains [`Penalties`]: the keys of one policy that are blocked, by an operator or by a ban.
//!
//! This file decides how long a block lasts. It must not know of the policy's own buckets, which no
//! block changes.
//!
//! All of it is numbers that time empties, in stores like every bucket: when a block ends, the
//! strikes of a key, counted by a quota of their own, and its severity. Severity is three times the
//! length of a block when the block starts. What remains of it when the next block starts is the
//! length of that block. So penalties are bounded, swept, and forgotten as every bucket is.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    bucket::{self, Bucket},
    clock::{Clock, Nanos, Timestamp},
    key::Key,
    policy::Ban,
    snapshot::{BanRecord, PenaltyRecord},
    store::{AtCap, Cap, Placement, Store, Sweepable},
    sweeper::{self, Sweeping},
};

pub(super) struct Penalties {
    /// The blocks of an operator. Separate from bans, so that many banned keys cannot take their
    /// places.
    blocks: Arc<Store<Timestamp>>,
    bans: Option<Bans>,
    /// Ended when this is dropped.
    _sweepings: Vec<Sweeping>,
}

struct Bans {
    rule: Ban,
    blocks: Arc<Store<Timestamp>>,
    strikes: Arc<Store>,
    severity: Arc<Store<Timestamp>>,
}

/// How many keys can be blocked, and how many of one network. Further keys are limited all the
/// same.
const CAP: Cap = Cap { max_keys: 65_536, per_network: Some(1_024), beyond: AtCap::Deny };

impl Penalties {
    /// Swept under the name `swept_as`, if it is given.
    pub(super) fn new(rule: Option<Ban>, clock: &Clock, swept_as: Option<&Arc<str>>) -> Self {
        Self::after(None, rule, clock, swept_as)
    }

    /// The same under another rule: whoever is blocked stays so. Where there is no rule any more,
    /// bans end.
    pub(super) fn with_rule(&self, rule: Option<Ban>, clock: &Clock, swept_as: Option<&Arc<str>>) -> Self {
        Self::after(Some(self), rule, clock, swept_as)
    }

    fn after(former: Option<&Self>, rule: Option<Ban>, clock: &Clock, swept_as: Option<&Arc<str>>) -> Self {
        let mut sweepings = Vec::new();
        // Named apart from the policy's own keys, for the report of a store near its cap.
        let mut sweep = |what, store: Weak<dyn Sweepable>, period| {
            let name = swept_as.map(|name| format!("{name} ({what})").into());
            sweepings.extend(name.map(|name| Sweeping::start(name, store, period)));
        };
        let minute = Duration::from_secs(60);
        let mut ends = |what, former: Option<&Arc<Store<Timestamp>>>| {
            let store = former.map_or_else(|| Arc::new(Store::<Timestamp>::new(CAP, clock.clone())), Arc::clone);
            let weak: Weak<Store<Timestamp>> = Arc::downgrade(&store);
            sweep(what, weak, minute);
            store
        };
        let blocks = ends("blocks", former.map(|former| &former.blocks));
        let former = former.and_then(|former| former.bans.as_ref());
        let bans = rule.map(|rule| {
            let blocks = ends("bans", former.map(|former| &former.blocks));
            (rule, blocks, ends("ban severity", former.map(|former| &former.severity)))
        });
        let bans = bans.map(|(rule, blocks, severity)| {
            // Strikes are counted by the rule, and anew by another one.
            let same = former.filter(|former| former.rule.strikes == rule.strikes);
            let strikes = same
                .map_or_else(|| Arc::new(Store::<Bucket>::new(CAP, clock.clone())), |same| Arc::clone(&same.strikes));
            let weak: Weak<Store> = Arc::downgrade(&strikes);
            sweep("strikes", weak, sweeper::period(rule.strikes.time_to_fill()));
            Bans { rule, blocks, strikes, severity }
        });
        Self { blocks, bans, _sweepings: sweepings }
    }

    /// When the block of `key` ends. Reads one or two counters as long as no key is blocked.
    #[inline(always)]
    pub(super) fn blocked_until(&self, key: Key) -> Option<Timestamp> {
        let end = |store: &Store<Timestamp>| if store.len() == 0 { None } else { store.get(key).map(|end| *end) };
        end(&self.blocks).max(self.bans.as_ref().and_then(|bans| end(&bans.blocks)))
    }

    /// Blocks `key` until then, also for shorter than before. A time that is over ends all blocks
    /// of the key. False where there is no place for another key.
    pub(super) fn block(&self, key: Key, until: Timestamp, now: Timestamp) -> bool {
        if until <= now {
            self.forget(key, now);
            return true;
        }
        let mut guard = self.blocks.guard(key);
        let has_place = guard.placement() == Placement::Own;
        if has_place {
            guard.write(until);
        }
        has_place
    }

    /// Counts a denial. Returns how long the key is blocked for it, if it is.
    pub(super) fn strike(&self, key: Key, now: Timestamp) -> Option<Nanos> {
        let Bans { rule, blocks, strikes, severity } = self.bans.as_ref()?;
        {
            let mut guard = strikes.guard(key);
            let evaluation = guard.value().evaluate(now, rule.strikes, 1, bucket::horizon(rule.strikes));
            let all_but_one = rule.strikes.burst_nanos().saturating_sub(rule.strikes.cell_nanos());
            if evaluation.is_granted() && evaluation.after.backlog(now) <= all_but_one {
                guard.write(evaluation.after);
                return None;
            }
            // Counted anew after the block.
            guard.write(Bucket::default());
        }
        let (initial, max) = (Nanos::from(rule.initial), Nanos::from(rule.max));
        {
            let mut guard = blocks.guard(key);
            if guard.placement() != Placement::Own {
                return None;
            }
            let until = guard.value();
            // The denial came at the same time as others, for which the key is blocked already. It
            // is not a repetition.
            if until > now {
                return Some(until.since(now));
            }
            guard.write(now.saturating_add(initial));
        }
        let length = {
            let mut guard = severity.guard(key);
            let length = guard.value().since(now).clamp(initial, max.max(initial));
            guard.write(now.saturating_add(length.saturating_mul(3)));
            length
        };
        let mut guard = blocks.guard(key);
        // Never shorter than another thread's block.
        let until = guard.value().max(now.saturating_add(length));
        guard.write(until);
        (guard.placement() == Placement::Own).then(|| until.since(now))
    }

    /// Ends the blocks of `key`, and forgets its strikes. True if it was blocked.
    pub(super) fn forget(&self, key: Key, now: Timestamp) -> bool {
        let blocked = self.blocked_until(key).is_some_and(|until| until > now);
        let bans = self.bans.iter().flat_map(|bans| [&bans.blocks, &bans.severity]);
        for store in std::iter::once(&self.blocks).chain(bans) {
            if let Some(mut end) = store.get(key) {
                *end = Timestamp::ORIGIN;
            }
        }
        if let Some(mut strikes) = self.bans.as_ref().and_then(|bans| bans.strikes.get(key)) {
            *strikes = Bucket::default();
        }
        blocked
    }

    /// Ends the ban of `key` here, and remembers how severe it was.
    #[cfg(feature = "redis")]
    pub(super) fn hand_over(&self, key: Key) {
        if let Some(mut end) = self.bans.as_ref().and_then(|bans| bans.blocks.get(key)) {
            *end = Timestamp::ORIGIN;
        }
    }

    /// What a snapshot says of them.
    pub(super) fn save(&self) -> PenaltyRecord {
        let bans = self.bans.as_ref().map(|Bans { rule, blocks, strikes, severity }| BanRecord {
            strikes_by: rule.strikes,
            blocks: blocks.all(),
            severity: severity.all(),
            strikes: strikes.all(),
        });
        PenaltyRecord { blocks: self.blocks.all(), bans }
    }

    /// Restores them, where they `stand`: whoever is blocked is so for no less. Where there is no
    /// rule any more, bans end.
    pub(super) fn restore(
        &self,
        PenaltyRecord { blocks, bans }: &PenaltyRecord,
        shift: impl Fn(Timestamp) -> Timestamp,
        stand: impl Fn(Key) -> bool,
        now: Timestamp,
    ) {
        let ends = |store: &Store<Timestamp>, record: &[(Key, Timestamp)]| {
            let lasting = record.iter().map(|(key, until)| (*key, shift(*until))).filter(|(_, until)| *until > now);
            for (key, until) in lasting.filter(|(key, _)| stand(*key)) {
                let mut guard = store.guard(key);
                let until = guard.value().max(until);
                guard.write(until);
            }
        };
        ends(&self.blocks, blocks);
        if let (Some(here), Some(record)) = (&self.bans, bans) {
            ends(&here.blocks, &record.blocks);
            ends(&here.severity, &record.severity);
            // Strikes are counted by the rule, and anew by another one.
            let same = record.strikes.iter().filter(|_| here.rule.strikes == record.strikes_by);
            for (key, bucket) in same.filter(|(key, _)| stand(*key)) {
                let full_at = shift(bucket.full_at());
                if full_at > now {
                    let mut guard = here.strikes.guard(*key);
                    let full_at = guard.value().full_at().max(full_at);
                    guard.write(Bucket::from_bits(full_at.as_nanos()));
                }
            }
        }
    }

    pub(super) fn sweep(&self) {
        self.blocks.sweep();
        if let Some(Bans { blocks, strikes, severity, .. }) = &self.bans {
            blocks.sweep();
            severity.sweep();
            strikes.sweep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::ManualClock,
        key::{IntoKey as _, KeyHasher},
    };

    fn seconds(seconds: u64) -> Nanos {
        Nanos::SECOND.saturating_mul(seconds)
    }

    fn at(time: u64) -> Timestamp {
        Timestamp::ORIGIN.saturating_add(seconds(time))
    }

    #[test]
    fn a_late_decision_shortens_no_block() {
        let minute = Duration::from_secs(60);
        let ban = Ban::after(1, minute).initial(minute).max(minute);
        let penalties = Penalties::new(Some(ban), &ManualClock::new().into(), None);
        let key = 7_u64.key(&KeyHasher::random());
        assert_eq!(penalties.strike(key, at(100)), Some(seconds(60)));
        assert_eq!(penalties.strike(key, at(50)), Some(seconds(110)));
        assert_eq!(penalties.blocked_until(key), Some(at(160)));
    }

    #[test]
    fn denials_at_the_same_time_are_one_offence() {
        let minute = Duration::from_secs(60);
        let ban = Ban::after(1, minute).initial(minute).max(60 * minute);
        let penalties = Penalties::new(Some(ban), &ManualClock::new().into(), None);
        let key = 7_u64.key(&KeyHasher::random());
        for _decided_before_the_block_was_seen in 0..8 {
            assert_eq!(penalties.strike(key, at(100)), Some(seconds(60)));
        }
        assert_eq!(penalties.strike(key, at(160)), Some(seconds(120)), "and the next one is the second");
    }
}
