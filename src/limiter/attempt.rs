//! Contains [`Attempt`], one policy's part in a decision: from a locked bucket to what is written
//! into it.
//!
//! This file must not know of the other policies' parts. The limiter tells it whether all have
//! granted.

use super::{
    bucket_guard::BucketGuard,
    local_buckets::PolicyBuckets,
    moment::Moment,
    pauses::Pause,
    policy_set::{PolicySet, is_near_limit},
    remembered::Remembered,
    window_clock::WindowClock,
};
use crate::{
    bucket::{Bucket, ConvertedEvaluation, Evaluation},
    clock::{Nanos, Timestamp},
    decision::{PolicyOutcome, Receipt, ReceiptOrigin, Verdict},
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
    /// What the bucket was last decided by, as far as it differs from the demand.
    remembered: Remembered,
    /// The generation of the key when the bucket was read, or written.
    generation: u64,
    pause: Pause,
    /// Whether the key is paused, and the request costs something.
    is_paused: bool,
    /// Whether requests count that other policies deny.
    counts_denied: bool,
    /// By the quota of the demand.
    evaluation: Evaluation,
    /// What is written if the request acquires nothing, where the bucket was last decided by
    /// another quota.
    unacquired: Unacquired,
    /// The time until the cells are there, if the request waits for them.
    wait_if_reserved: Nanos,
    /// Whether the request waits for its cells. Then the bucket after the evaluation is with them.
    is_reserved: bool,
}

