//! [`Limiter`]: policies and their buckets, and the one critical section that decides over all of them.
//!
//! Owns the order of things in a decision. Knows nothing of services, of responses, or of how a bucket counts.
//!
//! # A decision, step by step
//!
//! 1. Every policy says what it charges: keys, quotas, costs. This is where the user's closures run, with no lock held.
//! 2. The buckets of the keyed policies are locked, in the order of the policies.
//! 3. The clock is read, once: after the locks, so that every bucket sees time go forward.
//! 4. Every bucket is looked at, and nothing is written.
//! 5. If all grant, the draw is written to all; otherwise to none. A lone global policy has no lock: its bucket is
//!    exchanged first, and if another draw came between, the decision goes back to step 3.
//!
//! So a refused request leaves every bucket as it was, nothing is ever put back in a decision, and many threads together
//! admit what one would have admitted.
//!
//! ```
//! use tower_quota::{Decision, Limiter, Policy, Quota, key::Header};
//!
//! let limiter = Limiter::new([
//!     Policy::per(Header::new("x-api-key"), Quota::per_second(10)).named("second"),
//!     Policy::per(Header::new("x-api-key"), Quota::per_hour(1_000)).named("hour"),
//!     Policy::global(Quota::per_second(5_000)),
//! ]);
//! let request = http::Request::builder().header("x-api-key", "k1").body(()).unwrap();
//! match limiter.decide(&request) {
//!     Decision::Allow(allowed) => {
//!         let remaining: Vec<_> = allowed.standings().map(|standing| standing.remaining()).collect();
//!         assert_eq!(remaining, [9, 999, 4_999]);
//!     }
//!     Decision::Deny(denied) => unreachable!("{denied}"),
//! }
//! ```

mod admission;
mod buckets;
mod builder;
mod claim;
mod control;
mod live;
#[cfg(all(test, tower_quota_loom))]
mod models;
mod penalties;
#[cfg(feature = "redis")]
mod remote;
mod sketch;

use std::{fmt, sync::Arc};

use http::{Request, StatusCode};
use smallvec::SmallVec;

#[cfg(feature = "redis")]
pub(crate) use self::admission::Settle;
pub use self::{
    admission::Admission,
    builder::{Builder, ConfigError, Sweep},
    control::{BlockError, DeniedKey, Page, UnknownPolicy},
};
use self::{
    buckets::{Alone, Buckets},
    claim::Claim,
    sketch::Sketch,
};
use crate::{
    clock::Clock,
    decision::{Allowed, Decision, Denied, Draw, Draws, Outcome, Trial, Trials},
    key::{Key, KeyHasher, Parts, RequestHead},
    observe::{self, Meters, Source},
    policy::{Charge, Policy},
    quota::Quota,
};

/// Policies and their buckets. Clones share them: give one limiter to several layers and their requests are counted
/// together.
#[derive(Clone)]
pub struct Limiter {
    shared: Arc<Shared>,
}

struct Shared {
    /// The limiter's order: the keyed policies as they were given, then the global ones as they were given.
    policies: Arc<[Policy]>,
    /// One for each policy, in the same order.
    buckets: Box<[Buckets]>,
    clock: Clock,
    hasher: KeyHasher,
    /// Of the events that say so.
    missing_keys: observe::Throttle,
    refusals: observe::Throttle,
    meters: Meters,
    /// Who decides, to the meters.
    source: Source,
    /// Of the keys that are refused, where they are asked for.
    sketch: Option<Sketch>,
    sweep: Sweep,
}

/// What a request asks of each policy that applies, by the policy's index.
pub(crate) type Charges = SmallVec<[(usize, Charge); 4]>;

/// That a request is admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    /// The reading of the clock at which its cells were drawn.
    pub(crate) at: u64,
    /// Nanoseconds from then until they are there.
    pub(crate) wait: u64,
}

impl Limiter {
    /// A limiter with this policy, or with these, on the system's clock, sweeping by itself.
    ///
    /// # Panics
    ///
    /// On whatever [`Builder::build`] refuses, with the same message.
    #[must_use]
    pub fn new(policies: impl Into<Self>) -> Self {
        policies.into()
    }

