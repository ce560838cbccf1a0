//! A sweep of a million keys: all stale, and none.
//!
//! ```sh
//! cargo bench --bench sweep
//! ```

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
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

fn full(clock: &ManualClock) -> Limiter {
    let policy = Policy::per(PeerIp, Quota::per_hour(1)).max_keys(2_000_000);
    let limiter = Limiter::builder().policy(policy).sweep(Sweep::Manual).clock(clock.clone()).build().unwrap();
    let mut request = Request::new(());
    for n in 0..KEYS {
        let address = Ipv4Addr::from_bits(n.wrapping_mul(2_654_435_761));
        request.extensions_mut().insert(PeerAddr(SocketAddr::from((address, 4_711))));
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

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    sweeps(&mut criterion);
    criterion.final_summary();
}