/// What is written where another quota has decided last, and the request acquires nothing.
#[derive(Clone, Copy)]
enum Unacquired {
    /// The bucket as it was found, without what exceeds the horizon.
    Unconverted(Bucket),
    /// The bucket of the evaluation.
    Converted,
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
            (demand.quota, demand.planned) = (own, false);
        }
        let found = Bucket::default();
        Self {
            policy,
            buckets,
            demand,
            guard,
            placement,
            found,
            remembered: Remembered::Nothing,
            generation: 0,
            pause: Pause::default(),
            is_paused: false,
            counts_denied: set.policies()[policy].counts_denied(),
            evaluation: Evaluation::granted_for_free(found),
            unacquired: Unacquired::Converted,
            wait_if_reserved: Nanos::ZERO,
            is_reserved: false,
        }
    }

    #[inline(always)]
    pub(super) fn read(&mut self) {
        // In this order: a cut in between makes the receipt void too early, and never too late.
        self.generation = self.buckets.generation(self.demand.key);
        (self.found, self.remembered) = self.guard.read(self.demand.basis());
        // Under the lock, as whoever pauses the key. Of the atomic bucket, after it was read: it
        // changes with each pause.
        if self.buckets.knows_pauses() {
            self.pause = self.buckets.pause_of(self.demand.key);
        }
    }

    /// Whether this policy lets the request pass, perhaps after a wait of at most `patience`.
    /// Writes nothing.
    #[inline(always)]
    pub(super) fn evaluate<M: Moment>(&mut self, now: Timestamp, patience: Nanos) -> bool {
        let Demand { cells, shadow, .. } = self.demand;
        if let (true, Some(window)) = (M::WINDOWS, self.buckets.window()) {
            return self.evaluate_in_window(window, now);
        }
        let stands_at = self.pause.stands_at(now);
        if !patience.is_zero() && !self.pause.total.is_zero() {
            // Whoever waits has to know by how much the pauses have grown.
            self.buckets.remember_pause(self.demand.key, stands_at.saturating_add(patience));
        }
        self.evaluation = self.evaluate_at(stands_at);
        self.is_paused = stands_at > now && cells > 0;
        if self.is_paused {
            return self.evaluate_paused(now, patience);
        }
        if self.evaluation.is_granted() || shadow {
            self.is_reserved = false;
            return true;
        }
        // Without patience, as usual, this is false: a wait is at least a nanosecond.
        let wait = self.wait_if_reserved();
        let reserved = if wait <= patience && wait != Evaluation::NEVER {
            self.evaluation.clamped.reserve(now, self.demand.quota, cells, self.buckets.slack())
        } else {
            None
        };
        self.reserve(reserved)
    }

    #[inline(always)]
    fn evaluate_at(&mut self, stands_at: Timestamp) -> Evaluation {
        let Demand { quota, cells, .. } = self.demand;
        match (self.placement, self.remembered) {
            (Placement::Own | Placement::Overflow, Remembered::Other(cell)) => {
                self.evaluate_conversion(stands_at, cell)
            }
            (Placement::Own | Placement::Overflow, remembered) => {
                if remembered == Remembered::Nothing {
                    self.buckets.allow_quota(quota);
                }
                self.found.evaluate(stands_at, quota, cells, self.buckets.horizon())
            }
            (Placement::Full, _) => Evaluation::denied(self.found, Evaluation::NEVER),
            (Placement::Untracked, _) => Evaluation::granted_for_free(self.found),
        }
    }

    /// Whether the policy lets the request pass in the current window. A request never waits for
    /// its end.
    #[inline(never)]
    fn evaluate_in_window(&mut self, window: &WindowClock, now: Timestamp) -> bool {
        let (stands_at, left) = window.stands_at(self.found, now);
        self.evaluation = self.evaluate_at(stands_at);
        self.evaluation.wait_until_end(left.left);
        let paused_for = self.pause.until.since(now);
        self.is_paused = !paused_for.is_zero() && self.demand.cells > 0;
        if self.is_paused {
            self.evaluation.wait = self.evaluation.wait.max(paused_for);
        }
        self.is_reserved = false;
        self.evaluation.is_granted() || self.demand.shadow
    }

    /// Notes the bucket after the cells are reserved, and returns whether there is one.
    #[inline(always)]
    fn reserve(&mut self, reserved: Option<Bucket>) -> bool {
        self.evaluation.after = reserved.unwrap_or(self.evaluation.after);
        self.is_reserved = reserved.is_some();
        self.is_reserved
    }

    /// In a pause, what was evaluated at its end: so much later, and granted to nobody at once.
    #[cold]
    fn evaluate_paused(&mut self, now: Timestamp, patience: Nanos) -> bool {
        let stands_at = self.pause.until;
        let Demand { quota, cells, shadow, .. } = self.demand;
        let is_granted = self.evaluation.is_granted();
        for wait in [&mut self.evaluation.wait, &mut self.wait_if_reserved] {
            *wait = wait.saturating_add(stands_at.since(now));
        }
        let wait = self.wait_if_reserved();
        // A slot that keys share would be ahead by the pause of one.
        let reserved = if shadow || wait > patience || wait == Evaluation::NEVER || self.placement != Placement::Own {
            None
        } else if is_granted {
            Some(self.evaluation.after)
        } else {
            self.evaluation.clamped.reserve(stands_at, quota, cells, self.buckets.slack())
        };
        self.reserve(reserved) || shadow
    }

    /// Evaluates a bucket that was last decided by another quota, whose cells take `cell`.
    #[inline(never)]
    fn evaluate_conversion(&mut self, now: Timestamp, cell: Nanos) -> Evaluation {
        // Who says no quota has the one that was chosen for the key.
        if !self.demand.planned && !self.found.is_idle(now) {
            if let Some(plan) = self.guard.plan() {
                (self.demand.quota, self.demand.planned) = (plan, true);
            }
        }
        let Demand { quota, cells, .. } = self.demand;
        self.buckets.allow_quota(quota);
        let horizon = self.buckets.horizon();
        self.unacquired = Unacquired::Unconverted(self.found.clamped(now, horizon));
        if cell == quota.cell_nanos() {
            let evaluation = self.found.evaluate(now, quota, cells, horizon);
            self.wait_if_reserved = evaluation.wait;
            return evaluation;
        }
        let ConvertedEvaluation { evaluation, takes_over, wait_converted } =
            self.found.evaluate_converted(now, cell, quota, cells, horizon);
        if takes_over {
            self.unacquired = Unacquired::Converted;
        }
        self.wait_if_reserved = wait_converted;
        evaluation
    }

    /// A request that waits has acquired its cells, so its wait is by its own quota.
    fn wait_if_reserved(&self) -> Nanos {
        if matches!(self.remembered, Remembered::Other(_)) { self.wait_if_reserved } else { self.evaluation.wait }
    }

    /// How long the request waits for this policy, if it is allowed.
    pub(super) fn wait(&self) -> Nanos {
        if self.is_reserved { self.wait_if_reserved() } else { Nanos::ZERO }
    }

    /// The bucket after the cells are acquired. A policy in shadow mode that would deny acquires
    /// nothing.
    #[inline(always)]
    pub(super) fn is_atomic(&self) -> bool {
        matches!(self.guard, BucketGuard::Atomic(_))
    }

    #[inline(always)]
    fn after(&self) -> Option<Bucket> {
        (self.is_reserved || self.evaluation.is_granted()).then_some(self.evaluation.after)
    }

    /// Writes the bucket as the decision over all policies makes it. A denied request acquires
    /// nothing, unless the policy counts those. But what a faulty clock left behind is cut, and a
    /// faster quota that denies converts the bucket: so the wait that is reported is accurate.
    ///
    /// False if the bucket is atomic and has changed: then all buckets are read again. So it is
    /// written first, and there is at most one.
    #[inline(always)]
    pub(super) fn write(&mut self, allowed: bool) -> bool {
        let allowed = allowed || self.counts_as_denied();
        if let Remembered::Other(cell) = self.remembered {
            return self.write_conversion(allowed, cell);
        }
        let clamped = self.evaluation.clamped;
        let after = self.after().filter(|_| allowed).unwrap_or(clamped);
        if after == self.found {
            return true;
        }
        if clamped != self.found {
            // Before the write: a receipt that is checked in between is void too early, and not too
            // late.
            self.generation = self.buckets.advance_generation(self.demand.key);
        }
        let basis = (self.remembered == Remembered::Nothing).then(|| self.demand.basis());
        self.guard.write(self.found, after, basis)
    }

    #[inline(never)]
    fn write_conversion(&mut self, allowed: bool, cell: Nanos) -> bool {
        // Nothing is decided about a request that costs nothing.
        let (after, decided) = match (self.after(), self.unacquired) {
            (Some(after), _) if allowed && self.demand.cells > 0 => (after, true),
            (_, Unacquired::Converted) => (self.evaluation.clamped, true),
            (_, Unacquired::Unconverted(unconverted)) => (unconverted, false),
        };
        // The same number may be another count of cells.
        if after == self.found && !decided {
            return true;
        }
        let cut = matches!(self.unacquired, Unacquired::Unconverted(unconverted) if unconverted != self.found);
        if cut || (decided && cell != self.demand.quota.cell_nanos()) {
            self.generation = self.buckets.advance_generation(self.demand.key);
        }
        self.guard.write(self.found, after, decided.then_some(self.demand.basis()))
    }

    /// Whether the request counts here although another policy denies it.
    #[inline(always)]
    fn counts_as_denied(&self) -> bool {
        self.counts_denied && self.evaluation.is_granted()
    }

    /// The same attempt, of which a denial counts nothing.
    pub(super) fn that_counts_nothing(self) -> Self {
        Self { counts_denied: false, ..self }
    }

    /// How long the same request waits for this policy, where it was counted although another
    /// policy has denied it.
    pub(super) fn wait_once_counted(&self, now: Timestamp) -> Nanos {
        if !self.counts_as_denied() {
            return Nanos::ZERO;
        }
        let Demand { quota, cells, .. } = self.demand;
        let after = self.evaluation.after;
        let again = match self.buckets.window() {
            None => after.evaluate(now, quota, cells, self.buckets.horizon()),
            Some(window) => {
                let (stands_at, left) = window.stands_at(after, now);
                let mut again = after.evaluate(stands_at, quota, cells, self.buckets.horizon());
                again.wait_until_end(left.left);
                again
            }
        };
        if again.wait == Evaluation::NEVER { Nanos::ZERO } else { again.wait }
    }

    /// The receipt of an allowed request.
    #[inline(always)]
    pub(super) fn receipt<M: Moment>(&self, now: Timestamp) -> Receipt {
        let Demand { key, quota, cells, planned, .. } = self.demand;
        let acquired = matches!(self.placement, Placement::Own | Placement::Overflow) && self.after().is_some();
        Receipt {
            outcome: self.outcome::<M>(now, true),
            key,
            cells,
            planned,
            added: if acquired { quota.cost(cells) } else { Nanos::ZERO },
            generation: self.generation,
            after: self.after().unwrap_or(self.found),
            paused: self.pause.total,
            origin: if self.placement == Placement::Overflow { ReceiptOrigin::Overflow } else { ReceiptOrigin::Own },
        }
    }

    pub(super) fn counted(&self, now: Timestamp) -> Counted {
        let Demand { quota, shadow, .. } = self.demand;
        let after = self.after();
        let near_limit = after.is_some_and(|after| is_near_limit(self.buckets.backlog(after, now), quota));
        Counted { policy: self.policy, granted: after.is_some(), shadow, near_limit }
    }

    #[inline(always)]
    pub(super) fn outcome<M: Moment>(&self, now: Timestamp, allowed: bool) -> PolicyOutcome {
        let counts = allowed || self.counts_as_denied();
        let bucket = self.after().filter(|_| counts).unwrap_or(self.evaluation.clamped);
        let mut outcome = PolicyOutcome::of(self.policy, &self.demand, bucket, self.evaluation, now, None);
        if let (true, Some(window)) = (M::WINDOWS, self.buckets.window()) {
            window.complete(&mut outcome, bucket, now);
            self.show_paused_window(&mut outcome, now);
        } else if self.pause.until > now {
            let backlog = bucket.backlog(self.pause.until);
            outcome.backlog = if self.is_reserved && allowed {
                // As it is, because it is shown after the wait.
                backlog.saturating_add(self.pause.until.since(now))
            } else {
                self.pause.shown(backlog, self.demand.quota, now)
            };
        }
        if self.placement == Placement::Full {
            outcome.verdict = Verdict::AtCapacity;
        } else if self.is_reserved {
            outcome.verdict = Verdict::Granted;
        }
        outcome
    }

    fn show_paused_window(&self, outcome: &mut PolicyOutcome, now: Timestamp) {
        if let Some(window) = outcome.limit.window() {
            let shown = self.pause.shown_in_window(outcome.quota(), outcome.backlog, window, now);
            (outcome.limit, outcome.backlog) = (shown.limit, shown.backlog);
        }
    }

    /// The policy and the key, if the policy denies for lack of cells. A request that may wait is
    /// not denied, and a paused key is no offender.
    pub(super) fn strike(&self) -> Option<(usize, Key)> {
        let denies = !self.evaluation.is_granted() && !self.is_reserved && !self.demand.shadow && !self.is_paused;
        (denies && self.evaluation.wait != Evaluation::NEVER).then_some((self.policy, self.demand.key))
    }

    /// Whether the policy's map had no place for the key.
    #[inline(always)]
    pub(super) fn has_no_place(&self) -> bool {
        self.placement != Placement::Own
    }
}
