//! tower's side: the layer, and the service whose requests wait for the answer of Redis.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::RedisLimiter;
use crate::{
    decision::Draws,
    front::Front,
    limiter::Admission,
    response::{Respond, Standard},
};

/// Puts a [`RedisLimiter`] in front of services. Made by [`RedisLimiter::layer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RedisRateLimitLayer<R = Standard> {
    limiter: RedisLimiter,
    front: Arc<Front>,
    respond: R,
}

impl<R> RedisRateLimitLayer<R> {
    pub(super) fn new(limiter: RedisLimiter, front: Arc<Front>, respond: R) -> Self {
        Self { limiter, front, respond }
    }

    /// The limiter.
    #[must_use]
    pub fn limiter(&self) -> &RedisLimiter {
        &self.limiter
    }
}

impl<S, R: Clone> Layer<S> for RedisRateLimitLayer<R> {
    type Service = RedisRateLimit<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        RedisRateLimit {
            inner,
            limiter: self.limiter.clone(),
            front: Arc::clone(&self.front),
            respond: self.respond.clone(),
        }
    }
}

/// A service behind a [`RedisLimiter`]. Made by [`RedisRateLimitLayer`].
///
/// The service behind is cloned for each request: the instance that was polled ready waits with the request, as tower's
/// contract asks.
#[derive(Clone)]
pub struct RedisRateLimit<S, R = Standard> {
    inner: S,
    limiter: RedisLimiter,
    front: Arc<Front>,
    respond: R,
}

impl<S, R, Q, B> Service<Request<Q>> for RedisRateLimit<S, R>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    R: Respond<B> + Clone + Send + 'static,
    Q: Send + 'static,
{
    type Response = Response<R::Body>;
    type Error = S::Error;
    /// In a box: next to a round trip it is nothing.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        // The instance that was polled ready is the one that is called.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        let (limiter, front, respond) = (self.limiter.clone(), Arc::clone(&self.front), self.respond.clone());
        let asked = limiter.asked(front.limiter.parts(&request).head());
        Box::pin(async move {
            let mut draws = Draws::default();
            let mut receipts = front.settles().then(|| limiter.receipts());
            match limiter.answered(asked, &mut draws, receipts.as_mut()).await {
                Ok(grant) => {
                    let after = match receipts {
                        Some(receipts) => front.admitted_by(&mut request, &mut draws, |limiter, draws| {
                            Admission::elsewhere(limiter, grant.at, draws, Box::new(receipts))
                        }),
                        None => front.admitted(&mut request, grant, &mut draws),
                    };
                    let mut response = inner.call(request).await?;
                    if let Some(after) = after {
                        after.complete(&mut response);
                    }
                    Ok(response.map(R::Body::from))
                }
                Err(mut denied) => Ok(front.refused(&respond, &mut denied, front.limiter.parts(&request).head())),
            }
        })
    }
}

impl<S: fmt::Debug, R> fmt::Debug for RedisRateLimit<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisRateLimit")
            .field("inner", &self.inner)
            .field("limiter", &self.limiter)
            .finish_non_exhaustive()
    }
}
