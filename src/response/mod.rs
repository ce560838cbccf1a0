//! The response to a denied request.
//!
//! This folder contains how a [`Denied`](crate::Denied) becomes a response, and in which body. It
//! must not know of services or futures.
//!
//! The default response has the status of the denial (429) and a problem (RFC 9457) as its body:
//!
//! ```json
//! {"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Quota Exceeded","status":429,
//!  "detail":"Too many requests for the policy \"per-ip\". Retry in 1 s.","violated-policies":["per-ip"]}
//! ```
//!
//! The response to a `HEAD` has no body, and the length that the body would have.
//!
//! A gRPC call (a `POST` over HTTP/2 with its content-type) gets the status `RESOURCE_EXHAUSTED`,
//! with the time to retry as a `google.rpc.RetryInfo`.
//!
//! The layer completes every response: it adds `Retry-After` where a wait helps,
//! `Cache-Control: no-store`, and the [fields of the policies](headers), except for fields that are
//! there already. To change the response, use:
//!
//! - [`RateLimitLayer::plain_text`](crate::RateLimitLayer::plain_text): one line of text.
//! - [`RateLimitLayer::respond_with`](crate::RateLimitLayer::respond_with): a closure that makes
//!   the whole response, and [`respond_to`](crate::RateLimitLayer::respond_to), whose closure also
//!   gets the request.
//! - [`Respond`] for a type of your own, with [`responder`](crate::RateLimitLayer::responder).
//! - [`DenialBody`] for a body type of your own: the default response in that body. It is there for
//!   the bodies of axum, tonic, hyper, tower-http and `http-body-util`, some under a feature.
//!   [`WrapBody`] for a wrapper of your own around inner bodies.
//! - [`RateLimitLayer::any_body`](crate::RateLimitLayer::any_body): the default response for a
//!   service with any other body, by a wrapper around both bodies.
//!
//! Where there is no layer, a handler returns what
//! [`Limiter::acquire`](crate::Limiter::acquire) says: with the feature `axum` the denial is a
//! response, and with `tonic` it becomes a `tonic::Status`.
//!
//! ```
//! use axum::{Json, response::IntoResponse as _};
//! use tower_quota::{Quota, RateLimitLayer};
//!
//! # #[cfg(feature = "axum")] {
//! let layer = RateLimitLayer::per_ip(Quota::per_second(5)).respond_with(|denied| {
//!     let body = serde_json::json!({ "error": "slow down", "detail": denied.to_string() });
//!     (denied.status(), Json(body)).into_response()
//! });
//! # }
//! ```

mod bodies;
mod body;
mod grpc;
#[cfg(feature = "axum")]
mod handler;
pub mod headers;
mod line;
mod problem;
mod respond;
mod template;

#[cfg(feature = "axum")]
pub use self::handler::MissingAdmission;
pub use self::{
    body::{DenialBody, ResponseBody, WrapBody},
    respond::{AnyBody, BoxRespond, DenialFields, Respond, RespondFn, RespondTo, Standard},
};
