//! Contains [`PolicySet`], what a limiter has beside its buckets: the policies with their quotas as
//! they are now, the clock, the secret of the keys, blocks and bans, and the meters.
//!
//! Every limiter has exactly one, wherever its buckets are. So a request is evaluated, a key is
//! blocked, and a denial is counted and reported in one way. This file must not know where buckets
//! are, nor how they are locked.

#[cfg(feature = "tracing")]
use std::time::Duration;
use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use http::{Request, StatusCode};
use smallvec::SmallVec;

use super::{
    checks::{check, origins},
    error::{AcquireError, ConfigError, ConfigErrorKind, UnknownPolicy},
    live_quota::LiveQuota,
    penalties::Penalties,
    top_denied::{DeniedKey, TopDenied},
};
use crate::{
    clock::{Clock, Nanos, Timestamp},
    decision::{Denied, PolicyOutcome, PolicyOutcomes, Verdict},
    key::{HeadParts, IntoKey, Key, KeyHasher, RequestHead},
    observe::{
        events::{self, Throttle},
        metrics::{DecidedBy, Meters, Outcome},
    },
    policy::{Advertise, Demand, Policy},
    quota::Quota,
    sweeper::Sweep,
};

/// What a request asks of each policy that applies, by the policy's index.
pub(crate) type Demands = SmallVec<[(usize, Demand); 4]>;

/// What a limiter has beside its buckets.
pub(crate) struct PolicySet {
    /// In the limiter's order: the keyed policies as they were given, then the global ones.
    policies: Arc<[Policy]>,
    /// In the same order.
    live: Box<[LivePolicy]>,
    clock: Clock,
    hasher: KeyHasher,
    meters: Meters,
    missing_keys: Throttle,
    denials: Throttle,
    top_denied: Option<TopDenied>,
    sweep: Sweep,
    allow_empty: bool,
    /// Whether keys mean the same in every process with the secret.
    has_secret: bool,
}

/// What changes of a policy while the limiter runs.
pub(super) struct LivePolicy {
    quota: LiveQuota,
    /// Made with the limiter for a policy with a ban, and with the first block for another. Shared
    /// with the policies that continue this one, or are continued by it, by the same rule.
    penalties: Arc<OnceLock<Penalties>>,
}

impl LivePolicy {
    #[inline(always)]
    pub(super) fn quota(&self) -> Quota {
        self.quota.get()
    }

    /// `None` as long as no key was ever blocked, for a policy without a ban.
    #[inline(always)]
    pub(super) fn penalties(&self) -> Option<&Penalties> {
        self.penalties.get()
    }
}

/// The options of a [`PolicySet`] beside its policies.
#[derive(Debug, Default)]
pub(crate) struct PolicySetOptions {
    pub(crate) clock: Clock,
    /// Random unless set.
    pub(crate) hasher: Option<KeyHasher>,
    /// By the clock unless set.
    pub(crate) sweep: Option<Sweep>,
    /// The number of keys to track.
    pub(crate) top_denied: usize,
    /// Whether there may be no policy.
    pub(crate) allow_empty: bool,
}

impl PolicySet {
    pub(crate) fn new(policies: Vec<Policy>, options: PolicySetOptions) -> Result<Self, ConfigError> {
        let PolicySetOptions { clock, hasher, sweep, top_denied, allow_empty } = options;
        if policies.is_empty() && !allow_empty {
            return Err(ConfigError::new("", ConfigErrorKind::NoPolicy));
        }
        check(&policies)?;
        let (mut policies, global): (Vec<_>, Vec<_>) = policies.into_iter().partition(|policy| !policy.is_global());
        policies.extend(global);
        let has_secret = hasher.is_some();
        let hasher = hasher.unwrap_or_else(KeyHasher::random);
        #[cfg(feature = "tracing")]
        let hasher = watching_dates(hasher, &policies);
        let default = if clock.is_system() { Sweep::Background } else { Sweep::Manual };
        let live = policies
            .iter()
            .map(|policy| LivePolicy { quota: LiveQuota::new(policy.basis()), penalties: Arc::default() });
        let set = Self {
            live: live.collect(),
            meters: Meters::new(policies.len()),
            policies: policies.into(),
            clock,
            hasher,
            missing_keys: Throttle::default(),
            denials: Throttle::default(),
            top_denied: (top_denied > 0).then(|| TopDenied::new(top_denied)),
            sweep: sweep.unwrap_or(default),
            allow_empty,
            has_secret,
        };
        for (index, _) in set.policies.iter().enumerate().filter(|(_, policy)| policy.ban_rule().is_some()) {
            set.penalties_or_new(index);
        }
        Ok(set)
    }

