//! [`DelayLayer`]: requests wait for their turn instead of being refused.
//!
//! Owns the waiting: who may wait, for how long, and what becomes of the cells of those who give up. Knows nothing of a
//! runtime: the timer is the caller's.
//!
//! A request that is over the limit draws its cells at once, from what will be there, and waits until they are. So requests
//! of one key are served in the order in which they came, each at the time that its cells are there and never before. A
//! request is refused at once, with the wait that it would have had, when that is longer than the layer allows, or too many
//! wait already.
//!
//! Cells are drawn when a request comes. Under one policy that is the same as when it is served. Under several, those that
//! waited for one of them may be served together under another: a policy that had the cells at once cannot keep them for
//! later without keeping everybody else from what is there now.
//!
//! A request that is dropped while it waits returns its cells, except for what time has returned already, if it was the last
//! in line. Those behind another one keep their times, and its turn passes unused: to give it to who comes next would serve
//! two at once.
//!
//! ```
//! use std::time::Duration;
//! use tower_quota::{Quota, RateLimitLayer};
//!
//! // Up to five requests a second for each client; more of them wait, for two seconds at most.
//! let layer = RateLimitLayer::per_ip(Quota::per_second(5)).max_delay(Duration::from_secs(2), tokio::time::sleep);
//! ```
//!
//! On the client's side it keeps to a limit that a partner sets: every call waits for its turn and none is refused over
//! there.

use std::{
    fmt, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    clock::nanos,
    decision::Draws,
    front::{After, Front},
    future::ResponseFuture,
    limiter::{Grant, Limiter},
    response::Respond,
};

/// Lets requests wait for their turn. Made by [`RateLimitLayer::max_delay`](crate::RateLimitLayer::max_delay).
#[must_use]
pub struct DelayLayer<R, T> {
    front: Arc<Front>,
    respond: R,
    queue: Arc<Queue<T>>,
}

/// What all services of a layer share beside the limiter.
struct Queue<T> {
    timer: T,
    most_delay: u64,
    most_waiters: usize,
    waiters: AtomicUsize,
}

impl<R, T> DelayLayer<R, T> {
    pub(crate) fn new(front: Arc<Front>, respond: R, most: Duration, timer: T) -> Self {
        let most_delay = nanos(most);
        front.limiter.allow_waits(most_delay);
        let queue = Queue { timer, most_delay, most_waiters: 1_024, waiters: AtomicUsize::new(0) };
        Self { front, respond, queue: Arc::new(queue) }
    }

    /// How many requests may wait at once, over all keys; 1,024 unless set. Further ones are refused. Each holds its
    /// request and a clone of the service in memory. A request counts as waiting while it is decided, too.
    pub fn max_waiters(self, most_waiters: usize) -> Self
    where
        T: Clone,
    {
        let Queue { ref timer, most_delay, .. } = *self.queue;
        let queue = Queue { timer: timer.clone(), most_delay, most_waiters, waiters: AtomicUsize::new(0) };
        Self { queue: Arc::new(queue), ..self }
    }

    /// The limiter, to share it with other layers or to control it.
    #[must_use]
    pub fn limiter(&self) -> &Limiter {
        &self.front.limiter
    }

    /// How many requests wait now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.waiters.load(Ordering::Acquire)
    }
}

// By hand, because the timer need not be cloned.
impl<R: Clone, T> Clone for DelayLayer<R, T> {
    fn clone(&self) -> Self {
        Self { front: Arc::clone(&self.front), respond: self.respond.clone(), queue: Arc::clone(&self.queue) }
    }
}

impl<S, R: Clone, T> Layer<S> for DelayLayer<R, T> {
    type Service = Delay<S, R, T>;

    fn layer(&self, inner: S) -> Self::Service {
        Delay { inner, front: Arc::clone(&self.front), respond: self.respond.clone(), queue: Arc::clone(&self.queue) }
    }
}

/// A service whose requests wait for their turn. Made by [`DelayLayer`].
///
/// The service behind is cloned for each request: the instance that was polled ready waits with the request, as tower's
/// contract asks. What such an instance holds (a permit of a concurrency limit, say) is held while it waits; put limits of
/// that kind outside.
pub struct Delay<S, R, T> {
    inner: S,
    front: Arc<Front>,
    respond: R,
    queue: Arc<Queue<T>>,
}

impl<S: Clone, R: Clone, T> Clone for Delay<S, R, T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            front: Arc::clone(&self.front),
            respond: self.respond.clone(),
            queue: Arc::clone(&self.queue),
        }
    }
}

