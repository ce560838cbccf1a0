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

mod buckets;
mod builder;
mod claim;
mod control;

use std::{fmt, sync::Arc};

use http::{Request, StatusCode};
use smallvec::SmallVec;

use self::{
    buckets::{Alone, Buckets},
    claim::Claim,
};
pub use self::{
    builder::{Builder, ConfigError, Sweep},
    control::UnknownPolicy,
};
use crate::{
    clock::Clock,
    decision::{Allowed, Decision, Denied, Draw, Draws, Trial, Trials},
    key::{KeyHasher, Parts, RequestHead},
    observe,
    policy::{Charge, Policy},
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
    pub(crate) fn admit(&self, head: RequestHead<'_>, receipts: Option<&mut Draws>) -> Result<(), Denied> {
        self.shared.admit(head, receipts)
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
        let mut draws = Draws::new();
        match self.judge(head, Some(&mut draws)) {
            Ok(at) => Decision::Allow(Allowed { policies: &self.policies, at, draws }),
            Err(denied) => Decision::Deny(denied),
        }
    }

    fn admit(&self, head: RequestHead<'_>, receipts: Option<&mut Draws>) -> Result<(), Denied> {
        self.judge(head, receipts).map(drop)
    }

    /// Returns the reading of the clock at which the cells were drawn, and leaves the receipts where they are asked for.
    #[inline(always)]
    fn judge(&self, head: RequestHead<'_>, receipts: Option<&mut Draws>) -> Result<u64, Denied> {
        if let [policy] = &*self.policies {
            return match policy.charge(head) {
                Ok(Some(charge)) => self.judge_one(charge, receipts),
                Ok(None) => Ok(self.clock.now()),
                Err(status) => Err(self.missing_key(0, status, head)),
            };
        }
        let mut charges = SmallVec::<[_; 4]>::new();
        for (index, policy) in self.policies.iter().enumerate() {
            match policy.charge(head) {
                Ok(Some(charge)) => charges.push((index, charge)),
                Ok(None) => {}
                Err(status) => return Err(self.missing_key(index, status, head)),
            }
        }
        self.judge_all(&charges, receipts)
    }

    #[inline(always)]
    fn judge_one(&self, charge: Charge, receipts: Option<&mut Draws>) -> Result<u64, Denied> {
        let Some(Alone { found, drawn, now, generation }) = self.buckets[0].draw_alone(&charge, &self.clock) else {
            return self.judge_all(&[(0, charge)], receipts);
        };
        let Charge { key, quota, cells } = charge;
        let trial = Trial::of(0, quota, if drawn.is_granted() { drawn.after } else { found }, drawn, now);
        if !drawn.is_granted() {
            return Err(self.denied(SmallVec::from_iter([trial])));
        }
        if let Some(receipts) = receipts {
            let added = quota.cell_nanos() * u64::from(cells);
            receipts.push(Draw { trial, key, added, generation, from_overflow: false });
        }
        Ok(now)
    }

    #[inline(never)]
    fn judge_all(&self, charges: &[(usize, Charge)], receipts: Option<&mut Draws>) -> Result<u64, Denied> {
        let mut trials = Trials::new();
        let (result, crowded_out) = {
            let claims = charges.iter().map(|(policy, charge)| Claim::new(*policy, *charge, &self.buckets[*policy]));
            let mut claims = claims.collect::<SmallVec<[Claim<'_>; 4]>>();
            let result = self.try_all(&mut claims);
            match (result, receipts) {
                (Ok(now), Some(receipts)) => receipts.extend(claims.iter().map(|claim| claim.receipt(now))),
                (Ok(_), None) => {}
                (Err(now), _) => trials.extend(claims.iter().map(|claim| claim.trial(now, false))),
            }
            (result, claims.iter().find_map(Claim::crowded_out))
            // Here every lock is released.
        };
        if let Some(policy) = crowded_out {
            self.buckets[policy].press();
        }
        result.map_err(|_refused_at| self.denied(trials))
    }

    /// The critical section: returns the reading of the clock at which all have granted, or not all.
    fn try_all(&self, claims: &mut [Claim<'_>]) -> Result<u64, u64> {
        for claim in &mut *claims {
            claim.hold(&self.policies);
        }
        loop {
            // A bucket without a lock is read before the clock, as the others were locked before it.
            for claim in &mut *claims {
                claim.look();
            }
            let now = self.clock.now();
            let mut all = true;
            for claim in &mut *claims {
                all &= claim.draw(now);
            }
            // From the last: the bucket without a lock, which may have changed. The others cannot have.
            if claims.iter_mut().rev().all(|claim| claim.write(all)) {
                return if all { Ok(now) } else { Err(now) };
            }
        }
    }

    #[cold]
    fn missing_key(&self, index: usize, status: StatusCode, head: RequestHead<'_>) -> Denied {
        let policy = &self.policies[index];
        let now = self.clock.now();
        observe::missing_key(policy.name(), status.as_u16(), policy.remedy(head), &self.missing_keys, now);
        Denied::missing_key(Arc::clone(&self.policies), index, status, policy.challenge(head))
    }

    #[inline(never)]
    fn denied(&self, trials: Trials) -> Denied {
        let denied = Denied::tried(Arc::clone(&self.policies), trials);
        observe::refused(denied.policy(), || denied.reason());
        denied
    }
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
