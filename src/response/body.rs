//! Contains [`DenialBody`], which says into what body the default response is written, and
//! [`ResponseBody`], the wrapper for bodies that cannot be made of bytes.
//!
//! This file must not know whose bodies there are: see `bodies.rs`.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project_lite::pin_project;

/// A body that the default response can be written into: that of a service inside of the rate
/// limit.
///
/// | body | response | feature |
/// |---|---|---|
/// | axum's, tonic's | in the same body | `axum`, `tonic` |
/// | `Full<Bytes>`, `Bytes`, `String`, `Vec<u8>`, and the boxed bodies of `http-body-util` | in the same body | |
/// | `Empty`, `Collected`, `Either`, `Limited`, `MapErr`, `MapFrame`, `StreamBody`, `WithTrailers` of `http-body-util`, `Box`, `Pin<Box<_>>` | in a [`ResponseBody`] | |
/// | `Incoming` of hyper | in a [`ResponseBody`] | `hyper`, which `axum` and `tonic` include |
/// | those of compression, tracing, timeouts, body limits and files in tower-http 0.6 and 0.7 | in a [`ResponseBody`] | `tower-http` |
///
/// Any other body is served by [`any_body`](crate::RateLimitLayer::any_body), or by an
/// implementation of this trait:
///
/// ```
/// use bytes::Bytes;
/// use tower_quota::response::DenialBody;
///
/// struct MyBody(Bytes);
///
/// impl DenialBody for MyBody {
///     type Body = Self;
///
///     fn from_bytes(bytes: Bytes) -> Self {
///         Self(bytes)
///     }
/// }
/// ```
#[cfg_attr(
    not(feature = "axum"),
    diagnostic::on_unimplemented(
        message = "enable the feature `axum` of `tower-quota` if this is axum's body (`tonic` for tonic's, \
                   `tower-http` for those of tower-http): the default response cannot be written into `{Self}`",
        note = "cargo add tower-quota --features axum",
        note = "for any other body call `.any_body()` or `.respond_with(|denied| ...)` on the layer"
    )
)]
#[cfg_attr(
    all(feature = "axum", not(feature = "tower-http")),
    diagnostic::on_unimplemented(
        message = "enable the feature `tower-http` of `tower-quota` if this is a body of tower-http (`tonic` for \
                   tonic's): the default response cannot be written into `{Self}`",
        note = "cargo add tower-quota --features tower-http",
        note = "for any other body call `.any_body()` or `.respond_with(|denied| ...)` on the layer"
    )
)]
#[cfg_attr(
    all(feature = "axum", feature = "tower-http"),
    diagnostic::on_unimplemented(
        message = "the default response cannot be written into the body `{Self}`: call `.any_body()` on the layer, \
                   or `.respond_with(|denied| ...)`",
        note = "for tonic's body enable the feature `tonic` of `tower-quota`"
    )
)]
pub trait DenialBody: Sized {
    /// The body of all responses of the limited service: `Self`, or a wrapper such as
    /// [`ResponseBody<Self>`](ResponseBody).
    type Body: WrapBody<Self>;

    /// Returns a body that consists of these bytes.
    fn from_bytes(bytes: Bytes) -> Self::Body;
}

/// A body that has the content of an inner body `B`: `B` itself, or a wrapper of it. The layer
/// converts the inner service's responses to it.
///
/// It is not `From`, because a response is large: where the body stays the same, the response is
/// not moved. Implement it for a wrapper of your own:
///
/// ```
/// use http::Response;
/// use tower_quota::response::WrapBody;
///
/// struct Counted<B>(B);
///
/// impl<B> WrapBody<B> for Counted<B> {
///     fn wrap(response: Response<B>) -> Response<Self> {
///         response.map(Self)
///     }
/// }
/// ```
pub trait WrapBody<B>: Sized {
    /// Returns the response with its body in this one.
    fn wrap(response: Response<B>) -> Response<Self>;
}

impl<B> WrapBody<B> for B {
    #[inline(always)]
    fn wrap(response: Response<B>) -> Response<B> {
        response
    }
}

impl<B> WrapBody<B> for ResponseBody<B> {
    fn wrap(response: Response<B>) -> Response<Self> {
        response.map(Self::from)
    }
}

pin_project! {
    /// The body of the inner service, or of the default response to a denied request.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        body: EitherBody<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = EitherBodyProjection]
    enum EitherBody<B> {
        Denied { body: Full<Bytes> },
        Served { #[pin] body: B },
    }
}

impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        B::default().into()
    }
}

impl<B> From<B> for ResponseBody<B> {
    fn from(body: B) -> Self {
        Self { body: EitherBody::Served { body } }
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn denied(bytes: Bytes) -> Self {
        Self { body: EitherBody::Denied { body: Full::new(bytes) } }
    }
}

impl<B> DenialBody for ResponseBody<B> {
    type Body = Self;

    fn from_bytes(bytes: Bytes) -> Self {
        Self::denied(bytes)
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().body.project() {
            EitherBodyProjection::Denied { body } => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            EitherBodyProjection::Served { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            EitherBody::Denied { body } => body.is_end_stream(),
            EitherBody::Served { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            EitherBody::Denied { body } => body.size_hint(),
            EitherBody::Served { body } => body.size_hint(),
        }
    }
}
