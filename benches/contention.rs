//! Decisions of one thread and of two at once: on one key, on many, and on the one bucket of a global policy.
//!
//! ```sh
//! cargo bench --bench contention
//! ```

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion};
use http::Request;
use tower_quota::{
    Limiter, Policy, Quota,
    key::{PeerAddr, PeerIp},
    limiter::Sweep,
};

const MANY: Quota = Quota::per_second(100_000_000).burst(100_000_000);

#[expect(clippy::disallowed_methods, reason = "what is measured is time")]
fn now() -> Instant {
    Instant::now()
}

/// How long `times` decisions of each thread take.
fn together(limiter: &Limiter, threads: u32, times: u64, addresses: u32) -> Duration {
    let start = Barrier::new(threads as usize);
    thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|thread| {
                let start = &start;
                scope.spawn(move || {
                    let mut request = Request::new(());
                    request.extensions_mut().insert(PeerAddr(SocketAddr::from(([0, 0, 0, 0], 4_711))));
                    start.wait();
                    let began = now();
                    for n in 0..times {
                        #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
                        let n = (n as u32).wrapping_mul(7).wrapping_add(thread * 3_571) % addresses;
                        let address = Ipv4Addr::from_bits(n.wrapping_mul(2_654_435_761));
                        request.extensions_mut().get_mut::<PeerAddr>().unwrap().0.set_ip(address.into());
                        assert!(limiter.decide(&request).is_allowed());
                    }
                    now() - began
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).max().unwrap()
    })
}

fn contention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("contention");
    for (name, policy, addresses) in [
        ("one key", Policy::per(PeerIp, MANY), 1),
        ("10,000 keys", Policy::per(PeerIp, MANY), 10_000),
        ("global", Policy::global(MANY), 1),
    ] {
        let limiter = Limiter::builder().policy(policy).sweep(Sweep::Manual).build().unwrap();
        for threads in [1, 2] {
            group.bench_function(BenchmarkId::new(name, threads), |bencher| {
                bencher.iter_custom(|times| together(&limiter, threads, times, addresses));
            });
        }
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    contention(&mut criterion);
    criterion.final_summary();
}
