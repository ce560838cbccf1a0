//! Cells that were drawn ahead for requests to come: fewer calls for keys that are asked for often.
//!
//! Owns how many are drawn ahead, what is left of them, and when that goes back. Knows nothing of connections.
//!
//! As many as came in the time of a lease when the last one was made, and at most a sixteenth of what the buckets have left: so
//! nothing for keys that are seldom asked for, and nothing near a limit, where decisions are as exact as without.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{
    dispatch::Decided,
    script::{Limits, Part, Reply, Settlement},
};
use crate::clock::nanos;

/// How far ahead a limiter draws.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) most: u32,
    pub(super) time: Duration,
}

pub(super) struct Leases {
    lease: Lease,
    held: HashMap<Limits, Held>,
    /// When to look at which, in this order.
    due: VecDeque<(u64, Limits)>,
}

/// What is known of limits that were asked for of late.
struct Held {
    /// When this was asked for.
    since: u64,
    /// Requests since then.
    asked: u32,
    reply: Reply,
    /// Of what was granted.
    used: u32,
}

impl Held {
    fn left(&self) -> u32 {
        self.reply.granted.saturating_sub(self.used)
    }
}

impl Leases {
    pub(super) fn new(lease: Lease) -> Self {
        Self { lease, held: HashMap::new(), due: VecDeque::new() }
    }

    /// Out of what was drawn ahead.
    pub(super) fn take(&mut self, limits: &Limits, now: u64) -> Option<Decided> {
        let held = self.held.get_mut(limits)?;
        held.asked = held.asked.saturating_add(1);
        let age = now.saturating_sub(held.since);
        if held.left() == 0 || age >= nanos(self.lease.time) {
            return None;
        }
        let mut owed = held.reply.owed_before(held.used, limits);
        // Time has returned some of it.
        owed.iter_mut().for_each(|owed| *owed = owed.saturating_sub(age));
        held.used += 1;
        Some(Decided { granted: true, at: held.reply.at, owed })
    }

    /// How many more to ask for.
    pub(super) fn ahead(&self, limits: &Limits, now: u64) -> u32 {
        let Some(held) = self.held.get(limits) else { return 0 };
        let (age, time) = (now.saturating_sub(held.since), nanos(self.lease.time));
        // In less time than a lease has, no more: a second request a millisecond later is no thousand requests a second.
        let come = u128::from(held.asked) * u128::from(time) / u128::from(age.max(time).max(1));
        let owed = held.reply.owed_before(held.reply.granted, limits);
        let left = limits.iter().zip(owed).filter(|(limit, _)| !limit.shadow).map(|(limit, owed)| {
            let left = limit.burst.saturating_sub(owed.saturating_sub(age));
            left.checked_div(limit.unit).unwrap_or(u64::MAX)
        });
        let share = left.min().unwrap_or(0) / 16;
        u32::try_from(come.min(u128::from(share))).unwrap_or(u32::MAX).min(self.lease.most)
    }

    /// A call that was made at `since` for so many requests has brought this. Returns what was left of the one before.
    pub(super) fn keep(&mut self, limits: &Limits, reply: Reply, requests: u32, since: u64) -> Option<Settlement> {
        let used = requests.min(reply.granted);
        let held = Held { since, asked: requests, reply, used };
        if let Some(former) = self.held.insert(Limits::clone(limits), held) {
            // It is due already.
            return Self::rest(&former, limits);
        }
        self.due.push_back((since.saturating_add(nanos(self.lease.time)), Limits::clone(limits)));
        None
    }

    /// When to call [`expired`](Self::expired) next.
    pub(super) fn next(&self) -> Option<u64> {
        self.due.front().map(|(due, _)| *due)
    }

    /// What nobody has asked for in time goes back.
    pub(super) fn expired(&mut self, now: u64) -> Vec<Settlement> {
        let mut back = Vec::new();
        while self.next().is_some_and(|due| due <= now) {
            let Some((due, limits)) = self.due.pop_front() else { break };
            let Some(held) = self.held.get_mut(&limits) else { continue };
            let ends = held.since.saturating_add(nanos(self.lease.time));
            if ends > due {
                // It was made anew meanwhile.
                self.due.push_back((ends, limits));
                continue;
            }
            back.extend(Self::rest(held, &limits));
            self.held.remove(&limits);
        }
        back
    }

