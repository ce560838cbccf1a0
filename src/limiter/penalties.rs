//! [`Penalties`]: the keys of one policy that are blocked, by hand or for being refused too often.
//!
//! Owns how long a block lasts. Knows nothing of the policy's own buckets, which no block touches.
//!
//! Stores of numbers that time empties, like every bucket: until when a key is blocked, by hand and otherwise; its strikes,
//! which a quota of their own counts; and how bad it has been, which is three times the length of its last block at
//! first. So all of it is bounded, swept, and forgotten as every bucket is.

use std::{sync::Arc, time::Duration};

use crate::{
    bucket::Bucket,
    clock::{Clock, nanos},
    key::Key,
    policy::Ban,
    store::{AtCap, Room, Store},
    sweeper::{self, Sweeping},
};

pub(super) struct Penalties {
    /// By hand. Apart from the others, so that no flood of offenders takes the room of an operator.
    by_hand: Arc<Store>,
    ban: Option<Banning>,
    /// Ended when this is dropped.
    _sweepings: Vec<Sweeping>,
}

struct Banning {
    ban: Ban,
    blocked: Arc<Store>,
    strikes: Arc<Store>,
    severity: Arc<Store>,
}

/// More keys are not blocked. They are limited all the same.
const MOST: usize = 65_536;

impl Penalties {
    /// Swept for the policy of this name, if it is given.
    pub(super) fn new(ban: Option<Ban>, clock: &Clock, swept_as: Option<&Arc<str>>) -> Self {
        let mut sweepings = Vec::new();
        // Not to be taken for the policy's own keys where it is reported that there are many.
        let mut store = |what, period| {
            let store = Arc::new(Store::new(MOST, AtCap::Deny, clock.clone()));
            let swept_as: Option<Arc<str>> = swept_as.map(|name| format!("{name} ({what})").into());
            sweepings.extend(swept_as.map(|name| Sweeping::start(name, &store, period)));
            store
        };
        let minute = Duration::from_secs(60);
        let by_hand = store("blocked by hand", minute);
        let ban = ban.map(|ban| Banning {
            ban,
            blocked: store("blocked", minute),
            strikes: store("strikes", sweeper::period(ban.strikes.time_to_fill())),
            severity: store("severity", minute),
        });
        Self { by_hand, ban, _sweepings: sweepings }
    }

    /// Until when `key` is blocked. A look at a counter or two, as long as nobody is.
    #[inline(always)]
    pub(super) fn blocked_until(&self, key: Key) -> Option<u64> {
        let until =
            |store: &Store| if store.len() == 0 { None } else { store.existing(key).map(|until| until.to_bits()) };
        until(&self.by_hand).max(self.ban.as_ref().and_then(|ban| until(&ban.blocked)))
    }

    /// Blocks `key` by hand until then, for shorter too; a time that is over ends a block. False where there is no room
    /// for another key.
    pub(super) fn block(&self, key: Key, until: u64, now: u64) -> bool {
        if until <= now {
            self.forget(key, now);
            return true;
        }
        let mut held = self.by_hand.hold(key);
        let room = held.room() == Room::Own;
        if room {
            held.write(Bucket::from_bits(until));
        }
        room
    }

    /// Counts a refusal. Returns for how many nanoseconds the key is blocked for it, if it is.
    pub(super) fn strike(&self, key: Key, now: u64) -> Option<u64> {
        let Banning { ban, blocked, strikes, severity } = self.ban.as_ref()?;
        {
            let mut held = strikes.hold(key);
            let drawn = held.bucket().draw(now, ban.strikes, 1, 0);
            let full = ban.strikes.burst_nanos() - ban.strikes.cell_nanos();
            if drawn.is_granted() && drawn.after.backlog(now) <= full {
                held.write(drawn.after);
                return None;
            }
            // Counted anew after the block.
            held.write(Bucket::default());
        }
        let (shortest, longest) = (nanos(ban.shortest), nanos(ban.longest));
        {
            let mut held = blocked.hold(key);
            let until = held.bucket().to_bits();
            if held.room() != Room::Own {
                return None;
            }
            // Refused at the same time as others, for which the key is blocked already: that is no repetition.
            if until > now {
                return Some(until - now);
            }
            held.write(Bucket::from_bits(now.saturating_add(shortest)));
        }
        let length = {
            let mut held = severity.hold(key);
            let left = held.bucket().to_bits().saturating_sub(now);
            let length = left.clamp(shortest, longest.max(shortest));
            held.write(Bucket::from_bits(now.saturating_add(length.saturating_mul(3))));
            length
        };
        let mut held = blocked.hold(key);
        // Never shorter than what is there.
        let until = held.bucket().to_bits().max(now.saturating_add(length));
        held.write(Bucket::from_bits(until));
        (held.room() == Room::Own).then(|| until.saturating_sub(now))
    }

    /// Ends the blocks of `key`, and forgets its refusals. True if it was blocked.
    pub(super) fn forget(&self, key: Key, now: u64) -> bool {
        let blocked = self.blocked_until(key).is_some_and(|until| until > now);
        for store in self.stores() {
            if let Some(mut number) = store.existing(key) {
                *number = Bucket::default();
            }
        }
        blocked
    }

    pub(super) fn stores(&self) -> impl Iterator<Item = &Store> {
        let of_ban = self.ban.iter().flat_map(|ban| [&ban.blocked, &ban.strikes, &ban.severity]);
        std::iter::once(&self.by_hand).chain(of_ban).map(|store| &**store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::ManualClock,
        key::{IntoKey as _, KeyHasher},
    };

    #[test]
    fn a_decision_that_was_overtaken_shortens_no_block() {
        let second = nanos(Duration::from_secs(1));
        let minute = Duration::from_secs(60);
        let ban = Ban::after(1, minute).starting_at(minute).up_to(minute);
        let penalties = Penalties::new(Some(ban), &ManualClock::new().into(), None);
        let key = 7_u64.into_key(&KeyHasher::random());
        assert_eq!(penalties.strike(key, 100 * second), Some(60 * second));
        assert_eq!(penalties.strike(key, 50 * second), Some(110 * second));
        assert_eq!(penalties.blocked_until(key), Some(160 * second));
    }

    #[test]
    fn refusals_of_the_same_moment_are_one_offence() {
        let second = nanos(Duration::from_secs(1));
        let minute = Duration::from_secs(60);
        let ban = Ban::after(1, minute).starting_at(minute).up_to(60 * minute);
        let penalties = Penalties::new(Some(ban), &ManualClock::new().into(), None);
        let key = 7_u64.into_key(&KeyHasher::random());
        for _decided_before_the_block_was_seen in 0..8 {
            assert_eq!(penalties.strike(key, 100 * second), Some(60 * second));
        }
        assert_eq!(penalties.strike(key, 160 * second), Some(120 * second), "and the next one is the second");
    }
}
