//! P3, P4 and P5: what a layer adds to a request, allowed and denied; and what telling clients apart costs.
//!
//! Each figure is the median of its rounds less that of the bare service. Requests are made before the clock starts.

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
use http::{Request, Response, StatusCode};
use tower::{Layer, Service};
use tower_governor::{
    GovernorLayer,
    governor::GovernorConfigBuilder,
    key_extractor::{PeerIpKeyExtractor, SmartIpKeyExtractor},
};
use tower_quota::{
    Policy, Quota, RateLimitLayer,
    key::{ClientIp, KeyExtractor, PeerIp},
    policy::Advertise,
};

use crate::{
    budget::{Bound, Budget},
    rounds::median,
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
fn requests(entry: Entry, count: usize) -> Vec<Request<Body>> {
    (0..count)
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
    /// With the status to expect, if any.
    run: Box<dyn FnMut(Vec<Request<Body>>, Option<StatusCode>)>,
    status: StatusCode,
    rounds: Vec<f64>,
    allocations: u64,
}

fn candidate<S>(name: &'static str, service: S) -> Candidate
where
    S: Service<Request<Body>, Response = Response<Body>> + 'static,
{
    answering(StatusCode::OK, name, service)
}

fn answering<S>(status: StatusCode, name: &'static str, mut service: S) -> Candidate
where
    S: Service<Request<Body>, Response = Response<Body>> + 'static,
{
    let run = move |requests: Vec<Request<Body>>, expected: Option<StatusCode>| {
        let mut cx = Context::from_waker(Waker::noop());
        for request in requests {
            assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))));
            let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) else {
                panic!("answers at once")
            };
            assert!(expected.is_none_or(|expected| response.status() == expected));
            black_box(response);
        }
    };
    Candidate { name, run: Box::new(run), status, rounds: Vec::new(), allocations: 0 }
}

fn policy(key: impl KeyExtractor) -> Policy {
    Policy::per(key, Quota::per_second(100_000_000).burst(100_000_000))
}

/// Without fields, as tower_governor is by default.
fn ours(key: impl KeyExtractor) -> RateLimitLayer {
    RateLimitLayer::new(policy(key).advertise(Advertise::RetryAfter))
}

/// axum-governor, which tells its limits always.
pub fn axum_governor(quota: axum_governor::Quota) -> axum_governor::GovernorLayer<std::net::IpAddr> {
    let config = axum_governor::GovernorConfigBuilder::default()
        .with_extractor(axum_governor::extractor::PeerIp::default())
        .quota_default(quota)
        .expect_connect_info()
        .gc_disable();
    axum_governor::GovernorLayer::new(config.finish().unwrap())
}

/// By GCRA in memory, which like axum-governor tells its limits always.
#[cfg(feature = "tower-rate-limiter")]
fn tower_rate_limiter(
    rate: u32,
    seconds: u64,
) -> tower_rate_limiter::RateLimitLayer<tower_rate_limiter::IpKeyExtractor, tower_rate_limiter::MemoryGcra> {
    let quota = tower_rate_limiter::GcraQuota::new(rate, std::time::Duration::from_secs(seconds), rate).unwrap();
    let policy = tower_rate_limiter::MemoryGcra::new(quota);
    let layer = tower_rate_limiter::RateLimitLayer::builder(tower_rate_limiter::IpKeyExtractor::new());
    layer.policy_name("per-ip").with_policy(policy).build().unwrap()
}

pub fn once_an_hour() -> axum_governor::Quota {
    axum_governor::Quota::seconds_per_request(3_600.try_into().unwrap())
}

