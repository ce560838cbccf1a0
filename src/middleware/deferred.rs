//! Contains [`DeferredFuture`], the future of a request that cannot be served at once: it waits for
//! its cells, or for the answer of a server.
//!
//! This file must not know what the request waits for.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{future::ResponseFuture, state::LayerState};
use crate::{
    clock::Timestamp,
    decision::{Denied, Receipts},
    limiter::{Handle, Settle},
    response::Respond,
};

/// An allowed request, whenever that was decided.
pub struct Admitted<P> {
    pub(crate) at: Timestamp,
    pub(crate) receipts: Receipts,
    /// Where the receipts are settled. `None` where the layer settles nothing.
    pub(crate) settle: Option<P>,
}

/// A request that waits, with the instance of the inner service that was polled ready for it.
pub(crate) struct PendingRequest<S, L, R, Q> {
    pub(crate) inner: S,
    pub(crate) state: Arc<LayerState<L>>,
    pub(crate) respond: R,
    pub(crate) request: Request<Q>,
}

pin_project! {
    /// The future of a request that waits before it is served: in a [`delay`](super::delay) layer,
    /// or for the answer of Redis.
    ///
    /// Drop it at any time. While the request waits in a delay layer, its place and its cells are
    /// returned.
    ///
    /// It is `Send` if the service, its future, the request and the body of a response are. Once
    /// the service is called, its instance is dropped, as by
    /// [`oneshot`](https://docs.rs/tower/latest/tower/trait.ServiceExt.html#method.oneshot): what a
    /// response still needs has to be in its future.
    pub struct DeferredFuture<S, L, R, Q, W, F, B> {
        #[pin]
        step: DeferredStep<S, L, R, Q, W, F, B>,
    }
}

pin_project! {
    #[project = DeferredStepProjection]
    enum DeferredStep<S, L, R, Q, W, F, B> {
        Waiting { #[pin] decision: W, pending: Option<PendingRequest<S, L, R, Q>> },
        Decided { #[pin] future: ResponseFuture<F, B> },
    }
}

impl<S, L, R, Q, W, F, B> DeferredFuture<S, L, R, Q, W, F, B> {
    /// The request waits for `decision`.
    pub(crate) fn waiting(decision: W, pending: PendingRequest<S, L, R, Q>) -> Self {
        Self { step: DeferredStep::Waiting { decision, pending: Some(pending) } }
    }

    /// The request was decided at once.
    pub(crate) fn decided(future: ResponseFuture<F, B>) -> Self {
        Self { step: DeferredStep::Decided { future } }
    }
}

impl<S, L, R, Q, W, P, B> Future for DeferredFuture<S, L, R, Q, W, S::Future, R::Body>
where
    S: Service<Request<Q>, Response = Response<B>>,
    L: Handle,
    R: Respond<B>,
    W: Future<Output = Result<Admitted<P>, Denied>>,
    P: Settle,
{
    type Output = Result<Response<R::Body>, S::Error>;

    /// # Panics
    ///
    /// If polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut step = self.project().step;
        loop {
            match step.as_mut().project() {
                DeferredStepProjection::Decided { future } => return future.poll(cx),
                DeferredStepProjection::Waiting { decision, pending } => {
                    let decided = ready!(decision.poll(cx));
                    let pending = pending.take().expect("a future is not polled after it was ready");
                    let future = pending.decide(decided);
                    step.set(DeferredStep::Decided { future });
                }
            }
        }
    }
}

impl<S, L, R, Q> PendingRequest<S, L, R, Q> {
    fn decide<P, B>(self, decided: Result<Admitted<P>, Denied>) -> ResponseFuture<S::Future, R::Body>
    where
        S: Service<Request<Q>, Response = Response<B>>,
        L: Handle,
        R: Respond<B>,
        P: Settle,
    {
        let Self { mut inner, state, respond, mut request } = self;
        match decided {
            Ok(Admitted { at, receipts, settle }) => {
                // Without a settler the layer settles nothing, and only fields are rendered.
                let hook = match settle {
                    Some(settle) => state.allowed(&mut request, at, &receipts, || settle),
                    None => state.advertise(&receipts),
                };
                ResponseFuture::called(inner.call(request), hook)
            }
            Err(mut denied) => {
                let head = state.limiter.policy_set().parts(&request);
                ResponseFuture::denied(state.denied(&respond, &mut denied, head.head()))
            }
        }
    }
}

impl<P> fmt::Debug for Admitted<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted").finish_non_exhaustive()
    }
}

impl<S, L, R, Q, W, F, B> fmt::Debug for DeferredFuture<S, L, R, Q, W, F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferredFuture").finish_non_exhaustive()
    }
}
