//! Contains [`Respond`], which makes the response to a denied request, and the responders of the
//! crate.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, header};

use super::{
    body::{DenialBody, ResponseBody, WrapBody},
    grpc::{self, Protocol},
    headers::{FieldStyle, FieldWriter},
    problem::{self, Content, ProblemTemplate},
};
use crate::{decision::Denied, key::RequestHead, policy::Policy};

/// Makes the response to a denied request, for an inner service whose responses have the body `B`.
///
/// The default responders implement it, and closures given to
/// [`respond_with`](crate::RateLimitLayer::respond_with) or
/// [`respond_to`](crate::RateLimitLayer::respond_to).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot respond for a service whose body is `{B}`",
    note = "enable the feature of `tower-quota` for this body: `axum`, `tonic`, `tower-http` or `hyper`",
    note = "for any other body call `.any_body()` or `.respond_with(|denied| ...)` on the layer"
)]
pub trait Respond<B> {
    /// The body of the limited service's responses, to allowed and to denied requests.
    type Body: WrapBody<B>;

    /// Makes the response to a denied request with this head.
    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<Self::Body>;

    /// Makes the response with all its fields. The layer calls this method.
    ///
    /// The provided method calls [`respond`](Self::respond), and adds the fields that the response
    /// lacks. Override it only to change which fields are added.
    fn respond_complete(&self, denied: &Denied, head: RequestHead<'_>, fields: &DenialFields) -> Response<Self::Body> {
        let mut response = self.respond(denied, head);
        fields.complete(denied, response.headers_mut());
        response
    }
}

/// The fields and bodies of denials that one layer has rendered in advance.
#[derive(Debug)]
pub struct DenialFields {
    writer: Arc<FieldWriter>,
    /// One for each policy, in the limiter's order.
    problems: Box<[ProblemTemplate]>,
}

impl DenialFields {
    pub(crate) fn new(policies: &[Policy], style: FieldStyle) -> Self {
        let problems = policies.iter().map(ProblemTemplate::of).collect();
        Self { writer: Arc::new(FieldWriter::new(policies, style)), problems }
    }

    pub(crate) fn writer(&self) -> &Arc<FieldWriter> {
        &self.writer
    }

    /// Adds the fields of a denial to `headers`: `Cache-Control: no-store`, `Retry-After`,
    /// `WWW-Authenticate`, and the [fields of the policies](super::headers). Fields that are there
    /// already stay.
    pub fn complete(&self, denied: &Denied, headers: &mut HeaderMap) {
        self.writer.complete_denial(denied, headers);
    }

    fn json(&self, denied: &Denied) -> Content {
        match denied.single_exceeded().zip(denied.retry_after()) {
            Some((policy, seconds)) => self.problems[policy].json(seconds),
            None => problem::json(denied),
        }
    }
}

/// The default response, in the body of the inner service, or in the one that its [`DenialBody`]
/// names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standard {
    pub(crate) plain: bool,
}

impl Standard {
    fn response<B>(self, denied: &Denied, head: RequestHead<'_>, from_bytes: impl FnOnce(Bytes) -> B) -> Response<B> {
        if let Some(protocol) = Protocol::of_call(head) {
            return grpc::trailers_only(protocol, denied).map(from_bytes);
        }
        let Content { content_type, body } = if self.plain { problem::plain(denied) } else { problem::json(denied) };
        response(denied, head, HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]), body).map(from_bytes)
    }

    /// Clones fields and bodies that are rendered already, instead of completing a response.
    fn response_complete<B>(
        self,
        denied: &Denied,
        head: RequestHead<'_>,
        fields: &DenialFields,
        from_bytes: impl FnOnce(Bytes) -> B,
    ) -> Response<B> {
        if let Some(protocol) = Protocol::of_call(head) {
            let mut response = grpc::trailers_only(protocol, denied);
            fields.complete(denied, response.headers_mut());
            return response.map(from_bytes);
        }
        let Content { content_type, body } = if self.plain { problem::plain(denied) } else { fields.json(denied) };
        response(denied, head, fields.writer.denial(denied, content_type), body).map(from_bytes)
    }
}

