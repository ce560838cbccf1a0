//! How often the layer allocates: not at all for an admitted request that is told nothing, and a few times where a field
//! or an answer is written. Counts, not times: they are the same on every machine.

mod support;

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use support::limiter;
use tower::{Service, ServiceBuilder};
use tower_quota::{
    InFlightLayer, Policy, Quota, RateLimitLayer,
    key::{ClientIp, Header, PeerIp},
    policy::Advertise,
};

#[derive(Clone)]
struct Inner;

impl Service<Request<()>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<()>) -> Self::Future {
        ready(Ok(Response::new(Full::default())))
    }
}

fn request() -> Request<()> {
    let mut request = support::from_ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    request.headers_mut().insert("x-forwarded-for", "203.0.113.7".parse().unwrap());
    request.headers_mut().insert("x-api-key", "k1".parse().unwrap());
    request
}

/// Allocations of one call, once the key and everything that is made once exist.
fn allocations(layer: &RateLimitLayer, status: u16) -> u64 {
    let mut service = ServiceBuilder::new().layer(layer).service(Inner);
    let mut call = |request: Request<()>| {
        let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("answers at once")
        };
        response
    };
    for _ in 0..3 {
        call(request());
    }
    let (request, mut seen) = (request(), 0);
    // The response is dropped inside, and nothing is allocated for that.
    let counted = allocation_counter::measure(|| seen = call(request).status().as_u16());
    assert_eq!(seen, status);
    counted.count_total
}

fn layer(policies: impl IntoIterator<Item = Policy>) -> RateLimitLayer {
    RateLimitLayer::new(&limiter(policies).0)
}

#[test]
fn an_allowed_request_without_fields_costs_no_allocation() {
    let many = Quota::per_second(1_000);
    let quiet = |policy: Policy| policy.advertise(Advertise::RetryAfter);
    let behind = ClientIp::behind(["10.0.0.0/8"]).unwrap();
    assert_eq!(allocations(&layer([quiet(Policy::per(PeerIp, many))]), 200), 0);
    assert_eq!(allocations(&layer([quiet(Policy::per(behind, many))]), 200), 0);
    assert_eq!(allocations(&layer([quiet(Policy::per((PeerIp, Header::new("x-api-key")), many))]), 200), 0);
    assert_eq!(allocations(&layer([Policy::global(many)]), 200), 0);
    let several = ["a", "b"].map(|name| quiet(Policy::per(PeerIp, many)).named(name));
    assert_eq!(allocations(&layer(several.into_iter().chain([Policy::global(many)])), 200), 0);
    assert_eq!(allocations(&layer([quiet(Policy::per(PeerIp, many)).shadow()]), 200), 0);
}

/// axum puts the body into a box of its own: that is the one allocation.
#[test]
fn p10_a_request_in_flight_costs_no_allocation() {
    assert_eq!(in_flight(&InFlightLayer::per(PeerIp, 9), request), 0);
    assert_eq!(in_flight(&InFlightLayer::global(9), request), 0);
    assert_eq!(in_flight(&InFlightLayer::per(Header::new("x-api-key"), 9), request), 0);
    // The permit, and the box that extensions put it into.
    assert_eq!(in_flight(&InFlightLayer::per(PeerIp, 9).permits(), request), 2);
}

/// Allocations of one call to the end of its body.
fn in_flight(layer: &InFlightLayer, request: impl Fn() -> Request<()>) -> u64 {
    let mut service = ServiceBuilder::new().layer(layer).service(Inner);
    let mut call = |request: Request<()>| {
        let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut Context::from_waker(Waker::noop()))
        else {
            panic!("answers at once")
        };
        assert_eq!(response.status(), 200);
        drop(response);
    };
    (0..3).for_each(|_| call(request()));
    let request = request();
    allocation_counter::measure(|| call(request)).count_total
}

#[test]
fn p4_both_fields_cost_three_allocations_in_an_empty_header_map() {
    assert_eq!(allocations(&layer([Policy::per(PeerIp, Quota::per_second(1_000))]), 200), 3);
}

#[test]
fn p5_a_complete_denial_costs_four_allocations() {
    // The header map's two, the body, and the field with the numbers.
    assert_eq!(allocations(&layer([Policy::per(PeerIp, Quota::per_minute(1))]), 429), 4);
    assert_eq!(allocations(&layer([Policy::global(Quota::per_minute(1))]), 429), 3);
    assert_eq!(allocations(&layer([Policy::global(Quota::per_minute(1))]).plain_text(), 429), 3);
}
