//! The limiter in memory: [`Limiter`], policies and their buckets.
//!
//! This folder contains the decision (`acquire`), what every limiter has wherever its buckets are
//! (`policy_set`), the buckets in memory (`local_buckets`), decisions without a request (`by_key`),
//! the control of a limiter (`admin`), and the change of its policies (`reload`).
//! It must not know of services, of responses, or of a bucket's arithmetic.
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

mod acquire;
mod admin;
mod admission;
mod atomic_bucket;
mod attempt;
mod bucket_guard;
mod builder;
mod by_key;
mod checks;
mod error;
mod into_limiter;
mod keyed_buckets;
mod live_quota;
mod local_buckets;
#[cfg(all(test, tower_quota_loom))]
mod loom;
mod moment;
mod pauses;
mod penalties;
mod policy_set;
mod quota_table;
mod reload;
mod remembered;
mod reservation;
mod resets;
mod saving;
mod snapshot;
mod top_denied;
mod window_clock;

use std::{fmt, sync::Arc, time::Duration};

use http::Request;

use self::moment::{RatesOnly, WithWindows};
pub(crate) use self::{
    acquire::Grant,
    into_limiter::{Handle, Settle},
    local_buckets::{LocalBuckets, Slack},
    pauses::Pause,
    policy_set::{PolicySet, PolicySetOptions, is_near_limit},
    reservation::ReservedCells,
};
pub use self::{
    admin::Page,
    admission::Admission,
    builder::Builder,
    error::{AcquireError, BlockError, ConfigError, ConfigErrorKind, LimitError, UnknownPolicy},
    into_limiter::IntoLimiter,
    reservation::Reservation,
    snapshot::Restored,
    top_denied::DeniedKey,
};
#[cfg(feature = "redis")]
pub(crate) use self::{local_buckets::start_sweeping, pauses::Pauses, policy_set::Demands, reservation::MAX_PATIENCE};
use crate::{
    clock::{Nanos, Timestamp},
    decision::{Decision, Denied, Receipt, Receipts},
    key::RequestHead,
};
pub use crate::{snapshot::SnapshotError, sweeper::Sweep};

/// Policies and their buckets in memory.
///
/// Clones share the buckets: give one limiter to several layers, and their requests are counted
/// together.
#[derive(Clone)]
pub struct Limiter {
    parts: Arc<LimiterParts>,
}

struct LimiterParts {
    set: PolicySet,
    buckets: LocalBuckets,
}

impl Limiter {
    /// Returns a limiter with this policy, or with these, on the system's clock. Idle keys are
    /// removed in the background.
    ///
    /// # Panics
    ///
    /// When [`Builder::build`] fails, with the same message.
    #[must_use]
    pub fn new(policies: impl IntoLimiter<Limiter = Self>) -> Self {
        match policies.into_limiter() {
            Ok(limiter) => limiter,
            Err(error) => panic!("{error}"),
        }
    }

    fn of(set: PolicySet, buckets: LocalBuckets) -> Self {
        Self { parts: Arc::new(LimiterParts { set, buckets }) }
    }

    /// Decides whether a request is allowed, and acquires its cells if it is.
    ///
    /// Use it without a service. A [`RateLimitLayer`](crate::RateLimitLayer) does the same for
    /// every request.
    ///
    /// # Locking behaviour
    ///
    /// Locks one bucket of each keyed policy that applies, for the length of the arithmetic. It
    /// waits for nothing else, and runs no user code under a lock.
    pub fn decide<B>(&self, request: &Request<B>) -> Decision<'_> {
        self.decide_for(self.set().parts(request).head())
    }

    // Not generic over the request's body: compiled once, where all of a decision can be inlined.
    fn decide_for(&self, head: RequestHead<'_>) -> Decision<'_> {
        if self.parts.buckets.has_windows {
            return self.decide_windows(head);
        }
        self.parts.buckets.decide::<RatesOnly>(self.set(), head)
    }

    #[inline(never)]
    fn decide_windows(&self, head: RequestHead<'_>) -> Decision<'_> {
        self.parts.buckets.decide::<WithWindows>(self.set(), head)
    }

    /// Decides like [`decide`](Self::decide), and writes receipts only where they are wanted.
    // Never inlined, so that the values of a decision are not on the stack of a service's `call`.
    #[inline(never)]
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    pub(crate) fn acquire_for(&self, head: RequestHead<'_>, receipts: Option<&mut Receipts>) -> Result<Grant, Denied> {
        let LimiterParts { set, buckets } = &*self.parts;
        buckets.acquire(set, head, receipts, Nanos::ZERO)
    }

    /// Decides on a request that waits for its cells for at most `patience`.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    pub(crate) fn acquire_within(
        &self,
        head: RequestHead<'_>,
        patience: Nanos,
        receipts: &mut Receipts,
    ) -> Result<Grant, Denied> {
        let LimiterParts { set, buckets } = &*self.parts;
        buckets.acquire(set, head, Some(receipts), patience)
    }

    #[inline(always)]
    pub(crate) fn set(&self) -> &PolicySet {
        &self.parts.set
    }
}

impl Settle for Limiter {
    fn policy_set(&self) -> &PolicySet {
        self.set()
    }

    fn refund_receipt(&self, receipt: &Receipt, at: Timestamp) {
        self.parts.buckets.refund(receipt, at, self.set().clock());
    }

    fn pause_of(&self, receipt: &Receipt) -> Pause {
        self.parts.buckets.pause_of(receipt.outcome.policy, receipt.key)
    }

    fn charge_receipt(&self, receipt: &Receipt, cells: u32) {
        self.parts.buckets.charge_beyond(receipt, cells, self.set().clock());
    }
}

impl Handle for Limiter {
    fn allow_waits(&self, longest: Duration) {
        for policy in 0..self.set().policies().len() {
            self.parts.buckets.allow_slack(policy, Slack::OfLayer(longest.into()));
        }
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("policies", &self.set().policies()).finish_non_exhaustive()
    }
}
