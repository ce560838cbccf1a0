//! Contains the services over Redis: [`RateLimit`] and [`Delay`] with a [`RedisLimiter`].

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tower_service::Service;

use super::limiter::RedisLimiter;
use crate::{
    clock::Nanos,
    decision::{Denied, Receipts},
    middleware::{
        deferred::{Admitted, DeferredFuture, PendingRequest},
        delay::{Delay, WaitForCells, WaitingCells},
        service::RateLimit,
        waiters::WaiterSlot,
    },
    response::Respond,
};

/// The inner service is cloned for each request: the instance that was polled ready waits with the
/// request, as tower's contract requires.
impl<S, R, Q, B> Service<Request<Q>> for RateLimit<S, RedisLimiter, R>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    R: Respond<B> + Clone,
{
    type Response = Response<R::Body>;
    type Error = S::Error;
    type Future = DeferredFuture<S, RedisLimiter, R, Q, RedisDecision, S::Future, R::Body>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let state = Arc::clone(&self.state);
        state.passed_by(&mut request);
        let (limiter, settles) = (state.limiter.clone(), state.settles());
        let demands = limiter.evaluate(state.limiter.parts.set.parts(&request).head());
        let decision = async move {
            let mut receipts = Receipts::default();
            let grant = limiter.acquire_demands(demands, Nanos::ZERO, &mut receipts).await?;
            Ok(Admitted { at: grant.at, receipts, settle: settles.then_some(limiter) })
        };
        // The instance that was polled ready is the one that is called.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let pending = PendingRequest { inner, state, respond: self.respond.clone(), request };
        DeferredFuture::waiting(RedisDecision::new(decision), pending)
    }
}

/// A request waits for Redis first, and then for its cells. In both it returns them when it is
/// dropped.
impl<S, R, T, F, Q, B> Service<Request<Q>> for Delay<S, RedisLimiter, R, T>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    R: Respond<B> + Clone,
    T: Fn(Duration) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send,
{
    type Response = Response<R::Body>;
    type Error = S::Error;
    type Future = DeferredFuture<S, RedisLimiter, R, Q, RedisDecision, S::Future, R::Body>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let layer = &self.layer;
        let (state, queue) = (Arc::clone(&layer.state), Arc::clone(&layer.queue));
        state.passed_by(&mut request);
        let demands = state.limiter.evaluate(state.limiter.parts.set.parts(&request).head());
        let decided = Arc::clone(&state);
        let decision = async move {
            let limiter = &decided.limiter;
            let slot = WaiterSlot::take(&queue);
            let patience = if slot.is_some() { queue.max_delay } else { Nanos::ZERO };
            let mut receipts = Receipts::default();
            let grant = limiter.acquire_demands(demands, patience, &mut receipts).await?;
            match slot {
                Some(slot) if !grant.wait.is_zero() => {
                    // From now on, and not from when Redis was asked: no request is early.
                    let now = limiter.parts.set.now();
                    let waiting = WaitingCells::new(limiter, grant, receipts, slot, now);
                    let sleep = (queue.timer)(grant.wait.into());
                    WaitForCells::new(sleep, waiting).await
                }
                _ => Ok(Admitted { at: grant.at, receipts, settle: decided.settles().then(|| limiter.clone()) }),
            }
        };
        // The instance that was polled ready is the one that is called.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let pending = PendingRequest { inner, state, respond: layer.respond.clone(), request };
        DeferredFuture::waiting(RedisDecision::new(decision), pending)
    }
}

/// Ends when Redis, or the fallback, has decided, and when the cells are there. It is boxed, which
/// costs nothing beside a round trip.
pub struct RedisDecision {
    decision: Pin<Box<dyn Future<Output = Result<Admitted<RedisLimiter>, Denied>> + Send>>,
}

impl RedisDecision {
    fn new(decision: impl Future<Output = Result<Admitted<RedisLimiter>, Denied>> + Send + 'static) -> Self {
        Self { decision: Box::pin(decision) }
    }
}

impl Future for RedisDecision {
    type Output = Result<Admitted<RedisLimiter>, Denied>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.decision.as_mut().poll(cx)
    }
}

impl fmt::Debug for RedisDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisDecision").finish_non_exhaustive()
    }
}
