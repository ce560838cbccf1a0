//! Delays requests instead of denying them: [`DelayLayer`].
//!
//! This module decides which requests may wait, for how long, and what happens to the cells of
//! those that give up. It must not know of a runtime: the caller provides the timer.
//!
//! A request that exceeds the limit acquires its cells at once, from those that will be there, and
//! waits until they are. So the requests of one key are served in the order in which they came,
//! each when its cells are there and never before. A request is denied at once, with the wait that
//! it would have had, when that wait is longer than the layer allows, or when too many requests
//! wait already.
//!
//! Cells are acquired when a request comes. Under one policy that is the same as when it is served.
//! Under several, requests that waited for one policy may be served together under another: a
//! policy that had the cells at once cannot reserve them for later without denying other requests
//! what is there now.
//!
//! A request that is dropped while it waits refunds its cells if it was the last in line; under
//! several policies, less what time has returned already. The requests behind another one keep
//! their times, and its time passes unused: otherwise a new request would be served at the same
//! time as the last one.
//!
//! ```
//! use std::time::Duration;
//! use tower_quota::{Quota, RateLimitLayer};
//!
//! // Up to five requests a second for each client, one at a time. Further requests wait for at most two seconds.
//! let quota = Quota::per_second(5).burst(1);
//! let layer = RateLimitLayer::per_ip(quota).max_delay(Duration::from_secs(2), tokio::time::sleep);
//! ```
//!
//! In a client, the layer keeps outgoing calls within the limit of a partner, so that the partner
//! denies none. What the layer denies by itself has the [`Denied`] in the extensions of the
//! response, which tells it from a denial of the partner's.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    deferred::{Admitted, DeferredFuture, PendingRequest},
    future::ResponseFuture,
    reload::ReloadableLayer,
    state::{LayerState, Stateful},
    waiters::{WaiterSlot, Waiters},
};
use crate::{
    clock::{Nanos, Timestamp},
    decision::{Denied, Receipts},
    limiter::{Grant, Handle, Limiter, ReservedCells},
    response::Respond,
};

/// Delays requests instead of denying them. Made by
/// [`RateLimitLayer::max_delay`](crate::RateLimitLayer::max_delay).
#[must_use]
pub struct DelayLayer<L, R, T> {
    pub(crate) state: Arc<LayerState<L>>,
    pub(crate) respond: R,
    pub(crate) queue: Arc<Queue<T>>,
}

/// What all services of a layer share beside the limiter.
pub(crate) struct Queue<T> {
    pub(crate) timer: T,
    pub(crate) max_delay: Nanos,
    waiters: Waiters,
}

impl<T> AsRef<Waiters> for Queue<T> {
    fn as_ref(&self) -> &Waiters {
        &self.waiters
    }
}

impl<L: Handle, R, T> DelayLayer<L, R, T> {
    pub(super) fn new(state: &LayerState<L>, respond: R, max: Duration, timer: T) -> Self {
        state.limiter.allow_waits(max);
        // Such a layer often paces a client, whose own denials look like those of the server.
        let state = Arc::new(state.with_denied());
        let queue = Queue { timer, max_delay: max.into(), waiters: Waiters::at_most(1_024) };
        Self { state, respond, queue: Arc::new(queue) }
    }

    /// Returns a layer whose limiter can be replaced while it serves. See
    /// [`RateLimitLayer::reloadable`](crate::RateLimitLayer::reloadable).
    pub fn reloadable(self) -> ReloadableLayer<Self, L> {
        ReloadableLayer::new(Arc::clone(&self.state), self)
    }
}

impl<L: Handle, R, T> Stateful<L> for DelayLayer<L, R, T> {
    fn state_mut(&mut self) -> &mut Arc<LayerState<L>> {
        &mut self.state
    }

    fn prepare(&self, limiter: &L) {
        limiter.allow_waits(self.queue.max_delay.into());
    }
}

impl<S, L: Handle, R, T> Stateful<L> for Delay<S, L, R, T> {
    fn state_mut(&mut self) -> &mut Arc<LayerState<L>> {
        &mut self.layer.state
    }
}

impl<L, R, T> DelayLayer<L, R, T> {
    /// Sets how many requests may wait at once, over all keys; 1,024 unless set. Further ones are
    /// denied. Each stores its request and a clone of the service in memory. A request counts as
    /// waiting also while it is decided.
    pub fn max_waiters(self, max_waiters: usize) -> Self
    where
        T: Clone,
    {
        let Queue { ref timer, max_delay, .. } = *self.queue;
        let queue = Queue { timer: timer.clone(), max_delay, waiters: Waiters::at_most(max_waiters) };
        Self { queue: Arc::new(queue), ..self }
    }

    /// Returns the limiter that decides, to share it with other layers or to control it.
    #[must_use]
    pub fn limiter(&self) -> &L {
        &self.state.limiter
    }

    /// Returns how many requests wait now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.waiters.waiting()
    }
}

// Not derived, because the derived impl would need `T: Clone`.
impl<L, R: Clone, T> Clone for DelayLayer<L, R, T> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state), respond: self.respond.clone(), queue: Arc::clone(&self.queue) }
    }
}

