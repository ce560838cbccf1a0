//! Contains [`RedisLimiter`], the handle of a limiter whose buckets are in Redis.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use super::{
    fallback::FallbackBuckets, health::CallCounts, lower_bounds::LowerBounds, names::KeyNames, node::NodeConfig,
    topology::Topology, windows::ServerWindows,
};
use crate::{
    bucket::MAX_SLACK,
    clock::Nanos,
    key::{IntoKey, Key},
    limiter::{ConfigError, Handle, IntoLimiter, PolicySet, Slack},
    policy::Policy,
};

/// A limiter whose buckets are in Redis or Valkey. Clones share everything.
///
/// Made by [`builder`](Self::builder), and applied to services by
/// [`RateLimitLayer::new`](crate::RateLimitLayer::new).
#[derive(Clone)]
pub struct RedisLimiter {
    pub(super) parts: Arc<RedisParts>,
}

pub(super) struct RedisParts {
    pub(super) set: PolicySet,
    pub(super) names: KeyNames,
    pub(super) topology: Topology,
    pub(super) lower_bounds: LowerBounds,
    pub(super) fallback: FallbackBuckets,
    pub(super) windows: ServerWindows,
    pub(super) config: NodeConfig,
    /// How long requests may wait, in nanoseconds, by the policy's index.
    pub(super) slacks: Box<[AtomicU64]>,
    /// How long debts may be beyond the burst.
    pub(super) debt_slacks: Box<[AtomicU64]>,
}

impl RedisLimiter {
    /// How long requests of a policy may wait.
    pub(super) fn slack(&self, policy: usize) -> Nanos {
        Nanos::new(self.parts.slacks[policy].load(Ordering::Relaxed))
    }

    /// How long debts of a policy may be beyond the burst.
    pub(super) fn debt_slack(&self, policy: usize) -> Nanos {
        Nanos::new(self.parts.debt_slacks[policy].load(Ordering::Relaxed))
    }

    /// Lets requests of a policy wait for as long, now and later. A request never waits for a
    /// window.
    pub(super) fn allow_slack(&self, policy: usize, slack: Slack) {
        if self.policies()[policy].limit().window().is_some() {
            return;
        }
        let RedisParts { slacks, debt_slacks, fallback, .. } = &*self.parts;
        let (Slack::OfLayer(time) | Slack::OfReservation(time)) = slack;
        let time = time.min(MAX_SLACK).get();
        slacks[policy].fetch_max(time, Ordering::Relaxed);
        if matches!(slack, Slack::OfLayer(_)) {
            debt_slacks[policy].fetch_max(time, Ordering::Relaxed);
        }
        fallback.allow_slack(policy, slack);
    }

    /// Returns the policies, in the limiter's order.
    pub fn policies(&self) -> &[Policy] {
        self.parts.set.policies()
    }

    /// Returns the key of a value. See [`Limiter::key`](crate::Limiter::key).
    #[must_use]
    pub fn key(&self, value: impl IntoKey) -> Key {
        value.key(self.parts.set.hasher())
    }

    /// Connects in advance, and waits for at most `within`. Returns whether there is a connection
    /// then; if there is none, [`last_error`](Self::last_error) says why. Use it at the start of a
    /// process whose first requests must not be decided without Redis.
    ///
    /// The time is real time: a paused clock of tokio does not end it.
    pub async fn connect(&self, within: Duration) -> bool {
        let (mut report, connected) = oneshot::channel();
        let parts = Arc::clone(&self.parts);
        self.parts.config.io.spawn(async move {
            tokio::select! {
                // Nobody waits any more.
                () = report.closed() => {}
                connected = timeout(within, parts.topology.until_connected()) => {
                    let _ = report.send(connected.is_ok());
                }
            }
        });
        connected.await.unwrap_or(false)
    }

    /// Whether there is a connection that works; in a cluster, one to each primary. Without one,
    /// [`OnFailure`](super::OnFailure) decides.
    ///
    /// There is none before the first decision, or [`connect`](Self::connect). A server that closes
    /// idle connections may have closed it: then the next request opens another one, and waits for
    /// it.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.parts.topology.is_up()
    }

    /// Returns why there is no connection, or was none the last time, with the address and
    /// what to do. `None` while there is one, and before the first attempt has failed.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.parts.topology.failure()
    }

    /// Returns how many requests Redis has decided, and in how many calls, since the limiter was
    /// built.
    #[must_use]
    pub fn calls(&self) -> Calls {
        let CallCounts { requests, calls } = &*self.parts.config.counts;
        Calls { decisions: requests.load(Ordering::Relaxed), calls: calls.load(Ordering::Relaxed) }
    }
}

impl Handle for RedisLimiter {
    fn allow_waits(&self, longest: Duration) {
        for policy in 0..self.policies().len() {
            self.allow_slack(policy, Slack::OfLayer(longest.into()));
        }
    }
}

impl IntoLimiter for RedisLimiter {
    type Limiter = Self;

    fn into_limiter(self) -> Result<Self, ConfigError> {
        Ok(self)
    }
}

impl IntoLimiter for &RedisLimiter {
    type Limiter = RedisLimiter;

    fn into_limiter(self) -> Result<RedisLimiter, ConfigError> {
        Ok(self.clone())
    }
}

/// How many calls the decisions took. Made by [`RedisLimiter::calls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calls {
    /// The requests that were passed to Redis. Cached denials are not among them.
    pub decisions: u64,
    /// The calls of a script.
    pub calls: u64,
}

impl fmt::Debug for RedisLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLimiter")
            .field("policies", &self.policies())
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}