    /// A set of other policies on the same clock, with the same secret. Also returns for each
    /// policy the number of the one of this set that it continues, whose blocks it has then.
    ///
    /// # Errors
    ///
    /// When there is no policy, or one is invalid; when policies that stay are in another order:
    /// two decisions could lock their buckets each before the other; when one that stays has
    /// another cap.
    pub(super) fn successor(&self, policies: Vec<Policy>) -> Result<(Self, Vec<Option<usize>>), ConfigError> {
        let mut next = Self::new(
            policies,
            PolicySetOptions {
                clock: self.clock.clone(),
                hasher: Some(self.hasher.clone()),
                sweep: Some(self.sweep),
                top_denied: 0,
                allow_empty: self.allow_empty,
            },
        )?;
        next.has_secret = self.has_secret;
        let origins = origins(&self.policies, &next.policies)?;
        for (index, origin) in origins.iter().enumerate() {
            let Some(origin) = *origin else { continue };
            let policy = &next.policies[index];
            next.live[index].penalties = if policy.ban_rule() == self.policies[origin].ban_rule() {
                Arc::clone(&self.live[origin].penalties)
            } else {
                // Made now, so that later blocks are for both.
                let former = self.penalties_or_new(origin);
                let penalties = former.with_rule(policy.ban_rule(), &self.clock, next.swept_as(policy).as_ref());
                Arc::new(OnceLock::from(penalties))
            };
        }
        next.top_denied = self.top_denied.as_ref().map(|top_denied| {
            top_denied.renumbered(|former| origins.iter().position(|origin| *origin == Some(former)))
        });
        Ok((next, origins))
    }

    /// Checks that a layer has something to limit.
    pub(crate) fn check_for_requests(&self) -> Result<(), ConfigError> {
        if !self.policies.is_empty() && self.policies.iter().all(Policy::is_by_key) {
            return Err(ConfigError::new("", ConfigErrorKind::NoPolicyForRequests));
        }
        Ok(())
    }

