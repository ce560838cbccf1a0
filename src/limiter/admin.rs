//! Contains the control of a limiter: peek, charge, refund, block, set, list, sweep.
//!
//! Every method names a policy. None of them is used by a decision.

use std::time::Duration;

use super::{
    Limiter,
    error::{BlockError, LimitError, UnknownPolicy},
    local_buckets::PolicyBuckets,
    reservation::MAX_PATIENCE,
    top_denied::DeniedKey,
};
use crate::{
    clock::Nanos,
    decision::{Allowed, Standing},
    key::{IntoKey, Key},
    limit::{IntoLimit, Limit},
    policy::{Basis, Policy},
    snapshot::ResetMark,
    sweeper,
};

/// How long it is remembered that blocks were ended: no older snapshot is worth restoring.
const REMEMBERED: Nanos = Nanos::new(31 * 86_400 * Nanos::SECOND.get());

impl Limiter {
    /// Returns the policies, in the limiter's order: the keyed ones as they were given, then the
    /// global ones as they were given.
    pub fn policies(&self) -> &[Policy] {
        self.set().policies()
    }

    /// Returns the key that [`RequestHead::key`](crate::key::RequestHead::key) makes of `value`.
    ///
    /// The methods that take a key make it themselves. Use this method to store a key.
    ///
    /// How much of a client's address counts depends on the extractor: name a client with
    /// `PeerIp.network(address)`. What a second choice finds ([`or`](crate::key::KeyExtractor::or))
    /// has a key of its own: name it with [`fallback(1, value)`](crate::key::fallback).
    #[must_use]
    pub fn key(&self, value: impl IntoKey) -> Key {
        value.key(self.set().hasher())
    }

