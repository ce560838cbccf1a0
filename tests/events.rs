//! What the crate says of itself through `tracing`. A file of its own: what else runs in the process may not say the same.
#![cfg(feature = "tracing")]

#[path = "support/events.rs"]
mod events;
mod support;

use std::{convert::Infallible, future::ready};

use http::{Request, Response};
use support::with_header;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_quota::{
    Policy, Quota, RateLimitLayer,
    key::{Header, PeerIp, key_fn},
};

const ONE: Quota = Quota::per_hour(1);

#[test]
fn id08_a_missing_address_is_one_loud_line_that_says_what_to_call() {
    let text = events::Lines::default().collect(|| {
        let (limiter, _clock) = support::limiter([Policy::per(PeerIp, ONE)]);
        for _ in 0..10_000 {
            assert!(!limiter.decide(&Request::new(())).is_allowed());
        }
        // RSP02: refusals of clients are no lines at this level at all.
        let (limiter, _clock) = support::limiter([Policy::global(ONE), Policy::per(Header::new("k"), ONE)]);
        for _ in 0..10_000 {
            let _ = limiter.decide(&Request::new(()));
            let _ = limiter.decide(&with_header("k", "S3CR3T"));
        }
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("ERROR") && text.contains("into_make_service_with_connect_info"), "{text}");
}

#[test]
fn c_rl2_one_name_in_two_layers_is_reported() {
    let layer = |name: &'static str| {
        let (limiter, _clock) =
            support::limiter([Policy::per(key_fn(|_head| Some(0_u64)), Quota::per_hour(100)).named(name)]);
        RateLimitLayer::new(&limiter)
    };
    let text = events::Lines::default().collect(|| {
        let (inner, outer, other) = (layer("per-ip"), layer("per-ip"), layer("per-ip-2"));
        let served = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::new()))));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(other.layer(inner.layer(served)).oneshot(Request::new(()))).unwrap();
        for _ in 0..3 {
            let response = runtime.block_on(outer.layer(inner.layer(served)).oneshot(Request::new(()))).unwrap();
            let told = response.headers().get_all("ratelimit").iter().map(|value| value.to_str().unwrap());
            assert_eq!(told.flat_map(|line| line.split(", ")).count(), 2, "nothing is lost");
        }
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("two layers") && text.contains("per-ip") && text.contains("named"), "{text}");
}