impl<B: DenialBody> Respond<B> for Standard {
    type Body = B::Body;

    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<B::Body> {
        self.response(denied, head, B::from_bytes)
    }

    fn respond_complete(&self, denied: &Denied, head: RequestHead<'_>, fields: &DenialFields) -> Response<B::Body> {
        self.response_complete(denied, head, fields, B::from_bytes)
    }
}

fn response(denied: &Denied, head: RequestHead<'_>, mut fields: HeaderMap, mut body: Bytes) -> Response<Bytes> {
    // A response to HEAD has the length only (RFC 9110 §9.3.2). Not every server removes the body:
    // over HTTP/2 hyper sends it, and clients reset the stream.
    if head.method() == Method::HEAD {
        fields.insert(header::CONTENT_LENGTH, body.len().into());
        body.clear();
    }
    let mut response = Response::new(body);
    *response.status_mut() = denied.status();
    *response.headers_mut() = fields;
    response
}

/// The default response for an inner service with any body of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyBody {
    pub(crate) standard: Standard,
}

impl<B> Respond<B> for AnyBody {
    type Body = ResponseBody<B>;

    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<ResponseBody<B>> {
        self.standard.response(denied, head, ResponseBody::denied)
    }

    fn respond_complete(
        &self,
        denied: &Denied,
        head: RequestHead<'_>,
        fields: &DenialFields,
    ) -> Response<ResponseBody<B>> {
        self.standard.response_complete(denied, head, fields, ResponseBody::denied)
    }
}

macro_rules! responder_of_a_closure {
    ($(#[$docs:meta])+ $name:ident) => {
        $(#[$docs])+
        #[derive(Clone, Copy)]
        pub struct $name<F> {
            respond: F,
        }

        impl<F> $name<F> {
            pub(crate) fn new(respond: F) -> Self {
                Self { respond }
            }
        }

        impl<F> fmt::Debug for $name<F> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

responder_of_a_closure! {
    /// The response that a closure makes of a [`Denied`].
    RespondFn
}

impl<F: Fn(&Denied) -> Response<B>, B> Respond<B> for RespondFn<F> {
    type Body = B;

    fn respond(&self, denied: &Denied, _head: RequestHead<'_>) -> Response<B> {
        (self.respond)(denied)
    }
}

responder_of_a_closure! {
    /// The response that a closure makes of a request and a [`Denied`].
    RespondTo
}

impl<F: Fn(RequestHead<'_>, &Denied) -> Response<B>, B> Respond<B> for RespondTo<F> {
    type Body = B;

    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<B> {
        (self.respond)(head, denied)
    }
}

/// A responder whose type is erased, for services whose responses have the body `B`. `C` is the
/// body of the limited service's responses. Made by
/// [`RateLimitLayer::boxed`](crate::RateLimitLayer::boxed).
pub struct BoxRespond<B, C = B> {
    respond: Arc<dyn Respond<B, Body = C> + Send + Sync>,
}

impl<B, C> BoxRespond<B, C> {
    pub(crate) fn new(respond: impl Respond<B, Body = C> + Send + Sync + 'static) -> Self {
        Self { respond: Arc::new(respond) }
    }
}

impl<B, C: WrapBody<B>> Respond<B> for BoxRespond<B, C> {
    type Body = C;

    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<C> {
        self.respond.respond(denied, head)
    }

    fn respond_complete(&self, denied: &Denied, head: RequestHead<'_>, fields: &DenialFields) -> Response<C> {
        self.respond.respond_complete(denied, head, fields)
    }
}

// Not derived, because the derived impl would need `B: Clone`.
impl<B, C> Clone for BoxRespond<B, C> {
    fn clone(&self) -> Self {
        Self { respond: Arc::clone(&self.respond) }
    }
}

impl<B, C> fmt::Debug for BoxRespond<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxRespond").finish_non_exhaustive()
    }
}
