//! What a layer adds to an allowed request, ours beside tower_governor's, by how the client is told.
//!
//! ```sh
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! ```
//!
//! Rounds are interleaved, so that what disturbs the machine disturbs all; each figure is the median of its rounds less
//! that of the bare service. Requests are made before the clock starts.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use axum::{body::Body, extract::ConnectInfo};
use http::{Request, Response};
use tower::{Layer, Service};
use tower_governor::{
    GovernorLayer,
    governor::GovernorConfigBuilder,
    key_extractor::{PeerIpKeyExtractor, SmartIpKeyExtractor},
};
use tower_quota::{
    Policy, Quota, RateLimitLayer,
    key::{ClientIp, KeyExtractor, PeerIp},
};

/// Few enough to stay in the cache: what a layer adds is the question, not what memory costs.
const REQUESTS: usize = 100;
const ROUNDS: usize = 2_001;

/// Answers at once. Not zero-sized, so that no layer around it is optimised away.
#[derive(Clone)]
struct Inner(u64);

impl Service<Request<Body>> for Inner {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0 += request.headers().len() as u64;
        ready(Ok(Response::new(Body::empty())))
    }
}

/// A hundred clients behind one proxy, told in both ways.
fn requests(entry: impl Fn(Ipv4Addr) -> String) -> Vec<Request<Body>> {
    (0..REQUESTS)
        .map(|n| {
            let client = Ipv4Addr::from_bits(0xcb00_7100 + n as u32);
            let request = Request::builder().header("x-forwarded-for", entry(client));
            let mut request = request.body(Body::empty()).unwrap();
            request.extensions_mut().insert(ConnectInfo(SocketAddr::from(([10, 0, 0, 1], 4_711))));
            request
        })
        .collect()
}

type Entry = fn(Ipv4Addr) -> String;

struct Candidate {
    name: &'static str,
    entry: Entry,
    run: Box<dyn FnMut(Vec<Request<Body>>)>,
    rounds: Vec<f64>,
    allocations: u64,
}

fn candidate<S>(name: &'static str, entry: Entry, mut service: S) -> Candidate
where
    S: Service<Request<Body>, Response = Response<Body>> + 'static,
{
    let run = move |requests: Vec<Request<Body>>| {
        let mut cx = Context::from_waker(Waker::noop());
        for request in requests {
            assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))));
            let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) else { panic!("answers at once") };
            assert!(response.status().is_success());
            black_box(response);
        }
    };
    Candidate { name, entry, run: Box::new(run), rounds: Vec::new(), allocations: 0 }
}

fn ours(key: impl KeyExtractor) -> RateLimitLayer {
    RateLimitLayer::new(Policy::per(key, Quota::per_second(100_000_000).burst(100_000_000)))
}

fn main() {
    let plain: Entry = |client| client.to_string();
    let forged: Entry = |client| format!("{}, {client}", vec!["6.6.6.6"; 10_000].join(", "));
    let behind = || ClientIp::behind(["10.0.0.0/8"]).unwrap();
    let theirs = || {
        let mut config = GovernorConfigBuilder::default();
        config.per_nanosecond(10).burst_size(100_000_000);
        config
    };
    let by_peer = Arc::new(theirs().key_extractor(PeerIpKeyExtractor).finish().unwrap());
    let by_header = Arc::new(theirs().key_extractor(SmartIpKeyExtractor).finish().unwrap());

    let mut candidates = [
        candidate("bare service", plain, Inner(0)),
        candidate("PeerIp", plain, ours(PeerIp).layer(Inner(0))),
        candidate("ClientIp::behind, one proxy", plain, ours(behind()).layer(Inner(0))),
        candidate("ClientIp::hops(1)", plain, ours(ClientIp::hops(1)).layer(Inner(0))),
        candidate("tower_governor, peer", plain, GovernorLayer::new(by_peer).layer(Inner(0))),
        candidate("tower_governor, smart", plain, GovernorLayer::new(by_header).layer(Inner(0))),
        candidate("bare, 10,000 forged entries", forged, Inner(0)),
        candidate("ClientIp, 10,000 forged entries", forged, ours(behind()).layer(Inner(0))),
    ];
    for round in 0..=ROUNDS {
        for candidate in &mut candidates {
            // Long fields take room: fewer of them stay in the cache.
            let mut requests = requests(if candidate.name.contains("forged") { plain } else { candidate.entry });
            if candidate.name.contains("forged") {
                requests.truncate(4);
                for request in &mut requests {
                    let value = (candidate.entry)(Ipv4Addr::new(203, 0, 113, 7)).parse().unwrap();
                    request.headers_mut().insert("x-forwarded-for", value);
                }
            }
            let count = requests.len() as f64;
            if round == 0 {
                // Keys are made in a first pass. What remains is the cost of a request.
                let again = self::requests(plain);
                (candidate.run)(again);
                let counted = allocation_counter::measure(|| (candidate.run)(requests));
                candidate.allocations = counted.count_total.div_ceil(count as u64);
            } else {
                let start = Instant::now();
                (candidate.run)(requests);
                candidate.rounds.push(start.elapsed().as_nanos() as f64 / count);
            }
        }
    }

    let mut bare = 0.0;
    println!("{:<34}{:>12}{:>14}", "allowed request", "added ns", "allocations");
    for candidate in &mut candidates {
        candidate.rounds.sort_by(f64::total_cmp);
        let median = candidate.rounds[ROUNDS / 2];
        if candidate.name.starts_with("bare") {
            bare = median;
            println!("{:<34}{:>12}{:>14}", candidate.name, format!("({median:.0})"), candidate.allocations);
        } else {
            println!("{:<34}{:>12.0}{:>14}", candidate.name, median - bare, candidate.allocations);
        }
    }
}
