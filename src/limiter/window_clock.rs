//! Contains [`WindowClock`], the current window of one policy, as all its decisions see it.
//!
//! This file must not know where buckets are stored, nor of decisions over several policies.

use std::sync::{Arc, PoisonError};

use crate::{
    bucket::Bucket,
    clock::{Clock, Nanos, Timestamp},
    decision::{DecidedLimit, PolicyOutcome, Verdict, WindowLeft},
    observe::events,
    store::{Capacity, Sweepable},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    window::{Window, WindowBounds},
};

/// When the current window starts and ends, by the wall clock.
///
/// The start never goes back: whatever the clock does, a window that has begun does not begin
/// again. So a bucket that was idle in a window stays idle.
pub(crate) struct WindowClock {
    /// For the report of a step that is not followed.
    policy: Arc<str>,
    clock: Clock,
    /// Locked while the window changes.
    window: Mutex<Window>,
    /// When the current window started and ends, in minutes since 1970: one number, so that no
    /// decision sees the start of one window and the end of another.
    bounds: AtomicU64,
    /// The length of the current window in minutes. It is only shown: beside a change it may be
    /// that of the window before.
    length: AtomicU32,
    /// The wall clock less the limiter's time, modulo 2^64.
    offset: AtomicU64,
}

/// For a policy whose bucket is in no map.
impl Sweepable for WindowClock {
    fn capacity(&self) -> Option<&Capacity> {
        None
    }

    fn sweep(&self) -> usize {
        self.follow();
        0
    }
}

/// The window in which a decision is made.
#[derive(Clone, Copy, Debug)]
struct CurrentWindow {
    start: Timestamp,
    left: WindowLeft,
}

impl WindowClock {
    /// The clock's time is the wall clock's, unless it is the system's clock, which is compared
    /// with it now and at each sweep.
    pub(super) fn new(policy: Arc<str>, window: &Window, clock: &Clock) -> Self {
        let offset = clock.wall_time().map_or(0, |wall| wall.as_nanos().wrapping_sub(clock.now().as_nanos()));
        let now = Timestamp::from_nanos(clock.now().as_nanos().wrapping_add(offset));
        let bounds = window.at(now);
        Self {
            policy,
            clock: clock.clone(),
            window: Mutex::new(window.clone()),
            bounds: AtomicU64::new(packed(bounds.start, bounds.end)),
            length: AtomicU32::new(minutes(bounds.length)),
            offset: AtomicU64::new(offset),
        }
    }

    /// Where a bucket is decided that was read before `now`, and the rest of its window.
    #[inline(always)]
    pub(crate) fn stands_at(&self, bucket: Bucket, now: Timestamp) -> (Timestamp, WindowLeft) {
        let CurrentWindow { start, left } = self.current(now);
        let stands_at = bucket.stands_in(start);
        (stands_at, if stands_at == start { left } else { self.left_of(stands_at, now) })
    }

    /// The current window. `now` was read after the bucket, so that no bucket is of a later one.
    #[inline(always)]
    fn current(&self, now: Timestamp) -> CurrentWindow {
        let wall = self.wall(now);
        let (mut start, mut end) = unpacked(self.bounds.load(Ordering::Acquire));
        if wall >= end {
            (start, end) = self.roll(wall);
        }
        CurrentWindow { start, left: WindowLeft::new(end.since(wall), self.length.load(Ordering::Relaxed)) }
    }

    /// Makes the outcome one of the window, of which so much is used in `bucket`. If another thread
    /// has begun the next window since it was decided, that of an allowed request shows the next
    /// one.
    #[inline(never)]
    pub(super) fn complete(&self, outcome: &mut PolicyOutcome, bucket: Bucket, now: Timestamp) {
        let (mut stands_at, mut left) = self.stands_at(bucket, now);
        if let Verdict::Wait(wait) = outcome.verdict {
            // Of the window that has denied: no field says another time than `Retry-After`.
            (stands_at, left.left) = (bucket.own_start(), wait);
        }
        outcome.limit = DecidedLimit::of(outcome.quota(), Some(left));
        outcome.backlog = bucket.backlog(stands_at);
    }

    /// The rest of the window that starts at this time, ahead of the current one.
    #[cold]
    fn left_of(&self, start: Timestamp, now: Timestamp) -> WindowLeft {
        let WindowBounds { end, length, .. } = self.lock().at(start);
        WindowLeft::new(end.since(self.wall(now)).max(Nanos::new(1)), minutes(length))
    }

    /// The start of the current window, before which no bucket means anything.
    pub(super) fn start(&self) -> Timestamp {
        self.start_at(self.clock.now())
    }

    pub(super) fn start_at(&self, now: Timestamp) -> Timestamp {
        self.current(now).start
    }

    /// The window of a policy whose limit was set.
    pub(super) fn window(&self) -> Window {
        self.lock().clone()
    }

    /// The bucket of a snapshot whose window ended then, in the current window: what was used in a
    /// window that still lasts is used, also where this one started at another time, and so is what
    /// a clock that was wrong took for later.
    pub(super) fn bucket_of_now(&self, saved: Bucket, window_end: Timestamp, now: Timestamp) -> Bucket {
        let (start, own) = (self.start_at(now), saved.own_start());
        if own == start || (own < start && window_end <= self.wall(now)) {
            return saved;
        }
        Bucket::with_backlog(start, saved.backlog(own))
    }

    /// When the current window ends.
    pub(super) fn end_at(&self, now: Timestamp) -> Timestamp {
        let CurrentWindow { left, .. } = self.current(now);
        self.wall(now).saturating_add(left.left)
    }