    /// A limiter that is built step by step, with a clock of your own for instance.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Decides whether a request is admitted, and draws its cells if it is.
    ///
    /// For use without a service; [`RateLimitLayer`](crate::RateLimitLayer) calls it for every request.
    ///
    /// # Locking behaviour
    ///
    /// Locks one bucket of each keyed policy that applies, for the length of the arithmetic. Waits for nothing else and
    /// runs no user code under a lock.
    pub fn decide<B>(&self, request: &Request<B>) -> Decision<'_> {
        self.shared.decide(self.parts(request).head())
    }

    /// Decides like [`decide`](Self::decide), and writes receipts only where they are asked for.
    #[expect(clippy::result_large_err, reason = "made where it is returned, on the path that is not taken often")]
    pub(crate) fn admit(&self, head: RequestHead<'_>, receipts: Option<&mut Draws>) -> Result<Grant, Denied> {
        self.shared.admit(head, receipts)
    }

    /// Decides for a request that waits for its cells, `patience` nanoseconds at most. They are drawn now, so that who
    /// comes later waits longer.
    #[expect(clippy::result_large_err, reason = "made where it is returned, on the path that is not taken often")]
    pub(crate) fn admit_within(
        &self,
        head: RequestHead<'_>,
        patience: u64,
        receipts: &mut Draws,
    ) -> Result<Grant, Denied> {
        self.shared.judge(head, Some(receipts), patience)
    }

    /// Lets requests wait for as long, now and later.
    pub(crate) fn allow_waits(&self, nanos: u64) {
        self.shared.buckets.iter().for_each(|buckets| buckets.allow_slack(nanos));
    }

    /// The limiter's time.
    pub(crate) fn now(&self) -> u64 {
        self.shared.clock.now()
    }

    /// Returns what time has not returned yet of a draw that was made at `at`.
    pub(crate) fn restore(&self, draw: &Draw, at: u64) {
        self.shared.buckets[draw.trial.policy].put_back(draw, at, &self.shared.clock);
    }

    /// Charges what a request has cost beyond its draw.
    pub(crate) fn debit(&self, draw: &Draw, cells: u32) {
        self.shared.buckets[draw.trial.policy].debit(draw, cells, &self.shared.clock);
    }

    /// What policies see of a request.
    pub(crate) fn parts<'a, B>(&'a self, request: &'a Request<B>) -> Parts<'a> {
        Parts::new(request, &self.shared.hasher)
    }
}

