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
    C: From<B>,
{
    type Output = Result<Response<C>, E>;

    /// # Panics
    ///
    /// If polled again after it was ready with a denial.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            ResponseStateProjection::Called { future, hook } => {
                let response = ready!(future.poll(cx))?;
                // Two ways, because a response is large: one that nothing is added to is not moved
                // for it.
                match hook.take() {
                    None => Poll::Ready(Ok(response.map(C::from))),
                    Some(hook) => {
                        let mut response = response.map(C::from);
                        hook.run(&mut response);
                        Poll::Ready(Ok(response))
                    }
                }
            }
            ResponseStateProjection::Denied { response } => {
                Poll::Ready(Ok(response.take().expect("a future is not polled after it was ready")))
            }
        }
    }
}
