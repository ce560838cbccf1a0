//! Contains every metric: the counters of a limiter's decisions ([`Meters`]), of requests in flight
//! ([`InFlightMeters`]), of sweeps and of Redis.

#![cfg_attr(not(feature = "metrics"), allow(unused_variables, clippy::unused_self, reason = "nothing is counted"))]

use std::fmt;
#[cfg(feature = "metrics")]
use std::{sync::OnceLock, time::Duration};

#[cfg(feature = "metrics")]
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

#[cfg(feature = "metrics")]
use crate::clock::Timestamp;
use crate::clock::{Clock, Nanos};

/// How a policy answered a request: the label `outcome`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Allowed,
    Denied,
    Blocked,
    AtCapacity,
    MissingKey,
    #[cfg(feature = "redis")]
    Unavailable,
}

/// Which buckets decided: the label `source`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DecidedBy {
    Memory,
    #[cfg(feature = "redis")]
    Redis,
    /// This process, without asking Redis: a lower bound of a bucket there is certain to deny, or
    /// the request has no key.
    #[cfg(feature = "redis")]
    Cache,
    /// The buckets of this process, without Redis.
    #[cfg(feature = "redis")]
    Fallback,
    /// No bucket: the policy fails open.
    #[cfg(feature = "redis")]
    Open,
}

impl DecidedBy {
    /// Whether a share of the quota decided, during an outage of Redis.
    pub(crate) fn is_fallback(self) -> bool {
        #[cfg(feature = "redis")]
        return matches!(self, Self::Fallback);
        #[cfg(not(feature = "redis"))]
        {
            let Self::Memory = self;
            false
        }
    }
}

#[cfg(feature = "metrics")]
const OUTCOMES: [&str; 6] = ["allowed", "denied", "blocked", "at_capacity", "missing_key", "unavailable"];
#[cfg(feature = "metrics")]
const SOURCES: [&str; 5] = ["memory", "redis", "cache", "fallback", "open"];
#[cfg(feature = "metrics")]
const MODES: [&str; 2] = ["enforced", "shadow"];
/// The place of a policy's counter near the limit: after those of all combinations of these.
#[cfg(feature = "metrics")]
const NEAR_LIMIT: usize = OUTCOMES.len() * SOURCES.len() * MODES.len();
#[cfg(feature = "metrics")]
const OVERFLOW: usize = NEAR_LIMIT + 1;
/// The number of counters of each policy.
#[cfg(feature = "metrics")]
const COUNTERS: usize = OVERFLOW + 1;

/// The counters of a limiter's policies.
///
/// Each counter is registered when it first counts. So a recorder that is installed after the
/// limiter was built, and before its first request, receives all counts.
pub(crate) struct Meters {
    #[cfg(feature = "metrics")]
    counters: Box<[OnceLock<Counter>]>,
}

impl Meters {
    pub(crate) fn new(policies: usize) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            counters: (0..policies * COUNTERS).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Counts a decision. `near` says whether less than a fifth of the burst is left.
    #[inline(always)]
    pub(crate) fn count(
        &self,
        (index, name): (usize, &str),
        outcome: Outcome,
        shadow: bool,
        decided_by: DecidedBy,
        near: impl FnOnce() -> bool,
    ) {
        #[cfg(feature = "metrics")]
        {
            let (outcome, source, mode) = (outcome as usize, decided_by as usize, usize::from(shadow));
            let at = index * COUNTERS + (outcome * SOURCES.len() + source) * MODES.len() + mode;
            let counter = self.counters[at].get_or_init(|| {
                let (outcome, source, mode) = (OUTCOMES[outcome], SOURCES[source], MODES[mode]);
                counter!(
                    "tower_quota_decisions_total",
                    "policy" => name.to_owned(), "outcome" => outcome, "mode" => mode, "source" => source
                )
            });
            counter.increment(1);
            if near() {
                let counter = self.counters[index * COUNTERS + NEAR_LIMIT]
                    .get_or_init(|| counter!("tower_quota_near_limit_total", "policy" => name.to_owned()));
                counter.increment(1);
            }
        }
    }

