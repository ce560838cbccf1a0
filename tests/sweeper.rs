//! The background thread: there while it is needed, and gone after. A file of its own with one test, because it looks at
//! the whole process.

#[cfg(feature = "tracing")]
#[path = "support/events.rs"]
mod events;
mod support;

use std::{fs, net::SocketAddr, thread, time::Duration};

use http::Request;
use tower_quota::{Limiter, Policy, Quota, clock::ManualClock, key::PeerIp, limiter::Sweep};

/// The threads of this process that carry the sweeper's name.
fn sweepers() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("this test needs Linux' list of threads");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "tower-quota").count()
}

/// Within half of the longest period: what waits for a whole one fails.
fn until(condition: impl Fn() -> bool + Send + 'static) {
    support::within(Duration::from_secs(30), move || {
        while !condition() {
            thread::yield_now();
        }
    });
}

/// Swept every second, the shortest period that there is.
const OFTEN: Quota = Quota::per_second(1_000);

/// Swept every minute, the longest.
const SELDOM: Quota = Quota::per_hour(1);

fn request(host: u8) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(SocketAddr::from(([10, 0, 0, host], 1)));
    request
}

/// On a clock of its own, so that keys are idle when the test says so. The schedule uses the system's clock.
fn limiter(policy: Policy) -> (Limiter, ManualClock) {
    let clock = ManualClock::new();
    let builder = Limiter::builder().policy(policy).clock(clock.clone()).sweep(Sweep::Background);
    (builder.build().unwrap(), clock)
}

#[test]
fn swp01_the_thread_comes_with_the_first_keyed_limiter_sweeps_and_ends_with_the_last() {
    #[cfg(feature = "tracing")]
    let lines = events::Lines::default();
    #[cfg(feature = "tracing")]
    lines.collect_everywhere();

    let global = Limiter::new(Policy::global(OFTEN));
    let manual = Limiter::builder().policy(Policy::per(PeerIp, OFTEN)).sweep(Sweep::Manual).build().unwrap();
    let on_another_clock = Limiter::builder().policy(Policy::per(PeerIp, OFTEN)).clock(ManualClock::new());
    let on_another_clock = on_another_clock.build().unwrap();
    assert_eq!(sweepers(), 0, "nothing to sweep, no thread");

    let (often, clock) = limiter(Policy::per(PeerIp, OFTEN));
    until(|| sweepers() == 1);
    let clones: Vec<_> = (0..100).map(|_| often.clone()).collect();
    let (seldom, _clock) = limiter(Policy::per(PeerIp, SELDOM));
    assert_eq!(sweepers(), 1, "one thread for all limiters");

    for round in 1..=2 {
        assert!(often.decide(&request(1)).is_allowed());
        assert_eq!(often.len(), 1, "round {round}");
        clock.advance(Duration::from_secs(1));
        let swept = often.clone();
        until(move || swept.is_empty());
    }

    // Long before its time, because a client finds no room.
    let (full, full_clock) = limiter(Policy::per(PeerIp, SELDOM).max_keys(1));
    assert!(full.decide(&request(1)).is_allowed());
    full_clock.advance(Duration::from_secs(3_600));
    until(move || {
        let _ = full.decide(&request(2));
        // It has a bucket of its own, and owes, only if the first was swept.
        full.peek("per-ip", full.key(PeerIp.network([10, 0, 0, 2].into()))).unwrap().remaining() == 0
    });

    // Nine keys of ten: reported once, with the numbers and no key.
    #[cfg(feature = "tracing")]
    {
        let (near, _clock) = limiter(Policy::per(PeerIp, OFTEN).named("nearly full").max_keys(10));
        (1..=9).for_each(|host| assert!(near.decide(&request(host)).is_allowed()));
        let said = lines.clone();
        // By its name: the full limiter above is reported too.
        until(move || said.text().contains("nearly full"));
        let text = lines.text();
        let line = text.lines().find(|line| line.contains("nearly full")).unwrap();
        assert!(line.contains("80 %") && line.contains("keys=9") && line.contains("max_keys=10"), "{line}");
    }

    drop(clones);
    drop(often);
    until(|| sweepers() == 1);
    drop(seldom);
    until(|| sweepers() == 0);

    // Again, and often: no thread is left behind, and none is missing.
    for _ in 0..2_000 {
        drop(Limiter::new(Policy::per(PeerIp, SELDOM)));
    }
    until(|| sweepers() == 0);
    let last = Limiter::new(Policy::per(PeerIp, SELDOM));
    until(|| sweepers() == 1);
    drop(last);
    until(|| sweepers() == 0);
    drop((global, manual, on_another_clock));
}
