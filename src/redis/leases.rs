//! Contains leases: cells that are acquired in advance for later requests, so that keys with many
//! requests need fewer calls.
//!
//! This file decides how many cells are acquired in advance, and when unused ones are refunded. It
//! must not know of connections.
//!
//! A lease has as many cells as requests came in the time of a lease when the last one was made,
//! and at most a sixteenth of what the buckets have left. So there is none for keys with few
//! requests, and none near a limit, where decisions are as exact as without leases.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{
    names::Principal,
    protocol::{Decided, RedisDemands, Reply, Settlement, SettlementPart},
};
use crate::clock::{Nanos, Timestamp};

/// The limits of a lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseConfig {
    pub(super) max: u32,
    pub(super) time: Duration,
}

pub(super) struct Leases {
    config: LeaseConfig,
    active: HashMap<RedisDemands, Lease>,
    /// When to examine which lease, in this order.
    due: VecDeque<(Timestamp, RedisDemands)>,
}

/// What is known of buckets for which a call was made recently.
struct Lease {
    /// When the call was made.
    since: Timestamp,
    /// The number of requests since then.
    requests: u32,
    reply: Reply,
    /// How many of the granted requests are used.
    used: u32,
}

impl Lease {
    fn unused(&self) -> u32 {
        self.reply.granted.saturating_sub(self.used)
    }
}

impl Leases {
    pub(super) fn new(config: LeaseConfig) -> Self {
        Self { config, active: HashMap::new(), due: VecDeque::new() }
    }

    fn time(&self) -> Nanos {
        self.config.time.into()
    }

    /// Decides on a request by a lease, if there is one with unused cells.
    pub(super) fn take(&mut self, demands: &RedisDemands, now: Timestamp) -> Option<Decided> {
        let time = self.time();
        let lease = self.active.get_mut(demands)?;
        lease.requests = lease.requests.saturating_add(1);
        let age = now.since(lease.since);
        if lease.unused() == 0 || age >= time {
            return None;
        }
        let mut decided = lease.reply.decided(lease.used, demands);
        // Time has returned a part since.
        for bucket in &mut decided.buckets {
            bucket.backlog = bucket.backlog.saturating_sub(age);
        }
        lease.used += 1;
        Some(decided)
    }

    /// How many requests to acquire in advance.
    pub(super) fn in_advance(&self, demands: &RedisDemands, now: Timestamp) -> u32 {
        // Cells of a window must not be used in the next one.
        if demands.iter().any(|demand| demand.window.is_some()) {
            return 0;
        }
        let Some(lease) = self.active.get(demands) else { return 0 };
        let (age, time) = (now.since(lease.since), self.time());
        // Not extrapolated below the time of a lease: a second request a millisecond later does not
        // make a thousand requests a second.
        let expected = u128::from(lease.requests) * u128::from(time.get()) / u128::from(age.max(time).get().max(1));
        let buckets = lease.reply.buckets_before(lease.reply.granted, demands);
        let enforced = demands.iter().zip(buckets).filter(|(demand, _)| !demand.shadow);
        let left = enforced.map(|(demand, mut bucket)| {
            bucket.backlog = bucket.backlog.saturating_sub(age);
            demand.requests_left(&bucket)
        });
        let share = left.map(|left| left.unwrap_or(u64::MAX)).min().unwrap_or(0) / 16;
        u32::try_from(expected.min(u128::from(share))).unwrap_or(u32::MAX).min(self.config.max)
    }

    /// Makes a lease of the reply to a call that was made at `since` for so many requests. Returns
    /// the refund of the lease before.
    pub(super) fn renew(
        &mut self,
        demands: &RedisDemands,
        reply: Reply,
        requests: u32,
        since: Timestamp,
    ) -> Option<Settlement> {
        let used = requests.min(reply.granted);
        let lease = Lease { since, requests, reply, used };
        if let Some(former) = self.active.insert(RedisDemands::clone(demands), lease) {
            // It is in the queue already.
            return refund_of(&former, demands);
        }
        self.due.push_back((since.saturating_add(self.time()), RedisDemands::clone(demands)));
        None
    }

