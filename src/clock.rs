//! Contains [`Clock`], where a limiter reads the time, and the two kinds of time that the crate
//! computes with: a `Timestamp` and a span of `Nanos`.
//!
//! Every reading of the operating system's clock is in this file; a lint rejects them elsewhere. It
//! must not know what the time is used for.
//!
//! A limiter's time is Unix time: the wall clock when the clock was made, plus what the monotonic
//! clock has counted since. So it never steps back, and it means the same in every process.
//!
//! ```
//! use std::time::Duration;
//! use tower_quota::{Limiter, Policy, Quota, clock::ManualClock};
//!
//! let clock = ManualClock::new();
//! let limiter = Limiter::builder()
//!     .policy(Policy::global(Quota::per_second(1)))
//!     .clock(clock.clone())
//!     .build()?;
//! let request = http::Request::new(());
//! assert!(limiter.decide(&request).is_allowed());
//! assert!(!limiter.decide(&request).is_allowed());
//! clock.advance(Duration::from_secs(1));
//! assert!(limiter.decide(&request).is_allowed());
//! # Ok::<(), tower_quota::limiter::ConfigError>(())
//! ```

use std::{
    fmt, mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant, SystemTime},
};

/// A source of time: the system's clock, one that a test moves by hand, or any other.
///
/// `Clock` is a concrete type, so that no limiter, layer or service carries a type parameter for
/// the sake of its tests. Clones share their origin.
///
/// The system's clock is [`Instant`]. It never steps back. On Linux it stops while the machine is
/// suspended, which makes a limiter stricter and never looser.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    Custom(Arc<dyn Fn() -> Duration + Send + Sync>),
    Manual(ManualClock),
    System {
        started: Instant,
        /// Unix time at `started`.
        origin: Timestamp,
    },
}

impl Clock {
    /// Returns the system's clock.
    #[must_use]
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
        let started = Instant::now();
        Self(Source::System { started, origin: Timestamp(Nanos::from(unix_time()).0) })
    }

    /// Returns a clock that reads the time from `now`: the time that has passed since 1970, or
    /// since any other fixed moment.
    ///
    /// Use it for the paused time of an async runtime, for a simulator, for the time stamp counter
    /// of the processor, or on a platform without [`Instant`]. Where `now` steps back, the limiter
    /// is stricter for the length of the step.
    ///
    /// `now` runs while a bucket is locked. It must be fast, and must not call the limiter.
    ///
    /// A limiter on such a clock starts no thread unless configured: see
    /// [`Sweep`](crate::limiter::Sweep).
    ///
    /// ```
    /// use tower_quota::{Limiter, Policy, Quota, clock::Clock};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), tower_quota::limiter::ConfigError> {
    /// // A limiter that follows tokio's paused time in a test.
    /// let start = tokio::time::Instant::now();
    /// let limiter = Limiter::builder()
    ///     .policy(Policy::global(Quota::per_second(1)))
    ///     .clock(Clock::from_fn(move || start.elapsed()))
    ///     .build()?;
    /// assert!(limiter.decide(&http::Request::new(())).is_allowed());
    /// assert!(!limiter.decide(&http::Request::new(())).is_allowed());
    /// tokio::time::advance(std::time::Duration::from_secs(1)).await;
    /// assert!(limiter.decide(&http::Request::new(())).is_allowed());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn from_fn(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Source::Custom(Arc::new(now)))
    }

    /// Saturates 584 years after the clock's origin.
    #[inline(always)]
    pub(crate) fn now(&self) -> Timestamp {
        match &self.0 {
            Source::Custom(now) => Timestamp(Nanos::from(now()).0),
            Source::Manual(manual) => manual.now(),
            Source::System { started, origin } => {
                #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
                let elapsed = started.elapsed();
                origin.saturating_add(elapsed.into())
            }
        }
    }

    /// The wall clock, if this is the system's clock: it may have been set since this one started.
    pub(crate) fn wall_time(&self) -> Option<Timestamp> {
        self.is_system().then(wall_time)
    }

    /// Whether this is the system's clock, which goes on by itself.
    pub(crate) fn is_system(&self) -> bool {
        matches!(self.0, Source::System { .. })
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl From<ManualClock> for Clock {
    fn from(manual: ManualClock) -> Self {
        Self(Source::Manual(manual))
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Custom(_) => f.write_str("Custom"),
            Self::Manual(manual) => f.debug_tuple("Manual").field(&manual.elapsed()).finish(),
            Self::System { .. } => f.write_str("System"),
        }
    }
}

