//! [`RateLimit`]: the service that asks the limiter first.

use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use crate::{
    future::ResponseFuture,
    limiter::Limiter,
    response::{Respond, Standard},
};

/// A service that admits requests as its [`Limiter`] decides. Made by [`RateLimitLayer`](crate::RateLimitLayer).
///
/// A refusal is a response, never an error: `Error` is that of the service behind, of which nothing is asked but to be a
/// service. Readiness is passed through as it is; the instance that was polled ready is the one that is called.
///
/// # Refusals and readiness
///
/// A service that was polled ready may hold something for the call to come: behind `tower::limit::ConcurrencyLimit` it
/// is a permit. When the request is refused, the call does not come, and the permit is held until this instance is used
/// again or dropped. axum, hyper and tonic clone the service for each request and drop the clone with it, so nothing is
/// held there. If you drive one long-lived instance by hand, put such a service outside of the rate limit, or clone.
#[derive(Clone, Debug)]
pub struct RateLimit<S, R = Standard> {
    inner: S,
    limiter: Limiter,
    respond: R,
}

impl<S, R> RateLimit<S, R> {
    pub(crate) fn new(inner: S, limiter: Limiter, respond: R) -> Self {
        Self { inner, limiter, respond }
    }

    /// The service behind.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service behind.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service behind, alone.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, R, Q, B> Service<Request<Q>> for RateLimit<S, R>
where
    S: Service<Request<Q>, Response = Response<B>>,
    R: Respond<B>,
{
    type Response = Response<R::Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R::Body>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        match self.limiter.admit(&request) {
            Ok(()) => ResponseFuture::called(self.inner.call(request)),
            Err(denied) => {
                let mut response = self.respond.respond(&denied);
                response.extensions_mut().insert(denied);
                ResponseFuture::refused(response)
            }
        }
    }
}
