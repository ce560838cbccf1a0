//! One limit for many processes: the same policies over Redis or Valkey.
//!
//! [`RedisLimiter`] decides as [`Limiter`](crate::Limiter) does, with its buckets in Redis: GCRA to
//! the nanosecond on the server's clock, over all policies or none, in one round trip. It needs
//! Rust 1.88. Connections live on a thread of the limiter's own, so it works in any runtime.
//!
//! ```no_run
//! use tower_quota::{Policy, Quota, RateLimitLayer, key::Header, redis::{OnFailure, RedisLimiter}};
//!
//! # fn app() -> axum::Router { axum::Router::new() }
//! // Four processes share the limit. Without Redis each process decides by a quarter of it.
//! let secret = b"32 random bytes of this deployment";
//! let limiter = RedisLimiter::builder("redis://127.0.0.1", secret, OnFailure::Local { share: 0.25 })
//!     .policy(Policy::per(Header::new("x-api-key"), Quota::per_second(10)))
//!     .build()?;
//! let app = app().layer(RateLimitLayer::new(&limiter).plain_text());
//! # Ok::<(), tower_quota::redis::RedisConfigError>(())
//! ```
//!
//! # Sentinel and clusters
//!
//! See [`sentinels`](RedisBuilder::sentinels) and [`cluster`](RedisBuilder::cluster). In a cluster
//! each primary has a connection of its own, and policies of several principals are asked for at
//! the same time, each where it is.
//!
//! # TLS and credentials
//!
//! An address that begins with `rediss://` is connected to over TLS, which needs the feature
//! `redis-tls`: without it, building fails. See `ca_certificate`, `client_certificate` and
//! `server_name` of the [builder](RedisBuilder). [`credentials`](RedisBuilder::credentials) asks a
//! provider at each login, for tokens that expire.
//!
//! # Quiet times
//!
//! A connection is checked while nobody asks, and before the first request after a pause. One that
//! the server has closed meanwhile is opened again by the next request, which waits for it.
//!
//! # Without Redis
//!
//! A failure of Redis makes no service slower or less available. Building a limiter never connects.
//! A request waits for at most 50 ms ([`timeout`](RedisBuilder::timeout)). No request is sent when
//! no answer has come for 10 ms, or for four times the latency of the connection. When the
//! connection is lost, no request waits at all.
//!
//! What happens to requests then is set when the limiter is built: [`OnFailure`]. The limiter
//! reconnects in the background, and uses a connection after it has run the script itself.
//! [`last_error`](RedisLimiter::last_error) says why there is no connection.
//!
//! # Cached denials
//!
//! A denial is cached: until its cells are there the key is denied without a call. This is exact
//! under one quota, because time and an operator are the only ones to shorten a backlog, and what
//! an operator does is announced to all processes. (A key that is deleted in Redis by hand stays
//! denied until then in the processes that have denied it.) Requests for the same keys that come
//! during a call are sent together with the next one.
//!
//! Cells are acquired for present requests only, unless [`lease`](RedisBuilder::lease) is set.
//!
//! # After the response
//!
//! [`count_if`](crate::Policy::count_if) and [`Admission`](crate::limiter::Admission) refund and
//! charge in Redis, without waiting for it. If a call is lost, the cells stay acquired. A charge
//! goes one burst into debt. A policy that let the request pass without Redis
//! ([`OnFailure::Open`]) has acquired nothing, and cannot be settled. Denials by a policy that
//! counts by the response are not cached, because other processes may refund at any time.
//!
//! # Without a request
//!
//! [`acquire`](RedisLimiter::acquire) and the like are those of a [`Limiter`](crate::Limiter), and
//! wait for Redis. Their denials are not cached, except those of blocked keys, because any process
//! may name another plan for the key, or refund.
//!
//! # Names in Redis
//!
//! `{prefix:principal}:policy` → an arrival time, and the quota that it is in, which expires when
//! the bucket is full. The principal is a hash under the deployment's secret: no address and no API
//! key is in it. See `docs/redis.md` for operations.
//!
//! # Control
//!
//! [`block`](RedisLimiter::block), [`reset`](RedisLimiter::reset),
//! [`set_limit`](RedisLimiter::set_limit) and the like are those of a
//! [`Limiter`](crate::Limiter), and count for all processes: what is done is in Redis, and is
//! announced. So are bans, which each process decides by the denials that it has counted. The
//! differences to a limiter in memory are listed in `docs/redis.md`.

mod acquire;
mod address;
mod announcement;
mod builder;
mod by_key;
#[cfg(feature = "serde")]
mod config;
mod connect;
mod connection;
mod control;
mod dial;
mod epochs;
mod error;
mod fallback;
mod health;
mod io_thread;
mod leases;
mod limiter;
mod listening;
mod lower_bounds;
mod names;
mod node;
mod pending;
mod protocol;
mod queries;
mod reason;
#[cfg(test)]
mod same_as_memory;
mod script;
#[cfg(test)]
mod server_clock;
#[cfg(test)]
#[path = "../../tests/support/redis.rs"]
mod servers;
mod service;
mod settlement;
#[cfg(feature = "redis-tls")]
mod tls;
mod topology;
mod windows;
mod worker;

#[cfg(all(feature = "serde", feature = "redis-tls"))]
pub use self::config::{ClientCertificate, TlsSettings};
#[cfg(feature = "serde")]
pub use self::config::{LeaseSettings, OnFailureConfig, RedisConfig, SentinelSettings};
pub use self::{
    address::AddressError,
    builder::RedisBuilder,
    control::{ControlError, ListCursor, RedisPage, StandingsError},
    dial::RedisCredentials,
    error::RedisConfigError,
    fallback::OnFailure,
    limiter::{Calls, RedisLimiter},
    service::RedisDecision,
};
