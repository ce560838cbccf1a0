//! Contains the decision on a request: the critical section over all buckets, and its fast path.
//!
//! A decision takes these steps:
//!
//! 1. Every policy evaluates the request to what it asks: keys, quotas, costs. The user's closures
//!    run here, while nothing is locked.
//! 2. The buckets of the keyed policies are locked, in the order of the policies.
//! 3. The clock is read, once: after the locks, so that every bucket sees time go forward.
//! 4. Every bucket is evaluated, and nothing is written.
//! 5. If all grant, all buckets are written; otherwise none. A single global policy has no lock:
//!    its bucket is exchanged first, and if it has changed in between, the decision returns to step
//!    3.
//!
//! So a denied request leaves every bucket as it was, except those of policies that count what
//! others deny. No decision refunds, and many threads together admit what one thread would have
//! admitted.

use http::StatusCode;
use smallvec::SmallVec;

use super::{
    attempt::{Attempt, Counted},
    local_buckets::{FastPath, LocalBuckets, PolicyBuckets},
    moment::{Moment, RatesOnly, WithWindows},
    policy_set::{Demands, PolicySet, is_near_limit},
};
use crate::{
    clock::{Nanos, Timestamp},
    decision::{Allowed, Decision, Denied, PolicyOutcome, PolicyOutcomes, Receipt, ReceiptOrigin, Receipts},
    key::RequestHead,
    observe::metrics::Outcome,
    policy::{Demand, Policy},
};

/// An allowed request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    /// The reading of the clock at which its cells were acquired.
    pub(crate) at: Timestamp,
    /// The time from then until they are there.
    pub(crate) wait: Nanos,
}

impl Grant {
    fn at(at: Timestamp) -> Self {
        Self { at, wait: Nanos::ZERO }
    }
}

// Not generic over the request's body: compiled once, where all of a decision can be inlined.
// Generic over whether any policy has windows: where none has, no step asks for one.
#[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
impl LocalBuckets {
    /// Decides on a request that waits for its cells for at most `patience`. The cells are acquired
    /// now, so that later requests wait longer. Writes receipts only where they are wanted.
    #[inline(always)]
    pub(super) fn acquire(
        &self,
        set: &PolicySet,
        head: RequestHead<'_>,
        receipts: Option<&mut Receipts>,
        patience: Nanos,
    ) -> Result<Grant, Denied> {
        if self.has_windows {
            self.acquire_windows(set, head, receipts, patience)
        } else {
            self.acquire_in::<RatesOnly>(set, head, receipts, patience)
        }
    }

    #[inline(never)]
    fn acquire_windows(
        &self,
        set: &PolicySet,
        head: RequestHead<'_>,
        receipts: Option<&mut Receipts>,
        patience: Nanos,
    ) -> Result<Grant, Denied> {
        self.acquire_in::<WithWindows>(set, head, receipts, patience)
    }

    #[inline(always)]
    fn acquire_in<M: Moment>(
        &self,
        set: &PolicySet,
        head: RequestHead<'_>,
        receipts: Option<&mut Receipts>,
        patience: Nanos,
    ) -> Result<Grant, Denied> {
        match self.fast_path::<M>(set, head, patience, receipts.is_some()) {
            FastOutcome::Granted(demand, found) => {
                if let Some(receipts) = receipts {
                    *receipts = Receipts::One(receipt(0, &demand, &found));
                }
                Ok(Grant::at(found.now))
            }
            undecided => self.acquire_otherwise::<M>(set, undecided, head, receipts, patience),
        }
    }

    /// Decides on a request that does not wait. Separate from [`acquire`](Self::acquire), because
    /// the receipt of the fast path is built where it is returned: a decision is large, and copying
    /// it costs a fifth of the whole.
    #[inline(always)]
    pub(super) fn decide<'a, M: Moment>(&self, set: &'a PolicySet, head: RequestHead<'_>) -> Decision<'a> {
        let policies = set.policies();
        match self.fast_path::<M>(set, head, Nanos::ZERO, true) {
            FastOutcome::Granted(demand, found) => {
                let receipts = Receipts::One(receipt(0, &demand, &found));
                Decision::Allow(Allowed { policies, at: found.now, receipts })
            }
            undecided => {
                let mut receipts = Receipts::None;
                match self.acquire_otherwise::<M>(set, undecided, head, Some(&mut receipts), Nanos::ZERO) {
                    Ok(Grant { at, .. }) => Decision::Allow(Allowed { policies, at, receipts }),
                    Err(denied) => Decision::Deny(denied),
                }
            }
        }
    }

