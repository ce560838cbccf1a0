//! Contains the decision over Redis: cached denials, one call for each slot, redirects, and the
//! fallback.

use std::sync::Arc;

use futures_util::future::join_all;
use http::Request;
use smallvec::{SmallVec, smallvec};

use super::{
    connection::Redirect,
    limiter::{RedisLimiter, RedisParts},
    node::Node,
    protocol::{Backlogs, CallGroup, Decided, RedisDemand, RedisDemands, Settlement},
    settlement::RedisReceipts,
    worker::WorkerReply,
};
use crate::{
    clock::{Nanos, Timestamp},
    decision::{Allowed, Decision, Denied, Receipts},
    key::RequestHead,
    limiter::{Demands, Grant},
    observe::metrics::DecidedBy,
};

/// The result of a call.
enum CallOutcome {
    Decided(Arc<Node>, Decided),
    /// Some keys of the slot are on one node, and others on another.
    SplitSlot,
    /// Redis does not answer in time, or not to this.
    Unanswered,
}

/// A group of buckets, with the answer to it.
struct GroupReply {
    group: CallGroup,
    /// `None` where Redis does not answer.
    decided: Option<(Arc<Node>, Decided)>,
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
            match self.acquire_all(demands, &mut receipts, None).await {
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

    /// Acquires what a request asks of all policies, or nothing. `redis_receipts` are for settling
    /// later.
    pub(super) async fn acquire_all(
        &self,
        demands: Result<Demands, Denied>,
        receipts: &mut Receipts,
        redis_receipts: Option<&mut RedisReceipts>,
    ) -> Result<Grant, Denied> {
        let demands = demands?;
        let RedisParts { set, lower_bounds, fallback, .. } = &*self.parts;
        if let Some(denied) = lower_bounds.cached_denial(set, &demands) {
            return Err(denied);
        }
        // Read before Redis is asked: so recorded bounds are never too high.
        let at = set.now();
        let groups = self.groups(demands);
        let mut replies: SmallVec<[GroupReply; 1]> = match &groups[..] {
            [only] => self.call_group(only.clone()).await,
            several => {
                let calls = several.iter().map(|group| self.call_group(group.clone()));
                join_all(calls).await.into_iter().flatten().collect()
            }
        };
        let result = match &mut replies[..] {
            // No policy applies.
            [] => Ok(Grant { at, wait: Nanos::ZERO }),
            [GroupReply { group, decided: Some((_, Decided { granted, backlogs, .. })) }] => {
                lower_bounds.record_reply(set, &group.demands, backlogs, *granted, at, receipts)
            }
            [GroupReply { group, decided: None }] => fallback.acquire(set, &group.demands, receipts),
            several => self.combine(several, at, receipts),
        };
        if let (Ok(_), Some(redis_receipts)) = (&result, redis_receipts) {
            for GroupReply { group, decided } in &replies {
                if let Some((node, decided)) = decided {
                    redis_receipts.add(group, node, decided.at);
                }
            }
        }
        result
    }

    /// Groups what can be asked for in one call. In a cluster a call asks for one slot: the
    /// policies that count one principal.
    fn groups(&self, demands: Demands) -> SmallVec<[CallGroup; 1]> {
        let RedisParts { set, names, topology, .. } = &*self.parts;
        let mut groups: SmallVec<[(Demands, Vec<RedisDemand>); 1]> = SmallVec::new();
        for (policy, demand) in demands {
            let redis_demand = RedisDemand::new(names, set.hasher(), self.policies()[policy].name(), &demand);
            let slot = |demand: &RedisDemand| if topology.has_slots() { demand.slot() } else { 0 };
            match groups.iter_mut().find(|(_, others)| slot(&others[0]) == slot(&redis_demand)) {
                Some((demands, redis_demands)) => {
                    demands.push((policy, demand));
                    redis_demands.push(redis_demand);
                }
                None => groups.push((smallvec![(policy, demand)], vec![redis_demand])),
            }
        }
        let groups = groups.into_iter();
        groups.map(|(demands, redis_demands)| CallGroup { demands, redis_demands: redis_demands.into() }).collect()
    }

    /// Combines the answers of several slots: all grant, or the granted ones are refunded, because
    /// no call runs over several slots.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    fn combine(&self, replies: &[GroupReply], at: Timestamp, receipts: &mut Receipts) -> Result<Grant, Denied> {
        let RedisParts { set, lower_bounds, fallback, .. } = &*self.parts;
        let (mut answered, mut unanswered) = (SmallVec::<[_; 4]>::new(), Demands::new());
        for GroupReply { group, decided } in replies {
            match decided {
                Some((_, decided)) => {
                    answered.extend(group.demands.iter().copied().zip(decided.backlogs.iter().copied()));
                }
                None => unanswered.extend_from_slice(&group.demands),
            }
        }
        // In the limiter's order.
        answered.sort_unstable_by_key(|((policy, _), _)| *policy);
        let (demands, backlogs): (Demands, Backlogs) = answered.into_iter().unzip();
        let granted = replies.iter().flat_map(|reply| &reply.decided).all(|(_, decided)| decided.granted);
        let denied = if !granted {
            None
        } else if unanswered.is_empty() {
            return lower_bounds.record_reply(set, &demands, &backlogs, true, at, receipts);
        } else {
            match fallback.acquire(set, &unanswered, receipts) {
                Ok(local) => {
                    let granted = lower_bounds.record_reply(set, &demands, &backlogs, true, at, receipts);
                    receipts.sort();
                    // The time of the receipts of the fallback. Those of Redis have their own.
                    return granted.map(|_| local);
                }
                Err(denied) => Some(denied),
            }
        };
        for GroupReply { group, decided } in replies {
            if let Some((node, Decided { granted: true, at, backlogs })) = decided {
                let demands = group.redis_demands.iter().zip(backlogs.iter().copied());
                if let Some(refund) = Settlement::refund_all(demands, *at) {
                    node.settle(refund);
                }
            }
        }
        match denied {
            Some(denied) => Err(denied),
            None => lower_bounds.record_reply(set, &demands, &backlogs, false, at, receipts),
        }
    }

    /// Asks for a group in one call. Where its slot is migrating and split over two nodes, asks for
    /// each bucket in a call of its own.
    async fn call_group(&self, group: CallGroup) -> SmallVec<[GroupReply; 1]> {
        let started = self.parts.set.now();
        match self.call(&group.redis_demands, started).await {
            CallOutcome::Decided(node, decided) => smallvec![GroupReply { group, decided: Some((node, decided)) }],
            CallOutcome::SplitSlot if group.redis_demands.len() > 1 => {
                let each = group.demands.iter().zip(&*group.redis_demands).map(|(demand, redis_demand)| CallGroup {
                    demands: smallvec![*demand],
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
        let Some(mut node) = topology.node_of(&demands[0]) else { return CallOutcome::Unanswered };
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
