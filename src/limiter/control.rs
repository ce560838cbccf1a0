//! What operators and handlers do to a limiter beside deciding: look, charge, put back, block, set, list, sweep.
//!
//! Owns what is asked for by a policy's name. None of it is on the way of a request.

use std::{error, fmt, sync::Arc, time::Duration};

use super::{Limiter, Sweep, buckets::Buckets, penalties::Penalties};
use crate::{
    bucket::Bucket,
    clock::nanos,
    decision::{Allowed, Standing},
    key::{IntoKey, Key},
    policy::Policy,
    quota::Quota,
    store::Store,
    sweeper,
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
    /// `limiter.key_of(PeerIp.network(address))`. What a second choice finds ([`or`](crate::key::KeyExtractor::or)) has a key
    /// of its own: `limiter.key_of(fallback(1, value))`, with [`fallback`](crate::key::fallback).
    #[must_use]
    pub fn key_of(&self, value: impl IntoKey) -> Key {
        value.into_key(&self.shared.hasher)
    }

    /// How `key` stands under the policy of this name, with nothing drawn. The key of a global policy is
    /// [`Key::GLOBAL`].
    ///
    /// Under the policy's own quota: which one [`quota_by`](Policy::quota_by) would choose is not known here. Of a key
    /// that is blocked it shows the bucket all the same, see [`blocked_for`](Self::blocked_for); of one that shares an
    /// overflow bucket it shows a full bucket of its own.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn peek(&self, policy: &str, key: Key) -> Result<Standing<'_>, UnknownPolicy> {
        let (policy, buckets) = self.find(policy)?;
        let (bucket, now) = buckets.peek(key, &self.shared.clock);
        let (quota, slack) = (buckets.quota(), buckets.slack());
        Ok(Standing::of(policy.name(), quota, bucket.clamped(now, quota, slack).backlog(now)))
    }

    /// Charges `cells` whether or not they are there, and says how `key` stands then.
    ///
    /// For what turns out to cost more than was asked for. What is not there becomes debt, which time pays off before
    /// anything is granted again. A charge leads into a debt of at most one burst, or of the longest wait where
    /// [requests wait](crate::RateLimitLayer::max_delay): what is beyond that is forgiven. What is owed already is never less
    /// for a charge. A key for which a full map has no room ([`AtCap::Deny`](crate::policy::AtCap::Deny),
    /// [`AtCap::Allow`](crate::policy::AtCap::Allow)) is not charged.
    ///
    /// A cell is one of the policy's own quota: which one [`quota_by`](Policy::quota_by) would choose is not known here.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn charge(&self, policy: &str, key: Key, cells: u32) -> Result<Standing<'_>, UnknownPolicy> {
        let (policy, buckets) = self.find(policy)?;
        let quota = buckets.quota();
        let (after, now) = buckets.charge(key, quota, cells, &self.shared.clock);
        Ok(Standing::of(policy.name(), quota, after.clamped(now, quota, buckets.slack()).backlog(now)))
    }

    /// Forgets what `key` owes under the policy of this name, and what it was refused: its next request finds a full
    /// bucket, and no block. Receipts of the policy from before return nothing. True if it owed anything or was blocked. The
    /// bucket that a key shares with others, where the map was full, is not emptied.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn reset(&self, policy: &str, key: Key) -> Result<bool, UnknownPolicy> {
        let (_, buckets) = self.find(policy)?;
        let owed = buckets.reset(key, &self.shared.clock);
        let blocked = buckets.penalties().is_some_and(|penalties| penalties.forget(key, self.now()));
        Ok(owed || blocked)
    }

    /// Refuses every request with `key` under the policy of this name for so long, whatever its bucket holds; a time of
    /// zero ends a block, also one of a [ban](Policy::ban). The answer says how long it lasts yet, as far as the policy
    /// [advertises](Policy::advertise) it.
    ///
    /// At most 65,536 keys are blocked under one policy, and 1,024 of one network (IPv4 /16, IPv6 /40).
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or no room for another key.
    pub fn block(&self, policy: &str, key: Key, time: Duration) -> Result<(), BlockError> {
        let (policy, buckets) = self.find(policy).map_err(BlockError::UnknownPolicy)?;
        let penalties = buckets.penalties_or(|| {
            let swept_as = match self.shared.sweep {
                Sweep::Background => Some(policy.shared_name()),
                Sweep::Manual => None,
            };
            Penalties::new(policy.banned(), &self.shared.clock, swept_as.as_ref())
        });
        let now = self.now();
        if penalties.block(key, now.saturating_add(nanos(time)), now) { Ok(()) } else { Err(BlockError::Full) }
    }

    /// For how long `key` is blocked yet under the policy of this name.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn blocked_for(&self, policy: &str, key: Key) -> Result<Option<Duration>, UnknownPolicy> {
        let (_, buckets) = self.find(policy)?;
        let until = buckets.penalties().and_then(|penalties| penalties.blocked_until(key));
        let left = until.map_or(0, |until| until.saturating_sub(self.now()));
        Ok((left > 0).then(|| Duration::from_nanos(left)))
    }

    /// The quota of the policy of this name, as it is now.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn quota(&self, policy: &str) -> Result<Quota, UnknownPolicy> {
        Ok(self.find(policy)?.1.quota())
    }

    /// Gives the policy of this name another quota, for every decision from now on. Its buckets stay: what was drawn under
    /// one quota is owed, as time, under the next, and never more than two bursts of it (or one, and the longest wait, where
    /// a [delay layer](crate::RateLimitLayer::max_delay) uses the limiter). Requests for which
    /// [`quota_by`](Policy::quota_by) chooses a quota keep that.
    ///
    /// A decision that another thread is making meanwhile may still use the former quota.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn set_quota(&self, policy: &str, quota: Quota) -> Result<(), UnknownPolicy> {
        self.find(policy)?.1.set_quota(quota);
        Ok(())
    }

    /// Gives several policies other quotas, as from a file that was read again: all of them, or none if one is unknown.
    ///
    /// # Errors
    ///
    /// When there is no policy of one of the names.
    pub fn set_quotas<N: AsRef<str>>(&self, quotas: impl IntoIterator<Item = (N, Quota)>) -> Result<(), UnknownPolicy> {
        let found = quotas.into_iter().map(|(name, quota)| Ok((self.find(name.as_ref())?.1, quota)));
        let found = found.collect::<Result<Vec<_>, UnknownPolicy>>()?;
        for (buckets, quota) in found {
            buckets.set_quota(quota);
        }
        Ok(())
    }

    /// The keys that hold a bucket under the policy of this name, with how they stand: `limit` of them, from the place
    /// `from` on, which is zero for the first page. Between two pages keys come and go, and places with them: a key may be
    /// missed or shown twice. On one page of all (a `limit` of `usize::MAX`) each key that stays is shown once. A global
    /// policy has no keys.
    ///
    /// # Locking behaviour
    ///
    /// Locks one part in many of the policy's map at a time. The way to a place takes time in proportion to it.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn list(&self, policy: &str, from: usize, limit: usize) -> Result<Page<'_>, UnknownPolicy> {
        let (policy, buckets) = self.find(policy)?;
        let (quota, now) = (buckets.quota(), self.now());
        let Some(store) = buckets.store() else { return Ok(Page { keys: Vec::new(), next: None }) };
        if limit == 0 {
            return Ok(Page { keys: Vec::new(), next: None });
        }
        // One more, to know whether there is another page.
        let mut found = store.list(from, limit.saturating_add(1));
        let next = (found.len() > limit).then(|| from + limit);
        found.truncate(limit);
        let slack = buckets.slack();
        let standing =
            |bucket: Bucket| Standing::of(policy.name(), quota, bucket.clamped(now, quota, slack).backlog(now));
        Ok(Page { keys: found.into_iter().map(|(key, bucket)| (key, standing(bucket))).collect(), next })
    }

    /// The keys that were refused most since the limiter was built, for want of cells or because they are blocked, from the
    /// most refused on. Empty unless the limiter was built with [`top_denied`](super::Builder::top_denied).
    #[must_use]
    pub fn top_denied(&self) -> Vec<DeniedKey> {
        let entries = self.shared.sketch.as_ref().map(super::Sketch::top).unwrap_or_default();
        let named = entries.into_iter().map(|entry| DeniedKey {
            policy: self.shared.policies[entry.policy].shared_name(),
            key: entry.key,
            refusals: entry.count,
            overestimate: entry.overestimate,
        });
        named.collect()
    }

    /// Returns the cells of an admission that is not used, except for what time has returned already.
    ///
    /// So the sooner, the more comes back, and no schedule of draws and returns admits more than the quota. After a
    /// bucket was cut to a smaller quota, nothing is returned to its policy; nor is anything to a limiter other than the
    /// one that admitted.
    #[expect(clippy::needless_pass_by_value, reason = "taken, so that nothing is returned twice")]
    pub fn put_back(&self, allowed: Allowed<'_>) {
        if std::ptr::eq(allowed.policies, &raw const *self.shared.policies) {
            allowed.draws.iter().for_each(|draw| self.restore(draw, allowed.at));
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
    /// the limiter was built with [`Sweep::Manual`]. No decision differs for it.
    ///
    /// # Locking behaviour
    ///
    /// Locks one part in many of each policy's map at a time.
    pub fn sweep(&self) -> usize {
        for penalties in self.shared.buckets.iter().filter_map(Buckets::penalties) {
            penalties.stores().for_each(|store| _ = store.sweep());
        }
        let policies = self.shared.policies.iter().zip(&self.shared.buckets);
        let stores = policies.filter_map(|(policy, buckets)| Some((policy.name(), buckets.store()?)));
        stores.map(|(policy, store)| sweeper::sweep_now(policy, store)).sum()
    }

    fn find(&self, name: &str) -> Result<(&Policy, &Buckets), UnknownPolicy> {
        let shared = &*self.shared;
        let found = shared.policies.iter().zip(&shared.buckets).find(|(policy, _)| policy.name() == name);
        found.ok_or_else(|| UnknownPolicy::new(name, shared.policies.iter().map(Policy::name)))
    }
}

/// Some of the keys of a policy. Made by [`Limiter::list`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page<'a> {
    /// The keys, and how each stands.
    pub keys: Vec<(Key, Standing<'a>)>,
    /// Where the next page begins, if there is one.
    pub next: Option<usize>,
}

/// A key that was refused often. Made by [`Limiter::top_denied`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeniedKey {
    /// The policy that refused it.
    pub policy: Arc<str>,
    /// The key.
    pub key: Key,
    /// How often: never less than in truth, but for refusals that came while another one was being counted.
    pub refusals: u64,
    /// By how much the count may be too high.
    pub overestimate: u64,
}

/// Why a key was not blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockError {
    /// As many keys are blocked as can be, or as many of this key's network.
    Full,
    /// There is no policy of the name that was given.
    UnknownPolicy(UnknownPolicy),
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("as many keys are blocked as can be, or as many of this key's network"),
            Self::UnknownPolicy(unknown) => unknown.fmt(f),
        }
    }
}

impl error::Error for BlockError {}

/// No policy of the limiter has the name that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPolicy {
    asked: String,
    known: Vec<String>,
}

impl UnknownPolicy {
    pub(super) fn new<'a>(asked: &str, known: impl Iterator<Item = &'a str>) -> Self {
        Self { asked: asked.to_owned(), known: known.map(str::to_owned).collect() }
    }
}

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no policy is named {:?}; the limiter has {:?}", self.asked, self.known)
    }
}

impl error::Error for UnknownPolicy {}
