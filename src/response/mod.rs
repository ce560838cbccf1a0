//! The answer to a refused request.
//!
//! Owns how a [`Denied`] becomes a response, and into which body. Knows nothing of services or futures.
//!
//! The default answer has the status of the refusal (429) and a problem (RFC 9457) as its body:
//!
//! ```json
//! {"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Quota Exceeded","status":429,
//!  "detail":"Too many requests for the policy \"per-ip\". Retry in 1 s.","violated-policies":["per-ip"]}
//! ```
//!
//! The answer to a `HEAD` has no body, and tells how long it would be.
//!
//! A call of gRPC (a `POST` over HTTP/2 with its content-type) is answered with the status `RESOURCE_EXHAUSTED`, and when to come back as a
//! `google.rpc.RetryInfo`.
//!
//! Whoever makes the answer, the layer adds `Retry-After` where a wait helps, `Cache-Control: no-store`, and the
//! [fields of the policies](crate::headers), but for a field that is there already. These ways lead to other answers:
//!
//! - [`RateLimitLayer::plain_text`](crate::RateLimitLayer::plain_text): one sentence.
//! - [`RateLimitLayer::respond_with`](crate::RateLimitLayer::respond_with): a closure that makes the whole response, and
//!   [`respond_to`](crate::RateLimitLayer::respond_to), where it sees the request.
//! - [`Respond`] for a type of your own that answers, given to [`responder`](crate::RateLimitLayer::responder).
//! - [`RefusalBody`] for a body type of your own: the default answer in it.
//! - [`RateLimitLayer::any_body`](crate::RateLimitLayer::any_body): the default answer for a service whose body cannot
//!   be made of bytes, by a wrapper around both.
//!
//! ```
//! use axum::{Json, response::IntoResponse as _};
//! use http::StatusCode;
//! use tower_quota::{Quota, RateLimitLayer};
//!
//! # #[cfg(feature = "axum")] {
//! let layer = RateLimitLayer::per_ip(Quota::per_second(5)).respond_with(|denied| {
//!     let body = [("error", "slow down"), ("detail", &denied.to_string())].map(|(k, v)| (k.to_owned(), v.to_owned()));
//!     (denied.status(), Json(std::collections::BTreeMap::from(body))).into_response()
//! });
//! # }
//! ```

mod grpc;
mod problem;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{
    BodyExt as _, Empty, Full,
    combinators::{BoxBody, UnsyncBoxBody},
};
use pin_project_lite::pin_project;

use self::problem::{Content, Excess};
use crate::{
    decision::Denied,
    headers::{self, Style, Writer},
    key::RequestHead,
    policy::Policy,
};

/// Makes the response to a refused request, where the service behind answers with a body `B`.
///
/// Implemented by the default answers and by closures given to
/// [`respond_with`](crate::RateLimitLayer::respond_with) or [`respond_to`](crate::RateLimitLayer::respond_to).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot answer for a service whose body is `{B}`",
    note = "implement `RefusalBody` for the body, or use `.any_body()` or `.respond_with(|denied| ...)` on the layer"
)]
pub trait Respond<B> {
    /// The body of what the limited service answers, whether it refused or not.
    type Body: From<B>;

    /// The response to a refused request, of which `head` is what there is.
    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<Self::Body>;

    /// The same with all its fields. The crate's own: the default answers take fields that are made already, where those
    /// of others are completed.
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "nobody outside calls or implements it")]
    fn complete(&self, denied: &Denied, head: RequestHead<'_>, templates: &Templates) -> Response<Self::Body> {
        let mut response = self.respond(denied, head);
        templates.writer.refused(denied, response.headers_mut());
        response
    }
}

/// What of the answers of one layer is made once.
#[derive(Debug)]
pub(crate) struct Templates {
    pub(crate) writer: Arc<Writer>,
    /// One for each policy, in the limiter's order.
    excesses: Box<[Excess]>,
}

impl Templates {
    pub(crate) fn new(policies: &[Policy], style: Style) -> Self {
        let excesses = policies.iter().map(Excess::of).collect();
        Self { writer: Arc::new(Writer::new(policies, style)), excesses }
    }

    fn json(&self, denied: &Denied) -> Content {
        match denied.sole_excess().zip(denied.retry_after_seconds()) {
            Some((policy, seconds)) => self.excesses[policy].json(seconds),
            None => problem::json(denied),
        }
    }
}

/// A body that the default answer can be written into.
#[diagnostic::on_unimplemented(
    message = "the default answer cannot be written into the body `{Self}`",
    note = "implement `RefusalBody` for it, or use `.any_body()` or `.respond_with(|denied| ...)` on the layer"
)]
pub trait RefusalBody {
    /// A body that consists of these bytes.
    fn from_bytes(bytes: Bytes) -> Self;
}

/// The default answer, in the body of the service behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standard {
    pub(crate) plain: bool,
}

impl<B: RefusalBody> Respond<B> for Standard {
    type Body = B;

    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<B> {
        if headers::is_grpc_call(head) {
            return grpc::trailers_only(denied).map(B::from_bytes);
        }
        let Content { kind, body } = if self.plain { problem::plain(denied) } else { problem::json(denied) };
        respond(denied, head, HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]), body)
    }

    #[allow(private_interfaces, reason = "nobody outside calls or implements it")]
    fn complete(&self, denied: &Denied, head: RequestHead<'_>, templates: &Templates) -> Response<B> {
        if headers::is_grpc_call(head) {
            let mut response = grpc::trailers_only(denied);
            templates.writer.refused(denied, response.headers_mut());
            return response.map(B::from_bytes);
        }
        let Content { kind, body } = if self.plain { problem::plain(denied) } else { templates.json(denied) };
        respond(denied, head, templates.writer.refusal(denied, kind), body)
    }
}