/// A clock that stands still until it is moved. Clones move together.
///
/// A limiter on a manual clock starts no thread unless configured: see
/// [`Sweep`](crate::limiter::Sweep). [`sleep`](Self::sleep) is the timer that goes with it.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    shared: Arc<ManualTime>,
}

#[derive(Debug, Default)]
struct ManualTime {
    nanos: AtomicU64,
    sleepers: Mutex<Sleepers>,
}

/// Who waits until when.
#[derive(Debug, Default)]
struct Sleepers {
    last: u64,
    waiting: Vec<(u64, Timestamp, Waker)>,
}

impl ManualClock {
    /// Returns a clock that stands at its origin, which a limiter takes for the start of 1970.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock forward. The clock stops at the end of its range, 584 years after its
    /// origin.
    pub fn advance(&self, by: Duration) {
        let Nanos(by) = by.into();
        // The closure never returns `None`, so this cannot fail.
        let _ = self.shared.nanos.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(now.saturating_add(by)));
        self.wake();
    }

    /// Returns the time since the clock's origin.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.now().0)
    }

    /// Sets the time since the clock's origin. The clock may step back: a limiter admits no more
    /// for it, except to keys that were swept at the later time.
    pub fn set(&self, since_origin: Duration) {
        self.shared.nanos.store(Nanos::from(since_origin).0, Ordering::Release);
        self.wake();
    }

    /// Returns a future that ends when the clock was moved by `time`. Use it as the timer of
    /// [`max_delay`](crate::RateLimitLayer::max_delay) or
    /// [`Reservation::ready`](crate::limiter::Reservation::ready) in a test.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_quota::{Limiter, Policy, Quota, clock::ManualClock};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let clock = ManualClock::new();
    /// let policy = Policy::by_key(Quota::per_minute(1)).named("jobs");
    /// let limiter = Limiter::builder().policy(policy).clock(clock.clone()).build().unwrap();
    /// limiter.acquire("jobs", 7).unwrap();
    /// let reservation = limiter.reserve("jobs", 7, Duration::from_secs(60)).unwrap();
    /// let job = tokio::spawn(reservation.ready({
    ///     let clock = clock.clone();
    ///     move |time| clock.sleep(time)
    /// }));
    /// clock.advance(Duration::from_secs(60));
    /// job.await.unwrap();
    /// # }
    /// ```
    pub fn sleep(&self, time: Duration) -> ManualSleep {
        ManualSleep { until: self.now().saturating_add(time.into()), clock: self.clone(), sleeper: None }
    }

    #[inline(always)]
    fn now(&self) -> Timestamp {
        Timestamp(self.shared.nanos.load(Ordering::Acquire))
    }

    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        // Nothing panics while it is locked.
        self.shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whose time has come.
    fn wake(&self) {
        let mut sleepers = self.sleepers();
        let now = self.now();
        let (due, waiting): (Vec<_>, Vec<_>) =
            mem::take(&mut sleepers.waiting).into_iter().partition(|(_, until, _)| *until <= now);
        sleepers.waiting = waiting;
        drop(sleepers);
        for (_, _, waker) in due {
            waker.wake();
        }
    }
}

/// Ends when its clock was moved far enough. Made by [`ManualClock::sleep`].
#[derive(Debug)]
#[must_use = "a future does nothing unless it is polled"]
pub struct ManualSleep {
    clock: ManualClock,
    until: Timestamp,
    /// The number under which this waits.
    sleeper: Option<u64>,
}

