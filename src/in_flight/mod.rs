//! Limits how many requests are in flight at once: [`InFlightLayer`].
//!
//! A rate limits how many requests begin. This limits how many there are, which is what slow
//! downloads, streams, reports and connections use up. A request is in flight until its response
//! has been sent: the permit is returned when the response's body has ended, has failed or is
//! dropped, and not when its head is there.
//!
//! This folder contains the layer with its services, the count of permits (`registry`), and those
//! who wait for one (`queue`). It must not know of rates, windows, or buckets.
//!
//! # At the limit
//!
//! Above a limit for each key a request is denied with 429, above one for all requests with 503.
//! There is no `Retry-After` unless [set](InFlightLayer::retry_after), because the server does not
//! know when a request ends. With a [`queue`](InFlightLayer::queue) requests wait for a permit
//! instead.
//!
//! # Beside a rate
//!
//! Put this layer outside of the rate limit: then a request that finds no permit costs nothing of
//! the rate, and one that the rate denies returns its permit with its response. The other way
//! round, a request that finds no permit has used up cells.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_quota::{InFlightLayer, Quota, RateLimitLayer, key::PeerIp};
//!
//! # #[cfg(feature = "axum")] {
//! let app: Router = Router::new()
//!     .route("/export", get(|| async { "a long answer" }))
//!     .layer(RateLimitLayer::per_ip(Quota::per_minute(60)))
//!     .layer(InFlightLayer::per(PeerIp, 4));
//! # }
//! ```
//!
//! # What it does not do
//!
//! - A client that reads slowly uses its permits for as long. A limit for each key leaves those of
//!   others free. A limit for all requests does not: set a timeout for bodies beside it, such as
//!   that of tower-http.
//! - A client that invents keys has the limit of each of them. Put a limit by address, or one for
//!   all requests, outside of a limit by API key.
//! - A server may read a body faster than it sends. hyper takes a body in one piece at once, and
//!   the permit is returned while the bytes still wait in its buffer. A stream is read as the
//!   client takes it.
//! - Each process counts its own requests.

mod body;
mod future;
#[cfg(feature = "axum")]
mod handler;
mod layer;
#[cfg(all(test, tower_quota_loom))]
mod loom;
mod permit;
mod queue;
mod registry;
mod service;
mod state;

#[cfg(feature = "axum")]
pub use self::handler::MissingPermit;
pub use self::{
    body::InFlightBody,
    future::InFlightFuture,
    layer::InFlightLayer,
    permit::InFlightPermit,
    queue::{InFlightQueue, InFlightQueueLayer, QueuedFuture},
    service::InFlight,
};
