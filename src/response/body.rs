//! Contains [`DenialBody`], the bodies that the default response can be written into, and
//! [`ResponseBody`], the wrapper for all others.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{
    BodyExt as _, Empty, Full,
    combinators::{BoxBody, UnsyncBoxBody},
};
use pin_project_lite::pin_project;

/// A body that the default response can be written into.
#[cfg_attr(
    not(feature = "axum"),
    diagnostic::on_unimplemented(
        message = "enable the feature `axum` of `tower-quota` if this is axum's body (`tonic` for tonic's): \
                   the default response cannot be written into `{Self}`",
        note = "cargo add tower-quota --features axum",
        note = "for another body implement `DenialBody`, or use `.any_body()` or `.respond_with(|denied| ...)` on the layer"
    )
)]
#[cfg_attr(
    feature = "axum",
    diagnostic::on_unimplemented(
        message = "the default response cannot be written into the body `{Self}`",
        note = "for tonic's body enable the feature `tonic` of `tower-quota`",
        note = "for another body implement `DenialBody`, or use `.any_body()` or `.respond_with(|denied| ...)` on the layer"
    )
)]
pub trait DenialBody {
    /// Returns a body that consists of these bytes.
    fn from_bytes(bytes: Bytes) -> Self;
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

impl<B> DenialBody for ResponseBody<B> {
    fn from_bytes(bytes: Bytes) -> Self {
        Self { body: EitherBody::Denied { body: Full::new(bytes) } }
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

impl DenialBody for Bytes {
    fn from_bytes(bytes: Bytes) -> Self {
        bytes
    }
}

impl DenialBody for Full<Bytes> {
    fn from_bytes(bytes: Bytes) -> Self {
        Self::new(bytes)
    }
}

impl DenialBody for String {
    fn from_bytes(bytes: Bytes) -> Self {
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl DenialBody for Vec<u8> {
    fn from_bytes(bytes: Bytes) -> Self {
        bytes.into()
    }
}

/// The response has its status and fields only.
impl DenialBody for Empty<Bytes> {
    fn from_bytes(_bytes: Bytes) -> Self {
        Self::new()
    }
}

/// The response has its status and fields only.
impl DenialBody for () {
    fn from_bytes(_bytes: Bytes) -> Self {}
}

impl<E> DenialBody for BoxBody<Bytes, E> {
    fn from_bytes(bytes: Bytes) -> Self {
        Full::new(bytes).map_err(|never| match never {}).boxed()
    }
}

impl<E> DenialBody for UnsyncBoxBody<Bytes, E> {
    fn from_bytes(bytes: Bytes) -> Self {
        Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
    }
}

#[cfg(feature = "axum")]
impl DenialBody for axum::body::Body {
    fn from_bytes(bytes: Bytes) -> Self {
        bytes.into()
    }
}

#[cfg(feature = "tonic")]
impl DenialBody for tonic::body::Body {
    fn from_bytes(bytes: Bytes) -> Self {
        // In the trailers-only form the head ends the stream. An empty body says so at once.
        if bytes.is_empty() { Self::empty() } else { Self::new(Full::new(bytes)) }
    }
}