    /// Acquires for a limiter with one policy from a bucket that exists, without the means to lock
    /// several buckets together. Nearly all requests of such a limiter take this path, and the
    /// usual path takes twice as long. Where more has to be done, the policy is evaluated already,
    /// because the user's closures run once for each request.
    #[inline(always)]
    fn fast_path<M: Moment>(
        &self,
        set: &PolicySet,
        head: RequestHead<'_>,
        patience: Nanos,
        wants_receipt: bool,
    ) -> FastOutcome<M> {
        let (Some((policy, live)), [buckets]) = (set.single(), &*self.each) else { return FastOutcome::Several };
        // Twice, because much of a decision is known in advance where the policy is plain.
        if policy.is_plain() {
            let demand = policy.evaluate_plain(head, || live.quota());
            self.fast_path_by::<M>(set, (policy, buckets), demand, patience, wants_receipt)
        } else {
            let demand = policy.evaluate(head, || live.quota());
            self.fast_path_by::<M>(set, (policy, buckets), demand, patience, wants_receipt)
        }
    }

    #[inline(always)]
    fn fast_path_by<M: Moment>(
        &self,
        set: &PolicySet,
        (policy, buckets): (&Policy, &PolicyBuckets),
        demand: Result<Option<Demand>, StatusCode>,
        patience: Nanos,
        wants_receipt: bool,
    ) -> FastOutcome<M> {
        let demand = match demand {
            Ok(Some(demand)) => demand,
            Ok(None) => return FastOutcome::DoesNotApply,
            Err(status) => return FastOutcome::MissingKey(status),
        };
        match self.fast_path_of::<M>(set, (0, policy, buckets), &demand, patience, wants_receipt) {
            Some(found) if found.evaluation.is_granted() => FastOutcome::Granted(demand, found),
            Some(found) => FastOutcome::Denied(demand, found),
            None => FastOutcome::Evaluated(demand),
        }
    }

    /// The fast path of one policy.
    #[inline(always)]
    fn fast_path_of<M: Moment>(
        &self,
        set: &PolicySet,
        (index, policy, buckets): (usize, &Policy, &PolicyBuckets),
        demand: &Demand,
        patience: Nanos,
        wants_receipt: bool,
    ) -> Option<FastPath<M>> {
        let usual = !demand.shadow && patience.is_zero() && buckets.has_cells_only();
        let found = if usual { buckets.fast_path::<M>(demand, set.clock(), wants_receipt) } else { None }?;
        if found.evaluation.is_granted() {
            let near_limit =
                || is_near_limit(found.evaluation.after.backlog(found.moment.stands_at(found.now)), demand.quota);
            set.count((index, policy), Outcome::Allowed, false, self.decided_by, near_limit);
        }
        Some(found)
    }

    /// Acquires what a caller asks of one policy, whose key it names, as the fast path of requests
    /// does. `None` where more has to be done: see [`acquire_all`](Self::acquire_all).
    #[inline(always)]
    pub(super) fn acquire_by_key<M: Moment>(
        &self,
        set: &PolicySet,
        (index, demand): (usize, Demand),
    ) -> Option<Result<(Timestamp, Receipt), Denied>> {
        let policy = set.policy(index);
        let found = self.fast_path_of::<M>(set, (index, policy, &self.each[index]), &demand, Nanos::ZERO, true)?;
        Some(if found.evaluation.is_granted() {
            Ok((found.now, receipt(index, &demand, &found)))
        } else {
            Err(self.denied_fast::<M>(set, index, &demand, &found))
        })
    }

    /// The denial of the only policy that was asked.
    #[inline(always)]
    fn denied_fast<M: Moment>(&self, set: &PolicySet, index: usize, demand: &Demand, found: &FastPath<M>) -> Denied {
        let FastPath { evaluation, moment, now, .. } = *found;
        let mut outcomes = PolicyOutcomes::new();
        let (stands_at, window) = (moment.stands_at(now), moment.window());
        outcomes.push(PolicyOutcome::of(index, demand, evaluation.clamped, evaluation, stands_at, window));
        let key = [(index, demand.key)];
        set.denied(outcomes, &key, &key, now, self.decided_by, |_, _, _| {})
    }