impl Future for ManualSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut sleepers = this.clock.sleepers();
        // Read under the lock: whoever moves the clock afterwards finds the sleeper.
        if this.until <= this.clock.now() {
            return Poll::Ready(());
        }
        let number = *this.sleeper.get_or_insert_with(|| {
            sleepers.last += 1;
            sleepers.last
        });
        sleepers.waiting.retain(|(other, ..)| *other != number);
        sleepers.waiting.push((number, this.until, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for ManualSleep {
    fn drop(&mut self) {
        if let Some(number) = self.sleeper {
            self.clock.sleepers().waiting.retain(|(other, ..)| *other != number);
        }
    }
}

/// A point on a limiter's clock: nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct Timestamp(u64);

impl Timestamp {
    /// The start of 1970, which is long over on every clock but a manual one.
    pub(crate) const ORIGIN: Self = Self(0);

    #[inline(always)]
    pub(crate) const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    #[inline(always)]
    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`, or zero if that is later.
    #[inline(always)]
    pub(crate) const fn since(self, earlier: Self) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }

    /// The start of the minute that this is in.
    #[inline(always)]
    pub(crate) const fn start_of_minute(self) -> Self {
        Self(self.0 - self.0 % Nanos::MINUTE.0)
    }

    #[inline(always)]
    pub(crate) const fn checked_add(self, span: Nanos) -> Option<Self> {
        match self.0.checked_add(span.0) {
            Some(nanos) => Some(Self(nanos)),
            None => None,
        }
    }

    #[inline(always)]
    pub(crate) const fn saturating_add(self, span: Nanos) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    #[inline(always)]
    pub(crate) const fn saturating_sub(self, span: Nanos) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

/// A span of time in whole nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub(crate) struct Nanos(u64);

impl Nanos {
    pub(crate) const ZERO: Self = Self(0);
    pub(crate) const MAX: Self = Self(u64::MAX);
    pub(crate) const SECOND: Self = Self(1_000_000_000);
    pub(crate) const MINUTE: Self = Self(60_000_000_000);

    #[inline(always)]
    pub(crate) const fn new(nanos: u64) -> Self {
        Self(nanos)
    }

    #[inline(always)]
    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(crate) const fn is_zero(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    pub(crate) const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    #[inline(always)]
    pub(crate) const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    #[inline(always)]
    pub(crate) const fn saturating_mul(self, times: u64) -> Self {
        Self(self.0.saturating_mul(times))
    }

    /// Whole seconds, rounded up.
    #[inline(always)]
    pub(crate) const fn seconds_up(self) -> u64 {
        self.0.div_ceil(Self::SECOND.0)
    }
}

/// Saturates at 584 years.
impl From<Duration> for Nanos {
    #[inline]
    fn from(duration: Duration) -> Self {
        let seconds = duration.as_secs().saturating_mul(Self::SECOND.0);
        Self(seconds.saturating_add(u64::from(duration.subsec_nanos())))
    }
}

impl From<Nanos> for Duration {
    fn from(Nanos(nanos): Nanos) -> Self {
        Self::from_nanos(nanos)
    }
}

/// The seconds since 1970 by the wall clock, for a field that is defined so. No decision uses it.
pub(crate) fn unix_seconds() -> u64 {
    unix_time().as_secs()
}

/// The wall clock. No decision reads it.
pub(crate) fn wall_time() -> Timestamp {
    Timestamp::ORIGIN.saturating_add(Nanos::from(unix_time()))
}

/// Zero where the wall clock stands before 1970.
fn unix_time() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_clock_counts_from_1970() {
        let before = unix_time();
        let now = Clock::system().now();
        let after = unix_time() + Duration::from_secs(1);
        assert!(Nanos::from(before).0 <= now.0 && now.0 <= Nanos::from(after).0, "{now:?}");
    }

    #[test]
    fn a_clock_of_a_function_reads_that_function() {
        let clock = Clock::from_fn(|| Duration::from_secs(7));
        assert_eq!(clock.now(), Timestamp::from_nanos(7_000_000_000));
        assert!(!clock.is_system() && Clock::system().is_system());
    }
}
