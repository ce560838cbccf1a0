//! Contains [`Health`]: what requests read of a worker before they ask it, in a few atomics.
//!
//! This file must not know what is asked.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
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

/// What a worker does about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum LinkState {
    /// There is none, and the last attempt to connect failed, or none was made yet.
    Down,
    /// It ended while nobody asked. The next request makes the worker connect, and waits.
    Resting,
    /// The worker connects for requests that wait. Until that has taken as long as a request may.
    Reviving,
    Up,
}

/// The health of one worker.
pub(super) struct Health {
    clock: Clock,
    /// A [`LinkState`].
    link: AtomicU8,
    /// The number of calls without an answer.
    calls_in_flight: AtomicUsize,
    /// When the last answer came, or the first call after a pause was sent; or when the worker
    /// began to revive the connection. A timestamp.
    progress: AtomicU64,
    /// After this time without any answer, none is expected. Nanoseconds.
    stall: AtomicU64,
    limits: HealthLimits,
    counts: Arc<CallCounts>,
    /// Notified when there is a connection.
    connected: Notify,
    /// Why there is no connection.
    failure: Mutex<Option<String>>,
}

#[derive(Clone, Copy)]
pub(super) struct HealthLimits {
    /// How long a request waits for an answer.
    pub(super) call_timeout: Duration,
    /// After this time without any answer, new requests are decided without Redis. `None`: by the
    /// latency.
    pub(super) stall: Option<Duration>,
}

/// After this time without any answer, or four times the latency, new requests are decided without
/// Redis, unless set. Those that wait already go on waiting.
const STALL: Duration = Duration::from_millis(10);

impl Health {
    pub(super) fn new(clock: Clock, counts: Arc<CallCounts>, limits: HealthLimits) -> Self {
        Self {
            clock,
            link: AtomicU8::new(LinkState::Down as u8),
            calls_in_flight: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            stall: AtomicU64::new(Nanos::from(STALL).get()),
            limits,
            counts,
            connected: Notify::new(),
            failure: Mutex::default(),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn is(&self, link: LinkState) -> bool {
        self.link.load(Ordering::Acquire) == link as u8
    }

    pub(super) fn is_up(&self) -> bool {
        self.is(LinkState::Up)
    }

    /// Whether there is a connection, or one that is revived when somebody asks.
    pub(super) fn has_server(&self) -> bool {
        !self.is(LinkState::Down)
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

    /// Whether a request is worth sending: there is a connection that answers, or one that ended in
    /// a quiet time and is revived for the request.
    pub(super) fn answers(&self) -> bool {
        let waited = || self.now().since(Timestamp::from_nanos(self.progress.load(Ordering::Acquire)));
        match self.link.load(Ordering::Acquire) {
            up if up == LinkState::Up as u8 => {
                self.calls_in_flight.load(Ordering::Acquire) == 0
                    || waited() <= Nanos::new(self.stall.load(Ordering::Relaxed))
            }
            resting if resting == LinkState::Resting as u8 => true,
            reviving if reviving == LinkState::Reviving as u8 => waited() <= Nanos::from(self.limits.call_timeout),
            _ => false,
        }
    }

    /// A connection works, whose answers take this long. The answers of a distant server take as
    /// long when it is well.
    pub(super) fn connected(&self, latency: Duration) {
        self.expect_latency(latency);
        self.calls_in_flight.store(0, Ordering::Release);
        self.link.store(LinkState::Up as u8, Ordering::Release);
        *self.lock_failure() = None;
        metrics::redis_connection_opened();
        self.connected.notify_waiters();
    }

    fn expect_latency(&self, latency: Duration) {
        let stall = self.limits.stall.unwrap_or_else(|| latency.saturating_mul(4).max(STALL));
        self.stall.store(Nanos::from(stall.min(self.limits.call_timeout)).get(), Ordering::Relaxed);
    }

    fn lock_failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is no connection, or soon there is none, for this reason.
    pub(super) fn fails_by(&self, reason: &str) {
        *self.lock_failure() = Some(reason.to_owned());
    }

    /// Why there is no connection.
    pub(super) fn failure(&self) -> Option<String> {
        self.lock_failure().clone()
    }

    /// After this time without any answer, none is expected.
    pub(super) fn stall(&self) -> Duration {
        Nanos::new(self.stall.load(Ordering::Relaxed)).into()
    }

    /// A request is about to be passed to the worker.
    pub(super) fn pass(&self) {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
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

    /// There is no connection, and requests are decided without one.
    pub(super) fn disconnected(&self) {
        self.leave_up(LinkState::Down);
    }

    /// The connection ended while nobody asked.
    pub(super) fn rests(&self) {
        self.leave_up(LinkState::Resting);
    }

    /// The worker connects, and requests wait for it.
    pub(super) fn revives(&self) {
        self.progressed();
        self.leave_up(LinkState::Reviving);
    }

    fn leave_up(&self, to: LinkState) {
        if self.link.swap(to as u8, Ordering::AcqRel) == LinkState::Up as u8 {
            metrics::redis_connection_closed();
        }
        self.calls_in_flight.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const MS: Duration = Duration::from_millis(1);

    fn up(stall: Option<Duration>, call_timeout: Duration) -> (Health, ManualClock) {
        let clock = ManualClock::new();
        let health = Health::new(clock.clone().into(), Arc::default(), HealthLimits { call_timeout, stall });
        health.connected(Duration::ZERO);
        (health, clock)
    }

    #[test]
    fn rds02_after_ten_milliseconds_without_an_answer_none_is_expected() {
        let (health, clock) = up(None, 50 * MS);
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
        health.connected(Duration::ZERO);
        clock.advance(1_000 * MS);
        assert!(health.answers(), "calls over the former connection do not count");
    }

    #[test]
    fn a_distant_server_has_four_times_its_latency_and_no_more_than_the_timeout() {
        for (latency, call_timeout, set, stall) in [
            (MS, 50 * MS, None, 10 * MS),
            (30 * MS, 2_000 * MS, None, 120 * MS),
            (30 * MS, 50 * MS, None, 50 * MS),
            (30 * MS, 50 * MS, Some(20 * MS), 20 * MS),
            (30 * MS, 50 * MS, Some(90 * MS), 50 * MS),
        ] {
            let (health, clock) = up(set, call_timeout);
            health.connected(latency);
            health.sent();
            clock.advance(stall);
            assert!(health.answers(), "{latency:?}");
            clock.advance(MS);
            assert!(!health.answers(), "{latency:?}");
        }
    }

    #[test]
    fn a_connection_that_ended_in_a_quiet_time_is_worth_waiting_for_as_long_as_a_request_may() {
        let (health, clock) = up(None, 50 * MS);
        health.rests();
        clock.advance(1_000_000 * MS);
        assert!(health.answers() && !health.is_up());
        health.revives();
        clock.advance(50 * MS);
        assert!(health.answers() && !health.is_up());
        clock.advance(MS);
        assert!(!health.answers());
        health.connected(MS);
        assert!(health.answers() && health.is_up());
    }
}
