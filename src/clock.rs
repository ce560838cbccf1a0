//! [`Clock`]: where a limiter reads the time.
//!
//! Owns every reading of the operating system's clock (a lint refuses them elsewhere). Knows nothing of what the time is
//! used for.
//!
//! ```
//! use std::time::Duration;
//! use tower_quota::{Limiter, Policy, Quota, clock::ManualClock};
//!
//! let clock = ManualClock::new();
//! let limiter = Limiter::builder().policy(Policy::global(Quota::per_second(1))).clock(clock.clone()).build()?;
//! let request = http::Request::new(());
//! assert!(limiter.decide(&request).is_allowed());
//! assert!(!limiter.decide(&request).is_allowed());
//! clock.advance(Duration::from_secs(1));
//! assert!(limiter.decide(&request).is_allowed());
//! # Ok::<(), tower_quota::limiter::ConfigError>(())
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// A source of time: the system's monotonic clock, or one that a test moves by hand.
///
/// A concrete type, so that no limiter, layer or service carries a type parameter for the sake of its tests. Clones
/// share their origin. The system's clock is [`Instant`]: it never steps back, and on Linux it stands still while the
/// machine is suspended, which makes a limiter stricter and never looser.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Manual(ManualClock),
    System(Instant),
}

impl Clock {
    /// The system's monotonic clock.
    #[must_use]
    pub fn system() -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
        Self(Source::System(Instant::now()))
    }

    /// Nanoseconds since the clock's origin. Saturates after 584 years.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        match &self.0 {
            Source::Manual(manual) => manual.nanos.load(Ordering::Acquire),
            Source::System(origin) => {
                #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
                let elapsed = origin.elapsed();
                nanos(elapsed)
            }
        }
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

/// A clock that stands still until it is moved. Clones move together.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    nanos: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock at its origin.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock forward. Stops at the end of its range, 584 years from its origin.
    pub fn advance(&self, by: Duration) {
        let by = nanos(by);
        // The closure never returns `None`, so neither arm can fail.
        let _ = self.nanos.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(now.saturating_add(by)));
    }

    /// The time since the clock's origin.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Acquire))
    }

    /// Puts the clock at `since_origin`, also backwards: a limiter admits no more for it, except to keys that were swept at the
    /// later time.
    pub fn set(&self, since_origin: Duration) {
        self.nanos.store(nanos(since_origin), Ordering::Release);
    }
}

/// Seconds since 1970 by the wall clock: for a field that is defined so, and for nothing that is decided.
pub(crate) fn unix_seconds() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whole nanoseconds, at most `u64::MAX`.
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}
