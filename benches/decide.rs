//! One decision: by how many keys there are, by its outcome, and by how many policies take part.
//!
//! ```sh
//! cargo bench --bench decide
//! ```

use std::{
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
};

use criterion::{BenchmarkId, Criterion};
use http::Request;
use tower_quota::{
    Limiter, Policy, Quota,
    key::{PeerAddr, PeerIp},
    limiter::Sweep,
};

const MANY: Quota = Quota::per_second(100_000_000).burst(100_000_000);
const NONE: Quota = Quota::per_hour(1);

fn limiter(policies: impl IntoIterator<Item = Policy>) -> Limiter {
    let policies =
        policies.into_iter().map(|policy| if policy.is_global() { policy } else { policy.max_keys(12_000_000) });
    Limiter::builder().policies(policies).sweep(Sweep::Manual).build().unwrap()
}

/// Asks for one address after the other, by an odd step through all of IPv4.
fn decide(limiter: &Limiter, request: &mut Request<()>, n: u32) -> bool {
    let address = Ipv4Addr::from_bits(n.wrapping_mul(2_654_435_761));
    request.extensions_mut().get_mut::<PeerAddr>().unwrap().0.set_ip(address.into());
    limiter.decide(black_box(request)).is_allowed()
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(PeerAddr(SocketAddr::from(([0, 0, 0, 0], 4_711))));
    request
}

fn keys(criterion: &mut Criterion) {
    let mut request = request();
    let mut group = criterion.benchmark_group("decide");
    for keys in [1_u32, 1_000, 1_000_000, 10_000_000] {
        for (outcome, quota) in [("allowed", MANY), ("denied", NONE)] {
            let limiter = limiter([Policy::per(PeerIp, quota)]);
            (0..keys).for_each(|n| assert!(decide(&limiter, &mut request, n)));
            let mut n = 0_u32;
            group.bench_function(BenchmarkId::new(outcome, keys), |bencher| {
                bencher.iter(|| {
                    // An odd step that meets all of them in no order.
                    n = n.wrapping_add(7_368_787) % keys;
                    decide(&limiter, &mut request, n)
                });
            });
        }
    }
    let new = limiter([Policy::per(PeerIp, MANY)]);
    let mut n = 0_u32;
    group.bench_function("a new key", |bencher| {
        bencher.iter(|| {
            n = n.wrapping_add(1);
            decide(&new, &mut request, n)
        });
    });
    group.finish();
}

fn policies(criterion: &mut Criterion) {
    let mut request = request();
    let per_ip = || Policy::per(PeerIp, MANY);
    let three = || [per_ip(), per_ip().named("second"), Policy::global(MANY)];
    for (name, policies) in [
        ("one policy", vec![per_ip()]),
        ("a global policy", vec![Policy::global(MANY)]),
        ("three policies", three().into()),
        ("three policies, the last denies", {
            let [first, second, _] = three();
            vec![first, second, Policy::global(NONE)]
        }),
    ] {
        let limiter = limiter(policies);
        decide(&limiter, &mut request, 1);
        criterion.bench_function(name, |bencher| bencher.iter(|| decide(&limiter, &mut request, 1)));
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    policies(&mut criterion);
    keys(&mut criterion);
    criterion.final_summary();
}
