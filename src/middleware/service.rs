//! Contains [`RateLimit`], the service that asks the limiter first, and its implementation in
//! memory.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{
    future::ResponseFuture,
    state::{LayerState, Stateful},
};
use crate::{
    decision::Receipts,
    limiter::Limiter,
    response::{Respond, Standard},
};

/// A service that serves the requests that its limiter allows. Made by
/// [`RateLimitLayer`](crate::RateLimitLayer).
///
/// A denial is a response, never an error: `Error` is that of the inner service. Readiness is
/// passed through unchanged, and the instance that was polled ready is the one that is called.
///
/// In memory there are no extra bounds on the inner service. Over Redis it has to be `Clone`,
/// because the request waits for an answer.
///
/// # Denials and readiness
///
/// An inner service that was polled ready may reserve something for the next call: `tower`'s
/// `ConcurrencyLimit` reserves a permit. When the request is denied, that call does not come, and
/// the permit stays reserved until this instance is used again or dropped. axum, hyper and tonic
/// clone the service for each request and drop the clone afterwards, so nothing stays reserved
/// there. If you use one long-lived instance, apply such a service outside of the rate limit, or
/// clone it for each request.
#[derive(Clone, Debug)]
pub struct RateLimit<S, L = Limiter, R = Standard> {
    pub(crate) inner: S,
    pub(crate) state: Arc<LayerState<L>>,
    pub(crate) respond: R,
}

impl<S, L, R> RateLimit<S, L, R> {
    pub(super) fn new(inner: S, state: Arc<LayerState<L>>, respond: R) -> Self {
        Self { inner, state, respond }
    }

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, L, R> Stateful<L> for RateLimit<S, L, R> {
    fn state_mut(&mut self) -> &mut Arc<LayerState<L>> {
        &mut self.state
    }
}

impl<S, R, Q, B> Service<Request<Q>> for RateLimit<S, Limiter, R>
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
        let (state, limiter) = (&*self.state, &self.state.limiter);
        state.passed_by(&mut request);
        let mut receipts = Receipts::default();
        let parts = limiter.set().parts(&request);
        let wants_receipts = state.wants_receipts();
        match limiter.acquire_for(parts.head(), wants_receipts.then_some(&mut receipts)) {
            Ok(grant) => {
                let hook = if wants_receipts {
                    state.allowed(&mut request, grant.at, &receipts, || limiter.clone())
                } else {
                    None
                };
                ResponseFuture::called(self.inner.call(request), hook)
            }
            Err(mut denied) => ResponseFuture::denied(state.denied(&self.respond, &mut denied, parts.head())),
        }
    }
}
