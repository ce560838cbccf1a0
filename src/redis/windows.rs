//! Contains [`ServerWindows`]: the windows of policies around now, by the server's clock.
//!
//! Calendars are known here, and the time there. So each call takes the boundaries of the windows
//! around the server's time, as it is estimated from the last reply, and the script chooses. Where
//! the time is not between them, it does nothing and says what time it is.
//!
//! This file must not know of buckets or connections.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    clock::{Nanos, Timestamp},
    decision::WindowLeft,
    limiter::PolicySet,
    window::Window,
};

/// The start of the window before, of this one, of the next one, and its end. Whole minutes, in
/// seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WindowTimes([u64; 4]);

/// The window of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerWindow {
    pub(super) start: Timestamp,
    pub(super) left: WindowLeft,
}

impl WindowTimes {
    fn around(window: &Window, time: Timestamp) -> Self {
        let now = window.at(time);
        let before = window.at(now.start.saturating_sub(Nanos::new(1)));
        let after = window.at(now.end);
        let seconds = |time: Timestamp| time.as_nanos() / Nanos::SECOND.get();
        Self([before.start, now.start, now.end, after.end].map(seconds))
    }

    /// The window of this time, or the nearest that is known, as the script chooses it.
    pub(super) fn at(self, time: Timestamp) -> ServerWindow {
        let Self([first, second, third, last]) = self;
        let now = time.as_nanos() / Nanos::SECOND.get();
        let (start, end) = match now {
            now if now >= third => (third, last),
            now if now >= second => (second, third),
            _ => (first, second),
        };
        let [start, end] = [start, end].map(|seconds| Timestamp::from_nanos(seconds * Nanos::SECOND.get()));
        let minutes = u32::try_from(end.since(start).get() / Nanos::MINUTE.get()).unwrap_or(u32::MAX);
        ServerWindow { start, left: WindowLeft::new(end.since(time).max(Nanos::new(1)), minutes) }
    }

    /// Whether this time is in the window in the middle.
    fn is_around(self, time: Timestamp) -> bool {
        let Self([_, second, third, _]) = self;
        (second..third).contains(&(time.as_nanos() / Nanos::SECOND.get()))
    }
}

/// As the script reads them.
impl std::fmt::Display for WindowTimes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self([first, second, third, last]) = self;
        write!(f, "{first} {second} {third} {last}")
    }
}

pub(super) struct ServerWindows {
    /// By the policy's index.
    each: Box<[Option<Mutex<KnownWindow>>]>,
    /// The server's clock less this limiter's, modulo 2^64.
    offset: AtomicU64,
}

struct KnownWindow {
    window: Window,
    times: WindowTimes,
}

impl ServerWindows {
    pub(super) fn new(set: &PolicySet) -> Self {
        let now = set.now();
        let wall = set.clock().wall_time().unwrap_or(now);
        let known = |window: &Window| {
            Mutex::new(KnownWindow { window: window.clone(), times: WindowTimes::around(window, wall) })
        };
        let each = set.policies().iter().map(|policy| policy.limit().window().map(known));
        Self { each: each.collect(), offset: AtomicU64::new(wall.as_nanos().wrapping_sub(now.as_nanos())) }
    }

    /// Learns what time it is on the server, at `now` of this limiter's clock.
    pub(super) fn note(&self, server: Timestamp, now: Timestamp) {
        self.offset.store(server.as_nanos().wrapping_sub(now.as_nanos()), Ordering::Relaxed);
    }

    /// The server's time at `now`, as far as it is known.
    pub(super) fn server_time(&self, now: Timestamp) -> Timestamp {
        Timestamp::from_nanos(now.as_nanos().wrapping_add(self.offset.load(Ordering::Relaxed)))
    }

    /// The windows of a policy around `now`. `None` for a policy with a rate.
    pub(super) fn times(&self, policy: usize, now: Timestamp) -> Option<WindowTimes> {
        let mut known = self.lock(policy)?;
        let time = self.server_time(now);
        if !known.times.is_around(time) {
            known.times = WindowTimes::around(&known.window, time);
        }
        Some(known.times)
    }