    /// Returns how `key` stands under the policy of this name, and acquires nothing. A global
    /// policy has one bucket, whatever the key.
    ///
    /// The standing is by the quota that [`quota_by`](Policy::quota_by) or
    /// [`acquire_as`](Self::acquire_as) chose last for the key, as long as something of it is used,
    /// and otherwise by the policy's own. A blocked key shows its
    /// bucket, see [`blocked_for`](Self::blocked_for). A key that shares an overflow bucket shows a
    /// full bucket of its own.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn peek(&self, policy: &str, key: impl IntoKey) -> Result<Standing<'_>, UnknownPolicy> {
        let (index, policy, buckets) = self.find(policy)?;
        let own = Basis { quota: self.set().quota(index), planned: false };
        let level = buckets.peek(policy.key(self.key(key)), own, self.set().clock());
        Ok(Standing::of(policy.name(), level))
    }

    /// Returns how `key` stands by the limit `plan`, as [`acquire_as`](Self::acquire_as) would
    /// decide, and acquires nothing. See [`peek`](Self::peek).
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or `plan` is no limit for it: see [`LimitError`].
    pub fn peek_as(&self, policy: &str, key: impl IntoKey, plan: impl IntoLimit) -> Result<Standing<'_>, LimitError> {
        let (_, policy, buckets) = self.find(policy)?;
        let plan = Basis { quota: buckets.basis_of(policy, &plan.into_limit())?, planned: true };
        let level = buckets.peek(policy.key(self.key(key)), plan, self.set().clock());
        Ok(Standing::of(policy.name(), level))
    }

    /// Charges `cells` whether or not they are there, and returns how `key` stands afterwards.
    ///
    /// Use it for costs that are higher than expected. Missing cells become debt, which time pays
    /// off before anything is granted again. The debt is at most one burst, or the longest wait
    /// where [requests wait](crate::RateLimitLayer::max_delay); cells beyond that are forgiven. A
    /// charge never lessens a backlog. A key for which a full map has no place
    /// ([`AtCap::Deny`](crate::policy::AtCap::Deny), [`AtCap::Allow`](crate::policy::AtCap::Allow))
    /// is not charged.
    ///
    /// The quota is as in [`peek`](Self::peek).
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn charge(&self, policy: &str, key: impl IntoKey, cells: u32) -> Result<Standing<'_>, UnknownPolicy> {
        let (index, policy, buckets) = self.find(policy)?;
        let own = self.set().quota(index);
        let level = buckets.charge(policy.key(self.key(key)), cells, own, self.set().clock());
        Ok(Standing::of(policy.name(), level))
    }

    /// Fills the bucket of `key` under the policy of this name, and ends its blocks and its pause.
    /// Earlier receipts of the policy are void. Returns true if the bucket was not full, or the key
    /// was blocked or paused. A bucket that a key shares with others, because the map was full, is
    /// not reset.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn reset(&self, policy: &str, key: impl IntoKey) -> Result<bool, UnknownPolicy> {
        let (index, policy, buckets) = self.find(policy)?;
        let key = policy.key(self.key(key));
        let set = self.set();
        if set.has_secret() {
            // First: a snapshot that is restored meanwhile brings nothing back.
            let now = set.now();
            let until = buckets.forgotten_at(now).max(now.saturating_add(REMEMBERED));
            buckets.remember_reset(key, ResetMark { bucket: now, block: now, until }, set, policy);
        }
        let was_used = buckets.reset(key, set.clock());
        let was_blocked = set.forgive(index, key);
        Ok(was_used || was_blocked)
    }

    /// Denies every request with `key` under the policy of this name for this time, whatever is in
    /// its bucket. A time of zero ends a block, and also a [ban](Policy::ban). The response says
    /// how long the block lasts, as far as the policy [advertises](Policy::advertise) it.
    ///
    /// At most 65,536 keys are blocked under one policy, and 1,024 of one network (IPv4 /16, IPv6
    /// /40).
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or no place for another key.
    pub fn block(&self, policy: &str, key: impl IntoKey, time: Duration) -> Result<(), BlockError> {
        let (index, policy, buckets) = self.find(policy).map_err(BlockError::UnknownPolicy)?;
        let now = self.set().now();
        let penalties = self.set().penalties_or_new(index);
        buckets.know_penalties();
        let key = policy.key(self.key(key));
        if time.is_zero() && self.set().has_secret() {
            let mark = ResetMark { block: now, until: now.saturating_add(REMEMBERED), ..ResetMark::default() };
            buckets.remember_reset(key, mark, self.set(), policy);
        }
        if penalties.block(key, now.saturating_add(time.into()), now) { Ok(()) } else { Err(BlockError::Full) }
    }

    /// Returns the remaining time for which `key` is blocked under the policy of this name.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn blocked_for(&self, policy: &str, key: impl IntoKey) -> Result<Option<Duration>, UnknownPolicy> {
        let (index, policy, _) = self.find(policy)?;
        let key = policy.key(self.key(key));
        let until = self.set().penalties(index).and_then(|penalties| penalties.blocked_until(key));
        let left = until.map(|until| until.since(self.set().now())).filter(|left| !left.is_zero());
        Ok(left.map(Into::into))
    }

    /// Pauses `key` under the policy of this name: until the pause ends, the limiter grants no
    /// cell of the key, and its bucket does not refill. Use it to obey a partner's `Retry-After` in
    /// every task that calls the partner.
    ///
    /// A second pause lengthens the first and never shortens it. A pause lasts at most a day.
    /// [`reset`](Self::reset) ends it; a reservation made during the pause still keeps its time.
    /// Requests and [reservations](Self::reserve) that already wait are delayed by the pause and
    /// keep their order, so they do not all start at its end. A denial during a pause says when the
    /// pause ends, and counts towards no [ban](Policy::ban). The standing of a paused key is that
    /// of an empty bucket.
    ///
    /// At most 65,536 keys are paused under one policy, and 1,024 of one network (IPv4 /16, IPv6
    /// /40).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_quota::{Limiter, Policy, Quota};
    ///
    /// let outgoing = Limiter::new(Policy::by_key(Quota::per_second(10)).named("partner"));
    /// // The partner has answered with a 429 and `Retry-After: 30`.
    /// outgoing.pause("partner", "api.example.com", Duration::from_secs(30)).unwrap();
    /// let denied = outgoing.acquire("partner", "api.example.com").unwrap_err();
    /// assert_eq!(denied.denied().unwrap().retry_after(), Some(30));
    /// ```
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or no place for another key.
    pub fn pause(&self, policy: &str, key: impl IntoKey, time: Duration) -> Result<(), BlockError> {
        let (index, policy, _) = self.find(policy).map_err(BlockError::UnknownPolicy)?;
        let (key, time) = (policy.key(self.key(key)), Nanos::from(time).min(MAX_PATIENCE));
        if self.parts.buckets.pause(self.set(), index, key, time) { Ok(()) } else { Err(BlockError::Full) }
    }

    /// Returns the remaining time for which `key` is paused under the policy of this name.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn paused_for(&self, policy: &str, key: impl IntoKey) -> Result<Option<Duration>, UnknownPolicy> {
        let (_, policy, buckets) = self.find(policy)?;
        let left = buckets.pause_of(policy.key(self.key(key))).until.since(self.set().now());
        Ok((!left.is_zero()).then(|| left.into()))
    }

    /// Returns the limit of the policy of this name, as it is now.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn limit(&self, policy: &str) -> Result<Limit, UnknownPolicy> {
        let (index, _, buckets) = self.find(policy)?;
        Ok(match buckets.window() {
            Some(window) => Limit::Window(window.window().of_limit(self.set().quota(index).burst_size())),
            None => Limit::Quota(self.set().quota(index)),
        })
    }

    /// Sets the limit of the policy of this name, for every later decision. A change keeps the
    /// count: of 100 cells that were used of 1,000, 100 are used of 10,000. Under a smaller limit
    /// than what is used, a key is denied until enough has come back: of a rate, at the former one
    /// if that was faster; of a window, at its end. Requests for which
    /// [`quota_by`](Policy::quota_by) or [`limit_by`](Policy::limit_by) chooses a limit are not
    /// affected.
    ///
    /// A window may get another period, or another time zone. What was used in the current window
    /// stays used, until it ends by the new calendar.
    ///
    /// A decision on another thread at the same time may use the former limit.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name; when a policy with a rate would get a window, or the
    /// reverse.
    pub fn set_limit(&self, policy: &str, limit: impl IntoLimit) -> Result<(), LimitError> {
        self.set_limits([(policy, limit)])
    }

    /// Sets the limits of several policies, from a file that was read again for instance: all of
    /// them, or none where one cannot be set. See [`set_limit`](Self::set_limit).
    ///
    /// # Errors
    ///
    /// When [`set_limit`](Self::set_limit) fails for one of them.
    pub fn set_limits<N: AsRef<str>, L: IntoLimit>(
        &self,
        limits: impl IntoIterator<Item = (N, L)>,
    ) -> Result<(), LimitError> {
        let found = limits.into_iter().map(|(name, limit)| {
            let ((index, policy, buckets), limit) = (self.find(name.as_ref())?, limit.into_limit());
            policy
                .limit()
                .is_like(&limit)
                .then_some((index, buckets, limit.clone()))
                .ok_or_else(|| LimitError::misfit(policy, limit))
        });
        for (index, buckets, limit) in found.collect::<Result<Vec<_>, LimitError>>()? {
            buckets.allow_quota(limit.basis());
            buckets.set_window(&limit);
            self.set().set_quota(index, limit.basis());
        }
        Ok(())
    }

    /// Lists keys that have a bucket under the policy of this name, with how they stand: at most
    /// `limit` keys, from position `from` on, which is zero for the first page. A global policy has
    /// no keys.
    ///
    /// Between two pages keys come and go, and positions change: a key may be missing or listed
    /// twice. On one page of all keys (a `limit` of `usize::MAX`) each key that stays is listed
    /// once.
    ///
    /// # Locking behaviour
    ///
    /// Locks one shard of the policy's map at a time. Reaching a position takes time in proportion
    /// to it.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn list(&self, policy: &str, from: usize, limit: usize) -> Result<Page<'_>, UnknownPolicy> {
        let (index, policy, buckets) = self.find(policy)?;
        let own = Basis { quota: self.set().quota(index), planned: false };
        let Some(keyed) = buckets.keyed() else { return Ok(Page { keys: Vec::new(), next: None }) };
        if limit == 0 {
            return Ok(Page { keys: Vec::new(), next: None });
        }
        // One more, to know whether there is another page.
        let mut found = keyed.list(from, limit.saturating_add(1));
        let next = (found.len() > limit).then(|| from + limit);
        found.truncate(limit);
        let standing = |key| {
            let level = buckets.peek(key, own, self.set().clock());
            (key, Standing::of(policy.name(), level))
        };
        Ok(Page { keys: found.into_iter().map(standing).collect(), next })
    }

    /// Returns the keys that were denied most since the limiter was built, for lack of cells or
    /// because they are blocked, sorted from the most denied one. Empty unless the limiter was
    /// built with [`top_denied`](super::Builder::top_denied).
    #[must_use]
    pub fn top_denied(&self) -> Vec<DeniedKey> {
        self.set().denied_keys()
    }

    /// Refunds the cells of an allowed request that is not served, less what time has returned
    /// already.
    ///
    /// So the sooner, the more is refunded, and no schedule admits more than the quota. After a
    /// bucket was converted to another quota, nothing is refunded to it. Nothing is refunded to
    /// a limiter other than the one that allowed the request.
    #[expect(clippy::needless_pass_by_value, reason = "consumed, so that nothing is refunded twice")]
    pub fn refund(&self, allowed: Allowed<'_>) {
        if std::ptr::eq(allowed.policies, self.policies()) {
            let clock = self.set().clock();
            allowed.receipts.iter().for_each(|receipt| self.parts.buckets.refund(receipt, allowed.at, clock));
        }
    }

    /// Returns how many keys have a bucket, over all keyed policies.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.buckets.each.iter().filter_map(|buckets| buckets.keyed()).map(|keyed| keyed.store().len()).sum()
    }

    /// Whether no key has a bucket.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes the idle keys, returns memory, and returns how many keys were removed. A background
    /// thread does this unless the limiter uses [`Sweep::Manual`](super::Sweep::Manual). No
    /// decision changes by it.
    ///
    /// # Locking behaviour
    ///
    /// Locks one shard of each policy's map at a time.
    #[expect(clippy::must_use_candidate, reason = "called for its effect")]
    pub fn sweep(&self) -> usize {
        let policies = self.policies().iter().enumerate().zip(&self.parts.buckets.each);
        let removed = policies.map(|((index, policy), buckets)| {
            if let Some(penalties) = self.set().penalties(index) {
                penalties.sweep();
            }
            if let Some(pauses) = buckets.pauses() {
                pauses.sweep();
            }
            if let Some(resets) = buckets.resets() {
                resets.sweep();
            }
            match (buckets.keyed(), buckets.window()) {
                (Some(keyed), _) => sweeper::sweep_now(policy.name(), keyed),
                (None, Some(window)) => sweeper::sweep_now(policy.name(), window),
                (None, None) => 0,
            }
        });
        removed.sum()
    }

    pub(super) fn find(&self, name: &str) -> Result<(usize, &Policy, &PolicyBuckets), UnknownPolicy> {
        let (index, policy) = self.set().find(name)?;
        Ok((index, policy, &self.parts.buckets.each[index]))
    }
}

/// Some of the keys of a policy. Made by [`Limiter::list`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page<'a> {
    /// The keys, and how each stands.
    pub keys: Vec<(Key, Standing<'a>)>,
    /// The position of the next page, if there is one.
    pub next: Option<usize>,
}
