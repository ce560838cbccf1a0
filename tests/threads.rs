//! Many threads: exactly as many are admitted as one thread would have admitted, and nobody waits for ever.

mod support;

use std::{
    net::Ipv4Addr,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use http::Request;
use support::{admits, admitted, from_ip, limiter, with_header, within};
use tower_quota::{
    Decision, Key, Limiter, Policy, Quota,
    key::{Header, PeerIp, key_fn},
};

const MINUTE: Duration = Duration::from_secs(60);

/// How many requests `threads` threads get through together.
fn together(
    threads: usize,
    tries: usize,
    limiter: &Limiter,
    request: impl Fn(usize, usize) -> Request<()> + Sync,
) -> usize {
    let total = AtomicUsize::new(0);
    // Together from the start: on a small machine the first would else be done before the last begins.
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        for thread in 0..threads {
            let (total, request, start) = (&total, &request, &start);
            scope.spawn(move || {
                start.wait();
                let admitted = (0..tries).filter(|n| admits(limiter, &request(thread, *n))).count();
                total.fetch_add(admitted, Ordering::Relaxed);
            });
        }
    });
    total.into_inner()
}

#[test]
fn con01_on_one_key_exactly_the_burst_is_admitted() {
    within(MINUTE, || {
        let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_second(5_000))]);
        assert_eq!(together(8, 20_000, &limiter, |_, _| from_ip(Ipv4Addr::LOCALHOST)), 5_000);
    });
}

#[test]
fn con01_on_the_lone_global_bucket_exactly_the_burst_is_admitted() {
    within(MINUTE, || {
        const BURST: u32 = 1_000_000;
        let (limiter, _clock) = limiter([Policy::global(Quota::per_second(BURST))]);
        let admitted = together(4, 300_000, &limiter, |_, _| Request::new(()));
        assert_eq!(admitted, BURST as usize);
        assert_eq!(limiter.peek("global", Key::GLOBAL).unwrap().remaining(), 0);
    });
}

/// Keys of three policies in all orders, two of them in buckets that all threads share, and a sweeper beside them.
#[test]
fn con03_over_several_policies_no_cell_is_lost_and_no_thread_deadlocks() {
    within(MINUTE, || {
        // All of them deny now and then; who gets how much depends on the schedule.
        let admitted = over_several_policies([700, 900, 400]);
        assert!((1..=3_500).contains(&admitted));
        // Only the first denies, and on every schedule all its cells are drawn: 700 for each of five keys.
        assert_eq!(over_several_policies([700, 3_500, 3_500]), 3_500);
    });
}

/// Returns how many were admitted, having seen that this is what each policy has drawn: a denial charged nobody, an
/// admission everybody.
fn over_several_policies([a, b, c]: [u32; 3]) -> usize {
    let number = |name: &'static str| key_fn(move |head| head.headers().get(name)?.to_str().ok()?.parse::<u64>().ok());
    let (limiter, _clock) = limiter([
        Policy::per(number("a"), Quota::per_hour(a)).named("a"),
        Policy::per(number("b"), Quota::per_hour(b)).named("b"),
        Policy::per(number("c"), Quota::per_hour(c)).named("c"),
        Policy::global(Quota::per_hour(4_000)),
    ]);
    let stop = AtomicBool::new(false);
    let admitted = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                limiter.sweep();
                thread::yield_now();
            }
        });
        let admitted = together(6, 10_000, &limiter, |thread, n| {
            let (one, other) = (thread + n, thread * 7 + n / 3);
            let request = Request::builder().header("a", one % 5).header("b", other % 4);
            request.header("c", (one + other) % 11).body(()).unwrap()
        });
        stop.store(true, Ordering::Relaxed);
        admitted
    });
    let drawn = |name: &str, keys: u64, burst: u32| -> usize {
        let left = |n: u64| limiter.peek(name, limiter.key(n)).unwrap().remaining();
        (0..keys).map(|n| (burst - left(n)) as usize).sum()
    };
    assert_eq!(drawn("a", 5, a), admitted);
    assert_eq!(drawn("b", 4, b), admitted);
    assert_eq!(drawn("c", 11, c), admitted);
    assert_eq!(4_000 - limiter.peek("global", Key::GLOBAL).unwrap().remaining() as usize, admitted);
    admitted
}