    /// When to call [`expired`](Self::expired) next.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.front().map(|(due, _)| *due)
    }

    /// Ends the leases whose time is over, and returns the refunds of their unused cells.
    pub(super) fn expired(&mut self, now: Timestamp) -> Vec<Settlement> {
        let mut refunds = Vec::new();
        while self.next_due().is_some_and(|due| due <= now) {
            let Some((due, demands)) = self.due.pop_front() else { break };
            let Some(lease) = self.active.get(&demands) else { continue };
            let end = lease.since.saturating_add(self.time());
            if end > due {
                // It was renewed meanwhile.
                self.due.push_back((end, demands));
                continue;
            }
            refunds.extend(refund_of(lease, &demands));
            self.active.remove(&demands);
        }
        refunds
    }

    /// Ends all leases, and returns the refunds of their unused cells.
    pub(super) fn end_all(&mut self) -> Vec<Settlement> {
        self.due.clear();
        self.active.drain().filter_map(|(demands, lease)| refund_of(&lease, &demands)).collect()
    }

    /// Ends the leases of a principal, and returns the refunds of their unused cells.
    pub(super) fn end(&mut self, principal: Principal) -> Vec<Settlement> {
        // The names of its buckets have it in braces.
        let tag = format!(":{principal}}}:");
        let of_it = |demands: &RedisDemands| demands.iter().any(|demand| demand.key.contains(&tag));
        let ended: Vec<_> = self.active.keys().filter(|demands| of_it(demands)).cloned().collect();
        ended.iter().filter_map(|demands| self.end_one(demands)).collect()
    }

    /// Ends one lease, and returns the refund of its unused cells.
    pub(super) fn end_one(&mut self, demands: &RedisDemands) -> Option<Settlement> {
        let lease = self.active.remove(demands)?;
        self.due.retain(|(_, others)| others != demands);
        refund_of(&lease, demands)
    }

    /// Forgets all leases. Their cells stay acquired, because no server can be reached.
    pub(super) fn clear(&mut self) {
        self.active.clear();
        self.due.clear();
    }
}

