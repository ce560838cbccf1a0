//! The futures of the services: [`ResponseFuture`] in memory, and [`DeferredFuture`] where a
//! request waits.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use pin_project_lite::pin_project;

pub use super::deferred::DeferredFuture;
use super::state::ResponseHook;
use crate::response::WrapBody;

pin_project! {
    /// The response of the inner service, or the response to a denied request. The future of
    /// [`RateLimit`](crate::RateLimit) in memory.
    ///
    /// It owns no lock and no place in a queue: drop it at any time.
    #[derive(Debug)]
    pub struct ResponseFuture<F, B> {
        #[pin]
        state: ResponseState<F, B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = ResponseStateProjection]
    enum ResponseState<F, B> {
        Called { #[pin] future: F, hook: Option<ResponseHook> },
        Denied { response: Option<Response<B>> },
    }
}

impl<F, B> ResponseFuture<F, B> {
    #[inline(always)]
    pub(crate) fn called(future: F, hook: Option<ResponseHook>) -> Self {
        Self { state: ResponseState::Called { future, hook } }
    }

    pub(crate) fn denied(response: Response<B>) -> Self {
        Self { state: ResponseState::Denied { response: Some(response) } }
    }
}

impl<F, B, C, E> Future for ResponseFuture<F, C>
where
    F: Future<Output = Result<Response<B>, E>>,
    C: WrapBody<B>,
{
    type Output = Result<Response<C>, E>;

    /// # Panics
    ///
    /// If polled again after it was ready with a denial.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            ResponseStateProjection::Called { future, hook } => {
                let response = future.poll(cx).map_ok(C::wrap);
                // A response is large: where nothing is added to it, it is returned where it was
                // made.
                if hook.is_none() {
                    return response;
                }
                let mut response = ready!(response)?;
                if let Some(hook) = hook.take() {
                    hook.run(&mut response);
                }
                Poll::Ready(Ok(response))
            }
            ResponseStateProjection::Denied { response } => {
                Poll::Ready(Ok(response.take().expect("a future is not polled after it was ready")))
            }
        }
    }
}
