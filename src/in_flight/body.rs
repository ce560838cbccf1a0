//! Contains [`InFlightBody`], the body of a response: its request is in flight until it has ended.
//!
//! This file must not know what a permit is of.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::permit::PermitGuard;
use crate::response::DenialBody;

pin_project! {
    /// The body of a response. Its request is in flight until the body has ended, has failed, or is
    /// dropped.
    ///
    /// A server may read a body faster than it sends: hyper takes what comes in one piece at once.
    /// So a request is in flight until the server has read the last byte.
    #[derive(Debug)]
    pub struct InFlightBody<B> {
        // Dropped before the permit is returned. `None` after its end.
        #[pin]
        body: Option<B>,
        guard: Option<PermitGuard>,
    }
}

impl<B: Body> InFlightBody<B> {
    /// A request whose response has no body is in flight no longer.
    pub(super) fn guarded(body: B, guard: Option<PermitGuard>) -> Self {
        let guard = guard.filter(|_| !body.is_end_stream());
        Self { body: Some(body), guard }
    }
}

impl<B> InFlightBody<B> {
    /// The body of a response whose request is not in flight.
    pub(super) fn free(body: B) -> Self {
        Self { body: Some(body), guard: None }
    }
}

impl<B> From<B> for InFlightBody<B> {
    fn from(body: B) -> Self {
        Self::free(body)
    }
}

impl<B: Default> Default for InFlightBody<B> {
    fn default() -> Self {
        Self::free(B::default())
    }
}

impl<B: DenialBody<Body = B>> DenialBody for InFlightBody<B> {
    type Body = Self;

    fn from_bytes(bytes: Bytes) -> Self {
        Self::free(B::from_bytes(bytes))
    }
}

impl<B: Body> Body for InFlightBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let frame = ready!(body.as_mut().poll_frame(cx));
        let goes_on = matches!(frame, Some(Ok(_))) && !body.is_end_stream();
        if !goes_on {
            this.body.set(None);
            *this.guard = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
