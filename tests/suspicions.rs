//! Warnings of deployments that make many clients one, or count a request twice. One test, for each is reported once
//! in a process.
#![cfg(all(feature = "tracing", feature = "axum"))]

#[path = "support/events.rs"]
mod events;
mod support;

use std::net::{IpAddr, Ipv4Addr};

use http::{Request, Response};
use support::{from_ip, limiter};
use tower::{Layer as _, Service as _, service_fn};
use tower_quota::{
    Limiter, Policy, Quota, RateLimitLayer,
    key::{ClientIp, KeyExtractor, PeerIp, RouteTemplate},
    policy::Advertise,
};

const MANY: Quota = Quota::per_second(1_000_000);

fn by(key: impl KeyExtractor) -> Limiter {
    limiter([Policy::per(key, MANY)]).0
}

fn forwarded(peer: impl Into<IpAddr>, value: &str) -> Request<()> {
    let mut request = from_ip(peer);
    request.headers_mut().insert("x-forwarded-for", value.parse().unwrap());
    request
}

/// What is reported while requests are decided.
fn warnings(limiter: &Limiter, requests: impl IntoIterator<Item = Request<()>>) -> Vec<String> {
    let text =
        events::Lines::default().collect(|| requests.into_iter().for_each(|request| _ = limiter.decide(&request)));
    assert!(!text.contains("198.51.100.") && !text.contains("203.0.113."), "no address in an event: {text}");
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_one(warnings: &[String], words: [&str; 2]) {
    let [warning] = warnings else { panic!("one warning, not {warnings:#?}") };
    assert!(warning.contains("WARN") && words.iter().all(|word| warning.contains(word)), "{warning}");
}

#[test]
fn what_makes_many_clients_one_is_reported_once_with_a_remedy() {
    let proxy = Ipv4Addr::new(198, 51, 100, 9);
    let client = |n: u8| format!("203.0.113.{n}");
    let none: [String; 0] = [];

    // A trusted proxy that never sends the field.
    let trusted = by(ClientIp::behind(["198.51.100.0/24"]).unwrap());
    assert_one(&warnings(&trusted, (0..50).map(|_| from_ip(proxy))), ["without the field", "configure the proxy"]);
    assert_eq!(warnings(&trusted, (0..50).map(|_| from_ip(proxy))), none, "once");

    // One that does, and its clients, who write what they like.
    assert_eq!(warnings(&trusted, (0..50).map(|n| forwarded(proxy, &client(n)))), none);
    assert_eq!(warnings(&trusted, (0..50).map(|n| forwarded(proxy, &format!("9.9.9.9, {}", client(n))))), none);

    // A balancer that appends its own address, which is not in the list.
    let google = |n: u8| forwarded(proxy, &format!("{}, 34.120.5.6", client(n)));
    assert_one(&warnings(&trusted, (0..50).map(google)), ["one address", "your balancer's own"]);
    assert_eq!(warnings(&trusted, (0..50).map(google)), none, "once");

    // The same by a count of hops, after health checks.
    let by_hops = by(ClientIp::hops(1));
    let checks = warnings(&by(PeerIp), (0..2_000).map(|_| from_ip(Ipv4Addr::LOCALHOST)));
    assert_eq!(checks, none);
    assert_eq!(warnings(&by_hops, (0..50).map(google)), none, "once, whoever counts");

    // A proxy with a public address that is not in the list; before, clients that each forge one value.
    let by_peer = by(PeerIp);
    let forgers = (0..50).map(|n| forwarded(Ipv4Addr::new(192, 0, 2, n), "9.9.9.9"));
    assert_eq!(warnings(&by_peer, forgers), none);
    let other = by(ClientIp::behind(["10.0.0.0/8"]).unwrap());
    assert_one(
        &warnings(&other, (0..50).map(|n| forwarded(proxy, &client(n)))),
        ["X-Forwarded-For", "ClientIp::behind"],
    );
    assert_eq!(warnings(&by_peer, (0..50).map(|n| forwarded(proxy, &client(n)))), none, "once");

    // A layer around a router.
    let by_route = by(RouteTemplate);
    assert_one(
        &warnings(&by_route, (0..150).map(|_| Request::new(()))),
        ["no request so far has a route", "Router::layer"],
    );
    assert_eq!(warnings(&by_route, (0..50).map(|_| Request::new(()))), none, "once");

    // One limiter in two layers, whose policies say nothing to clients.
    let (silent, _clock) = limiter([Policy::global(MANY).advertise(Advertise::Nothing)]);
    let (other, _clock) = limiter([Policy::global(MANY).advertise(Advertise::Nothing)]);
    let passes = |outer: &Limiter, inner: &Limiter| {
        let service =
            service_fn(async |_request: Request<()>| Ok::<_, std::convert::Infallible>(Response::new(String::new())));
        let mut service = RateLimitLayer::new(outer).layer(RateLimitLayer::new(inner).layer(service));
        let text = events::Lines::default().collect(|| {
            for _ in 0..3 {
                drop(service.call(Request::new(())));
            }
        });
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(passes(&other, &silent), none, "two limiters");
    assert_one(&passes(&silent, &silent), ["two layers of one limiter", "remove the limiter"]);
    assert_eq!(passes(&silent, &silent), none, "once");
}
