//! Contains the decision over Redis: cached denials, one call for each slot, redirects, and the
//! fallback.

use std::sync::Arc;

use futures_util::future::join_all;
use http::Request;
use smallvec::{SmallVec, smallvec};

use super::{
    connection::Redirect,
    limiter::{RedisLimiter, RedisParts},
    lower_bounds::{AllAsked, Asked, AskedBy, DeniedWithBans, NewBans, demands_of},
    names::Principal,
    node::Node,
    protocol::{Decided, RedisDemand, RedisDemands, Settlement},
    worker::WorkerReply,
};
use crate::{
    bucket::MAX_SLACK,
    clock::{Nanos, Timestamp},
    decision::{Allowed, Decision, Denied, Receipts},
    key::RequestHead,
    limiter::{Demands, Grant},
    observe::metrics::DecidedBy,
};

/// What is asked for in one call: of the policies, and of the server.
#[derive(Clone)]
struct CallGroup {
    asked: AllAsked,
    redis_demands: RedisDemands,
}

/// The result of a call.
enum CallOutcome {
    Decided(Arc<Node>, Box<Decided>),
    /// Some keys of the slot are on one node, and others on another.
    SplitSlot,
    /// Redis does not answer in time, or not to this.
    Unanswered,
}

/// A group of buckets, with the answer to it.
struct GroupReply {
    group: CallGroup,
    /// `None` where Redis does not answer.
    decided: Option<(Arc<Node>, Box<Decided>)>,
}

impl GroupReply {
    fn is_outside(&self) -> bool {
        self.decided.as_ref().is_some_and(|(_, decided)| decided.is_outside)
    }
}