/// One thread moves the clock in small steps while the others draw.
#[test]
fn con01_under_a_running_clock_never_more_than_the_burst_and_the_rate() {
    within(MINUTE, || {
        for policies in [
            vec![Policy::per(PeerIp, Quota::per_second(1_000).burst(50))],
            vec![Policy::global(Quota::per_second(1_000).burst(50))],
            vec![
                Policy::per(PeerIp, Quota::per_second(1_000).burst(50)),
                Policy::global(Quota::per_second(1_500).burst(60)).named("a"),
                Policy::global(Quota::per_second(1_500).burst(60)).named("b"),
            ],
        ] {
            let (limiter, clock) = limiter(policies);
            let done = AtomicUsize::new(0);
            let admitted = thread::scope(|scope| {
                let admitted = scope.spawn(|| {
                    let admitted = together(4, 30_000, &limiter, |_, _| from_ip(Ipv4Addr::LOCALHOST));
                    done.store(1, Ordering::Release);
                    admitted
                });
                while done.load(Ordering::Acquire) == 0 {
                    clock.advance(Duration::from_micros(7));
                    limiter.sweep();
                }
                admitted.join().unwrap()
            });
            assert!(admitted >= 50, "{admitted} admitted: not even the burst");
            let rest = admitted_rest(&limiter);
            let bound = 50 + clock.elapsed().as_micros() / 1_000;
            assert!((admitted + rest) as u128 <= bound, "{admitted} and {rest} admitted, {bound} are the bound");
        }
    });
}

/// What is left when everybody is done: else a bucket that hands out too much later would go unseen.
fn admitted_rest(limiter: &Limiter) -> usize {
    admitted(limiter, &from_ip(Ipv4Addr::LOCALHOST), 1_000)
}

#[test]
fn refunds_and_charges_beside_acquisitions_never_admit_more() {
    within(MINUTE, || {
        let (limiter, _clock) =
            limiter([Policy::per(Header::new("k"), Quota::per_hour(1_000)), Policy::global(Quota::per_hour(5_000))]);
        let kept = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for n in 0..4_000 {
                        if let Decision::Allow(allowed) = limiter.decide(&with_header("k", "a")) {
                            if n % 2 == 0 {
                                limiter.refund(allowed);
                            } else {
                                kept.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        // The clock stands: everything refund came back whole.
        assert_eq!(kept.into_inner(), 1_000);
        assert_eq!(limiter.peek("global", Key::GLOBAL).unwrap().remaining(), 4_000);
    });
}

#[test]
fn svc05_a_panic_in_a_key_reaches_the_caller_and_harms_nothing() {
    let (limiter, _clock) = limiter([
        Policy::per(PeerIp, Quota::per_hour(10)),
        Policy::per(
            key_fn(|head| {
                assert!(!head.headers().contains_key("panic"), "planned");
                Some(1_u64)
            }),
            Quota::per_hour(10),
        ),
        Policy::global(Quota::per_hour(10)),
    ]);
    let mut panics = from_ip(Ipv4Addr::LOCALHOST);
    panics.headers_mut().insert("panic", "1".parse().unwrap());
    for _ in 0..100 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| limiter.decide(&panics).is_allowed()));
        assert!(result.is_err());
    }
    assert_eq!(admitted(&limiter, &from_ip(Ipv4Addr::LOCALHOST), 20), 10, "a panic has charged or locked something");
}

#[test]
fn con03_closures_of_a_policy_may_use_the_limiter() {
    within(MINUTE, || {
        use std::sync::{Arc, Mutex};
        let own: Arc<Mutex<Option<Limiter>>> = Arc::default();
        let inside = Arc::clone(&own);
        let (limiter, _clock) = limiter([
            Policy::per(PeerIp, Quota::per_hour(10)).cost_by(move |_| {
                let limiter = inside.lock().unwrap().clone();
                limiter.map_or(1, |limiter| {
                    let _ = (limiter.len(), limiter.sweep());
                    1 + u32::from(limiter.peek("per-ip", limiter.key(Ipv4Addr::LOCALHOST)).unwrap().remaining() < 5)
                })
            }),
            Policy::global(Quota::per_hour(100)),
        ]);
        *own.lock().unwrap() = Some(limiter.clone());
        // Six at one cell, then two at two.
        assert_eq!(admitted(&limiter, &from_ip(Ipv4Addr::LOCALHOST), 20), 8);
        // Else the limiter would hold itself, for ever.
        *own.lock().unwrap() = None;
    });
}