    /// Counts a request whose key found no place in a full map.
    #[inline(always)]
    pub(crate) fn overflowed(&self, index: usize, name: &str) {
        #[cfg(feature = "metrics")]
        {
            let counter = self.counters[index * COUNTERS + OVERFLOW]
                .get_or_init(|| counter!("tower_quota_overflow_total", "policy" => name.to_owned()));
            counter.increment(1);
        }
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

/// The metrics of the requests in flight of one policy: how many there are, how many wait, and how
/// long each one was.
///
/// Each is registered when it is first used, as counters are.
#[derive(Default)]
pub(crate) struct InFlightMeters {
    #[cfg(feature = "metrics")]
    in_flight: OnceLock<Gauge>,
    #[cfg(feature = "metrics")]
    waiting: OnceLock<Gauge>,
    #[cfg(feature = "metrics")]
    seconds: OnceLock<Histogram>,
}

/// When a request got its permit. Empty where nothing is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PermitStart {
    #[cfg(feature = "metrics")]
    at: Timestamp,
}

impl InFlightMeters {
    #[inline(always)]
    pub(crate) fn begin(&self, policy: &str, clock: &Clock) -> PermitStart {
        #[cfg(feature = "metrics")]
        self.in_flight(policy).increment(1.0);
        PermitStart {
            #[cfg(feature = "metrics")]
            at: clock.now(),
        }
    }

    #[inline(always)]
    pub(crate) fn end(&self, policy: &str, clock: &Clock, start: PermitStart) {
        #[cfg(feature = "metrics")]
        {
            self.in_flight(policy).decrement(1.0);
            let seconds =
                self.seconds.get_or_init(|| histogram!("tower_quota_in_flight_seconds", "policy" => policy.to_owned()));
            seconds.record(Duration::from(clock.now().since(start.at)));
        }
    }

    /// Counts a request that begins to wait for a permit.
    pub(crate) fn wait(&self, policy: &str) {
        #[cfg(feature = "metrics")]
        self.waiting(policy).increment(1.0);
    }

    /// Counts a request that does not wait any more.
    pub(crate) fn end_wait(&self, policy: &str) {
        #[cfg(feature = "metrics")]
        self.waiting(policy).decrement(1.0);
    }

    #[cfg(feature = "metrics")]
    fn in_flight(&self, policy: &str) -> &Gauge {
        self.in_flight.get_or_init(|| gauge!("tower_quota_in_flight", "policy" => policy.to_owned()))
    }

    #[cfg(feature = "metrics")]
    fn waiting(&self, policy: &str) -> &Gauge {
        self.waiting.get_or_init(|| gauge!("tower_quota_in_flight_waiting", "policy" => policy.to_owned()))
    }
}

/// Counts a sweep that removed `removed` keys, left `keys`, and took `took`.
#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) fn swept(policy: &str, removed: usize, keys: usize, took: Nanos) {
    #[cfg(feature = "metrics")]
    {
        let policy = policy.to_owned();
        counter!("tower_quota_sweeps_total", "policy" => policy.clone()).increment(1);
        counter!("tower_quota_swept_keys_total", "policy" => policy.clone()).increment(removed as u64);
        gauge!("tower_quota_keys", "policy" => policy.clone()).set(keys as f64);
        histogram!("tower_quota_sweep_seconds", "policy" => policy).record(Duration::from(took));
    }
}

#[cfg(feature = "redis")]
pub(crate) fn redis_called() {
    #[cfg(feature = "metrics")]
    counter!("tower_quota_redis_calls_total").increment(1);
}

#[cfg(feature = "redis")]
pub(crate) fn redis_connection_opened() {
    #[cfg(feature = "metrics")]
    gauge!("tower_quota_redis_connections").increment(1.0);
}

#[cfg(feature = "redis")]
pub(crate) fn redis_connection_closed() {
    #[cfg(feature = "metrics")]
    gauge!("tower_quota_redis_connections").decrement(1.0);
}

/// Registers the gauge of connections, so that the series exists even if no connection is ever
/// made.
#[cfg(feature = "redis")]
pub(crate) fn redis_started() {
    #[cfg(feature = "metrics")]
    gauge!("tower_quota_redis_connections").increment(0.0);
}

#[cfg(feature = "redis")]
pub(crate) fn redis_lost() {
    #[cfg(feature = "metrics")]
    counter!("tower_quota_redis_lost_total").increment(1);
}

/// Counts what another process, or an operator, has said in a form that is not known here.
#[cfg(feature = "redis")]
pub(crate) fn redis_announcement_ignored() {
    #[cfg(feature = "metrics")]
    counter!("tower_quota_redis_announcements_ignored_total").increment(1);
}
