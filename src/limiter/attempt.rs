//! Contains [`Attempt`], one policy's part in a decision: from a locked bucket to what is written
//! into it.
//!
//! This file must not know of the other policies' parts. The limiter tells it whether all have
//! granted.

use super::{
    local_buckets::{BucketGuard, PolicyBuckets},
    policy_set::{PolicySet, is_near_limit},
};
use crate::{
    bucket::{Bucket, Evaluation},
    clock::{Nanos, Timestamp},
    decision::{PolicyOutcome, Receipt, Verdict},
    key::Key,
    policy::Demand,
    store::Placement,
};

pub(super) struct Attempt<'a> {
    policy: usize,
    buckets: &'a PolicyBuckets,
    demand: Demand,
    guard: BucketGuard<'a>,
    placement: Placement,
    found: Bucket,
    /// The generation of the policy's buckets before this one was read.
    generation: u64,
    evaluation: Evaluation,
    /// The bucket afterwards, if the request waits for its cells.
    reserved: Option<Bucket>,
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
            if demand.cells > own.burst_size() && demand.cells <= demand.quota.burst_size() {
                // The request could be granted, but only in a bucket of its own.
                (guard, placement) = (BucketGuard::Nothing, Placement::Full);
            }
            demand.quota = own;
        }
        let found = Bucket::default();
        let evaluation = Evaluation::granted_for_free(found);
        Self { policy, buckets, demand, guard, placement, found, generation: 0, evaluation, reserved: None }
    }

    #[inline(always)]
    pub(super) fn read(&mut self) {
        // In this order: a cut in between makes the receipt void too early, and never too late.
        self.generation = self.buckets.generation();
        self.found = self.guard.bucket();
    }

    /// Whether this policy lets the request pass, perhaps after a wait of at most `patience`.
    /// Writes nothing.
    #[inline(always)]
    pub(super) fn evaluate(&mut self, now: Timestamp, patience: Nanos) -> bool {
        let Demand { quota, cells, shadow, .. } = self.demand;
        self.evaluation = match self.placement {
            Placement::Own | Placement::Overflow => self.found.evaluate(now, quota, cells, self.buckets.slack()),
            Placement::Full => Evaluation::denied(self.found, Evaluation::NEVER),
            Placement::Untracked => Evaluation::granted_for_free(self.found),
        };
        if self.evaluation.is_granted() || shadow {
            self.reserved = None;
            return true;
        }
        // Without patience, as usual, this is false: a wait is at least a nanosecond.
        let worth_waiting = self.evaluation.wait <= patience && self.evaluation.wait != Evaluation::NEVER;
        self.reserved =
            if worth_waiting { self.evaluation.clamped.reserve(now, quota, cells, self.buckets.slack()) } else { None };
        self.reserved.is_some()
    }

    /// How long the request waits for this policy, if it is allowed.
    pub(super) fn wait(&self) -> Nanos {
        if self.reserved.is_some() { self.evaluation.wait } else { Nanos::ZERO }
    }

    /// The bucket after the cells are acquired. A policy in shadow mode that would deny acquires
    /// nothing.
    #[inline(always)]
    fn after(&self) -> Option<Bucket> {
        self.reserved.or(self.evaluation.is_granted().then_some(self.evaluation.after))
    }

    /// Writes the bucket as the decision over all policies makes it. A denied request acquires
    /// nothing, but the clamp is written: otherwise a client would be locked out again by returning
    /// to an earlier quota.
    ///
    /// False if the bucket is atomic and has changed: then all buckets are read again. The
    /// limiter's order puts this bucket last, and it is written first.
    #[inline(always)]
    pub(super) fn write(&mut self, allowed: bool) -> bool {
        let clamped = self.evaluation.clamped;
        let after = self.after().filter(|_| allowed).unwrap_or(clamped);
        if after == self.found {
            return true;
        }
        if clamped != self.found {
            // Before the write: a receipt that is checked in between is void too early, and not too
            // late.
            self.buckets.advance_generation();
        }
        self.guard.write(self.found, after)
    }

    /// The receipt of an allowed request.
    #[inline(always)]
    pub(super) fn receipt(&self, now: Timestamp) -> Receipt {
        let Demand { key, quota, cells, .. } = self.demand;
        let acquired = matches!(self.placement, Placement::Own | Placement::Overflow) && self.after().is_some();
        Receipt {
            outcome: self.outcome(now, true),
            key,
            cells,
            added: if acquired { quota.cost(cells) } else { Nanos::ZERO },
            generation: self.generation,
            after: self.after().unwrap_or(self.found),
            from_overflow: self.placement == Placement::Overflow,
        }
    }

    pub(super) fn counted(&self, now: Timestamp) -> Counted {
        let Demand { quota, shadow, .. } = self.demand;
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
