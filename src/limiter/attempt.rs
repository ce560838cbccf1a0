//! Contains [`Attempt`], one policy's part in a decision: from a locked bucket to what is written
//! into it.
//!
//! This file must not know of the other policies' parts. The limiter tells it whether all have
//! granted.

use super::{
    local_buckets::{BucketGuard, FoundBucket, PolicyBuckets},
    policy_set::{PolicySet, is_near_limit},
};
use crate::{
    bucket::{Bucket, ConvertedEvaluation, Evaluation},
    clock::{Nanos, Timestamp},
    decision::{PolicyOutcome, Receipt, Verdict},
    key::Key,
    policy::{Basis, Demand},
    store::Placement,
};

pub(super) struct Attempt<'a> {
    policy: usize,
    buckets: &'a PolicyBuckets,
    demand: Demand,
    /// What the request says. The demand may be by what the bucket remembers instead.
    asked: Basis,
    guard: BucketGuard<'a>,
    placement: Placement,
    found: FoundBucket,
    /// The generation of the key when the bucket was read, or written.
    generation: u64,
    /// By the quota of the demand.
    evaluation: Evaluation,
    /// What is written if the request acquires nothing, and whether the quota of the demand has
    /// decided it.
    kept: (Bucket, bool),
    /// Whether the bucket was further ahead than the horizon.
    cut: bool,
    /// The bucket afterwards, if the request waits for its cells, and for how long.
    reserved: Option<(Bucket, Nanos)>,
}

/// How an allowed request is counted under one policy.
pub(super) struct Counted {
    pub(super) policy: usize,
    /// False in shadow mode, where the policy would have denied.
    pub(super) granted: bool,
    pub(super) shadow: bool,
    pub(super) near_limit: bool,
}

impl<'a> Attempt<'a> {
    /// Locks the bucket until this is dropped.
    #[inline(always)]
    pub(super) fn lock(policy: usize, mut demand: Demand, buckets: &'a PolicyBuckets, set: &PolicySet) -> Self {
        let mut guard = buckets.guard(demand.key);
        let mut placement = guard.placement();
        if placement == Placement::Overflow {
            // Shared by keys of all plans: by a generous plan's quota, one client would use up the
            // others' cells.
            let own = set.quota(policy);
            if demand.cells > own.burst_size() && demand.cells <= demand.basis.quota.burst_size() {
                // The request could be granted, but only in a bucket of its own.
                (guard, placement) = (BucketGuard::Nothing, Placement::Full);
            }
            demand.basis = Basis { quota: own, planned: false };
        }
        let asked = demand.basis;
        buckets.allow_quota(asked.quota);
        let found = FoundBucket { bucket: Bucket::default(), cell: Nanos::ZERO, plan: None };
        let evaluation = Evaluation::granted_for_free(found.bucket);
        let kept = (found.bucket, false);
        Self {
            policy,
            buckets,
            demand,
            asked,
            guard,
            placement,
            found,
            generation: 0,
            evaluation,
            kept,
            cut: false,
            reserved: None,
        }
    }

    #[inline(always)]
    pub(super) fn read(&mut self) {
        // In this order: a cut in between makes the receipt void too early, and never too late.
        self.generation = self.buckets.generation(self.demand.key);
        self.found = self.guard.read(self.asked.quota);
    }

    /// Whether this policy lets the request pass, perhaps after a wait of at most `patience`.
    /// Writes nothing.
    #[inline(always)]
    pub(super) fn evaluate(&mut self, now: Timestamp, patience: Nanos) -> bool {
        self.demand.basis = if self.asked.planned { self.asked } else { self.found.basis(now, self.asked.quota) };
        let Demand { basis: Basis { quota, .. }, cells, shadow, .. } = self.demand;
        let (found, horizon) = (self.found.bucket, self.buckets.horizon());
        let mut wait_if_reserved = None;
        self.evaluation = match self.placement {
            Placement::Own | Placement::Overflow if self.found.cell == quota.cell_nanos() => {
                let evaluation = found.evaluate(now, quota, cells, horizon);
                self.kept = (evaluation.clamped, false);
                self.cut = evaluation.clamped != found;
                evaluation
            }
            Placement::Own | Placement::Overflow => {
                let converted = found.evaluate_converted(now, self.found.cell, quota, cells, horizon);
                let ConvertedEvaluation { evaluation, takes_over, wait_converted } = converted;
                let clamped = found.clamped(now, horizon);
                self.kept = if takes_over { (evaluation.clamped, true) } else { (clamped, false) };
                self.cut = clamped != found;
                wait_if_reserved = Some(wait_converted);
                evaluation
            }
            Placement::Full => Evaluation::denied(found, Evaluation::NEVER),
            Placement::Untracked => Evaluation::granted_for_free(found),
        };
        if self.evaluation.is_granted() || shadow {
            self.reserved = None;
            return true;
        }
        // A request that waits has acquired its cells: so its wait is by its own quota. Without
        // patience, as usual, this is false: a wait is at least a nanosecond.
        let wait = wait_if_reserved.unwrap_or(self.evaluation.wait);
        let worth_waiting = wait <= patience && wait != Evaluation::NEVER;
        self.reserved = if worth_waiting {
            let reserved = self.evaluation.clamped.reserve(now, quota, cells, self.buckets.slack());
            reserved.map(|reserved| (reserved, wait))
        } else {
            None
        };
        self.reserved.is_some()
    }