fn refund_of(lease: &Lease, demands: &RedisDemands) -> Option<Settlement> {
    if lease.unused() == 0 {
        return None;
    }
    let reply = &lease.reply;
    let (used, all) = (reply.buckets_before(lease.used, demands), reply.buckets_before(reply.granted, demands));
    let parts = demands.iter().zip(used.into_iter().zip(all)).map(|(demand, (used, all))| SettlementPart {
        key: demand.key.clone(),
        refund: all.converted(demand.quota).saturating_sub(used.converted(demand.quota)),
        generation: all.generation,
        quota: all.decided_by(demand.quota),
        planned: demand.planned || all.plan.is_some(),
        arrival: None,
        charge: 0,
        slack: Nanos::ZERO,
        waits: Nanos::ZERO,
        paused: all.pause.total,
        window: demand.window,
        window_start: all.window.map(|window| window.start).unwrap_or_default(),
    });
    Some(Settlement { at: reply.at, parts: parts.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        quota::Quota,
        redis::protocol::{BucketState, RedisDemand, ServerTime},
    };

    const AT: ServerTime = ServerTime { seconds: 7, nanos: 8 };

    fn ms(millis: u64) -> Timestamp {
        Timestamp::from_nanos(millis * 1_000_000)
    }

    fn demands(burst: u64) -> RedisDemands {
        let quota = Quota::every(Duration::from_nanos(10)).burst(burst.try_into().unwrap());
        let key = "{p:00000000000000000000000abc}:k".to_owned();
        [RedisDemand { key, cells: 1, quota, planned: false, patience: Nanos::ZERO, shadow: false, window: None }]
            .into()
    }

    fn reply(granted: u32, backlog: u64) -> Reply {
        let backlog = Nanos::new(backlog);
        let bucket = BucketState { generation: 3, ..BucketState::with_backlog(backlog) };
        Reply { granted, at: AT, buckets: [bucket].into_iter().collect(), is_outside: false }
    }

    fn leases(max: u32) -> Leases {
        Leases::new(LeaseConfig { max, time: Duration::from_millis(100) })
    }

    #[test]
    fn nothing_is_acquired_in_advance_for_requests_that_do_not_come() {
        let (mut leases, demands) = (leases(64), demands(1_000_000));
        assert_eq!(leases.in_advance(&demands, ms(0)), 0, "never seen");
        leases.renew(&demands, reply(1, 0), 1, ms(0));
        assert_eq!(leases.in_advance(&demands, ms(1_000)), 0, "one a second");
        assert_eq!(leases.in_advance(&demands, ms(1)), 1, "as many as came, however soon");
        for _ in 0..9 {
            assert!(leases.take(&demands, ms(1)).is_none());
        }
        assert_eq!(leases.in_advance(&demands, ms(1)), 10);
        assert_eq!(leases.in_advance(&demands, ms(200)), 5, "as many in 100 ms");
        leases.renew(&demands, reply(500, 0), 500, ms(0));
        assert_eq!(leases.in_advance(&demands, ms(1)), 64, "no more than the maximum");
    }

    #[test]
    fn nothing_is_acquired_in_advance_near_the_limit() {
        let mut leases = leases(64);
        for (burst, backlog, expected) in [(1_000, 0, 56), (1_000, 500, 53), (132, 0, 2), (116, 0, 1), (115, 0, 0)] {
            let demands = demands(burst);
            // A hundred came together.
            leases.renew(&demands, reply(100, backlog), 100, ms(0));
            let now = Timestamp::from_nanos(1);
            assert_eq!(leases.in_advance(&demands, now), expected, "{burst} {backlog}");
        }
    }

    #[test]
    fn leased_cells_are_used_once_and_in_time() {
        let (mut leases, demands) = (leases(64), demands(100));
        leases.renew(&demands, reply(3, 40), 1, ms(0));
        let taken =
            |decided: Option<Decided>| decided.map(|decided| (decided.granted, decided.buckets[0].backlog.get()));
        let later = Timestamp::from_nanos(7);
        assert_eq!(taken(leases.take(&demands, ms(0))), Some((true, 50)));
        assert_eq!(taken(leases.take(&demands, later)), Some((true, 53)), "time has returned seven");
        assert_eq!(taken(leases.take(&demands, later)), None);
        leases.renew(&demands, reply(3, 40), 1, ms(1));
        assert_eq!(taken(leases.take(&demands, ms(101))), None, "its time is over");
    }

    #[test]
    fn unused_cells_are_refunded_once() {
        let (mut leases, demands) = (leases(64), demands(100));
        let refund = |settlement: &Settlement| settlement.parts[0].refund.get();
        assert_eq!(leases.renew(&demands, reply(5, 40), 2, ms(0)), None);
        let former = leases.renew(&demands, reply(4, 60), 1, ms(50)).unwrap();
        assert_eq!(refund(&former), 30, "three of the first lease");
        assert!(leases.expired(ms(100)).is_empty(), "the second lease lasts until 150");
        assert!(leases.take(&demands, ms(120)).is_some());
        let refunds = leases.expired(ms(150));
        assert_eq!((refunds.len(), refund(&refunds[0]), refunds[0].at), (1, 20, AT));
        assert!(leases.expired(ms(1_000)).is_empty() && leases.next_due().is_none());
        assert_eq!(leases.renew(&demands, reply(0, 40), 2, ms(200)), None);
        assert!(leases.expired(ms(1_000)).is_empty(), "nothing was granted, and nothing is refunded");
    }
}