impl<S, L, R: Clone, T> Layer<S> for DelayLayer<L, R, T> {
    type Service = Delay<S, L, R, T>;

    fn layer(&self, inner: S) -> Self::Service {
        Delay { inner, layer: self.clone() }
    }
}

/// A service whose requests wait for their cells. Made by [`DelayLayer`].
///
/// The inner service is cloned for each request that waits: the instance that was polled ready
/// waits with the request, as tower's contract requires. What such an instance has reserved (a
/// permit of a concurrency limit, for instance) stays reserved while it waits. Apply limits of that
/// kind outside of this layer.
pub struct Delay<S, L, R, T> {
    pub(crate) inner: S,
    pub(crate) layer: DelayLayer<L, R, T>,
}

impl<S: Clone, L, R: Clone, T> Clone for Delay<S, L, R, T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, R, T, F, Q, B> Service<Request<Q>> for Delay<S, Limiter, R, T>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    R: Respond<B> + Clone,
    T: Fn(Duration) -> F,
    F: Future<Output = ()>,
{
    type Response = Response<R::Body>;
    type Error = S::Error;
    type Future = DeferredFuture<S, Limiter, R, Q, WaitForCells<Limiter, T, F>, S::Future, R::Body>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let DelayLayer { state, respond, queue } = &self.layer;
        state.passed_by(&mut request);
        let slot = WaiterSlot::take(queue);
        let patience = if slot.is_some() { queue.max_delay } else { Nanos::ZERO };
        let mut receipts = Receipts::default();
        let parts = state.limiter.set().parts(&request);
        let grant = match state.limiter.acquire_within(parts.head(), patience, &mut receipts) {
            Ok(grant) => grant,
            Err(mut denied) => {
                let response = state.denied(respond, &mut denied, parts.head());
                return DeferredFuture::decided(ResponseFuture::denied(response));
            }
        };
        let waits = !grant.wait.is_zero();
        if let (true, Some(slot)) = (waits, slot) {
            // First, so that a panic in what follows refunds the cells.
            let cells = WaitingCells::new(&state.limiter, grant, receipts, slot, grant.at);
            // The instance that was polled ready is the one that is called.
            let clone = self.inner.clone();
            let inner = mem::replace(&mut self.inner, clone);
            let sleep = (queue.timer)(grant.wait.into());
            let pending = PendingRequest { inner, state: Arc::clone(state), respond: respond.clone(), request };
            return DeferredFuture::waiting(WaitForCells::new(sleep, cells), pending);
        }
        let hook = state.allowed(&mut request, grant.at, &receipts, || state.limiter.clone());
        DeferredFuture::decided(ResponseFuture::called(self.inner.call(request), hook))
    }
}

/// The cells of a request that waits, and its place among those that do.
pub(crate) struct WaitingCells<L: Handle, T> {
    cells: ReservedCells<L>,
    slot: WaiterSlot<Queue<T>>,
}

impl<L: Handle, T> WaitingCells<L, T> {
    /// The wait counts from `from`.
    pub(crate) fn new(
        limiter: &L,
        grant: Grant,
        receipts: Receipts,
        slot: WaiterSlot<Queue<T>>,
        from: Timestamp,
    ) -> Self {
        Self { cells: ReservedCells::new(limiter.clone(), grant, receipts, from), slot }
    }
}

pin_project! {
    /// Ends when the cells of a request are there. Dropped before, it returns them.
    pub struct WaitForCells<L: Handle, T, F> {
        #[pin]
        sleep: F,
        waiting: Option<WaitingCells<L, T>>,
    }
}

impl<L: Handle, T, F> WaitForCells<L, T, F> {
    pub(crate) fn new(sleep: F, waiting: WaitingCells<L, T>) -> Self {
        Self { sleep, waiting: Some(waiting) }
    }
}

impl<L, T, F> Future for WaitForCells<L, T, F>
where
    L: Handle,
    T: Fn(Duration) -> F,
    F: Future<Output = ()>,
{
    type Output = Result<Admitted<L>, Denied>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut was_early = false;
        loop {
            ready!(this.sleep.as_mut().poll(cx));
            let waiting = this.waiting.as_ref().expect("a future is not polled after it was ready");
            let Some(left) = waiting.cells.remaining_wait() else { break };
            this.sleep.set((waiting.slot.queue().timer)(left));
            if was_early {
                // The timer was early a second time: let other tasks run before it is polled again.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            was_early = true;
        }
        let mut waiting = this.waiting.take().expect("a future is not polled after it was ready");
        let (at, receipts, limiter) = waiting.cells.take();
        Poll::Ready(Ok(Admitted { at, receipts, settle: Some(limiter) }))
    }
}

impl<L: fmt::Debug, R: fmt::Debug, T> fmt::Debug for DelayLayer<L, R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayLayer").field("limiter", self.limiter()).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, L, R, T> fmt::Debug for Delay<S, L, R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delay").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<L: Handle, T, F> fmt::Debug for WaitForCells<L, T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitForCells").finish_non_exhaustive()
    }
}
