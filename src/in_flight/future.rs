//! Contains [`InFlightFuture`], the response of a service whose requests in flight are limited.
//!
//! This file must not know of waiting for a permit.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::{body::InFlightBody, permit::PermitGuard};
use crate::response::{WrapBody, headers::AllowedFields};

pin_project! {
    /// The response of the inner service, or the response to a denied request. The future of
    /// [`InFlight`](super::InFlight).
    ///
    /// Drop it at any time: the request is then in flight no longer.
    #[derive(Debug)]
    pub struct InFlightFuture<F, B> {
        #[pin]
        step: InFlightStep<F, B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = InFlightStepProjection]
    enum InFlightStep<F, B> {
        Called {
            // Dropped before the permit is returned.
            #[pin]
            future: F,
            guard: Option<PermitGuard>,
            fields: Option<Box<AllowedFields>>,
        },
        Denied { response: Option<Response<B>> },
    }
}

impl<F, B> InFlightFuture<F, B> {
    #[inline(always)]
    pub(super) fn called(future: F, guard: Option<PermitGuard>, fields: Option<Box<AllowedFields>>) -> Self {
        Self { step: InFlightStep::Called { future, guard, fields } }
    }

    pub(super) fn denied(response: Response<B>) -> Self {
        Self { step: InFlightStep::Denied { response: Some(response) } }
    }
}

impl<F, B, C, E> Future for InFlightFuture<F, C>
where
    F: Future<Output = Result<Response<B>, E>>,
    C: Body + WrapBody<B>,
{
    type Output = Result<Response<InFlightBody<C>>, E>;

    /// # Panics
    ///
    /// If polled again after it was ready with a denial.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().step.project() {
            InFlightStepProjection::Called { future, guard, fields } => {
                let called = ready!(future.poll(cx));
                // Taken also where it failed: a caller may have the future for longer.
                let guard = guard.take();
                let mut response = C::wrap(called?);
                if let Some(fields) = fields.take() {
                    fields.write(response.headers_mut());
                }
                Poll::Ready(Ok(response.map(|body| InFlightBody::guarded(body, guard))))
            }
            InFlightStepProjection::Denied { response } => {
                let response = response.take().expect("a future is not polled after it was ready");
                Poll::Ready(Ok(response.map(InFlightBody::free)))
            }
        }
    }
}