impl<S, R, T, F, Q, B> Service<Request<Q>> for Delay<S, R, T>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone,
    R: Respond<B>,
    T: Fn(Duration) -> F,
    F: Future<Output = ()>,
{
    type Response = Response<R::Body>;
    type Error = S::Error;
    type Future = DelayFuture<S, R::Body, T, F, Q, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let Front { limiter, .. } = &*self.front;
        let place = Place::take(&self.queue);
        let patience = if place.is_some() { self.queue.most_delay } else { 0 };
        let mut draws = Draws::default();
        let parts = limiter.parts(&request);
        let grant = match limiter.admit_within(parts.head(), patience, &mut draws) {
            Ok(grant) => grant,
            Err(mut denied) => {
                let response = self.front.refused(&self.respond, &mut denied, parts.head());
                return State::Called { future: ResponseFuture::refused(response) }.into();
            }
        };
        if let (1.., Some(place)) = (grant.wait, place) {
            // First, so that a panic in what follows returns the cells.
            let turn = Turn { front: Arc::clone(&self.front), grant, draws: Some(draws), place };
            // The instance that was polled ready is the one that is called.
            let clone = self.inner.clone();
            let service = mem::replace(&mut self.inner, clone);
            let sleep = (self.queue.timer)(Duration::from_nanos(grant.wait));
            return State::Waiting { sleep, waiting: Some(Waiting { turn, service, request }) }.into();
        }
        let after = self.front.admitted(&mut request, grant, &mut draws);
        State::Called { future: ResponseFuture::called(self.inner.call(request), after) }.into()
    }
}

/// One of the requests that wait, until this is dropped.
struct Place<T> {
    queue: Arc<Queue<T>>,
}

impl<T> Place<T> {
    fn take(queue: &Arc<Queue<T>>) -> Option<Self> {
        let waiters = queue.waiters.fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiters| {
            (waiters < queue.most_waiters).then_some(waiters + 1)
        });
        waiters.is_ok().then(|| Self { queue: Arc::clone(queue) })
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        self.queue.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What was drawn for a request that waits. Dropped before its time, it returns that.
struct Turn<T> {
    front: Arc<Front>,
    grant: Grant,
    draws: Option<Draws>,
    place: Place<T>,
}

impl<T> Turn<T> {
    /// What is left to wait: a timer may end early.
    fn left(&self) -> Option<Duration> {
        let left = self.grant.at.saturating_add(self.grant.wait).saturating_sub(self.front.limiter.now());
        (left > 0).then(|| Duration::from_nanos(left))
    }

    /// The wait is over.
    fn take<Q>(mut self, request: &mut Request<Q>) -> Option<After> {
        let mut draws = self.draws.take()?;
        for draw in &mut *draws {
            // What is told is how things stand now, and not when it came.
            draw.trial.backlog = draw.trial.backlog.saturating_sub(self.grant.wait);
        }
        self.front.admitted(request, self.grant, &mut draws)
    }
}

impl<T> Drop for Turn<T> {
    fn drop(&mut self) {
        for draw in self.draws.iter().flat_map(|draws| &**draws) {
            self.front.limiter.restore(draw, self.grant.at);
        }
    }
}

struct Waiting<S, T, Q> {
    turn: Turn<T>,
    service: S,
    request: Request<Q>,
}

pin_project! {
    /// The future of [`Delay`]. Dropped while it waits, it gives its place and its cells back.
    pub struct DelayFuture<S, B, T, F, Q, C> {
        #[pin]
        state: State<S, B, T, F, Q, C>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, T, F, Q, C> {
        Waiting { #[pin] sleep: F, waiting: Option<Waiting<S, T, Q>> },
        Called { #[pin] future: ResponseFuture<C, B> },
    }
}

impl<S, B, T, F, Q, C> From<State<S, B, T, F, Q, C>> for DelayFuture<S, B, T, F, Q, C> {
    fn from(state: State<S, B, T, F, Q, C>) -> Self {
        Self { state }
    }
}

impl<S, B, C, T, F, Q> Future for DelayFuture<S, C, T, F, Q, S::Future>
where
    S: Service<Request<Q>, Response = Response<B>>,
    C: From<B>,
    T: Fn(Duration) -> F,
    F: Future<Output = ()>,
{
    type Output = Result<Response<C>, S::Error>;

    /// # Panics
    ///
    /// If polled again after it was ready.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let mut set_again = false;
        loop {
            match state.as_mut().project() {
                StateProjection::Called { future } => return future.poll(cx),
                StateProjection::Waiting { mut sleep, waiting } => {
                    ready!(sleep.as_mut().poll(cx));
                    let turn = &waiting.as_ref().expect("a future is not polled after it was ready").turn;
                    if let Some(left) = turn.left() {
                        sleep.set((turn.place.queue.timer)(left));
                        if set_again {
                            // Too early a second time: let others run before it is asked again.
                            cx.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                        set_again = true;
                        continue;
                    }
                    if let Some(Waiting { turn, mut service, mut request }) = waiting.take() {
                        let after = turn.take(&mut request);
                        let future = ResponseFuture::called(service.call(request), after);
                        state.set(State::Called { future });
                    }
                }
            }
        }
    }
}

impl<R: fmt::Debug, T> fmt::Debug for DelayLayer<R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayLayer").field("limiter", self.limiter()).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, R, T> fmt::Debug for Delay<S, R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delay").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B, T, F, Q, C> fmt::Debug for DelayFuture<S, B, T, F, Q, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DelayFuture").finish_non_exhaustive()
    }
}