fn respond<B: RefusalBody>(
    denied: &Denied,
    head: RequestHead<'_>,
    mut fields: HeaderMap,
    mut body: Bytes,
) -> Response<B> {
    // Only the length is told (RFC 9110 §9.3.2). Not every server takes the body off: over HTTP/2 hyper sends it, and
    // clients reset the stream.
    if head.method() == Method::HEAD {
        fields.insert(header::CONTENT_LENGTH, body.len().into());
        body.clear();
    }
    let mut response = Response::new(B::from_bytes(body));
    *response.status_mut() = denied.status();
    *response.headers_mut() = fields;
    response
}

/// The default answer in front of any body of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyBody {
    pub(crate) standard: Standard,
}

impl<B> Respond<B> for AnyBody {
    type Body = MaybeRefused<B>;

    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<MaybeRefused<B>> {
        self.standard.respond(denied, head)
    }

    #[allow(private_interfaces, reason = "nobody outside calls or implements it")]
    fn complete(&self, denied: &Denied, head: RequestHead<'_>, templates: &Templates) -> Response<MaybeRefused<B>> {
        self.standard.complete(denied, head, templates)
    }
}

/// The answer that a closure makes.
#[derive(Clone, Copy)]
pub struct RespondFn<F> {
    respond: F,
}

impl<F> RespondFn<F> {
    pub(crate) fn new(respond: F) -> Self {
        Self { respond }
    }
}

impl<F: Fn(&Denied) -> Response<B>, B> Respond<B> for RespondFn<F> {
    type Body = B;

    fn respond(&self, denied: &Denied, _head: RequestHead<'_>) -> Response<B> {
        (self.respond)(denied)
    }
}

impl<F> fmt::Debug for RespondFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespondFn").finish_non_exhaustive()
    }
}

/// The answer that a closure makes which sees the request.
#[derive(Clone, Copy)]
pub struct RespondTo<F> {
    respond: F,
}

impl<F> RespondTo<F> {
    pub(crate) fn new(respond: F) -> Self {
        Self { respond }
    }
}

impl<F: Fn(RequestHead<'_>, &Denied) -> Response<B>, B> Respond<B> for RespondTo<F> {
    type Body = B;

    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<B> {
        (self.respond)(head, denied)
    }
}

impl<F> fmt::Debug for RespondTo<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RespondTo").finish_non_exhaustive()
    }
}

pin_project! {
    /// The body of a service, or of the default answer in front of it.
    #[derive(Debug)]
    pub struct MaybeRefused<B> {
        #[pin]
        body: Which<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = WhichProjection]
    enum Which<B> {
        Refused { body: Full<Bytes> },
        Served { #[pin] body: B },
    }
}

impl<B: Default> Default for MaybeRefused<B> {
    fn default() -> Self {
        B::default().into()
    }
}

impl<B> From<B> for MaybeRefused<B> {
    fn from(body: B) -> Self {
        Self { body: Which::Served { body } }
    }
}

impl<B> RefusalBody for MaybeRefused<B> {
    fn from_bytes(bytes: Bytes) -> Self {
        Self { body: Which::Refused { body: Full::new(bytes) } }
    }
}

impl<B: Body<Data = Bytes>> Body for MaybeRefused<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().body.project() {
            WhichProjection::Refused { body } => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            WhichProjection::Served { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Which::Refused { body } => body.is_end_stream(),
            Which::Served { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Which::Refused { body } => body.size_hint(),
            Which::Served { body } => body.size_hint(),
        }
    }
}

impl RefusalBody for Bytes {
    fn from_bytes(bytes: Bytes) -> Self {
        bytes
    }
}

impl RefusalBody for Full<Bytes> {
    fn from_bytes(bytes: Bytes) -> Self {
        Self::new(bytes)
    }
}

impl RefusalBody for String {
    fn from_bytes(bytes: Bytes) -> Self {
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl RefusalBody for Vec<u8> {
    fn from_bytes(bytes: Bytes) -> Self {
        bytes.into()
    }
}

/// The answer is its status and fields alone.
impl RefusalBody for Empty<Bytes> {
    fn from_bytes(_bytes: Bytes) -> Self {
        Self::new()
    }
}

/// The answer is its status and fields alone.
impl RefusalBody for () {
    fn from_bytes(_bytes: Bytes) -> Self {}
}

impl<E> RefusalBody for BoxBody<Bytes, E> {
    fn from_bytes(bytes: Bytes) -> Self {
        Full::new(bytes).map_err(|never| match never {}).boxed()
    }
}

impl<E> RefusalBody for UnsyncBoxBody<Bytes, E> {
    fn from_bytes(bytes: Bytes) -> Self {
        Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
    }
}

#[cfg(feature = "axum")]
impl RefusalBody for axum::body::Body {
    fn from_bytes(bytes: Bytes) -> Self {
        bytes.into()
    }
}

#[cfg(feature = "tonic")]
impl RefusalBody for tonic::body::Body {
    fn from_bytes(bytes: Bytes) -> Self {
        // Trailers-only means that the head ends the stream, which an empty body tells at once.
        if bytes.is_empty() { Self::empty() } else { Self::new(Full::new(bytes)) }
    }
}
