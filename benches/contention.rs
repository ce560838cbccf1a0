//! Decisions and requests of one thread and of two at once: on one key, on many, and on the one bucket of a global policy.
//! A request clones the service, as axum does for each one. Which cache lines threads share is in docs/architecture.md.
//!
//! ```sh
//! cargo bench --bench contention
//! ```

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::Barrier,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion};
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer as _, Service, service_fn};
use tower_quota::{
    InFlightLayer, Limiter, Policy, Quota, RateLimitLayer,
    key::{PeerAddr, PeerIp},
    limiter::Sweep,
    policy::Advertise,
};

const MANY: Quota = Quota::per_second(100_000_000).burst(100_000_000);

#[expect(clippy::disallowed_methods, reason = "what is measured is time")]
fn now() -> Instant {
    Instant::now()
}

/// How long `times` calls of each thread take, each for one of so many addresses.
fn together(threads: u32, times: u64, addresses: u32, call: impl Fn(Request<()>) + Sync) -> Duration {
    let start = Barrier::new(threads as usize);
    thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|thread| {
                let (start, call) = (&start, &call);
                scope.spawn(move || {
                    start.wait();
                    let began = now();
                    for n in 0..times {
                        #[expect(clippy::cast_possible_truncation, reason = "any number will do")]
                        let n = (n as u32).wrapping_mul(7).wrapping_add(thread * 3_571) % addresses;
                        let address = Ipv4Addr::from_bits(n.wrapping_mul(2_654_435_761));
                        let mut request = Request::new(());
                        request.extensions_mut().insert(PeerAddr(SocketAddr::from((address, 4_711))));
                        call(request);
                    }
                    now() - began
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).max().unwrap()
    })
}

type Served = Ready<Result<Response<Full<Bytes>>, Infallible>>;

/// Clones the service and calls it.
fn serve<S, B>(service: &S, request: Request<()>)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone,
{
    let mut service = service.clone();
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) else { panic!("answers at once") };
    assert!(response.status().is_success());
}

fn hello(_request: Request<()>) -> Served {
    ready(Ok(Response::new(Full::new(Bytes::from_static(b"hello")))))
}

fn contention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("contention");
    let mut threads = |name: &str, addresses: u32, call: &(dyn Fn(Request<()>) + Sync)| {
        for threads in [1, 2] {
            group.bench_function(BenchmarkId::new(name, threads), |bencher| {
                bencher.iter_custom(|times| together(threads, times, addresses, call));
            });
        }
    };
    let per_ip = || Policy::per(PeerIp, MANY);
    let quiet = |policy: Policy| policy.advertise(Advertise::RetryAfter);
    threads("the request, without a limit", 10_000, &|request| serve(&service_fn(hello), request));
    for (name, policy, addresses) in [
        ("decision, one key", per_ip(), 1),
        ("decision, 10,000 keys", per_ip(), 10_000),
        ("decision, global", Policy::global(MANY), 1),
    ] {
        let limiter = Limiter::builder().policy(policy).sweep(Sweep::Manual).build().unwrap();
        threads(name, addresses, &|request| assert!(limiter.decide(&request).is_allowed()));
    }
    for (name, policy) in [("layer, 10,000 keys", quiet(per_ip())), ("layer, 10,000 keys, fields", per_ip())] {
        let service = RateLimitLayer::new(policy).layer(service_fn(hello));
        threads(name, 10_000, &|request| serve(&service, request));
    }
    let service = InFlightLayer::per(PeerIp, 4).layer(service_fn(hello));
    threads("in flight, 10,000 keys", 10_000, &|request| serve(&service, request));
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    contention(&mut criterion);
    criterion.final_summary();
}
