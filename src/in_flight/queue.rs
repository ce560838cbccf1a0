//! Lets requests wait for a permit instead of denying them: [`InFlightQueueLayer`].
//!
//! This file decides which requests may wait, and for how long. It must not know of a runtime: the
//! caller provides the timer.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::{
    body::InFlightBody,
    future::InFlightFuture,
    permit::PermitGuard,
    registry::{GrantSignal, Queued, WaitEnd},
    service::InFlight,
    state::InFlightState,
};
use crate::{
    key::IntoKey,
    middleware::waiters::{WaiterSlot, Waiters},
    policy::Demand,
    response::{Respond, headers::AllowedFields},
};

/// Lets requests wait for a permit instead of denying them. Made by
/// [`InFlightLayer::queue`](super::InFlightLayer::queue).
///
/// A request is denied at once where too many wait already, and when it has waited for as long as
/// the layer allows. One that is dropped while it waits leaves the queue.
///
/// The requests of one key get permits in the order in which they came. Where their [limits
/// differ](super::InFlightLayer::limit_by), one with a larger limit passes those whose limits are
/// reached.
#[must_use]
pub struct InFlightQueueLayer<R, T> {
    /// The layer without a queue, around nothing.
    limit: InFlight<(), R>,
    queue: Arc<WaitQueue<T>>,
}

/// What all services of a layer share.
struct WaitQueue<T> {
    timer: T,
    max_wait: Duration,
    max_waiters_per_key: usize,
    waiters: Waiters,
}

impl<T> AsRef<Waiters> for WaitQueue<T> {
    fn as_ref(&self) -> &Waiters {
        &self.waiters
    }
}

impl<R, T> InFlightQueueLayer<R, T> {
    pub(super) fn new(limit: InFlight<(), R>, max_wait: Duration, timer: T) -> Self {
        let queue = WaitQueue { timer, max_wait, max_waiters_per_key: 64, waiters: Waiters::at_most(1_024) };
        Self { limit, queue: Arc::new(queue) }
    }

    /// Sets how many requests may wait at once, over all keys; 1,024 unless set. Further ones are
    /// denied. Each stores its request and a clone of the service in memory. A request counts as
    /// waiting until it is polled with its permit.
    ///
    /// Returns a layer that counts waiters anew: set it before you clone the layer.
    pub fn max_waiters(self, max_waiters: usize) -> Self
    where
        T: Clone,
    {
        self.with_queue(|queue| WaitQueue { waiters: Waiters::at_most(max_waiters), ..queue })
    }

    /// Sets how many requests of one key may wait at once; 64 unless set. So one client cannot take
    /// every place in the queue. A limit for [all requests](super::InFlightLayer::global) ignores
    /// it.
    ///
    /// Returns a layer that counts waiters anew: set it before you clone the layer.
    pub fn max_waiters_per_key(self, max_waiters_per_key: usize) -> Self
    where
        T: Clone,
    {
        self.with_queue(|queue| WaitQueue { max_waiters_per_key, ..queue })
    }

    fn with_queue(self, change: impl FnOnce(WaitQueue<T>) -> WaitQueue<T>) -> Self
    where
        T: Clone,
    {
        let WaitQueue { ref timer, max_wait, max_waiters_per_key, ref waiters } = *self.queue;
        let queue = WaitQueue { timer: timer.clone(), max_wait, max_waiters_per_key, waiters: waiters.anew() };
        Self { queue: Arc::new(change(queue)), ..self }
    }

    /// Returns how many requests wait now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.waiters.waiting()
    }

    /// Returns how many requests of this key are in flight: see
    /// [`InFlightLayer::in_flight`](super::InFlightLayer::in_flight).
    #[must_use]
    pub fn in_flight(&self, key: impl IntoKey) -> u32 {
        self.limit.state.in_flight(key)
    }

    /// Returns how many requests are in flight, of all keys.
    #[must_use]
    pub fn total_in_flight(&self) -> usize {
        self.limit.state.registry().in_use_of_all()
    }
}

// Not derived, because the derived impl would need `T: Clone`.
impl<R: Clone, T> Clone for InFlightQueueLayer<R, T> {
    fn clone(&self) -> Self {
        Self { limit: self.limit.clone(), queue: Arc::clone(&self.queue) }
    }
}

