//! [`RateLimit`]: the service that asks the limiter first.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use crate::{
    decision::Draws,
    front::Front,
    future::ResponseFuture,
    response::{Respond, Standard},
};

/// A service that admits requests as its [`Limiter`](crate::Limiter) decides. Made by [`RateLimitLayer`](crate::RateLimitLayer).
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
    front: Arc<Front>,
    respond: R,
}

impl<S, R> RateLimit<S, R> {
    pub(crate) fn new(inner: S, front: Arc<Front>, respond: R) -> Self {
        Self { inner, front, respond }
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

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let limiter = &self.front.limiter;
        let mut draws = Draws::default();
        let parts = limiter.parts(&request);
        let wants_receipts = self.front.wants_receipts();
        match limiter.admit(parts.head(), wants_receipts.then_some(&mut draws)) {
            Ok(grant) => {
                let after = if wants_receipts { self.front.admitted(&mut request, grant, &mut draws) } else { None };
                ResponseFuture::called(self.inner.call(request), after)
            }
            Err(mut denied) => ResponseFuture::refused(self.front.refused(&self.respond, &mut denied, parts.head())),
        }
    }
}
