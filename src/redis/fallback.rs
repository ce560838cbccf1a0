//! Contains the [`FallbackBuckets`]: decisions without Redis.
//!
//! A fallback has buckets of its own, separate from what is known of those in Redis, because the
//! backlog under a share of a quota takes longer to come back.

use smallvec::SmallVec;

use crate::{
    clock::{Nanos, Timestamp},
    decision::{Denied, Receipt, Receipts},
    key::Key,
    limit::Limit,
    limiter::{Demands, Grant, LimitError, LocalBuckets, Pause, PolicySet, Slack},
    observe::metrics::{DecidedBy, Outcome},
    policy::Policy,
    quota::Quota,
};

/// What happens to requests when Redis does not answer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum OnFailure {
    /// The policy fails closed: requests are denied with 503. For limits that protect something,
    /// such as logins, where other processes must not be guessed at.
    Closed,
    /// This process decides by itself, by a share of each quota.
    ///
    /// With one divided by the number of processes, all together admit no more than the whole
    /// quota, and one more burst when it begins. Where the share of a burst is less than one cell,
    /// each process has one cell. What was known of a key when Redis was lost still counts,
    /// except under a window, of which each process begins with its share. A
    /// request that costs more than the share of the burst is denied with 503. Denials do not count
    /// towards a [`Ban`](crate::policy::Ban): a key above the share may be within its limit.
    Local {
        /// Above 0 and at most 1.
        share: f64,
    },
    /// The policy fails open: requests pass uncounted. For limits that provide fairness and not
    /// safety. Keys that are known to be blocked or paused are denied all the same.
    Open,
}

pub(super) struct FallbackBuckets {
    buckets: LocalBuckets,
    /// By the policy's index.
    on_failure: Box<[OnFailure]>,
}

impl FallbackBuckets {
    pub(super) fn new(set: &PolicySet, on_failure: Box<[OnFailure]>) -> Self {
        Self { buckets: LocalBuckets::new(set, DecidedBy::Fallback, " (fallback)"), on_failure }
    }

    /// What buckets are decided by under this limit of a key.
    pub(super) fn basis_of(&self, index: usize, policy: &Policy, limit: &Limit) -> Result<Quota, LimitError> {
        self.buckets.basis_of(index, policy, limit)
    }

    /// Prepares for another limit of a policy.
    pub(super) fn set_window(&self, policy: usize, limit: &Limit) {
        self.buckets.set_window(policy, limit);
    }

    /// Decides without Redis, as each policy says.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    pub(super) fn acquire(
        &self,
        set: &PolicySet,
        demands: &Demands,
        patience: Nanos,
        receipts: &mut Receipts,
    ) -> Result<Grant, Denied> {
        let mut local = Demands::new();
        let mut open = SmallVec::<[usize; 4]>::new();
        for (policy, demand) in demands {
            match self.on_failure[*policy] {
                // A pause that is known is obeyed, as a block is.
                OnFailure::Open if self.buckets.pause_of(*policy, demand.key).until > set.now() => {
                    local.push((*policy, *demand));
                }
                OnFailure::Open => open.push(*policy),
                OnFailure::Closed if demand.shadow => {}
                OnFailure::Closed => return Err(set.unavailable(*policy)),
                OnFailure::Local { share } => {
                    let mut demand = *demand;
                    let whole = demand.quota.burst_size();
                    demand.quota = self.buckets.share_of(*policy, demand.quota, share);
                    if (demand.quota.burst_size() + 1..=whole).contains(&demand.cells) && !demand.shadow {
                        // The whole quota may grant the request, and a share of it never does.
                        return Err(set.unavailable(*policy));
                    }
                    local.push((*policy, demand));
                }
            }
        }
        let grant = self.buckets.acquire_all(set, &local, Some(receipts), patience)?;
        for policy in open {
            set.count((policy, &set.policies()[policy]), Outcome::Allowed, false, DecidedBy::Open, || false);
        }
        Ok(grant)
    }

    /// Obeys the pause of a key that is known from Redis, and lasts so much longer.
    pub(super) fn pause(&self, set: &PolicySet, policy: usize, key: Key, left: Nanos) {
        // Where there is no place for another key, nobody knows of the pause while Redis is away.
        self.buckets.pause(set, policy, key, left);
    }

    /// Ends the pause of a key that has ended in Redis.
    pub(super) fn end_pause(&self, set: &PolicySet, policy: usize, key: Key) {
        self.buckets.end_pause(set, policy, key);
    }

    pub(super) fn pause_of(&self, receipt: &Receipt) -> Pause {
        self.buckets.pause_of(receipt.outcome.policy, receipt.key)
    }

    /// Lets requests of a policy wait for as long, now and later.
    pub(super) fn allow_slack(&self, policy: usize, slack: Slack) {
        self.buckets.allow_slack(policy, slack);
    }

    pub(super) fn refund(&self, set: &PolicySet, receipt: &Receipt, at: Timestamp) {
        self.buckets.refund(receipt, at, set.clock());
    }

    pub(super) fn charge(&self, set: &PolicySet, receipt: &Receipt, cells: u32) {
        self.buckets.charge_beyond(receipt, cells, set.clock());
    }
}
