//! The background thread: there while it is needed, and gone after. A file of its own, because it looks at the process.

use std::{fs, net::SocketAddr, thread, time::Duration};

use http::Request;
use tower_quota::{Limiter, Policy, Quota, clock::ManualClock, key::PeerIp, limiter::Sweep};

mod support;

/// The threads of this process that carry the sweeper's name.
fn sweepers() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("this test needs Linux' list of threads");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "tower-quota").count()
}

fn until(condition: impl Fn() -> bool + Send + 'static) {
    support::within(Duration::from_secs(30), move || {
        while !condition() {
            thread::yield_now();
        }
    });
}

fn keyed() -> Policy {
    Policy::per(PeerIp, Quota::per_second(1_000))
}

/// One test, for all of them look at the threads of one process.
#[test]
fn swp01_the_thread_comes_with_the_first_keyed_limiter_sweeps_and_ends_with_the_last() {
    let global = Limiter::new(Policy::global(Quota::per_second(1)));
    let manual = Limiter::builder().policy(keyed()).sweep(Sweep::Manual).build().unwrap();
    assert_eq!(sweepers(), 0, "nothing to sweep, no thread");

    // On a clock of its own, so that the keys are idle when the test says so; the schedule runs on the system's.
    let clock = ManualClock::new();
    let first = Limiter::builder().policy(keyed()).clock(clock.clone()).build().unwrap();
    until(|| sweepers() == 1);
    let clones: Vec<_> = (0..100).map(|_| Limiter::from(&first)).collect();
    let second = Limiter::new(keyed());
    assert_eq!(sweepers(), 1, "one thread for all limiters");

    let mut request = Request::new(());
    request.extensions_mut().insert(SocketAddr::from(([10, 0, 0, 1], 1)));
    assert!(first.decide(&request).is_allowed());
    assert_eq!(first.len(), 1);
    clock.advance(Duration::from_secs(1));
    let swept = first.clone();
    until(move || swept.is_empty());

    drop(clones);
    drop(first);
    assert_eq!(sweepers(), 1, "the second limiter is still there");
    drop(second);
    until(|| sweepers() == 0);

    // Again, and often: no thread is left behind, and none is missing.
    for _ in 0..2_000 {
        drop(Limiter::new(keyed()));
    }
    until(|| sweepers() == 0);
    let third = Limiter::new(keyed());
    until(|| sweepers() == 1);
    drop(third);
    until(|| sweepers() == 0);
    drop((global, manual));
}