impl RedisLimiter {
    /// Decides whether a request is allowed, and acquires its cells if it is. See
    /// [`Limiter::decide`](crate::Limiter::decide).
    ///
    /// Keys, quotas and costs are computed at once, and the future does not borrow the request. If
    /// it is dropped before its end, the cells may be acquired.
    pub fn decide<'a, B>(&'a self, request: &Request<B>) -> impl Future<Output = Decision<'a>> + Send + use<'a, B> {
        let demands = self.evaluate(self.parts.set.parts(request).head());
        async move {
            let mut receipts = Receipts::default();
            match self.acquire_demands(demands, Nanos::ZERO, &mut receipts).await {
                Ok(grant) => Decision::Allow(Allowed { policies: self.policies(), at: grant.at, receipts }),
                Err(denied) => Decision::Deny(denied),
            }
        }
    }

    /// What a request asks of each policy, computed while the request is at hand.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    pub(super) fn evaluate(&self, head: RequestHead<'_>) -> Result<Demands, Denied> {
        let mut demands = Demands::new();
        // Redis is not asked about a request without a key.
        self.parts.set.evaluate(head, &mut demands, DecidedBy::Cache)?;
        Ok(demands)
    }

    /// Acquires what a request asks of all policies, or nothing. The request may wait for its cells
    /// for `patience`, and then returns them if it is dropped before this has ended.
    pub(super) async fn acquire_demands(
        &self,
        demands: Result<Demands, Denied>,
        patience: Nanos,
        receipts: &mut Receipts,
    ) -> Result<Grant, Denied> {
        self.acquire_from(AskedBy::Request, demands?, patience, receipts).await
    }

    /// Acquires what a request asks of all policies, or a caller that names keys, or nothing.
    pub(super) async fn acquire_from(
        &self,
        asked_by: AskedBy,
        demands: Demands,
        patience: Nanos,
        receipts: &mut Receipts,
    ) -> Result<Grant, Denied> {
        let RedisParts { set, lower_bounds, fallback, .. } = &*self.parts;
        let patience = patience.min(MAX_SLACK);
        let asked = self.ask(&demands);
        if let Some((denied, bans)) = lower_bounds.cached_denial(set, &asked, asked_by, patience) {
            self.ban(bans);
            return Err(denied);
        }
        // Read before Redis is asked: so recorded bounds are never too high.
        let at = set.now();
        let groups = self.groups(&asked, patience);
        let mut replies = self.call_groups(&groups).await;
        if self.learn_time(&replies, at) {
            // With the windows around the server's time. Whatever was granted by others is refunded
            // when its reply is dropped.
            drop(replies);
            let asked = self.ask(&demands);
            replies = self.call_groups(&self.groups(&asked, patience)).await;
            if self.learn_time(&replies, at) {
                // The clocks of two nodes differ by more than a window: as if they had not
                // answered.
                replies.iter_mut().filter(|reply| reply.is_outside()).for_each(|reply| reply.decided = None);
            }
        }
        #[cfg(test)]
        for (_, decided) in replies.iter().filter_map(|reply| reply.decided.as_ref()) {
            super::server_clock::note(decided.at.timestamp());
        }
        let result = match &mut replies[..] {
            // No policy applies.
            [] => return Ok(Grant { at, wait: Nanos::ZERO }),
            [GroupReply { group, decided: Some((_, decided)) }] => {
                lower_bounds.record_reply(set, &group.asked, decided, at, patience, receipts)
            }
            [GroupReply { group, decided: None }] => {
                if let Some(denied) = lower_bounds.last_known_block(set, &group.asked) {
                    return Err(denied);
                }
                self.obey_pauses(&group.asked);
                return fallback.acquire(set, &demands_of(&group.asked), patience, receipts);
            }
            several => self.combine(several, at, patience, receipts),
        };
        for (_, decided) in replies.iter_mut().filter_map(|reply| reply.decided.as_mut()) {
            decided.is_received();
        }
        result.map_err(|(denied, bans)| {
            self.ban(bans);
            denied
        })
    }

    /// What is asked of each policy, of whom, and in which epoch.
    fn ask(&self, demands: &Demands) -> AllAsked {
        let RedisParts { set, lower_bounds, windows, .. } = &*self.parts;
        let now = set.now();
        let asked = demands.iter().map(|(policy, demand)| {
            let principal = Principal::of(demand.key, set.hasher());
            let (window, current) = (windows.times(*policy, now), windows.current(*policy, now));
            let epoch = lower_bounds.epochs.of(principal);
            Asked { policy: *policy, demand: *demand, principal, epoch, window, current }
        });
        asked.collect()
    }

    /// Lets the fallback know of the pauses that are known from Redis.
    fn obey_pauses(&self, asked: &[Asked]) {
        let RedisParts { set, lower_bounds, fallback, .. } = &*self.parts;
        for Asked { policy, demand, principal, .. } in asked {
            let pause = lower_bounds.pause_of(*policy, *principal);
            let left = pause.until.since(set.now());
            if left.is_zero() {
                fallback.end_pause(set, *policy, demand.key);
            } else {
                fallback.pause(set, *policy, demand.key, left);
            }
        }
    }

    async fn call_groups(&self, groups: &[CallGroup]) -> SmallVec<[GroupReply; 1]> {
        match groups {
            [only] => self.call_group(only.clone()).await,
            several => {
                let calls = several.iter().map(|group| self.call_group(group.clone()));
                join_all(calls).await.into_iter().flatten().collect()
            }
        }
    }

    /// Learns what time it is on the server, for policies with windows. True where a server has
    /// done nothing, because the windows that were sent are not around its time.
    fn learn_time(&self, replies: &[GroupReply], now: Timestamp) -> bool {
        for reply in replies.iter().filter(|reply| reply.group.asked.iter().any(|asked| asked.window.is_some())) {
            if let Some((_, decided)) = &reply.decided {
                self.parts.windows.note(decided.at.timestamp(), now);
            }
        }
        replies.iter().any(GroupReply::is_outside)
    }

    /// Groups what can be asked for in one call. In a cluster a call asks for one slot: the
    /// policies that count one principal.
    fn groups(&self, asked: &[Asked], patience: Nanos) -> SmallVec<[CallGroup; 1]> {
        let RedisParts { names, topology, .. } = &*self.parts;
        let mut groups: SmallVec<[(AllAsked, Vec<RedisDemand>); 1]> = SmallVec::new();
        for asked in asked {
            let key = names.bucket(asked.principal, self.policies()[asked.policy].name());
            let redis_demand = RedisDemand::new(key, &asked.demand, patience, asked.window);
            let slot = |demand: &RedisDemand| if topology.has_slots() { demand.slot() } else { 0 };
            match groups.iter_mut().find(|(_, others)| slot(&others[0]) == slot(&redis_demand)) {
                Some((group, redis_demands)) => {
                    group.push(*asked);
                    redis_demands.push(redis_demand);
                }
                None => groups.push((smallvec![*asked], vec![redis_demand])),
            }
        }
        let groups = groups.into_iter();
        groups.map(|(asked, redis_demands)| CallGroup { asked, redis_demands: redis_demands.into() }).collect()
    }

    /// Combines the answers of several slots: all grant, or the granted ones are refunded, because
    /// no call runs over several slots.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    fn combine(
        &self,
        replies: &[GroupReply],
        at: Timestamp,
        patience: Nanos,
        receipts: &mut Receipts,
    ) -> Result<Grant, DeniedWithBans> {
        let RedisParts { set, lower_bounds, fallback, .. } = &*self.parts;
        let (mut answered, mut unanswered) = (SmallVec::<[_; 4]>::new(), AllAsked::new());
        for GroupReply { group, decided } in replies {
            match decided {
                Some((_, decided)) => {
                    let states = decided.buckets.iter().copied();
                    answered.extend(group.asked.iter().copied().zip(states).map(|each| (each, decided.at)));
                }
                None => unanswered.extend_from_slice(&group.asked),
            }
        }
        // In the limiter's order.
        answered.sort_unstable_by_key(|((asked, _), _)| asked.policy);
        unanswered.sort_unstable_by_key(|asked| asked.policy);
        let granted = replies.iter().flat_map(|reply| &reply.decided).all(|(_, decided)| decided.granted);
        let combined =
            |receipts: &mut Receipts| lower_bounds.record_replies(set, &answered, granted, at, patience, receipts);
        let denied = if !granted {
            None
        } else if unanswered.is_empty() {
            return combined(receipts);
        } else if let Some(blocked) = lower_bounds.last_known_block(set, &unanswered) {
            Some(blocked)
        } else {
            self.obey_pauses(&unanswered);
            match fallback.acquire(set, &demands_of(&unanswered), patience, receipts) {
                Ok(local) => {
                    let granted = combined(receipts);
                    receipts.sort();
                    // The time of the receipts of the fallback. Those of Redis have their own.
                    return granted.map(|granted| Grant { wait: granted.wait.max(local.wait), ..local });
                }
                Err(denied) => Some(denied),
            }
        };
        for GroupReply { group, decided } in replies {
            if let Some((node, decided)) = decided.as_ref().filter(|(_, decided)| decided.granted) {
                let demands = group.redis_demands.iter().zip(decided.buckets.iter().copied());
                if let Some(refund) = Settlement::refund_all(demands, decided.at) {
                    node.settle(refund);
                }
            }
        }
        match denied {
            Some(denied) => Err((denied, NewBans::new())),
            None => combined(receipts),
        }
    }

    /// Asks for a group in one call. Where its slot is migrating and split over two nodes, asks for
    /// each bucket in a call of its own.
    async fn call_group(&self, group: CallGroup) -> SmallVec<[GroupReply; 1]> {
        let started = self.parts.set.now();
        match self.call(&group.redis_demands, started).await {
            CallOutcome::Decided(node, decided) => smallvec![GroupReply { group, decided: Some((node, decided)) }],
            CallOutcome::SplitSlot if group.redis_demands.len() > 1 => {
                let each = group.asked.iter().zip(&*group.redis_demands).map(|(asked, redis_demand)| CallGroup {
                    asked: smallvec![*asked],
                    redis_demands: [redis_demand.clone()].into(),
                });
                let call = async |group: CallGroup| {
                    let decided = match self.call(&group.redis_demands, started).await {
                        CallOutcome::Decided(node, decided) => Some((node, decided)),
                        CallOutcome::SplitSlot | CallOutcome::Unanswered => None,
                    };
                    GroupReply { group, decided }
                };
                join_all(each.map(call)).await.into()
            }
            CallOutcome::SplitSlot | CallOutcome::Unanswered => smallvec![GroupReply { group, decided: None }],
        }
    }

    async fn call(&self, demands: &RedisDemands, started: Timestamp) -> CallOutcome {
        let RedisParts { topology, config, set, .. } = &*self.parts;
        let call_timeout = config.limits.call_timeout;
        let Some(mut node) = topology.node_of(demands[0].slot()) else { return CallOutcome::Unanswered };
        let (mut asking, mut split, mut redirected) = (false, false, false);
        // Once more than a migrating slot needs.
        for _ in 0..3 {
            let left = call_timeout.saturating_sub(set.now().since(started).into());
            if left.is_zero() {
                return CallOutcome::Unanswered;
            }
            // The node of a redirect may be new, and still connecting.
            match node.acquire(Arc::clone(demands), asking, redirected, left).await {
                None => return CallOutcome::Unanswered,
                Some(WorkerReply::Decided(decided)) => return CallOutcome::Decided(node, decided),
                // Some keys are there and some are not. Asking again helps only while they are
                // migrating.
                Some(WorkerReply::Redirected(Redirect { address: None, .. })) if split => {
                    return CallOutcome::SplitSlot;
                }
                Some(WorkerReply::Redirected(redirect)) => {
                    split = redirect.address.is_none();
                    asking = redirect.asking || (split && asking);
                    redirected = true;
                    let Some(next) = topology.follow(node, &redirect, demands[0].slot()) else {
                        return CallOutcome::Unanswered;
                    };
                    node = next;
                }
            }
        }
        if split { CallOutcome::SplitSlot } else { CallOutcome::Unanswered }
    }
}