    /// A number that tells this set from others, as long as it exists.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.policies).cast::<()>().addr()
    }

    #[inline(always)]
    pub(crate) fn policies(&self) -> &[Policy] {
        &self.policies
    }

    #[inline(always)]
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    #[inline(always)]
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn hasher(&self) -> &KeyHasher {
        &self.hasher
    }

    /// Whether keys mean the same in every process with the secret.
    pub(super) fn has_secret(&self) -> bool {
        self.has_secret
    }

    /// The policy of a set that has one.
    #[inline(always)]
    pub(super) fn single(&self) -> Option<(&Policy, &LivePolicy)> {
        match (&*self.policies, &*self.live) {
            ([policy], [live]) => Some((policy, live)),
            _ => None,
        }
    }

    /// Whether the bucket of a global policy is one number: there is no other global policy, and
    /// one quota for all requests.
    pub(super) fn has_atomic(&self, policy: &Policy) -> bool {
        self.policies.iter().filter(|policy| policy.is_global()).count() == 1 && !policy.has_plans()
    }

    /// The policy at this index.
    #[inline(always)]
    pub(super) fn policy(&self, index: usize) -> &Policy {
        &self.policies[index]
    }

    /// The parts of a request that policies see.
    #[inline(always)]
    pub(crate) fn parts<'a, B>(&'a self, request: &'a Request<B>) -> HeadParts<'a> {
        HeadParts::new(request, &self.hasher)
    }

    /// What the policy's buckets are decided by now, unless another limit is chosen.
    #[inline(always)]
    pub(crate) fn quota(&self, index: usize) -> Quota {
        self.live[index].quota()
    }

    pub(crate) fn set_quota(&self, index: usize, quota: Quota) {
        self.live[index].quota.set(quota);
    }

    /// The name under which the background thread sweeps what belongs to a policy. `None` where it
    /// does not.
    pub(crate) fn swept_as(&self, policy: &Policy) -> Option<Arc<str>> {
        (self.sweep == Sweep::Background).then(|| policy.shared_name())
    }

    #[inline(always)]
    pub(super) fn penalties(&self, index: usize) -> Option<&Penalties> {
        self.live[index].penalties()
    }

    pub(super) fn penalties_or_new(&self, index: usize) -> &Penalties {
        let policy = &self.policies[index];
        self.live[index]
            .penalties
            .get_or_init(|| Penalties::new(policy.ban_rule(), &self.clock, self.swept_as(policy).as_ref()))
    }

    /// Whether clients learn always how they stand under this policy.
    pub(crate) fn is_advertised(&self, (index, demand): &(usize, Demand)) -> bool {
        self.policies[*index].advertised() == Advertise::Everything && !demand.shadow
    }

    /// The keys that were denied most.
    pub(crate) fn denied_keys(&self) -> Vec<DeniedKey> {
        let top = self.top_denied.as_ref().map(TopDenied::top).unwrap_or_default();
        let named = top.into_iter().map(|tracked| DeniedKey {
            policy: self.policies[tracked.policy].shared_name(),
            key: tracked.key,
            denials: tracked.count,
            overestimate: tracked.overestimate,
        });
        named.collect()
    }

    /// Ends the blocks of a key that are in memory, and forgets its denials. True if it was
    /// blocked.
    pub(crate) fn forgive(&self, index: usize, key: Key) -> bool {
        self.penalties(index).is_some_and(|penalties| penalties.forget(key, self.now()))
    }

    /// Leaves a ban to somebody else: from here on it does not block here. The next one is longer
    /// all the same.
    #[cfg(feature = "redis")]
    pub(crate) fn hand_over_ban(&self, index: usize, key: Key) {
        if let Some(penalties) = self.penalties(index) {
            penalties.hand_over(key);
        }
    }

    /// The index of the policy of this name, and the policy.
    pub(crate) fn find(&self, name: &str) -> Result<(usize, &Policy), UnknownPolicy> {
        let found = self.policies.iter().enumerate().find(|(_, policy)| policy.name() == name);
        found.ok_or_else(|| UnknownPolicy::new(name, self.policies.iter().map(Policy::name)))
    }

    /// What a caller asks of the policy that it names, by the quota `plan` if there is one.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    #[inline]
    pub(crate) fn demand_by_key(
        &self,
        name: &str,
        key: impl IntoKey,
        cells: u32,
        plan: Option<Quota>,
    ) -> Result<(usize, Demand), UnknownPolicy> {
        let (index, policy) = self.find(name)?;
        Ok((index, policy.demand_by_key(key.key(&self.hasher), cells, plan, || self.quota(index))))
    }

    /// What a caller asks of the policies that it names, each with a key and cells, in the
    /// limiter's order.
    ///
    /// # Errors
    ///
    /// When there is no policy of a name, or a name stands twice: two locks of one map would wait
    /// for each other.
    pub(crate) fn demands_by_key(
        &self,
        wanted: &[(&str, &(dyn IntoKey + Sync), u32)],
    ) -> Result<Demands, AcquireError> {
        let mut demands = Demands::new();
        for (name, key, cells) in wanted {
            let demand = self.demand_by_key(name, key, *cells, None)?;
            if demands.iter().any(|(other, _)| *other == demand.0) {
                return Err(AcquireError::RepeatedPolicy((*name).to_owned()));
            }
            demands.push(demand);
        }
        demands.sort_unstable_by_key(|(index, _)| *index);
        Ok(demands)
    }

    /// Adds what a request asks of each policy that applies. `decided_by` is what would decide, or
    /// would say without being asked that a key is missing.
    ///
    /// # Errors
    ///
    /// The denial of a request that lacks a key.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    #[inline(always)]
    pub(crate) fn evaluate(
        &self,
        head: RequestHead<'_>,
        demands: &mut Demands,
        decided_by: DecidedBy,
    ) -> Result<(), Denied> {
        for (index, policy) in self.policies.iter().enumerate() {
            match policy.evaluate(head, || self.quota(index)) {
                Ok(Some(demand)) => demands.push((index, demand)),
                Ok(None) => {}
                Err(status) => return Err(self.missing_key(index, status, head, decided_by)),
            }
        }
        Ok(())
    }

    /// What a request asks of the only policy, if that applies.
    ///
    /// # Errors
    ///
    /// The denial of a request that lacks a key.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    #[inline(always)]
    pub(crate) fn evaluate_single(&self, head: RequestHead<'_>) -> Result<Option<Demand>, Denied> {
        let evaluated = self.policies[0].evaluate(head, || self.quota(0));
        evaluated.map_err(|status| self.missing_key(0, status, head, DecidedBy::Memory))
    }

    #[cold]
    pub(super) fn missing_key(
        &self,
        index: usize,
        status: StatusCode,
        head: RequestHead<'_>,
        decided_by: DecidedBy,
    ) -> Denied {
        let policy = &self.policies[index];
        self.count((index, policy), Outcome::MissingKey, false, decided_by, || false);
        events::missing_key(policy.name(), status.as_u16(), || policy.remedy(head), &self.missing_keys, self.now());
        Denied::missing_key(Arc::clone(&self.policies), index, status, policy.challenge(head))
    }

    /// Whether a key is blocked now, as far as that is in memory.
    pub(super) fn is_blocked(&self, index: usize, key: Key) -> bool {
        let until = self.penalties(index).and_then(|penalties| penalties.blocked_until(key));
        until.is_some_and(|until| until > self.now())
    }

    /// The denial of a request one of whose keys is blocked. `outcome` says how a policy would
    /// answer without the block.
    ///
    /// Called before any bucket is locked, and never locks across policies.
    #[inline(always)]
    pub(crate) fn blocked(
        &self,
        demands: &[(usize, Demand)],
        decided_by: DecidedBy,
        outcome: impl Fn(usize, &Demand) -> PolicyOutcome,
    ) -> Option<Denied> {
        // As long as no key was ever blocked.
        if demands.iter().all(|(policy, _)| self.penalties(*policy).is_none()) {
            return None;
        }
        let until = |index: usize| {
            let (policy, demand) = &demands[index];
            self.penalties(*policy)?.blocked_until(demand.key)
        };
        self.denial_of_blocked(demands, decided_by, until, |index| {
            let (policy, demand) = &demands[index];
            outcome(*policy, demand)
        })
    }

    /// Like [`blocked`](Self::blocked). `until` says when the block of the key ends that the demand
    /// at an index asks for, `outcome` how its policy would answer.
    #[inline(never)]
    pub(crate) fn denial_of_blocked(
        &self,
        demands: &[(usize, Demand)],
        decided_by: DecidedBy,
        until: impl Fn(usize) -> Option<Timestamp>,
        outcome: impl Fn(usize) -> PolicyOutcome,
    ) -> Option<Denied> {
        let until = |index: usize| until(index).filter(|until| !demands[index].1.shadow && *until > self.now());
        (0..demands.len()).find_map(until)?;
        // The wait is the longest of all policies: the end of the block is not enough where cells
        // are missing.
        let outcomes = demands.iter().enumerate().map(|(index, (policy, demand))| {
            let mut outcome = outcome(index);
            if let Some(until) = until(index) {
                let left = until.since(self.now());
                outcome.verdict = match outcome.verdict {
                    // A request that can never be granted is not granted after the block either.
                    Verdict::AtCapacity | Verdict::Never => outcome.verdict,
                    Verdict::Wait(wait) => Verdict::Blocked(left.max(wait)),
                    Verdict::Blocked(_) | Verdict::Granted | Verdict::NoPermit(_) => Verdict::Blocked(left),
                };
                if let Some(top_denied) = &self.top_denied {
                    top_denied.count(*policy, demand.key);
                }
            }
            outcome
        });
        let outcomes: PolicyOutcomes = outcomes.collect();
        // The block may have ended since it was found.
        let keys: SmallVec<[_; 4]> = demands.iter().map(|(policy, demand)| (*policy, demand.key)).collect();
        outcomes
            .iter()
            .any(PolicyOutcome::denies)
            .then(|| self.denied(outcomes, &keys, &[], self.now(), decided_by, |_, _, _| {}))
    }

    /// Makes the denial, counts it, and reports it. `keys` are those of policies that deny, as far
    /// as they are known. `strikes` are the keys that lacked cells at `now`; `banned` is called for
    /// each that is banned for it, with the length. Called while nothing is locked.
    #[inline(never)]
    pub(crate) fn denied(
        &self,
        mut outcomes: PolicyOutcomes,
        keys: &[(usize, Key)],
        strikes: &[(usize, Key)],
        now: Timestamp,
        decided_by: DecidedBy,
        mut banned: impl FnMut(usize, Key, Nanos),
    ) -> Denied {
        for (policy, key) in strikes {
            if let Some(top_denied) = &self.top_denied {
                top_denied.count(*policy, *key);
            }
            // A key above its share in an outage may be within its limit: that earns no ban, which
            // would outlast the outage.
            let penalties = if decided_by.is_fallback() { None } else { self.penalties(*policy) };
            let length = penalties.and_then(|penalties| penalties.strike(*key, now));
            let outcome = outcomes.iter_mut().find(|outcome| outcome.policy == *policy);
            if let (Some(length), Some(outcome)) = (length, outcome) {
                // From here on the wait for cells would be too short.
                let wait = if let Verdict::Wait(wait) = outcome.verdict { wait } else { Nanos::ZERO };
                outcome.verdict = Verdict::Blocked(length.max(wait));
                events::banned(self.policies[*policy].name(), length);
                banned(*policy, *key, length);
            }
        }
        for outcome in outcomes.iter().filter(|outcome| cfg!(feature = "metrics") && outcome.denies()) {
            let counted = match outcome.verdict {
                Verdict::Blocked(_) => Outcome::Blocked,
                Verdict::AtCapacity => Outcome::AtCapacity,
                _ => Outcome::Denied,
            };
            let policy = (outcome.policy, &self.policies[outcome.policy]);
            self.count(policy, counted, false, decided_by, || false);
        }
        let denied = Denied::by(Arc::clone(&self.policies), outcomes);
        let key = || {
            let named = |(policy, _): &&(usize, Key)| self.policies[*policy].name() == denied.policy();
            keys.iter().find(named).map(|(_, key)| self.hasher.opaque(*key))
        };
        events::denied(|| denied.policy(), || denied.reason(), key, &self.denials, now);
        denied
    }

    /// The denial of a policy that fails closed.
    #[cfg(feature = "redis")]
    pub(crate) fn unavailable(&self, index: usize) -> Denied {
        self.count((index, &self.policies[index]), Outcome::Unavailable, false, DecidedBy::Fallback, || false);
        Denied::unavailable(Arc::clone(&self.policies), index)
    }

    /// Counts a policy's answer. `near` says whether less than a fifth of the burst is left.
    #[inline(always)]
    pub(crate) fn count(
        &self,
        (index, policy): (usize, &Policy),
        outcome: Outcome,
        shadow: bool,
        decided_by: DecidedBy,
        near: impl FnOnce() -> bool,
    ) {
        self.meters.count((index, policy.name()), outcome, shadow, decided_by, near);
    }

    pub(super) fn count_overflow(&self, index: usize) {
        self.meters.overflowed(index, self.policies[index].name());
    }
}

impl fmt::Debug for PolicySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicySet").field("policies", &self.policies).finish_non_exhaustive()
    }
}

/// Whether less than a fifth of the burst is left.
pub(crate) fn is_near_limit(backlog: Nanos, quota: Quota) -> bool {
    // In 128 bits: of a window, a cell is one nanosecond, and nothing may be rounded.
    u128::from(backlog.get()) * 5 > u128::from(quota.burst_nanos().get()) * 4
}

/// Buckets that take a day or longer to come back stay beside those of the next day, if a key has a
/// date in it.
#[cfg(feature = "tracing")]
fn watching_dates(hasher: KeyHasher, policies: &[Policy]) -> KeyHasher {
    const DAY: Duration = Duration::from_secs(86_400);
    let stays = |policy: &&Policy| !policy.is_global() && policy.time_to_fill() >= DAY;
    let names: Vec<_> = policies.iter().filter(stays).map(Policy::name).collect();
    hasher.watching_dates((!names.is_empty()).then(|| names.join(", ")))
}
