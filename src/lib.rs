//! Rate limiting for tower, axum and hyper: exact limits, global and per key, in bounded memory.
//!
//! A [`Layer`](tower_layer::Layer) wraps any HTTP service with GCRA limiters. What is over the limit is answered `429
//! Too Many Requests` with `Retry-After` and the `RateLimit` fields of the IETF draft; keys that owe nothing are swept
//! away by a thread that ends with the last limiter.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_quota::{Quota, RateLimitLayer};
//!
//! # #[cfg(feature = "axum")] {
//! // 10 requests a second for each client, 20 at once.
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "Hello!" }))
//!     .layer(RateLimitLayer::per_ip(Quota::per_second(10).burst(20)));
//! # }
//! ```
//!
//! # Where things are
//!
//! | to | see |
//! |---|---|
//! | write a rate and a burst | [`Quota`] |
//! | say what is counted, and for which requests | [`Policy`], [`key`] |
//! | combine policies, share them, decide without a service | [`Limiter`] |
//! | put them in front of a service | [`RateLimitLayer`], [`RateLimit`] |
//! | answer refusals your way | [`response`], [`Denied`] |
//! | say what clients are told | [`headers`], [`policy::Advertise`] |
//! | test with a clock that you move | [`clock`] |
//! | know how it works, and what always holds | `docs/architecture.md` |
//!
//! # What always holds
//!
//! - A request is admitted when every policy that applies grants its cells. A refused one leaves every bucket as it was.
//! - In any window `W` a bucket admits at most `burst + floor(W / T)` cells, for any number of threads, where `T` is the
//!   [time of one cell](Quota::cell_period).
//! - Who waits as long as `Retry-After` says, and meets no rival, is admitted.
//! - A bucket that owes something is never forgotten. Each policy holds a bounded number of keys.
//! - A missing key is never a bypass, and never one bucket for the world, unless you say so.
//!
//! # Features
//!
//! None is on by default, and none changes what the others do.
//!
//! - `axum`: reads `ConnectInfo`, `MockConnectInfo` and `MatchedPath`; the default answer in axum's body.
//! - `metrics`: counts decisions, keys and sweeps through the `metrics` crate; no key is ever a label.
//! - `redis`: one limit for many processes, see `redis`. Needs tokio, and Rust 1.88.
//! - `serde`: quotas and policies from configuration, see [`Quota`] and `config`.
//! - `tonic`: reads the peer of tonic's TCP connections; the default answer in tonic's body.
//! - `tracing`: events for refusals, missing keys, and policies near their cap.

mod bucket;
pub mod clock;
#[cfg(feature = "serde")]
pub mod config;
pub mod decision;
pub mod delay;
mod front;
pub mod future;
pub mod headers;
pub mod key;
mod layer;
pub mod limiter;
mod observe;
pub mod policy;
pub mod quota;
#[cfg(feature = "redis")]
pub mod redis;
pub mod response;
mod service;
mod store;
mod sweeper;
mod sync;

pub use self::{
    decision::{Decision, Denied},
    key::Key,
    layer::RateLimitLayer,
    limiter::Limiter,
    policy::Policy,
    quota::Quota,
    service::RateLimit,
};

#[cfg(all(doctest, feature = "axum", feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;