impl<S, R: Clone, T> Layer<S> for InFlightQueueLayer<R, T> {
    type Service = InFlightQueue<S, R, T>;

    fn layer(&self, inner: S) -> Self::Service {
        InFlightQueue { limit: self.limit.clone().around(inner), queue: Arc::clone(&self.queue) }
    }
}

/// A service whose requests wait for a permit. Made by [`InFlightQueueLayer`].
///
/// The inner service is cloned for each request that waits: the instance that was polled ready
/// waits with the request, as tower's contract requires. What such an instance has reserved (a
/// permit of a concurrency limit of tower's, for instance) stays reserved while it waits. Apply
/// limits of that kind outside of this layer.
pub struct InFlightQueue<S, R, T> {
    limit: InFlight<S, R>,
    queue: Arc<WaitQueue<T>>,
}

impl<S: Clone, R: Clone, T> Clone for InFlightQueue<S, R, T> {
    fn clone(&self) -> Self {
        Self { limit: self.limit.clone(), queue: Arc::clone(&self.queue) }
    }
}

impl<S, R, T, F, Q, B> Service<Request<Q>> for InFlightQueue<S, R, T>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    R: Respond<B> + Clone,
    R::Body: Body,
    T: Fn(Duration) -> F,
    F: Future<Output = ()>,
{
    type Response = Response<InFlightBody<R::Body>>;
    type Error = S::Error;
    type Future = QueuedFuture<S, R, Q, T, F, S::Future, R::Body>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.limit.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let limit = &mut self.limit;
        let demand = match limit.evaluate(&mut request) {
            Ok(Some(demand)) => demand,
            Ok(None) => return QueuedFuture::called(limit.inner.call(request), None, None),
            Err(response) => return QueuedFuture::decided(InFlightFuture::denied(response)),
        };
        let joined = match limit.state.begin(&demand) {
            Ok(in_flight) => Joined::Counted(in_flight),
            Err(in_flight) => Waiting::join(&limit.state, &self.queue, demand, in_flight),
        };
        match joined {
            Joined::Counted(in_flight) => {
                let (guard, fields) = limit.admit(&demand, in_flight, &mut request);
                QueuedFuture::called(limit.inner.call(request), guard, fields)
            }
            Joined::Behind(waiting) => {
                // The instance that was polled ready is the one that is called.
                let clone = limit.clone();
                let limit = mem::replace(limit, clone);
                let sleep = (self.queue.timer)(self.queue.max_wait);
                QueuedFuture { step: QueuedStep::Waiting { sleep, waiting, pending: Some((limit, request)) } }
            }
            Joined::Full(in_flight) => QueuedFuture::decided(limit.deny(&demand, in_flight, &request)),
        }
    }
}

/// What becomes of a request that found no permit at once.
enum Joined<T> {
    /// It waits.
    Behind(Waiting<T>),
    /// It is one of so many in flight.
    Counted(u32),
    /// As many wait as may, and so many are in flight.
    Full(u32),
}

/// A request that waits for its permit. Dropping it ends the wait.
struct Waiting<T> {
    state: Arc<InFlightState>,
    demand: Demand,
    /// `None` after the end of the wait.
    signal: Option<Arc<GrantSignal>>,
    /// Whether the metrics count it.
    is_reported: bool,
    _slot: WaiterSlot<WaitQueue<T>>,
}

impl<T> Waiting<T> {
    /// Waits, where so many are in flight and no permit is left.
    fn join(state: &Arc<InFlightState>, queue: &Arc<WaitQueue<T>>, demand: Demand, in_flight: u32) -> Joined<T> {
        let Some(slot) = WaiterSlot::take(queue) else { return Joined::Full(in_flight) };
        // All requests have one key where they are counted together.
        let max_waiters = if state.policy().is_global() { usize::MAX } else { queue.max_waiters_per_key };
        match state.registry().acquire_or_wait(demand.key, demand.quota.burst_size(), max_waiters) {
            Queued::Acquired(in_flight) => Joined::Counted(in_flight),
            Queued::Behind(signal) => {
                let (state, signal) = (Arc::clone(state), Some(signal));
                // Made before it is reported: see `Permit::begun`.
                let mut waiting = Self { state, demand, signal, is_reported: false, _slot: slot };
                waiting.state.begin_wait();
                waiting.is_reported = true;
                Joined::Behind(waiting)
            }
            Queued::Full(in_flight) => Joined::Full(in_flight),
        }
    }

