//! Contains [`LowerBounds`]: what a process knows of the buckets in Redis.
//!
//! An entry is a lower bound of a bucket there, under the same quota: its backlog, when it was last
//! seen, can only have shrunk with time and grown by the requests of others. So a denial that
//! follows from an entry is the denial that Redis would give. An entry is never evicted before its
//! time is over.

use std::sync::Arc;

use crate::{
    bucket::{self, Bucket},
    clock::{Nanos, Timestamp},
    decision::{Denied, PolicyOutcome, PolicyOutcomes, Receipt, Receipts, Verdict},
    key::Key,
    limiter::{Demands, Grant, PolicySet, is_near_limit, start_sweeping},
    observe::metrics::{DecidedBy, Outcome},
    policy::Demand,
    store::{AtCap, Cap, Placement, Store},
    sweeper::Sweeping,
};

pub(super) struct LowerBounds {
    /// One for each policy, in the limiter's order.
    each: Box<[PolicyBounds]>,
}

/// The lower bounds of one policy. There is one for each key and quota, as there is a bucket in
/// Redis.
struct PolicyBounds {
    store: Arc<Store>,
    _sweeping: Option<Sweeping>,
}

/// For a global policy: one for each quota that `quota_by` chooses.
const MAX_GLOBAL_QUOTAS: usize = 1_024;

impl LowerBounds {
    pub(super) fn new(set: &PolicySet) -> Self {
        let each = set.policies().iter().map(|policy| {
            let max_keys = if policy.is_global() { MAX_GLOBAL_QUOTAS } else { policy.cap().max_keys };
            let cap = Cap { max_keys, beyond: AtCap::Deny, ..policy.cap() };
            // A key without a place of its own is not cached.
            let store = Arc::new(Store::new(cap, set.clock().clone()));
            let sweeping = set.swept_as(policy).map(|name| start_sweeping(name, &store, policy));
            PolicyBounds { store, _sweeping: sweeping }
        });
        Self { each: each.collect() }
    }

    /// The denial that is certain without asking Redis: a key is blocked, or its backlog is known
    /// to be too long.
    pub(super) fn cached_denial(&self, set: &PolicySet, demands: &Demands) -> Option<Denied> {
        let known = |policy: usize, demand: &Demand| {
            let key = set.hasher().under_quota(demand.key, demand.quota);
            let entry = self.each[policy].store.get(key);
            // Read under the lock: a time from before a wait for it would overstate the backlog.
            let now = set.now();
            let bucket = entry.as_deref().copied().unwrap_or_default();
            drop(entry);
            outcome(policy, demand, bucket, now)
        };
        if let Some(denied) = set.blocked(demands, DecidedBy::Cache, known) {
            return Some(denied);
        }
        let outcomes: PolicyOutcomes = demands.iter().map(|(policy, demand)| known(*policy, demand)).collect();
        denial(set, outcomes, demands, DecidedBy::Cache)
    }

    /// Records what Redis has replied: the backlog of each bucket before the request, and whether
    /// it was granted. `at` is when Redis was asked, or before.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    pub(super) fn record_reply(
        &self,
        set: &PolicySet,
        demands: &Demands,
        backlogs: &[Nanos],
        granted: bool,
        at: Timestamp,
        receipts: &mut Receipts,
    ) -> Result<Grant, Denied> {
        let mut outcomes = PolicyOutcomes::new();
        for ((policy, demand), backlog) in demands.iter().zip(backlogs) {
            // The backlog does not depend on the clock that it is evaluated by.
            let bucket = Bucket::with_backlog(Timestamp::ORIGIN, *backlog);
            let outcome = outcome(*policy, demand, bucket, Timestamp::ORIGIN);
            let after = if granted { outcome.backlog } else { *backlog };
            self.raise(set, *policy, demand, Bucket::with_backlog(at, after));
            if granted {
                let Demand { key, cells, .. } = *demand;
                receipts.push(Receipt {
                    outcome,
                    key,
                    cells,
                    added: after.saturating_sub(*backlog),
                    generation: 0,
                    after: Bucket::with_backlog(Timestamp::ORIGIN, after),
                    from_overflow: false,
                });
            }
            outcomes.push(outcome);
        }
        let grant = Grant { at, wait: Nanos::ZERO };
        if granted {
            for outcome in &outcomes {
                // In shadow mode the policy may have denied.
                let allowed = outcome.verdict == Verdict::Granted;
                let counted = if allowed { Outcome::Allowed } else { Outcome::Denied };
                let near_limit = || allowed && is_near_limit(outcome.backlog, outcome.quota);
                let policy = (outcome.policy, &set.policies()[outcome.policy]);
                set.count(policy, counted, outcome.shadow, DecidedBy::Redis, near_limit);
            }
            return Ok(grant);
        }
        // The server computes in doubles. In bursts of months it may deny by nanoseconds what this
        // process would grant.
        if !outcomes.iter().any(PolicyOutcome::denies) {
            if let Some(enforced) = outcomes.iter_mut().find(|outcome| !outcome.shadow) {
                enforced.verdict = Verdict::Wait(Nanos::new(1));
            }
        }
        denial(set, outcomes, demands, DecidedBy::Redis).map_or(Ok(grant), Err)
    }

    /// Records a refund of what was recorded at `at`: the backlog may be so much shorter.
    pub(super) fn record_refund(&self, set: &PolicySet, policy: usize, demand: &Demand, refund: Nanos, at: Timestamp) {
        let key = set.hasher().under_quota(demand.key, demand.quota);
        if let Some(mut bucket) = self.each[policy].store.get(key) {
            *bucket = bucket.refund(refund, set.now().since(at));
        }
    }

    /// Records that the backlog of a bucket is at least this long.
    fn raise(&self, set: &PolicySet, policy: usize, demand: &Demand, least: Bucket) {
        // Where responses refund regularly, here or in other processes, no bound lasts.
        if least.is_idle(set.now()) || set.policies()[policy].counts_by_response() {
            return;
        }
        let key: Key = set.hasher().under_quota(demand.key, demand.quota);
        let mut guard = self.each[policy].store.guard(key);
        if guard.placement() == Placement::Own {
            let raised = guard.value().max(least);
            guard.write(raised);
        }
    }
}

fn denial(set: &PolicySet, outcomes: PolicyOutcomes, demands: &Demands, decided_by: DecidedBy) -> Option<Denied> {
    if !outcomes.iter().any(PolicyOutcome::denies) {
        return None;
    }
    let lacking = |(outcome, (_, demand)): (&PolicyOutcome, &(usize, Demand))| {
        (matches!(outcome.verdict, Verdict::Wait(_)) && !outcome.shadow).then_some((outcome.policy, demand.key))
    };
    let keys: smallvec::SmallVec<[_; 4]> = outcomes.iter().zip(demands).filter_map(lacking).collect();
    Some(set.denied(outcomes, &keys, &keys, set.now(), decided_by))
}

/// How a policy answers by this bucket.
fn outcome(policy: usize, demand: &Demand, bucket: Bucket, now: Timestamp) -> PolicyOutcome {
    let quota = demand.quota;
    let evaluation = bucket.evaluate(now, quota, demand.cells, bucket::horizon(quota));
    let after = if evaluation.is_granted() { evaluation.after } else { evaluation.clamped };
    PolicyOutcome::of(policy, demand, after, evaluation, now)
}
