//! A sweep of a million keys: all stale, and none; a snapshot of as many, and its restore; the
//! slowest decision beside both.
//!
//! ```sh
//! cargo bench --bench sweep
//! ```

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use criterion::{BatchSize, Criterion};
use http::Request;
use tower_quota::{
    Limiter, Policy, Quota,
    clock::ManualClock,
    key::{PeerAddr, PeerIp},
    limiter::Sweep,
};

const KEYS: u32 = 1_000_000;

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(n.wrapping_mul(2_654_435_761))
}

fn empty(clock: &ManualClock) -> Limiter {
    let policy = Policy::per(PeerIp, Quota::per_hour(1)).max_keys(2_000_000);
    let builder = Limiter::builder().policy(policy).sweep(Sweep::Manual).clock(clock.clone());
    builder.secret("a secret of the bench").build().unwrap()
}

fn full(clock: &ManualClock) -> Limiter {
    let limiter = empty(clock);
    let mut request = Request::new(());
    for n in 0..KEYS {
        request.extensions_mut().insert(PeerAddr(SocketAddr::from((address(n), 4_711))));
        assert!(limiter.decide(&request).is_allowed());
    }
    limiter
}

fn sweeps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sweep");
    group.sample_size(10).throughput(criterion::Throughput::Elements(KEYS.into()));
    let clock = ManualClock::new();
    let live = full(&clock);
    group.bench_function("nothing is stale", |bencher| bencher.iter(|| assert_eq!(live.sweep(), 0)));
    group.bench_function("all is stale", |bencher| {
        bencher.iter_batched_ref(
            || {
                let limiter = full(&clock);
                clock.advance(Duration::from_secs(3_600));
                limiter
            },
            |limiter| assert_eq!(limiter.sweep(), KEYS as usize),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn snapshots(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("snapshot");
    group.sample_size(10).throughput(criterion::Throughput::Elements(KEYS.into()));
    let clock = ManualClock::new();
    let live = full(&clock);
    group.bench_function("written", |bencher| bencher.iter(|| live.snapshot(std::io::sink()).unwrap()));
    let mut file = Vec::new();
    live.snapshot(&mut file).unwrap();
    println!("{} bytes for each key", file.len() / KEYS as usize);
    group.bench_function("restored", |bencher| {
        bencher.iter_batched_ref(
            || empty(&clock),
            |limiter| assert_eq!(limiter.restore(&file[..]).unwrap().buckets, KEYS as usize),
            BatchSize::PerIteration,
        );
    });
    group.finish();
    for (beside, work) in [
        ("nothing", &(|| ()) as &(dyn Fn() + Sync)),
        ("sweeps", &|| assert_eq!(live.sweep(), 0)),
        ("snapshots", &|| live.snapshot(std::io::sink()).unwrap()),
    ] {
        let mut slowest: Vec<_> = (0..7).map(|_| slowest_beside(&live, work)).collect();
        slowest.sort_unstable();
        println!("the slowest of 300,000 decisions beside {beside}: best {:?}, median {:?}", slowest[0], slowest[3]);
    }
}

/// The slowest decision while `work` is done over and over.
#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn slowest_beside(limiter: &Limiter, work: &(dyn Fn() + Sync)) -> Duration {
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let working = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                work();
                thread::yield_now();
            }
        });
        let mut request = Request::new(());
        let slowest = (0..300_000_u32).map(|n| {
            request.extensions_mut().insert(PeerAddr(SocketAddr::from((address(n % KEYS), 4_711))));
            let start = Instant::now();
            let _ = limiter.decide(&request);
            start.elapsed()
        });
        let slowest = slowest.max().unwrap_or_default();
        ended.store(true, Ordering::Relaxed);
        working.join().unwrap();
        slowest
    })
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    sweeps(&mut criterion);
    snapshots(&mut criterion);
    criterion.final_summary();
}