    /// Ready when the request is counted, as one of so many in flight.
    fn poll(&mut self, cx: &Context<'_>) -> Poll<u32> {
        let signal = self.signal.as_ref().expect("a future is not polled after it was ready");
        let in_flight = ready!(signal.poll_granted(cx.waker()));
        self.signal = None;
        Poll::Ready(in_flight)
    }

    /// Ends the wait. `None` where it has ended before.
    fn leave(&mut self) -> Option<WaitEnd> {
        self.signal.take().map(|signal| self.state.registry().leave(self.demand.key, &signal))
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        // Before the metrics, so that a recorder that panics leaves no waiter in the queue.
        if let Some(WaitEnd::Granted(_)) = self.leave() {
            self.state.registry().release(self.demand.key);
        }
        if self.is_reported {
            self.state.end_wait();
        }
    }
}

pin_project! {
    /// The future of a request that may wait for a permit.
    ///
    /// Drop it at any time: the request waits no longer, or is in flight no longer. It is `Send` if
    /// the service, its future, the responder, the request, the body of a response and the timer's
    /// future are, and the timer is `Send` and `Sync`.
    pub struct QueuedFuture<S, R, Q, T, W, F, B> {
        #[pin]
        step: QueuedStep<S, R, Q, T, W, F, B>,
    }
}

pin_project! {
    #[project = QueuedStepProjection]
    enum QueuedStep<S, R, Q, T, W, F, B> {
        Waiting {
            #[pin]
            sleep: W,
            waiting: Waiting<T>,
            pending: Option<(InFlight<S, R>, Request<Q>)>,
        },
        Decided { #[pin] future: InFlightFuture<F, B> },
    }
}

impl<S, R, Q, T, W, F, B> QueuedFuture<S, R, Q, T, W, F, B> {
    fn called(future: F, guard: Option<PermitGuard>, fields: Option<Box<AllowedFields>>) -> Self {
        Self::decided(InFlightFuture::called(future, guard, fields))
    }

    fn decided(future: InFlightFuture<F, B>) -> Self {
        Self { step: QueuedStep::Decided { future } }
    }
}

impl<S, R, Q, T, W, B> Future for QueuedFuture<S, R, Q, T, W, S::Future, R::Body>
where
    S: Service<Request<Q>, Response = Response<B>>,
    R: Respond<B>,
    R::Body: Body,
    W: Future<Output = ()>,
{
    type Output = Result<Response<InFlightBody<R::Body>>, S::Error>;

    /// # Panics
    ///
    /// If polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut step = self.project().step;
        loop {
            match step.as_mut().project() {
                QueuedStepProjection::Decided { future } => return future.poll(cx),
                QueuedStepProjection::Waiting { sleep, waiting, pending } => {
                    let end = match waiting.poll(cx) {
                        Poll::Ready(in_flight) => WaitEnd::Granted(in_flight),
                        Poll::Pending => {
                            ready!(sleep.poll(cx));
                            waiting.leave().expect("it waits")
                        }
                    };
                    let (mut limit, mut request) = pending.take().expect("a future is not polled after it was ready");
                    let demand = &waiting.demand;
                    let future = match end {
                        WaitEnd::Granted(in_flight) => {
                            let (guard, fields) = limit.admit(demand, in_flight, &mut request);
                            InFlightFuture::called(limit.inner.call(request), guard, fields)
                        }
                        WaitEnd::Left(in_flight) => limit.deny(demand, in_flight, &request),
                    };
                    step.set(QueuedStep::Decided { future });
                }
            }
        }
    }
}

impl<R: fmt::Debug, T> fmt::Debug for InFlightQueueLayer<R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlightQueueLayer").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, R, T> fmt::Debug for InFlightQueue<S, R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlightQueue").field("inner", &self.limit.inner).finish_non_exhaustive()
    }
}

impl<S, R, Q, T, W, F, B> fmt::Debug for QueuedFuture<S, R, Q, T, W, F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedFuture").finish_non_exhaustive()
    }
}