    #[inline(always)]
    fn acquire_otherwise<M: Moment>(
        &self,
        set: &PolicySet,
        undecided: FastOutcome<M>,
        head: RequestHead<'_>,
        receipts: Option<&mut Receipts>,
        patience: Nanos,
    ) -> Result<Grant, Denied> {
        match undecided {
            FastOutcome::Denied(demand, found) => Err(self.denied_fast::<M>(set, 0, &demand, &found)),
            FastOutcome::DoesNotApply => Ok(Grant::at(set.now())),
            FastOutcome::Granted(_, FastPath { now, .. }) => Ok(Grant::at(now)),
            FastOutcome::Evaluated(demand) => self.acquire_all_in::<M>(set, &[(0, demand)], receipts, patience),
            FastOutcome::MissingKey(status) => Err(set.missing_key(0, status, head, self.decided_by)),
            FastOutcome::Several => self.acquire_several::<M>(set, head, receipts, patience),
        }
    }

    fn acquire_several<M: Moment>(
        &self,
        set: &PolicySet,
        head: RequestHead<'_>,
        receipts: Option<&mut Receipts>,
        patience: Nanos,
    ) -> Result<Grant, Denied> {
        let mut demands = Demands::new();
        set.evaluate(head, &mut demands, self.decided_by)?;
        self.acquire_all_in::<M>(set, &demands, receipts, patience)
    }

    /// Acquires what a request asks of all policies, or nothing.
    pub(crate) fn acquire_all(
        &self,
        set: &PolicySet,
        demands: &[(usize, Demand)],
        receipts: Option<&mut Receipts>,
        patience: Nanos,
    ) -> Result<Grant, Denied> {
        if self.has_windows {
            self.acquire_all_in::<WithWindows>(set, demands, receipts, patience)
        } else {
            self.acquire_all_in::<RatesOnly>(set, demands, receipts, patience)
        }
    }