    /// The current window of a policy, as far as the server's time is known.
    pub(super) fn current(&self, policy: usize, now: Timestamp) -> Option<ServerWindow> {
        self.times(policy, now).map(|times| times.at(self.server_time(now)))
    }

    /// The window of a policy, without its limit.
    pub(super) fn window(&self, policy: usize) -> Option<Window> {
        self.lock(policy).map(|known| known.window.clone())
    }

    pub(super) fn set(&self, policy: usize, window: &Window, now: Timestamp) {
        if let Some(mut known) = self.lock(policy) {
            let times = WindowTimes::around(window, self.server_time(now));
            *known = KnownWindow { window: window.clone(), times };
        }
    }

    fn lock(&self, policy: usize) -> Option<std::sync::MutexGuard<'_, KnownWindow>> {
        // Nothing panics while it is locked.
        Some(self.each[policy].as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        Policy, Quota,
        clock::{Clock, ManualClock},
        limit::IntoLimit,
        redis::{
            OnFailure, RedisLimiter,
            servers::{Engine, Server},
        },
    };

    const MINUTE: i64 = 60_000_000;

    async fn limiter(server: &Server, limit: impl IntoLimit, clock: impl Into<Clock>) -> RedisLimiter {
        let mut builder = RedisLimiter::builder(server.url(), b"the secret of these tests", OnFailure::Closed)
            .timeout(Duration::from_secs(30))
            .policy(Policy::by_key(limit).named("account"));
        builder.options.clock = clock.into();
        let limiter = builder.build().unwrap();
        assert!(limiter.connect(Duration::from_secs(30)).await, "{:?}", limiter.last_error());
        limiter
    }

    async fn admitted(limiter: &RedisLimiter, key: &str, times: usize) -> usize {
        let mut admitted = 0;
        for _ in 0..times {
            admitted += usize::from(limiter.acquire("account", key).await.is_ok());
        }
        admitted
    }

    /// Lets the server's clock stand ten seconds after a midnight, so that no window ends while a
    /// test runs, and returns how far it is ahead.
    #[allow(clippy::cast_possible_wrap, reason = "less than a day")]
    fn after_midnight(server: &Server) -> i64 {
        const DAY: u64 = 86_400_000_000;
        let micros = Clock::system().now().as_nanos() / 1_000;
        let ahead = (DAY - micros % DAY) as i64 + 10_000_000;
        server.step_clock_by_micros(ahead);
        ahead
    }

    /// Clocks that count from anywhere, beside the system's.
    async fn three_processes(server: &Server, window: &Window) -> [RedisLimiter; 3] {
        let years = ManualClock::new();
        years.set(Duration::from_secs(99 * 365 * 86_400));
        [
            limiter(server, window, Clock::system()).await,
            limiter(server, window, ManualClock::new()).await,
            limiter(server, window, years).await,
        ]
    }

