//! Contains [`InFlight`], the service whose requests in flight are limited.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::{
    body::InFlightBody,
    future::InFlightFuture,
    permit::{Permit, PermitGuard},
    state::{InFlightState, Options},
};
use crate::{
    policy::Demand,
    response::{Respond, Standard, headers::AllowedFields},
};

/// A service whose requests in flight are limited. Made by [`InFlightLayer`](super::InFlightLayer).
///
/// Asks nothing of the inner service but a body: it need not be `Clone`, `Send` or `'static`.
/// Readiness is that of the inner service: a request for which there is no permit is denied when it
/// is called.
#[derive(Clone, Debug)]
pub struct InFlight<S, R = Standard> {
    pub(super) inner: S,
    pub(super) state: Arc<InFlightState>,
    pub(super) options: Options,
    pub(super) respond: R,
}

impl<S, R> InFlight<S, R> {
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

impl<R> InFlight<(), R> {
    /// The same limit around a service.
    pub(super) fn around<S>(self, inner: S) -> InFlight<S, R> {
        let Self { inner: (), state, options, respond } = self;
        InFlight { inner, state, options, respond }
    }

    /// The same limit with another responder.
    pub(super) fn responding<T>(self, respond: impl FnOnce(R) -> T) -> InFlight<(), T> {
        let Self { inner, state, options, respond: former } = self;
        InFlight { inner, state, options, respond: respond(former) }
    }
}

impl<S, R> InFlight<S, R> {
    /// What the request asks for, if the policy applies.
    ///
    /// # Errors
    ///
    /// The response to a request that lacks a key.
    #[inline(always)]
    pub(super) fn evaluate<Q, B>(&self, request: &mut Request<Q>) -> Result<Option<Demand>, Response<R::Body>>
    where
        R: Respond<B>,
    {
        let Self { state, options, respond, .. } = self;
        state.passed_by(request);
        let parts = state.set().parts(request);
        state.set().evaluate_single(parts.head()).map_err(|denied| {
            let head = parts.head();
            state.respond(respond, &denied, head, *options)
        })
    }

    /// The permit of a request that is counted as one of so many, and what its response says.
    #[inline(always)]
    pub(super) fn admit<Q>(
        &self,
        demand: &Demand,
        in_flight: u32,
        request: &mut Request<Q>,
    ) -> (Option<PermitGuard>, Option<Box<AllowedFields>>) {
        let permit = Permit::begun(&self.state, demand, in_flight);
        let guard = PermitGuard::new(permit, request, self.options.permits);
        (Some(guard), self.state.fields(demand, in_flight))
    }

    /// Denies a request for which there is no permit.
    #[cold]
    pub(super) fn deny<Q, B, F>(
        &self,
        demand: &Demand,
        in_flight: u32,
        request: &Request<Q>,
    ) -> InFlightFuture<F, R::Body>
    where
        R: Respond<B>,
    {
        let Self { state, options, respond, .. } = self;
        let denied = state.full(demand, in_flight, *options);
        let parts = state.set().parts(request);
        InFlightFuture::denied(state.respond(respond, &denied, parts.head(), *options))
    }
}

impl<S, R, Q, B> Service<Request<Q>> for InFlight<S, R>
where
    S: Service<Request<Q>, Response = Response<B>>,
    R: Respond<B>,
    R::Body: Body,
{
    type Response = Response<InFlightBody<R::Body>>;
    type Error = S::Error;
    type Future = InFlightFuture<S::Future, R::Body>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let demand = match self.evaluate(&mut request) {
            Ok(Some(demand)) => demand,
            Ok(None) => return InFlightFuture::called(self.inner.call(request), None, None),
            Err(response) => return InFlightFuture::denied(response),
        };
        match self.state.begin(&demand) {
            Ok(in_flight) => {
                let (guard, fields) = self.admit(&demand, in_flight, &mut request);
                InFlightFuture::called(self.inner.call(request), guard, fields)
            }
            Err(in_flight) => self.deny(&demand, in_flight, &request),
        }
    }
}
