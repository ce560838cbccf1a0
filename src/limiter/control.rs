//! What operators and handlers do to a limiter beside deciding: look, charge, put back, sweep.

use std::{error, fmt};

use super::{Limiter, buckets::Buckets};
use crate::{
    bucket::Bucket,
    decision::{Allowed, Standing},
    key::{IntoKey, Key},
    policy::Policy,
    store::{Room, Store},
};

impl Limiter {
    /// The policies, in the limiter's order: the keyed ones as they were given, then the global ones as they were given.
    pub fn policies(&self) -> &[Policy] {
        &self.shared.policies
    }

    /// The key that [`RequestHead::key`](crate::key::RequestHead::key) makes of `value`, for [`peek`](Self::peek) and
    /// [`charge`](Self::charge).
    ///
    /// What counts of a client's address is up to the extractor: ask it with
    /// `limiter.key_of(PeerIp.network(address))`.
    #[must_use]
    pub fn key_of(&self, value: impl IntoKey) -> Key {
        value.into_key(&self.shared.hasher)
    }

    /// How `key` stands under the policy of this name, with nothing drawn. The key of a global policy is
    /// [`Key::GLOBAL`].
    ///
    /// Under the policy's own quota: which one [`quota_by`](Policy::quota_by) would choose is not known here. Of a key
    /// that shares an overflow bucket it shows a full bucket of its own.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn peek(&self, policy: &str, key: Key) -> Result<Standing<'_>, UnknownPolicy> {
        let (policy, buckets) = self.find(policy)?;
        let (bucket, now) = buckets.peek(key, &self.shared.clock);
        let quota = policy.quota();
        Ok(Standing::of(policy.name(), quota, bucket.backlog(now, quota)))
    }

    /// Charges `cells` whether or not they are there, and says how `key` stands then.
    ///
    /// For what turns out to cost more than was asked for. What is not there becomes debt, which time pays off before
    /// anything is granted again. A charge leads into a debt of at most one burst: what is beyond that is forgiven. What
    /// is owed already is never less for a charge.
    ///
    /// A cell is one of the policy's own quota: which one [`quota_by`](Policy::quota_by) would choose is not known here.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn charge(&self, policy: &str, key: Key, cells: u32) -> Result<Standing<'_>, UnknownPolicy> {
        let (policy, buckets) = self.find(policy)?;
        let quota = policy.quota();
        let mut held = buckets.hold(key);
        let tracked = !matches!(held.room(), Room::Refused | Room::Untracked);
        let (after, now) = loop {
            let found = held.bucket();
            let now = self.shared.clock.now();
            let after = found.debit(now, quota, cells);
            // What owes nothing needs no bucket.
            if after.is_idle(now) || held.write(found, after) {
                break (after, now);
            }
        };
        let after = if tracked { after } else { Bucket::default() };
        Ok(Standing::of(policy.name(), quota, after.backlog(now, quota)))
    }

    /// Returns the cells of an admission that is not used, except for what time has returned already.
    ///
    /// So the sooner, the more comes back, and no schedule of draws and returns admits more than the quota. After a
    /// bucket was cut to a smaller quota, nothing is returned to its policy; nor is anything to a limiter other than the
    /// one that admitted.
    #[expect(clippy::needless_pass_by_value, reason = "taken, so that nothing is returned twice")]
    pub fn put_back(&self, allowed: Allowed<'_>) {
        let shared = &*self.shared;
        if std::ptr::eq(allowed.policies, &raw const *shared.policies) {
            for draw in &allowed.draws {
                shared.buckets[draw.trial.policy].put_back(draw, allowed.at, &shared.clock);
            }
        }
    }

    /// How many keys hold a bucket, over all keyed policies.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.buckets.iter().filter_map(Buckets::store).map(Store::len).sum()
    }

    /// Whether no key holds a bucket.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes the keys that owe nothing, gives back memory, and returns how many were removed. Happens by itself unless
    /// the limiter was built with [`Sweep::Manual`](super::Sweep::Manual). No decision differs for it.
    ///
    /// # Locking behaviour
    ///
    /// Locks one part in many of each policy's map at a time.
    pub fn sweep(&self) -> usize {
        self.shared.buckets.iter().filter_map(Buckets::store).map(Store::sweep).sum()
    }

    fn find(&self, name: &str) -> Result<(&Policy, &Buckets), UnknownPolicy> {
        let shared = &*self.shared;
        let found = shared.policies.iter().zip(&shared.buckets).find(|(policy, _)| policy.name() == name);
        found.ok_or_else(|| UnknownPolicy {
            asked: name.to_owned(),
            known: shared.policies.iter().map(|policy| policy.name().to_owned()).collect(),
        })
    }
}

/// No policy of the limiter has the name that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPolicy {
    asked: String,
    known: Vec<String>,
}

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no policy is named {:?}; the limiter has {:?}", self.asked, self.known)
    }
}

impl error::Error for UnknownPolicy {}