    /// How long the request waits for this policy, if it is allowed.
    pub(super) fn wait(&self) -> Nanos {
        self.reserved.map_or(Nanos::ZERO, |(_, wait)| wait)
    }

    /// The bucket after the cells are acquired. A policy in shadow mode that would deny acquires
    /// nothing.
    #[inline(always)]
    fn after(&self) -> Option<Bucket> {
        match self.reserved {
            Some((reserved, _)) => Some(reserved),
            None => self.evaluation.is_granted().then_some(self.evaluation.after),
        }
    }

    /// Writes the bucket as the decision over all policies makes it. A denied request acquires
    /// nothing. What a faulty clock left behind is cut, and a faster quota that denies converts the
    /// bucket: so the wait that is reported is accurate.
    ///
    /// False if the bucket is atomic and has changed: then all buckets are read again. The
    /// limiter's order puts this bucket last, and it is written first.
    #[inline(always)]
    pub(super) fn write(&mut self, allowed: bool) -> bool {
        let Demand { basis, cells, .. } = self.demand;
        // Nothing is decided about a request that costs nothing.
        let (after, decided) = match self.after() {
            Some(after) if allowed && cells > 0 => (after, true),
            _ => self.kept,
        };
        let (found, basis) = (self.found.bucket, decided.then_some(basis));
        if after == found {
            return true;
        }
        if self.cut || basis.is_some_and(|basis| basis.quota.cell_nanos() != self.found.cell) {
            // Before the write: a receipt that is checked in between is void too early, and not too
            // late.
            self.generation = self.buckets.advance_generation(self.demand.key);
        }
        self.guard.write(&self.found, after, basis)
    }

    /// The receipt of an allowed request.
    #[inline(always)]
    pub(super) fn receipt(&self, now: Timestamp) -> Receipt {
        let Demand { key, basis: Basis { quota, .. }, cells, .. } = self.demand;
        let acquired = matches!(self.placement, Placement::Own | Placement::Overflow) && self.after().is_some();
        Receipt {
            outcome: self.outcome(now, true),
            key,
            cells,
            added: if acquired { quota.cost(cells) } else { Nanos::ZERO },
            generation: self.generation,
            after: self.after().unwrap_or(self.found.bucket),
            from_overflow: self.placement == Placement::Overflow,
        }
    }

    pub(super) fn counted(&self, now: Timestamp) -> Counted {
        let Demand { basis: Basis { quota, .. }, shadow, .. } = self.demand;
        let after = self.after();
        let near_limit = after.is_some_and(|after| is_near_limit(after.backlog(now), quota));
        Counted { policy: self.policy, granted: after.is_some(), shadow, near_limit }
    }

    #[inline(always)]
    pub(super) fn outcome(&self, now: Timestamp, allowed: bool) -> PolicyOutcome {
        let bucket = self.after().filter(|_| allowed).unwrap_or(self.evaluation.clamped);
        let mut outcome = PolicyOutcome::of(self.policy, &self.demand, bucket, self.evaluation, now);
        if self.placement == Placement::Full {
            outcome.verdict = Verdict::AtCapacity;
        } else if self.reserved.is_some() {
            outcome.verdict = Verdict::Granted;
        }
        outcome
    }

    /// The policy and the key, if the policy denies for lack of cells. A request that may wait is
    /// not denied.
    pub(super) fn strike(&self) -> Option<(usize, Key)> {
        let denies = !self.evaluation.is_granted() && self.reserved.is_none() && !self.demand.shadow;
        (denies && self.evaluation.wait != Evaluation::NEVER).then_some((self.policy, self.demand.key))
    }

    /// Whether the policy's map had no place for the key.
    #[inline(always)]
    pub(super) fn has_no_place(&self) -> bool {
        self.placement != Placement::Own
    }
}
