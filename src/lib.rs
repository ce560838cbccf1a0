//! Rate limiting for tower, axum and hyper: exact limits, global and per key, in bounded memory.
//!
//! A [`Layer`](tower_layer::Layer) wraps any HTTP service with GCRA limiters. Requests over the
//! limit get `429 Too Many Requests` with an accurate `Retry-After`, and the `RateLimit` fields of
//! the IETF draft. A background thread removes idle keys, and ends with the last limiter.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_quota::{Quota, RateLimitLayer};
//!
//! # #[cfg(feature = "axum")] {
//! // For each client 10 requests a second, and 20 at once: up to 30 in the first second.
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "Hello!" }))
//!     .layer(RateLimitLayer::per_ip(Quota::per_second(10).burst(20)));
//! # }
//! ```
//!
//! # Where to read on
//!
//! | to | see |
//! |---|---|
//! | learn by subject: keys, proxies, API keys, logins, costs, operations | [`guide`] |
//! | write a rate and a burst | [`Quota`] |
//! | write so many a day, a month | [`Window`], [`guide::windows`] |
//! | keep what was used over a restart | [`Limiter::snapshot`], [`guide::windows`] |
//! | choose what is counted, and for which requests | [`Policy`], [`key`] |
//! | combine policies, share them, decide without a service | [`Limiter`] |
//! | limit by a name in a body, a message, a job, an outgoing call | [`Limiter::acquire`], [`Policy::by_key`] |
//! | apply them to a service | [`RateLimitLayer`], [`RateLimit`] |
//! | limit how many requests are in flight at once | [`in_flight`], [`InFlightLayer`] |
//! | change the response to denied requests | [`response`], [`Denied`] |
//! | choose what clients learn | [`headers`], [`policy::Advertise`] |
//! | read policies from a file, and again while it serves | `config`, [`reload`] |
//! | test with a clock that you move | [`guide::testing`], [`clock`] |
//! | find out why it does not compile, or does not limit | [`guide::troubleshooting`] |
//! | learn how it works, and its invariants | `docs/architecture.md` |
//!
//! # Guarantees
//!
//! - A request is allowed when every policy that applies grants its cells. A denied one leaves
//!   every bucket as it was, except those of policies that
//!   [count denied requests](Policy::count_denied).
//! - In any time `W` a bucket of a rate admits at most `burst + floor(W / T)` cells, for any number
//!   of threads, where `T` is the [time of one cell](Quota::cell_period).
//! - A client that waits for the time in `Retry-After` is allowed, unless others consume the quota
//!   first.
//! - A bucket with a backlog is never evicted. Each policy has a bounded number of keys.
//! - A missing key is never a bypass, and never one bucket for all clients, unless you say so.
//!
//! # Features
//!
//! No feature is on by default, and a feature only adds.
//!
//! - `axum`: reads `ConnectInfo`, `MockConnectInfo` and `MatchedPath`; the default response in
//!   axum's body; denials as responses of handlers.
//! - `calendar`: windows of months, and of days, weeks and months in time zones, through `jiff`.
//! - `hyper`: the default response where the body is hyper's `Incoming`, in a proxy or in a client.
//!   Part of `axum` and `tonic`.
//! - `metrics`: counts decisions, requests in flight, keys and sweeps through the `metrics` crate;
//!   no key is ever a label.
//! - `redis`: one limit for many processes, see `redis`. Needs tokio, and Rust 1.88.
//! - `serde`: quotas and policies from configuration, see [`Quota`] and `config`.
//! - `tonic`: reads the peer of tonic's TCP connections; the default response in tonic's body;
//!   denials as a `tonic::Status`.
//! - `tower-http`: the default response in the bodies of tower-http 0.6 and 0.7, where the limit is
//!   outside of its compression, tracing, timeouts, body limits or files.
//! - `tracing`: events for denials, missing keys, and policies near their maximum number of keys.

mod bucket;
pub mod clock;
#[cfg(feature = "serde")]
pub mod config;
pub mod decision;
pub mod guide;
pub mod in_flight;
pub mod key;
pub mod limit;
pub mod limiter;
mod middleware;
mod observe;
pub mod policy;
pub mod quota;
#[cfg(feature = "redis")]
pub mod redis;
pub mod response;
mod snapshot;
mod store;
mod sweeper;
mod sync;
pub mod window;

pub use self::{
    decision::{Decision, Denied},
    in_flight::InFlightLayer,
    key::Key,
    limiter::Limiter,
    middleware::{delay, future, layer::RateLimitLayer, reload, service::RateLimit},
    policy::Policy,
    quota::Quota,
    response::headers,
    window::Window,
};

#[cfg(all(doctest, feature = "axum", feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;