    #[tokio::test]
    async fn processes_whose_clocks_differ_count_the_servers_windows_together() {
        let server = Server::with_clock(Engine::Valkey, &[]);
        let ahead = after_midnight(&server);
        let window = Window::fixed(9, Duration::from_secs(300));
        let all = three_processes(&server, &window).await;
        // From one window to the next, further than the processes know, and back.
        for (minutes, expected) in [(0, 9), (5, 9), (600, 9), (300, 0), (599, 0), (610, 9), (1_000_000, 9)] {
            server.step_clock_by_micros(ahead + minutes * MINUTE);
            let mut granted = 0;
            for process in &all {
                granted += admitted(process, "ann", 5).await;
            }
            assert_eq!(granted, expected, "at {minutes} minutes");
            for process in &all {
                let standing = process.peek("account", "ann").await.unwrap();
                assert_eq!((standing.remaining(), standing.window()), (0, Some(Duration::from_secs(300))));
                let denied = process.acquire("account", "ann").await.unwrap_err();
                let wait = denied.denied().unwrap().wait().unwrap();
                assert!(wait <= Duration::from_secs(300), "{wait:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_rate_and_a_window_of_one_name_lock_nobody_out() {
        let server = Server::with_clock(Engine::Valkey, &[]);
        after_midnight(&server);
        let rate = limiter(&server, Quota::per_hour(2), Clock::system()).await;
        let window = limiter(&server, Window::fixed(3, Duration::from_secs(86_400)), Clock::system()).await;
        assert_eq!(admitted(&rate, "ann", 5).await, 2);
        assert_eq!(admitted(&window, "ann", 5).await, 3);
        assert_eq!(admitted(&rate, "ann", 1).await, 1);
        // What blocks a key does so whatever its limit is.
        rate.block("account", "ann", Duration::from_secs(60)).await.unwrap();
        assert_eq!(admitted(&window, "ann", 1).await, 0);
    }

    #[tokio::test]
    async fn a_bucket_is_gone_after_its_window_and_not_before() {
        let server = Server::with_clock(Engine::Valkey, &[]);
        after_midnight(&server);
        let window = Window::fixed(3, Duration::from_secs(86_400));
        let process = limiter(&server, &window, Clock::system()).await;
        assert_eq!(admitted(&process, "ann", 1).await, 1);
        let standing = process.peek("account", "ann").await.unwrap();
        let name = server.keys().into_iter().find(|name| name.ends_with(":account")).unwrap();
        let left: u64 = server.cli(&["PTTL", &name]).parse().unwrap();
        let until_end = u64::try_from(standing.until_full().as_millis()).unwrap();
        assert!(left.abs_diff(until_end) < 60_000, "{left} ms, and the window ends in {until_end}");
    }

    /// As in memory.
    #[tokio::test]
    async fn what_is_used_stays_used_where_the_calendar_changes() {
        let server = Server::with_clock(Engine::Valkey, &[]);
        let ahead = after_midnight(&server);
        let process = limiter(&server, Window::fixed(3, Duration::from_secs(60)), Clock::system()).await;
        assert_eq!(admitted(&process, "ann", 9).await, 3);
        process.set_limit("account", Window::fixed(3, Duration::from_secs(99 * 86_400))).await.unwrap();
        assert_eq!(admitted(&process, "ann", 1).await, 0);
        // Its first window would be over, and is another one now.
        server.step_clock_by_micros(ahead + 2 * MINUTE);
        assert_eq!(admitted(&process, "ann", 1).await, 0);
        process.set_limit("account", Window::fixed(3, Duration::from_secs(60))).await.unwrap();
        assert_eq!(admitted(&process, "ann", 1).await, 0);
        server.step_clock_by_micros(ahead + 3 * MINUTE);
        assert_eq!(admitted(&process, "ann", 9).await, 3);
    }

    #[tokio::test]
    async fn a_limit_that_is_set_is_that_of_all_processes_and_keeps_the_count() {
        let server = Server::with_clock(Engine::Valkey, &[]);
        after_midnight(&server);
        let window = |limit| Window::fixed(limit, Duration::from_secs(86_400));
        let [one, other, _] = three_processes(&server, &window(3)).await;
        assert_eq!(admitted(&one, "ann", 9).await, 3);
        one.set_limit("account", window(5)).await.unwrap();
        assert_eq!(one.limit("account").unwrap(), window(5));
        let late = limiter(&server, window(3), Clock::system()).await;
        assert_eq!(admitted(&late, "ann", 9).await, 2);
        assert_eq!(late.limit("account").unwrap(), window(5));
        assert!(one.set_limit("account", Quota::per_hour(1)).await.is_err());
        assert!(other.acquire_as("account", "ann", Quota::per_hour(1), 1).await.is_err());
        assert_eq!(other.peek_as("account", "ann", window(100)).await.unwrap().remaining(), 95);
    }
}
