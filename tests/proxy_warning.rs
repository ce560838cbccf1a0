//! The one warning of a proxy that nobody has named. A file of its own, for it is said once in a process.
#![cfg(feature = "tracing")]

#[path = "support/events.rs"]
mod events;
mod support;

use std::net::Ipv4Addr;

use support::{admits, from_ip, limiter};
use tower_quota::{
    Policy, Quota,
    key::{ClientIp, PeerIp},
};

#[test]
fn a_private_peer_that_forwards_unread_is_reported_once_with_a_remedy() {
    let quota = Quota::per_second(10);
    let lines = events::Lines::default();
    let text = lines.collect(|| {
        let forwarded = |mut request: http::Request<()>| {
            request.headers_mut().insert("x-forwarded-for", "203.0.113.7".parse().unwrap());
            request
        };
        let proxy = Ipv4Addr::new(10, 0, 0, 1);
        let (by_peer, _clock) = limiter([Policy::per(PeerIp, quota)]);
        let (trusted, _clock) = limiter([Policy::per(ClientIp::behind(["10.0.0.0/8"]).unwrap(), quota)]);
        let (unlisted, _clock) = limiter([Policy::per(ClientIp::behind(["10.9.0.0/16"]).unwrap(), quota)]);

        // Nothing to say: a private peer that forwards nothing, a public one that does, a trusted one.
        assert!(admits(&by_peer, &from_ip(proxy)));
        assert!(admits(&by_peer, &forwarded(from_ip(Ipv4Addr::new(198, 51, 100, 7)))));
        assert!(admits(&trusted, &forwarded(from_ip(proxy))));
        assert_eq!(lines.text(), "");

        for _ in 0..3 {
            assert!(admits(&unlisted, &forwarded(from_ip(proxy))));
            assert!(admits(&by_peer, &forwarded(from_ip(proxy))));
        }
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("WARN") && text.contains("ClientIp::behind"), "{text}");
    assert!(!text.contains("10.0.0.1") && !text.contains("203.0.113.7"), "no address in an event: {text}");
}