    #[inline(never)]
    fn acquire_all_in<M: Moment>(
        &self,
        set: &PolicySet,
        demands: &[(usize, Demand)],
        receipts: Option<&mut Receipts>,
        patience: Nanos,
    ) -> Result<Grant, Denied> {
        if let Some(mut blocked) =
            set.blocked(demands, self.decided_by, |policy, demand| self.without_acquiring(set, policy, *demand))
        {
            blocked.wait_at_least(self.count_blocked(set, demands));
            return Err(blocked);
        }
        let mut outcomes = PolicyOutcomes::new();
        let mut strikes = SmallVec::<[_; 4]>::new();
        let mut counted_wait = None;
        // Counted after every lock is released; empty without the feature `metrics`.
        let mut counted = SmallVec::<[Counted; 4]>::new();
        let (result, mut without_place) = {
            let mut attempts = SmallVec::<[Attempt<'_>; 4]>::new();
            if demands.len() > attempts.inline_size() {
                // Allocated while nothing is locked.
                attempts.reserve_exact(demands.len());
            }
            for (policy, demand) in demands {
                attempts.push(Attempt::lock(*policy, *demand, &self.each[*policy], set));
            }
            let result = critical_section::<M>(set, &mut attempts, patience);
            if let (Ok(grant), true) = (result, cfg!(feature = "metrics")) {
                counted.extend(attempts.iter().map(|attempt| attempt.counted(grant.at)));
            }
            match (result, receipts) {
                (Ok(grant), Some(receipts)) => {
                    receipts.extend(attempts.iter().map(|attempt| attempt.receipt::<M>(grant.at)));
                }
                (Ok(_), None) => {}
                (Err(now), _) => {
                    counted_wait = attempts.iter().map(|attempt| attempt.wait_once_counted(now)).max();
                    outcomes.extend(attempts.iter().map(|attempt| attempt.outcome::<M>(now, false)));
                    strikes.extend(attempts.iter().filter_map(Attempt::strike));
                }
            }
            (result, if attempts.iter().any(Attempt::has_no_place) { without_place(&attempts) } else { 0 })
            // Every lock is released here.
        };
        for Counted { policy, granted, shadow, near_limit } in counted {
            let outcome = if granted { Outcome::Allowed } else { Outcome::Denied };
            let counted = (policy, &set.policies()[policy]);
            set.count(counted, outcome, shadow, self.decided_by, || near_limit);
        }
        while without_place != 0 {
            let (policy, _) = demands[without_place.trailing_zeros() as usize];
            without_place &= without_place - 1;
            set.count_overflow(policy);
            self.each[policy].request_sweep();
        }
        result.map_err(|now| {
            let mut denied = set.denied(outcomes, &strikes, &strikes, now, self.decided_by, |_, _, _| {});
            denied.wait_at_least(counted_wait.unwrap_or_default());
            denied
        })
    }

    /// How one policy answers a request that is denied in any case: from the bucket that the key
    /// would use, after the clamp is written, as in any denial.
    fn without_acquiring(&self, set: &PolicySet, policy: usize, demand: Demand) -> PolicyOutcome {
        let mut attempt = Attempt::lock(policy, demand, &self.each[policy], set).that_counts_nothing();
        loop {
            attempt.read();
            let now = set.now();
            attempt.evaluate::<WithWindows>(now, Nanos::ZERO);
            if attempt.write(false) {
                return attempt.outcome::<WithWindows>(now, false);
            }
        }
    }

    /// Counts a request that a block has denied, under the policies that count what others deny.
    /// Returns how long the same request waits for them from now on.
    fn count_blocked(&self, set: &PolicySet, demands: &[(usize, Demand)]) -> Nanos {
        let counts = |(policy, demand): &&(usize, Demand)| {
            set.policies()[*policy].counts_denied() && !demand.shadow && !set.is_blocked(*policy, demand.key)
        };
        let waits = demands.iter().filter(counts).map(|(policy, demand)| {
            let mut attempt = Attempt::lock(*policy, *demand, &self.each[*policy], set);
            loop {
                attempt.read();
                let now = set.now();
                attempt.evaluate::<WithWindows>(now, Nanos::ZERO);
                if attempt.write(false) {
                    return attempt.wait_once_counted(now);
                }
            }
        });
        waits.max().unwrap_or_default()
    }
}

/// What the fast path came to.
#[derive(Clone, Copy)]
enum FastOutcome<M> {
    /// The cells are not there.
    Denied(Demand, FastPath<M>),
    DoesNotApply,
    /// More has to be read or written than the one bucket.
    Evaluated(Demand),
    Granted(Demand, FastPath<M>),
    MissingKey(StatusCode),
    /// There are several policies.
    Several,
}

/// Decides over locked buckets. The error is the reading of the clock at which not all have
/// granted.
#[inline(always)]
fn critical_section<M: Moment>(
    set: &PolicySet,
    attempts: &mut [Attempt<'_>],
    patience: Nanos,
) -> Result<Grant, Timestamp> {
    loop {
        // The atomic bucket is read before the clock, as the others were locked before it.
        for attempt in &mut *attempts {
            attempt.read();
        }
        let now = set.now();
        let mut all = true;
        for attempt in &mut *attempts {
            all &= attempt.evaluate::<M>(now, patience);
        }
        // First the atomic bucket, which may have changed. The others cannot have.
        let is_written = attempts.iter_mut().filter(|attempt| attempt.is_atomic()).all(|attempt| attempt.write(all));
        if is_written && attempts.iter_mut().filter(|attempt| !attempt.is_atomic()).all(|attempt| attempt.write(all)) {
            let wait = attempts.iter().map(Attempt::wait).max().unwrap_or_default();
            return if all { Ok(Grant { at: now, wait }) } else { Err(now) };
        }
    }
}

/// One bit for each attempt whose policy had no place for the key, of the first 64.
#[cold]
fn without_place(attempts: &[Attempt<'_>]) -> u64 {
    let bit = |(at, attempt): (u32, &Attempt<'_>)| u64::from(attempt.has_no_place()).checked_shl(at).unwrap_or(0);
    (0..).zip(attempts).map(bit).fold(0, |bits, bit| bits | bit)
}

/// The receipt of the fast path.
#[inline(always)]
fn receipt<M: Moment>(policy: usize, demand: &Demand, found: &FastPath<M>) -> Receipt {
    let Demand { key, quota, cells, planned, .. } = *demand;
    let FastPath { evaluation, moment, now, generation } = *found;
    Receipt {
        outcome: PolicyOutcome::of(
            policy,
            demand,
            evaluation.after,
            evaluation,
            moment.stands_at(now),
            moment.window(),
        ),
        key,
        cells,
        planned,
        added: quota.cost(cells),
        generation,
        after: evaluation.after,
        paused: Nanos::ZERO,
        origin: ReceiptOrigin::Own,
    }
}