    /// Replaces the window. The current one goes on, so that what was used of it stays used, and
    /// ends by the new calendar.
    pub(super) fn set(&self, window: &Window) {
        let mut current = self.lock();
        let same = current.has_bounds_of(window);
        *current = window.clone();
        if !same {
            let (start, _) = unpacked(self.bounds.load(Ordering::Acquire));
            let bounds = window.at(self.wall(self.clock.now()));
            self.publish(window, WindowBounds { start, ..bounds });
        }
    }

    /// Follows a step of the wall clock, unless it is longer than a window. Only sweeps do this,
    /// and only on the system's clock.
    pub(super) fn follow(&self) {
        if let Some(wall) = self.clock.wall_time() {
            self.follow_to(wall, self.clock.now());
        }
    }

    fn follow_to(&self, wall: Timestamp, now: Timestamp) {
        let before = self.wall(now);
        let step = wall.since(before).max(before.since(wall));
        if step > self.lock().longest() {
            events::clock_step_refused(&self.policy, step);
        } else {
            self.offset.store(wall.as_nanos().wrapping_sub(now.as_nanos()), Ordering::Release);
        }
    }

    /// The wall clock at this time of the limiter's.
    #[inline(always)]
    fn wall(&self, now: Timestamp) -> Timestamp {
        Timestamp::from_nanos(now.as_nanos().wrapping_add(self.offset.load(Ordering::Acquire)))
    }

    /// Begins the window that contains this time, and returns its start and its end.
    #[cold]
    fn roll(&self, wall: Timestamp) -> (Timestamp, Timestamp) {
        let window = self.lock();
        // Another thread may have been here.
        if wall >= unpacked(self.bounds.load(Ordering::Acquire)).1 {
            self.publish(&window, window.at(wall));
        }
        let (start, end) = unpacked(self.bounds.load(Ordering::Acquire));
        // In the year 2554 time has an end, and the last window has none.
        (start, end.max(wall.saturating_add(Nanos::new(1))))
    }

    /// Called while the window is locked.
    fn publish(&self, window: &Window, WindowBounds { start, mut end, mut length }: WindowBounds) {
        let (before, _) = unpacked(self.bounds.load(Ordering::Acquire));
        let start = start.max(before);
        if end <= start {
            // The clock has stepped back to before the current window.
            WindowBounds { end, length, .. } = window.at(start);
        }
        self.length.store(minutes(length), Ordering::Relaxed);
        self.bounds.store(packed(start, end), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        // Nothing panics while it is locked.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every window is so many whole minutes long.
fn minutes(length: Nanos) -> u32 {
    u32::try_from(length.get() / Nanos::MINUTE.get()).unwrap_or(u32::MAX)
}

/// The minutes from 1970 to the start and to the end of a window: at most 307,445,734.
fn packed(start: Timestamp, end: Timestamp) -> u64 {
    let minute = |time: Timestamp| time.as_nanos() / Nanos::MINUTE.get();
    minute(start) << 32 | minute(end)
}

#[inline(always)]
fn unpacked(bounds: u64) -> (Timestamp, Timestamp) {
    let minute = |minutes: u64| Timestamp::from_nanos(minutes * Nanos::MINUTE.get());
    (minute(bounds >> 32), minute(bounds & u64::from(u32::MAX)))
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const HOUR: Nanos = Nanos::new(60 * Nanos::MINUTE.get());
    const DAY: Nanos = Nanos::new(24 * HOUR.get());

    fn at(days: u64, hours: u64) -> Timestamp {
        Timestamp::ORIGIN.saturating_add(DAY.saturating_mul(days)).saturating_add(HOUR.saturating_mul(hours))
    }

    /// A clock that stands at one o'clock of the day 100.
    fn daily() -> WindowClock {
        let clock = ManualClock::new();
        clock.set(at(100, 1).since(Timestamp::ORIGIN).into());
        WindowClock::new("day".into(), &Window::daily(5), &clock.into())
    }

    fn end(clock: &WindowClock) -> Timestamp {
        unpacked(clock.bounds.load(Ordering::Acquire)).1
    }

    #[test]
    fn a_step_forward_of_up_to_a_window_begins_the_next_one() {
        let clock = daily();
        clock.follow_to(at(101, 0), at(100, 1));
        assert_eq!((clock.start(), end(&clock)), (at(101, 0), at(102, 0)));
        // By the limiter's clock it is an hour later.
        let (_, left) = clock.stands_at(Bucket::default(), at(100, 2));
        assert_eq!(left.left, HOUR.saturating_mul(23));
    }

    #[test]
    fn a_step_back_makes_the_window_longer_and_begins_none_again() {
        let clock = daily();
        clock.follow_to(at(99, 2), at(100, 1));
        assert_eq!((clock.start(), end(&clock)), (at(100, 0), at(101, 0)));
        let (stands_at, left) = clock.stands_at(Bucket::default(), at(100, 1));
        assert_eq!((stands_at, left.left), (at(100, 0), HOUR.saturating_mul(46)));
    }

    #[test]
    fn a_step_of_more_than_a_window_is_not_followed() {
        for wall in [at(101, 2), at(99, 0), Timestamp::from_nanos(u64::MAX), Timestamp::ORIGIN] {
            let clock = daily();
            clock.follow_to(wall, at(100, 1));
            assert_eq!((clock.start(), end(&clock)), (at(100, 0), at(101, 0)), "{wall:?}");
        }
    }
}
