//! Contains [`Health`]: what requests read of a worker before they ask it, in a few atomics.
//!
//! This file must not know what is asked.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    clock::{Clock, Nanos, Timestamp},
    observe::metrics,
};

/// Counted over all workers of a limiter.
#[derive(Default)]
pub(super) struct CallCounts {
    /// Requests that were passed to a worker.
    pub(super) requests: AtomicU64,
    /// Calls that were sent.
    pub(super) calls: AtomicU64,
}

/// The health of one worker. Each worker has its own, because one whose runtime is not driven may
/// end long after the next one has started.
pub(super) struct Health {
    clock: Clock,
    /// Whether there is a connection that works.
    up: AtomicBool,
    /// The number of calls without an answer.
    calls_in_flight: AtomicUsize,
    /// When the last answer came, or the first call after a pause was sent. A timestamp.
    progress: AtomicU64,
    /// After this time without any answer, none is expected. Nanoseconds.
    stall: AtomicU64,
    /// The number of requests that were passed to this worker.
    passed: AtomicU64,
    /// The number of those that it has received.
    received: AtomicU64,
    counts: Arc<CallCounts>,
    /// Notified when there is a connection.
    connected: Notify,
}

/// After this time without any answer, or four times the latency, new requests are decided without
/// Redis. Those that wait already go on waiting.
const STALL: Duration = Duration::from_millis(10);

impl Health {
    pub(super) fn new(clock: Clock, counts: Arc<CallCounts>) -> Self {
        Self {
            clock,
            up: AtomicBool::new(false),
            calls_in_flight: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            stall: AtomicU64::new(Nanos::from(STALL).get()),
            passed: AtomicU64::new(0),
            received: AtomicU64::new(0),
            counts,
            connected: Notify::new(),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Ends when there is a connection.
    pub(super) async fn until_connected(&self) {
        loop {
            let mut connected = pin!(self.connected.notified());
            // Before the state is read: a later change is notified.
            connected.as_mut().enable();
            if self.is_up() {
                return;
            }
            connected.await;
        }
    }

    /// Whether there is a connection, and it answers.
    pub(super) fn answers(&self) -> bool {
        self.is_up() && !self.is_stalled()
    }

    fn is_stalled(&self) -> bool {
        let progress = Timestamp::from_nanos(self.progress.load(Ordering::Acquire));
        self.calls_in_flight.load(Ordering::Acquire) > 0
            && self.now().since(progress) > Nanos::new(self.stall.load(Ordering::Relaxed))
    }

    /// A connection works, whose answers take this long. The answers of a distant server take as
    /// long when it is well.
    pub(super) fn connected(&self, latency: Duration, call_timeout: Duration) {
        self.expect_latency(latency, call_timeout);
        self.up.store(true, Ordering::Release);
        metrics::redis_connection_opened();
        self.connected.notify_waiters();
    }

    fn expect_latency(&self, latency: Duration, call_timeout: Duration) {
        let stall = latency.saturating_mul(4).max(STALL).min(call_timeout);
        self.stall.store(Nanos::from(stall).get(), Ordering::Relaxed);
    }

    /// A request is about to be passed to the worker.
    pub(super) fn pass(&self) -> Ticket<'_> {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        Ticket { health: self, number: self.passed.fetch_add(1, Ordering::AcqRel) }
    }

    /// The worker has received a request.
    pub(super) fn received(&self) {
        self.received.fetch_add(1, Ordering::AcqRel);
    }

    /// A call is sent.
    pub(super) fn sent(&self) {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        metrics::redis_called();
        // Before the count, or a request would take a pause for a stall. Only the one worker
        // counts.
        if self.calls_in_flight.load(Ordering::Acquire) == 0 {
            self.progressed();
        }
        self.calls_in_flight.fetch_add(1, Ordering::AcqRel);
    }

    /// A call has ended.
    pub(super) fn returned(&self) {
        self.calls_in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    /// An answer came.
    pub(super) fn progressed(&self) {
        self.progress.store(self.now().as_nanos(), Ordering::Release);
    }

    /// The connection, or the worker, has ended, and so have all calls.
    pub(super) fn disconnected(&self) {
        if self.up.swap(false, Ordering::AcqRel) {
            metrics::redis_connection_closed();
        }
        self.calls_in_flight.store(0, Ordering::Release);
    }
}

/// A request that was passed to a worker.
pub(super) struct Ticket<'a> {
    health: &'a Health,
    number: u64,
}

impl Ticket<'_> {
    /// Whether the worker has not even received the request.
    pub(super) fn is_ignored(&self) -> bool {
        self.health.received.load(Ordering::Acquire) <= self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const MS: Duration = Duration::from_millis(1);

    fn up() -> (Health, ManualClock) {
        let clock = ManualClock::new();
        let health = Health::new(clock.clone().into(), Arc::default());
        health.up.store(true, Ordering::Release);
        (health, clock)
    }

    #[test]
    fn rds02_after_ten_milliseconds_without_an_answer_none_is_expected() {
        let (health, clock) = up();
        clock.advance(1_000 * MS);
        assert!(health.answers(), "a pause is no stall");
        health.sent();
        clock.advance(10 * MS);
        assert!(health.answers());
        clock.advance(MS);
        assert!(!health.answers());
        health.progressed();
        assert!(health.answers(), "another call was answered");
        clock.advance(11 * MS);
        health.returned();
        assert!(health.answers(), "no call is in flight");
        health.sent();
        assert!(health.answers(), "the time counts from the first call after the pause");
        health.disconnected();
        assert!(!health.answers(), "without a connection");
        health.up.store(true, Ordering::Release);
        clock.advance(1_000 * MS);
        assert!(health.answers(), "calls over the former connection do not count");
    }

    #[test]
    fn a_distant_server_has_four_times_its_latency_and_no_more_than_the_timeout() {
        let (health, clock) = up();
        for (latency, call_timeout, stall) in
            [(MS, 50 * MS, 10 * MS), (30 * MS, 2_000 * MS, 120 * MS), (30 * MS, 50 * MS, 50 * MS)]
        {
            health.expect_latency(latency, call_timeout);
            health.sent();
            clock.advance(stall);
            assert!(health.answers(), "{latency:?}");
            clock.advance(MS);
            assert!(!health.answers(), "{latency:?}");
            health.returned();
        }
    }

    #[test]
    fn a_request_that_the_worker_has_not_received_is_ignored() {
        let (health, _clock) = up();
        let (first, second) = (health.pass(), health.pass());
        assert!(first.is_ignored() && second.is_ignored());
        health.received();
        assert!(!first.is_ignored() && second.is_ignored());
    }
}
