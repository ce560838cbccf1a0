//! Contains the service over Redis: [`RateLimit`] with a [`RedisLimiter`].

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{limiter::RedisLimiter, settlement::RedisReceipts};
use crate::{
    decision::{Denied, Receipts},
    middleware::deferred::{Admitted, DeferredFuture, PendingRequest},
    middleware::service::RateLimit,
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
            let mut settle = settles.then(|| RedisReceipts::new(limiter.clone()));
            let grant = limiter.acquire_all(demands, &mut receipts, settle.as_mut()).await?;
            Ok(Admitted { at: grant.at, receipts, settle })
        };
        // The instance that was polled ready is the one that is called.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let pending = PendingRequest { inner, state, respond: self.respond.clone(), request };
        DeferredFuture::waiting(RedisDecision { decision: Box::pin(decision) }, pending)
    }
}

/// Ends when Redis, or the fallback, has decided. It is boxed, which costs nothing beside a round
/// trip.
pub struct RedisDecision {
    decision: Pin<Box<dyn Future<Output = Result<Admitted<RedisReceipts>, Denied>> + Send>>,
}

impl Future for RedisDecision {
    type Output = Result<Admitted<RedisReceipts>, Denied>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.decision.as_mut().poll(cx)
    }
}

impl fmt::Debug for RedisDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisDecision").finish_non_exhaustive()
    }
}
