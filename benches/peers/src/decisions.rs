//! P1 and P2: one decision over one policy per address, by a request and by its key, beside governor's keyed limiter and
//! others.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{
    RateLimiter,
    clock::{Clock, MonotonicClock},
    middleware::NoOpMiddleware,
};
use http::Request;
use tower_quota::{
    Limiter, Policy, Quota,
    key::{PeerAddr, PeerIp, key_fn},
    limiter::Sweep,
};

use crate::{
    rounds::{Candidate, Random, medians},
    table::{Bound, Row, Way},
};

/// Requests that are made ready before the clock starts: as many as stay in the cache, where the server that has just
/// read them would have them.
const BATCH: usize = 100;
const BATCHES: usize = 200;
const ROUNDS: usize = 25;

const MANY: Quota = Quota::per_second(100_000_000).burst(100_000_000);

pub fn address(n: u64) -> Ipv4Addr {
    // By an odd factor over all of IPv4.
    Ipv4Addr::from_bits((n as u32).wrapping_mul(2_654_435_761))
}

pub fn measure() -> Vec<Row> {
    let few = of_keys("1,000 keys", 1_000);
    let many = of_keys("1,000,000 keys", 1_000_000);
    let ways = |ours: usize, theirs: usize| {
        vec![Way::new("warm", few[ours], few[theirs]), Way::new("cold", many[ours], many[theirs])]
    };
    // Where there is one budget for a thousand keys, and another one for a million.
    let row = |what, ours, peer, theirs, bound| Row::cost("", what, peer, bound, ways(ours, theirs));
    let budget = |id, what, way: usize, most| {
        let mut both = ways(1, 3);
        Row::cost(id, what, "governor keyed, std clock", Bound::AtMost(most), vec![both.swap_remove(way)])
    };
    vec![
        budget("P1", "a decision, key at hand, 1,000 keys, ns", 0, 0.95),
        budget("P2", "… 1,000,000 keys, at random", 1, 0.9),
        row("… by the request, whose address is read", 0, "governor keyed, std clock", 3, Bound::None),
        row("… key at hand", 1, "governor keyed, as shipped", 4, Bound::None),
        row("… key at hand", 1, "axum_gcra's map, std clock", 5, Bound::None),
        row("`acquire`, an address", 2, "throttle-kit, `check_sync` of its text", 6, Bound::None),
        row("`acquire`", 2, "our decision, key at hand", 1, Bound::AtMost(1.0)),
    ]
}

/// Nanoseconds of each candidate.
fn of_keys(what: &str, keys: u64) -> Vec<f64> {
    let std = RateLimiter::<IpAddr, _, _, NoOpMiddleware<_>>::dashmap_with_clock(theirs(), MonotonicClock);
    let shipped = RateLimiter::<IpAddr, _, _, _>::dashmap(theirs());
    let gcra = axum_gcra::gcra::RateLimiter::<IpAddr>::new(u64::MAX, Default::default());
    let gcra_quota = axum_gcra::gcra::Quota::new(Duration::from_nanos(10), 100_000_000.try_into().unwrap());
    let kit = throttle_kit::RateLimiter::new(
        throttle_kit::Quota::per_second(100_000_000).allow_burst(100_000_000),
        throttle_kit::InMemoryBackend::new(),
    );
    let by_key = limiter(Policy::by_key(MANY).named("address"));
    let mut candidates = [
        Candidate::new("tower-quota, by the request", by_peer(keys)),
        Candidate::new("tower-quota, key at hand", by_ready_key(keys)),
        Candidate::new("tower-quota, acquire", batches(keys, |key| _ = by_key.acquire("address", key).unwrap())),
        Candidate::new("governor keyed, std clock", batches(keys, |key| assert!(std.check_key(&key).is_ok()))),
        Candidate::new("governor keyed, as shipped", batches(keys, |key| assert!(shipped.check_key(&key).is_ok()))),
        Candidate::new(
            "axum_gcra's map, std clock",
            batches(keys, |key| {
                assert!(gcra.req_sync(key, gcra_quota, Instant::now()).is_ok());
            }),
        ),
        Candidate::new("throttle-kit", batches(keys, |key| assert!(kit.check_sync(&key.to_string()).allowed))),
        Candidate::new("the std clock alone", batches(keys, |_| _ = black_box(MonotonicClock.now()))),
    ];
    // Keys are made in a first pass. What remains is the cost of a decision.
    candidates.iter_mut().for_each(|candidate| {
        for _ in 0..keys.div_ceil(BATCH as u64 * BATCHES as u64) * 3 {
            (candidate.round)();
        }
    });
    let medians = medians(ROUNDS, &mut candidates);
    println!("{what:<40}{:>8}{:>10}", "ns", "of std");
    for (candidate, median) in candidates.iter().zip(&medians) {
        println!("{:<40}{median:>8.0}{:>10.2}", candidate.name, median / medians[3]);
    }
    medians
}

fn theirs() -> governor::Quota {
    governor::Quota::per_second(NonZeroU32::new(100_000_000).unwrap())
}

fn limiter(policy: Policy) -> Limiter {
    Limiter::builder().policy(policy.max_keys(2_000_000)).sweep(Sweep::Manual).build().unwrap()
}

/// All that a decision takes, from the request on.
fn by_peer(keys: u64) -> impl FnMut() -> f64 {
    let limiter = limiter(Policy::per(PeerIp, MANY));
    let mut random = Random::new();
    let mut requests: Vec<_> = (0..BATCH)
        .map(|_| {
            let mut request = Request::new(());
            request.extensions_mut().insert(PeerAddr(SocketAddr::from(([0, 0, 0, 0], 4_711))));
            request
        })
        .collect();
    move || {
        let mut took = Duration::ZERO;
        for _ in 0..BATCHES {
            for request in &mut requests {
                let ip = IpAddr::V4(address(random.below(keys)));
                request.extensions_mut().get_mut::<PeerAddr>().unwrap().0.set_ip(ip);
            }
            let start = Instant::now();
            for request in &requests {
                assert!(limiter.decide(black_box(request)).is_allowed());
            }
            took += start.elapsed();
        }
        took.as_nanos() as f64 / (BATCH * BATCHES) as f64
    }
}

/// As governor is called: with a key at hand.
fn by_ready_key(keys: u64) -> impl FnMut() -> f64 {
    let next = Arc::new(AtomicU32::new(0));
    let ready = Arc::clone(&next);
    let key = key_fn(move |_| Some(IpAddr::V4(Ipv4Addr::from_bits(ready.load(Ordering::Relaxed)))));
    let limiter = limiter(Policy::per(key, MANY));
    let request = Request::new(());
    batches(keys, move |key| {
        let IpAddr::V4(key) = key else { unreachable!("none was made") };
        next.store(key.to_bits(), Ordering::Relaxed);
        assert!(limiter.decide(black_box(&request)).is_allowed());
    })
}

fn batches(keys: u64, mut decide: impl FnMut(IpAddr)) -> impl FnMut() -> f64 {
    let mut random = Random::new();
    move || {
        let mut took = Duration::ZERO;
        for _ in 0..BATCHES {
            let batch: Vec<_> = (0..BATCH).map(|_| IpAddr::V4(address(random.below(keys)))).collect();
            let start = Instant::now();
            for key in batch {
                decide(black_box(key));
            }
            took += start.elapsed();
        }
        took.as_nanos() as f64 / (BATCH * BATCHES) as f64
    }
}