pub fn measure() -> Vec<Budget> {
    let plain: Entry = |client| client.to_string();
    let forged: Entry = |client| format!("{}{client}", "6.6.6.6, ".repeat(10_000));
    let behind = || ClientIp::behind(["10.0.0.0/8"]).unwrap();
    let theirs = || {
        let mut config = GovernorConfigBuilder::default();
        config.per_nanosecond(10).burst_size(100_000_000);
        config
    };
    let with_fields = Arc::new(theirs().key_extractor(PeerIpKeyExtractor).use_headers().finish().unwrap());
    let by_peer = Arc::new(theirs().key_extractor(PeerIpKeyExtractor).finish().unwrap());
    let by_header = Arc::new(theirs().key_extractor(SmartIpKeyExtractor).finish().unwrap());

    let allowed = table(
        "allowed request",
        plain,
        REQUESTS,
        &mut [
            candidate("bare service", Inner(0)),
            candidate("PeerIp", ours(PeerIp).layer(Inner(0))),
            candidate("ClientIp::behind, one proxy", ours(behind()).layer(Inner(0))),
            candidate("ClientIp::hops(1)", ours(ClientIp::hops(1)).layer(Inner(0))),
            candidate("tower_governor, peer", GovernorLayer::new(by_peer).layer(Inner(0))),
            candidate("tower_governor, smart", GovernorLayer::new(by_header).layer(Inner(0))),
        ],
    );
    let mut told = vec![
        candidate("bare service", Inner(0)),
        candidate("RateLimit, RateLimit-Policy", RateLimitLayer::new(policy(PeerIp)).layer(Inner(0))),
        candidate("tower_governor, use_headers", GovernorLayer::new(with_fields).layer(Inner(0))),
        candidate(
            "axum-governor",
            axum_governor(axum_governor::Quota::requests_per_second(100_000_000.try_into().unwrap())).layer(Inner(0)),
        ),
    ];
    #[cfg(feature = "tower-rate-limiter")]
    told.push(candidate("tower-rate-limiter", tower_rate_limiter(1_000_000, 1).layer(Inner(0))));
    let told = table("allowed request, told its limit", plain, REQUESTS, &mut told);
    let mut once = GovernorConfigBuilder::default();
    once.per_second(100_000).burst_size(1).key_extractor(PeerIpKeyExtractor);
    let spent = Arc::new(once.finish().unwrap());
    let spent_with_fields = Arc::new(once.use_headers().finish().unwrap());
    let denying = |advertise| Policy::per(PeerIp, Quota::per_hour(1)).advertise(advertise);
    let full = RateLimitLayer::new(denying(Advertise::Everything));
    let short = RateLimitLayer::new(denying(Advertise::RetryAfter));
    const NO: StatusCode = StatusCode::TOO_MANY_REQUESTS;
    let mut denied = vec![
        candidate("bare service", Inner(0)),
        answering(NO, "problem+json and fields", full.layer(Inner(0))),
        answering(NO, "problem+json", short.clone().layer(Inner(0))),
        answering(NO, "plain text", short.plain_text().layer(Inner(0))),
        answering(NO, "tower_governor", GovernorLayer::new(spent).layer(Inner(0))),
        answering(NO, "tower_governor, use_headers", GovernorLayer::new(spent_with_fields).layer(Inner(0))),
        answering(NO, "axum-governor", axum_governor(once_an_hour()).layer(Inner(0))),
    ];
    #[cfg(feature = "tower-rate-limiter")]
    denied.push(answering(NO, "tower-rate-limiter", tower_rate_limiter(1, 3_600).layer(Inner(0))));
    let denied = table("denied request", plain, REQUESTS, &mut denied);
    // Fields of 90 kB: few of them stay in the cache.
    table(
        "with 10,000 forged entries",
        forged,
        4,
        &mut [
            candidate("bare service", Inner(0)),
            candidate("PeerIp", ours(PeerIp).layer(Inner(0))),
            candidate("ClientIp::behind, one proxy", ours(behind()).layer(Inner(0))),
        ],
    );

    let budget = |id, what, (ours, allocations): Added, peer, (theirs, their_allocations): Added, bound| Budget {
        id,
        what,
        ours: format!("{ours:.0} ({allocations})"),
        peer,
        theirs: format!("{theirs:.0} ({their_allocations})"),
        ratio: ours / theirs,
        bound,
    };
    let most = Bound::AtMost;
    let mut budgets = vec![
        budget(
            "P3",
            "added to an allowed request, ns (allocations)",
            allowed[1],
            "tower_governor",
            allowed[4],
            most(0.9),
        ),
        budget("", "… behind a proxy", allowed[2], "tower_governor, smart", allowed[5], Bound::None),
        budget("P4", "… with the fields", told[1], "tower_governor, use_headers", told[2], most(0.5)),
        budget("", "…", told[1], "axum-governor", told[3], Bound::None),
        budget("P5", "added to a denied request, all told", denied[1], "tower_governor", denied[4], most(0.02)),
        budget("", "… in plain text", denied[3], "tower_governor", denied[4], Bound::None),
        budget("", "…", denied[1], "axum-governor", denied[6], Bound::None),
    ];
    if cfg!(feature = "tower-rate-limiter") {
        budgets.push(budget("P5", "…", denied[1], "tower-rate-limiter", denied[7], most(0.5)));
        budgets.push(budget("", "allowed, with the fields", told[1], "tower-rate-limiter", told[4], Bound::None));
    }
    budgets
}

/// What a candidate adds: nanoseconds, allocations.
type Added = (f64, u64);

fn table(what: &str, entry: Entry, count: usize, candidates: &mut [Candidate]) -> Vec<Added> {
    for candidate in &mut *candidates {
        // Keys are made in a first pass, and bursts of one are spent. What remains is the cost of a request.
        (candidate.run)(requests(entry, count), None);
        let again = requests(entry, count);
        let counted = allocation_counter::measure(|| (candidate.run)(again, Some(candidate.status)));
        candidate.allocations = counted.count_total.div_ceil(count as u64);
    }
    for _round in 0..ROUNDS {
        for candidate in &mut *candidates {
            let requests = requests(entry, count);
            let start = Instant::now();
            (candidate.run)(requests, Some(candidate.status));
            candidate.rounds.push(start.elapsed().as_nanos() as f64 / count as f64);
        }
    }
    println!("{what:<34}{:>12}{:>14}", "added ns", "allocations");
    let medians: Vec<f64> = candidates.iter_mut().map(|candidate| median(&mut candidate.rounds)).collect();
    let added = candidates.iter().zip(&medians).map(|(candidate, median)| (median - medians[0], candidate.allocations));
    let added: Vec<Added> = added.collect();
    for (candidate, (added, allocations)) in candidates.iter().zip(&added) {
        println!("{:<34}{added:>12.0}{allocations:>14}", candidate.name);
    }
    added
}
