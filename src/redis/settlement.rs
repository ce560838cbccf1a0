//! Contains how receipts from Redis are settled: refunds and charges after the decision.
//!
//! This file must not know of responses.

use smallvec::smallvec;

use super::{
    limiter::{RedisLimiter, RedisParts},
    names::{Principal, slot},
    protocol::{ServerTime, Settlement, SettlementPart},
};
use crate::{
    clock::{Nanos, Timestamp},
    decision::{Receipt, ReceiptOrigin},
    limiter::{Pause, PolicySet, Settle},
};

impl RedisLimiter {
    /// What settles a receipt from Redis: a refund of the backlog that it has added, or a charge of
    /// cells beyond it. `None` for a receipt of the fallback.
    pub(super) fn settlement(&self, receipt: &Receipt, refund: Nanos, charge: u32) -> Option<Settlement> {
        let RedisParts { set, names, windows, .. } = &*self.parts;
        let ReceiptOrigin::Redis { at } = receipt.origin else { return None };
        let principal = Principal::of(receipt.key, set.hasher());
        let policy = receipt.outcome.policy;
        let part = SettlementPart {
            key: names.bucket(principal, self.policies()[policy].name()),
            refund,
            generation: receipt.generation,
            quota: receipt.outcome.quota(),
            planned: receipt.planned,
            arrival: (!self.slack(policy).is_zero()).then(|| Timestamp::from_nanos(receipt.after.to_bits())),
            charge,
            slack: self.debt_slack(policy),
            waits: self.slack(policy),
            paused: receipt.paused,
            window: windows.times(policy, set.now()),
            window_start: receipt.after.own_start(),
        };
        Some(Settlement { at: ServerTime::of(at), parts: smallvec![part] })
    }

    /// What was known of a bucket is true no more after a refund of what was acquired at `at`, on
    /// this process's clock.
    pub(super) fn record_refund(&self, receipt: &Receipt, at: Timestamp) {
        let RedisParts { set, lower_bounds, .. } = &*self.parts;
        let bucket = (receipt.key, receipt.outcome.quota());
        lower_bounds.record_refund(set, receipt.outcome.policy, bucket, receipt.added, at);
    }

    /// Sends a settlement, and waits for nothing.
    fn settle(&self, settlement: Settlement) {
        let slot = settlement.parts.first().map_or(0, |part| slot(&part.key));
        if let Some(node) = self.parts.topology.node_of(slot) {
            node.settle(settlement);
        }
    }
}

impl Settle for RedisLimiter {
    fn policy_set(&self) -> &PolicySet {
        &self.parts.set
    }

    fn refund_receipt(&self, receipt: &Receipt, at: Timestamp) {
        match self.settlement(receipt, receipt.added, 0) {
            Some(settlement) if !receipt.added.is_zero() => {
                self.record_refund(receipt, at);
                self.settle(settlement);
            }
            Some(_) => {}
            None => self.parts.fallback.refund(&self.parts.set, receipt, at),
        }
    }

    fn pause_of(&self, receipt: &Receipt) -> Pause {
        let RedisParts { set, lower_bounds, fallback, .. } = &*self.parts;
        match receipt.origin {
            ReceiptOrigin::Redis { .. } => {
                lower_bounds.pause_of(receipt.outcome.policy, Principal::of(receipt.key, set.hasher()))
            }
            ReceiptOrigin::Own | ReceiptOrigin::Overflow => fallback.pause_of(receipt),
        }
    }

    fn charge_receipt(&self, receipt: &Receipt, cells: u32) {
        match self.settlement(receipt, Nanos::ZERO, cells) {
            Some(settlement) if cells > 0 => self.settle(settlement),
            Some(_) => {}
            None => self.parts.fallback.charge(&self.parts.set, receipt, cells),
        }
    }
}