// Not generic over the request's body: compiled once, here, where all of a decision can be inlined into it.
#[expect(clippy::result_large_err, reason = "made where it is returned, on the path that is not taken often")]
impl Shared {
    fn decide(&self, head: RequestHead<'_>) -> Decision<'_> {
        let policies = &*self.policies;
        let mut draws = Draws::None;
        let judged = match self.judge_sole(head, 0) {
            // Made where it is returned, and not copied: a decision is large.
            Sole::Drawn(charge, alone) => {
                self.count_alone(&charge, &alone);
                return Decision::Allow(Allowed { policies, at: alone.now, draws: Draws::One(receipt(charge, alone)) });
            }
            undecided => self.judge_rest(undecided, head, Some(&mut draws), 0),
        };
        match judged {
            Ok(Grant { at, .. }) => Decision::Allow(Allowed { policies, at, draws }),
            Err(denied) => Decision::Deny(denied),
        }
    }

    fn admit(&self, head: RequestHead<'_>, receipts: Option<&mut Draws>) -> Result<Grant, Denied> {
        self.judge(head, receipts, 0)
    }

    /// Leaves the receipts where they are asked for.
    #[inline(always)]
    fn judge(&self, head: RequestHead<'_>, receipts: Option<&mut Draws>, patience: u64) -> Result<Grant, Denied> {
        match self.judge_sole(head, patience) {
            Sole::Drawn(charge, alone) => {
                self.count_alone(&charge, &alone);
                if let Some(receipts) = receipts {
                    *receipts = Draws::One(receipt(charge, alone));
                }
                Ok(Grant { at: alone.now, wait: 0 })
            }
            undecided => self.judge_rest(undecided, head, receipts, patience),
        }
    }

    /// The short way, for the one policy of a limiter that has one.
    #[inline(always)]
    fn judge_sole(&self, head: RequestHead<'_>, patience: u64) -> Sole {
        let [policy] = &*self.policies else { return Sole::OneOfSeveral };
        let buckets = &self.buckets[0];
        let charge = match policy.charge(head, || buckets.quota()) {
            Ok(Some(charge)) => charge,
            Ok(None) => return Sole::DoesNotApply,
            Err(status) => return Sole::Keyless(status),
        };
        let usual = !charge.shadow && patience == 0 && buckets.penalties().is_none();
        match if usual { buckets.draw_alone(&charge, &self.clock) } else { None } {
            Some(alone) if alone.drawn.is_granted() => Sole::Drawn(charge, alone),
            Some(alone) => Sole::Short(charge, alone),
            None => Sole::Unusual(charge),
        }
    }

    #[inline(always)]
    fn judge_rest(
        &self,
        sole: Sole,
        head: RequestHead<'_>,
        receipts: Option<&mut Draws>,
        patience: u64,
    ) -> Result<Grant, Denied> {
        match sole {
            Sole::Drawn(_, Alone { now: at, .. }) => Ok(Grant { at, wait: 0 }),
            Sole::Short(Charge { key, quota, .. }, Alone { drawn, now, .. }) => {
                let trial = Trial::of(0, quota, drawn.clamped, drawn, now);
                let key = [(0, key)];
                let mut trials = Trials::new();
                trials.push(trial);
                Err(self.denied(trials, &key, &key, now, self.source))
            }
            Sole::Unusual(charge) => self.judge_all(&[(0, charge)], receipts, patience),
            Sole::DoesNotApply => Ok(Grant { at: self.clock.now(), wait: 0 }),
            Sole::Keyless(status) => Err(self.missing_key(0, status, head)),
            Sole::OneOfSeveral => self.judge_several(head, receipts, patience),
        }
    }

    #[inline(always)]
    fn count_alone(&self, charge: &Charge, alone: &Alone) {
        let Charge { quota, .. } = *charge;
        let near = || is_near(alone.drawn.after.backlog(alone.now), quota);
        let (policy, allowed) = ((0, self.policies[0].name()), observe::Outcome::Allowed);
        self.meters.count(policy, allowed, false, self.source, near);
    }

    fn judge_several(
        &self,
        head: RequestHead<'_>,
        receipts: Option<&mut Draws>,
        patience: u64,
    ) -> Result<Grant, Denied> {
        let mut charges = Charges::new();
        self.charge(head, &mut charges)?;
        self.judge_all(&charges, receipts, patience)
    }

    /// Adds what a request asks of each policy that applies. In an error, that it lacks a key.
    #[inline(always)]
    fn charge(&self, head: RequestHead<'_>, charges: &mut Charges) -> Result<(), Denied> {
        for (index, policy) in self.policies.iter().enumerate() {
            match policy.charge(head, || self.buckets[index].quota()) {
                Ok(Some(charge)) => charges.push((index, charge)),
                Ok(None) => {}
                Err(status) => return Err(self.missing_key(index, status, head)),
            }
        }
        Ok(())
    }

    #[inline(never)]
    fn judge_all(
        &self,
        charges: &[(usize, Charge)],
        receipts: Option<&mut Draws>,
        patience: u64,
    ) -> Result<Grant, Denied> {
        if let Some(blocked) = self.blocked(charges) {
            return Err(blocked);
        }
        let mut trials = Trials::new();
        let mut strikes = SmallVec::<[_; 4]>::new();
        // Counted when every lock is released; empty without `metrics`.
        let mut counted = SmallVec::<[Counted; 4]>::new();
        let (result, mut crowded_out) = {
            let mut claims = SmallVec::<[Claim<'_>; 4]>::new();
            if charges.len() > claims.inline_size() {
                // Not under a lock.
                claims.reserve_exact(charges.len());
            }
            for (policy, charge) in charges {
                claims.push(Claim::hold(*policy, *charge, &self.buckets[*policy]));
            }
            let result = self.try_all(&mut claims, patience);
            if let (Ok(grant), true) = (result, cfg!(feature = "metrics")) {
                counted.extend(claims.iter().map(|claim| claim.counted(grant.at)));
            }
            match (result, receipts) {
                (Ok(grant), Some(receipts)) => receipts.extend(claims.iter().map(|claim| claim.receipt(grant.at))),
                (Ok(_), None) => {}
                (Err(now), _) => {
                    trials.extend(claims.iter().map(|claim| claim.trial(now, false)));
                    strikes.extend(claims.iter().filter_map(Claim::strike));
                }
            }
            (result, if claims.iter().any(Claim::is_crowded_out) { crowded_out(&claims) } else { 0 })
            // Here every lock is released.
        };
        for Counted { policy, allowed, shadow, near } in counted {
            let outcome = if allowed { observe::Outcome::Allowed } else { observe::Outcome::Refused };
            self.meters.count((policy, self.policies[policy].name()), outcome, shadow, self.source, || near);
        }
        while crowded_out != 0 {
            let (policy, _) = charges[crowded_out.trailing_zeros() as usize];
            crowded_out &= crowded_out - 1;
            self.meters.overflowed(policy, self.policies[policy].name());
            self.buckets[policy].press();
        }
        result.map_err(|refused_at| self.denied(trials, &strikes, &strikes, refused_at, self.source))
    }

    /// The critical section, over buckets that are held. In an error, the reading of the clock at which not all have granted.
    #[inline(always)]
    fn try_all(&self, claims: &mut [Claim<'_>], patience: u64) -> Result<Grant, u64> {
        loop {
            // A bucket without a lock is read before the clock, as the others were locked before it.
            for claim in &mut *claims {
                claim.look();
            }
            let now = self.clock.now();
            let mut all = true;
            for claim in &mut *claims {
                all &= claim.draw(now, patience);
            }
            // From the last: the bucket without a lock, which may have changed. The others cannot have.
            if claims.iter_mut().rev().all(|claim| claim.write(all)) {
                let wait = claims.iter().map(Claim::wait).max().unwrap_or(0);
                return if all { Ok(Grant { at: now, wait }) } else { Err(now) };
            }
        }
    }

    /// The refusal of a request one of whose keys is blocked. Looked at before any bucket is held, and with no lock held
    /// across policies.
    fn blocked(&self, charges: &[(usize, Charge)]) -> Option<Denied> {
        let until = |(policy, charge): &(usize, Charge)| {
            let until = self.buckets[*policy].penalties()?.blocked_until(charge.key)?;
            (!charge.shadow && until > self.clock.now()).then_some(until)
        };
        charges.iter().find_map(until)?;
        // What is told is the longest wait of all: to come back when the block ends is not enough where cells are short.
        let trials = charges.iter().map(|claimed| {
            let (policy, charge) = *claimed;
            let mut trial = self.refuse(policy, charge);
            if let Some(until) = until(claimed) {
                let left = until.saturating_sub(self.clock.now());
                trial.outcome = match trial.outcome {
                    // What can never be granted is not after the block either.
                    Outcome::AtCapacity | Outcome::Never => trial.outcome,
                    Outcome::Wait(wait) => Outcome::Blocked(left.max(wait)),
                    Outcome::Blocked(_) | Outcome::Granted => Outcome::Blocked(left),
                };
                if let Some(sketch) = &self.sketch {
                    sketch.count(policy, charge.key);
                }
            }
            trial
        });
        let trials: Trials = trials.collect();
        // The block may have ended since the first look.
        let keys: SmallVec<[_; 4]> = charges.iter().map(|(policy, charge)| (*policy, charge.key)).collect();
        let now = self.clock.now();
        trials.iter().any(Trial::refuses).then(|| self.denied(trials, &keys, &[], now, self.source))
    }

    /// How one policy stands for a request that is refused whatever it says: out of the bucket that the key would draw from,
    /// with what is beyond the clamp cut off, as in any refusal.
    fn refuse(&self, policy: usize, charge: Charge) -> Trial {
        let mut claim = Claim::hold(policy, charge, &self.buckets[policy]);
        loop {
            claim.look();
            let now = self.clock.now();
            claim.draw(now, 0);
            if claim.write(false) {
                return claim.trial(now, false);
            }
        }
    }

    #[cold]
    fn missing_key(&self, index: usize, status: StatusCode, head: RequestHead<'_>) -> Denied {
        let policy = &self.policies[index];
        let now = self.clock.now();
        let missing = observe::Outcome::MissingKey;
        self.meters.count((index, policy.name()), missing, false, self.source, || false);
        observe::missing_key(policy.name(), status.as_u16(), policy.remedy(head), &self.missing_keys, now);
        Denied::missing_key(Arc::clone(&self.policies), index, status, policy.challenge(head))
    }

    /// `keys` are those of policies that refuse, as far as they are known; `strikes` are the keys that lacked cells at `now`.
    /// Called with no lock held.
    #[inline(never)]
    fn denied(
        &self,
        mut trials: Trials,
        keys: &[(usize, Key)],
        strikes: &[(usize, Key)],
        now: u64,
        source: Source,
    ) -> Denied {
        for (policy, key) in strikes {
            if let Some(sketch) = &self.sketch {
                sketch.count(*policy, *key);
            }
            let blocked = self.buckets[*policy].penalties().and_then(|penalties| penalties.strike(*key, now));
            let trial = trials.iter_mut().find(|trial| trial.policy == *policy);
            if let (Some(length), Some(trial)) = (blocked, trial) {
                // What is told from here on: the wait for cells alone would not be true.
                let wait = if let Outcome::Wait(wait) = trial.outcome { wait } else { 0 };
                trial.outcome = Outcome::Blocked(length.max(wait));
                observe::banned(self.policies[*policy].name(), length);
            }
        }
        for trial in trials.iter().filter(|trial| cfg!(feature = "metrics") && trial.refuses()) {
            let outcome = match trial.outcome {
                Outcome::Blocked(_) => observe::Outcome::Blocked,
                Outcome::AtCapacity => observe::Outcome::AtCapacity,
                _ => observe::Outcome::Refused,
            };
            self.meters.count((trial.policy, self.policies[trial.policy].name()), outcome, false, source, || false);
        }
        let denied = Denied::tried(Arc::clone(&self.policies), trials);
        let key = || {
            let named = |(policy, _): &&(usize, Key)| self.policies[*policy].name() == denied.policy();
            keys.iter().find(named).map(|(_, key)| self.hasher.opaque(*key))
        };
        observe::refused(|| denied.policy(), || denied.reason(), key, &self.refusals, now);
        denied
    }
}

/// One bit for each claim whose policy had no room for the key, of the first 64.
#[cold]
fn crowded_out(claims: &[Claim<'_>]) -> u64 {
    let bit = |(at, claim): (u32, &Claim<'_>)| u64::from(claim.is_crowded_out()).checked_shl(at).unwrap_or(0);
    (0..).zip(claims).map(bit).fold(0, |bits, bit| bits | bit)
}

/// Whether less than a fifth of the burst is left.
fn is_near(backlog: u64, quota: Quota) -> bool {
    backlog / 4 > quota.burst_nanos() / 5
}

/// What became of one policy's part in a request that is admitted.
struct Counted {
    policy: usize,
    /// False in shadow mode, where it would have been refused.
    allowed: bool,
    shadow: bool,
    near: bool,
}

/// What the short way comes to, for the one policy of a limiter.
#[derive(Clone, Copy)]
enum Sole {
    DoesNotApply,
    Drawn(Charge, Alone),
    Keyless(StatusCode),
    /// There are several, or none.
    OneOfSeveral,
    /// Cells are missing.
    Short(Charge, Alone),
    /// More is to be written than the draw, or more to be looked at than the bucket.
    Unusual(Charge),
}

#[inline(always)]
fn receipt(charge: Charge, alone: Alone) -> Draw {
    let Charge { key, quota, cells, .. } = charge;
    let Alone { drawn, now, generation } = alone;
    let trial = Trial::of(0, quota, drawn.after, drawn, now);
    let added = quota.cell_nanos() * u64::from(cells);
    Draw { trial, key, cells, added, generation, left: drawn.after, from_overflow: false }
}

impl From<Policy> for Limiter {
    /// # Panics
    ///
    /// As [`Limiter::new`].
    fn from(policy: Policy) -> Self {
        Self::from([policy])
    }
}

impl<I: IntoIterator<Item = Policy>> From<I> for Limiter {
    /// # Panics
    ///
    /// As [`Limiter::new`].
    fn from(policies: I) -> Self {
        match Self::builder().policies(policies).build() {
            Ok(limiter) => limiter,
            Err(error) => panic!("{error}"),
        }
    }
}

impl From<&Limiter> for Limiter {
    fn from(limiter: &Limiter) -> Self {
        limiter.clone()
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("policies", &self.shared.policies).finish_non_exhaustive()
    }
}
