//! Contains [`RedisReceipts`]: where the cells of a request were acquired, for refunds and charges
//! after the decision.
//!
//! This file must not know of responses.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::{
    limiter::RedisLimiter,
    node::Node,
    protocol::{CallGroup, RedisDemand, ServerTime, Settlement, SettlementPart},
};
use crate::{
    clock::{Nanos, Timestamp},
    decision::Receipt,
    limiter::{PolicySet, Settle},
    policy::Demand,
};

/// Where the cells of a request were acquired. Policies that are not among the parts were decided
/// by the fallback.
#[derive(Debug)]
pub struct RedisReceipts {
    limiter: RedisLimiter,
    /// When Redis was asked, on this process's clock.
    at: Timestamp,
    parts: SmallVec<[RedisReceipt; 1]>,
}

struct RedisReceipt {
    policy: usize,
    demand: Demand,
    node: Arc<Node>,
    redis_demand: RedisDemand,
    at: ServerTime,
}

impl std::fmt::Debug for RedisReceipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisReceipt").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl RedisReceipts {
    pub(super) fn new(limiter: RedisLimiter) -> Self {
        let at = limiter.parts.set.now();
        Self { limiter, at, parts: SmallVec::new() }
    }

    pub(super) fn add(&mut self, group: &CallGroup, node: &Arc<Node>, at: ServerTime) {
        let demands = group.demands.iter().zip(&*group.redis_demands);
        self.parts.extend(demands.map(|((policy, demand), redis_demand)| RedisReceipt {
            policy: *policy,
            demand: *demand,
            node: Arc::clone(node),
            redis_demand: redis_demand.clone(),
            at,
        }));
    }

    /// False where the policy was decided by the fallback.
    fn settle(&self, policy: usize, refund: Nanos, charge: Nanos) -> bool {
        let Some(receipt) = self.parts.iter().find(|receipt| receipt.policy == policy) else { return false };
        if !refund.is_zero() || !charge.is_zero() {
            let parts = &self.limiter.parts;
            parts.lower_bounds.record_refund(&parts.set, policy, &receipt.demand, refund, self.at);
            let RedisDemand { key, burst, .. } = &receipt.redis_demand;
            let part = SettlementPart { key: key.clone(), refund, charge, burst: *burst };
            receipt.node.settle(Settlement { at: receipt.at, parts: smallvec![part] });
        }
        true
    }
}

impl Settle for RedisReceipts {
    fn policy_set(&self) -> &PolicySet {
        &self.limiter.parts.set
    }

    fn refund_receipt(&self, receipt: &Receipt, at: Timestamp) {
        if !self.settle(receipt.outcome.policy, receipt.added, Nanos::ZERO) {
            self.limiter.parts.fallback.refund(self.policy_set(), receipt, at);
        }
    }

    fn charge_receipt(&self, receipt: &Receipt, cells: u32) {
        if !self.settle(receipt.outcome.policy, Nanos::ZERO, receipt.outcome.quota.cost(cells)) {
            self.limiter.parts.fallback.charge(self.policy_set(), receipt, cells);
        }
    }
}