    /// All that is left.
    pub(super) fn take_all(&mut self) -> Vec<Settlement> {
        self.due.clear();
        self.held.drain().filter_map(|(limits, held)| Self::rest(&held, &limits)).collect()
    }

    /// They stay drawn: nobody can be told.
    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.due.clear();
    }

    fn rest(held: &Held, limits: &Limits) -> Option<Settlement> {
        if held.left() == 0 {
            return None;
        }
        let (used, all) =
            (held.reply.owed_before(held.used, limits), held.reply.owed_before(held.reply.granted, limits));
        let parts = limits.iter().zip(used.into_iter().zip(all)).map(|(limit, (used, all))| Part {
            key: limit.key.clone(),
            returned: all - used,
            charged: 0,
            burst: limit.burst,
        });
        Some(Settlement { at: held.reply.at, parts: parts.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::script::{Limit, Owed};

    const MS: u64 = 1_000_000;

    fn limits(burst: u64) -> Limits {
        [Limit { key: "k".to_owned(), unit: 10, burst: 10 * burst, shadow: false }].into()
    }

    fn reply(granted: u32, owed: u64) -> Reply {
        Reply { granted, at: (7, 8), owed: Owed::from_slice(&[owed]) }
    }

    fn leases(most: u32) -> Leases {
        Leases::new(Lease { most, time: Duration::from_millis(100) })
    }

    #[test]
    fn nothing_is_drawn_ahead_of_what_does_not_come() {
        let (mut leases, limits) = (leases(64), limits(1_000_000));
        assert_eq!(leases.ahead(&limits, 0), 0, "never seen");
        leases.keep(&limits, reply(1, 0), 1, 0);
        assert_eq!(leases.ahead(&limits, 1_000 * MS), 0, "one a second");
        assert_eq!(leases.ahead(&limits, MS), 1, "as many as came, however soon");
        for _ in 0..9 {
            assert!(leases.take(&limits, MS).is_none());
        }
        assert_eq!(leases.ahead(&limits, MS), 10);
        assert_eq!(leases.ahead(&limits, 200 * MS), 5, "so many in 100 ms");
        leases.keep(&limits, reply(500, 0), 500, 0);
        assert_eq!(leases.ahead(&limits, MS), 64, "no more than is said");
    }

    #[test]
    fn nothing_is_drawn_ahead_near_the_limit() {
        let mut leases = leases(64);
        for (burst, owed, ahead) in [(1_000, 0, 56), (1_000, 500, 53), (132, 0, 2), (116, 0, 1), (115, 0, 0)] {
            let limits = limits(burst);
            // A hundred came together.
            leases.keep(&limits, reply(100, owed), 100, 0);
            assert_eq!(leases.ahead(&limits, 1), ahead, "{burst} {owed}");
        }
    }

    #[test]
    fn what_was_drawn_ahead_is_given_out_once_and_in_time() {
        let (mut leases, limits) = (leases(64), limits(100));
        leases.keep(&limits, reply(3, 40), 1, 0);
        let owed = |decided: Option<Decided>| decided.map(|decided| (decided.granted, decided.owed.to_vec()));
        assert_eq!(owed(leases.take(&limits, 0)), Some((true, vec![50])));
        assert_eq!(owed(leases.take(&limits, 7)), Some((true, vec![53])), "time has returned seven");
        assert_eq!(owed(leases.take(&limits, 7)), None);
        leases.keep(&limits, reply(3, 40), 1, MS);
        assert_eq!(owed(leases.take(&limits, 101 * MS)), None, "its time is over");
    }

    #[test]
    fn what_nobody_has_asked_for_goes_back_once() {
        let (mut leases, limits) = (leases(64), limits(100));
        assert_eq!(leases.keep(&limits, reply(5, 40), 2, 0), None);
        let back = leases.keep(&limits, reply(4, 60), 1, 50 * MS).unwrap();
        assert_eq!(back.parts[0].returned, 30, "three of the first one");
        assert!(leases.expired(100 * MS).is_empty(), "the second one is good until 150");
        assert!(leases.take(&limits, 120 * MS).is_some());
        let back = leases.expired(150 * MS);
        assert_eq!((back.len(), back[0].parts[0].returned, back[0].at), (1, 20, (7, 8)));
        assert!(leases.expired(1_000 * MS).is_empty() && leases.next().is_none());
        assert_eq!(leases.keep(&limits, reply(0, 40), 2, 200 * MS), None);
        assert!(leases.expired(1_000 * MS).is_empty(), "of nothing nothing goes back");
    }
}
