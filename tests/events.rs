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
use tracing_subscriber::filter::LevelFilter;

const ONE: Quota = Quota::per_hour(1);

#[test]
fn id08_a_missing_address_is_one_loud_line_that_says_what_to_call() {
    let text = events::Lines::default().collect(|| {
        let (limiter, _clock) = support::limiter([Policy::per(PeerIp, ONE)]);
        for _ in 0..10_000 {
            assert!(!limiter.decide(&Request::new(())).is_allowed());
        }
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("ERROR") && text.contains("into_make_service_with_connect_info"), "{text}");
}

#[test]
fn a_layer_that_is_missing_is_one_loud_line_that_names_what_it_puts_there() {
    #[derive(Clone)]
    struct Plan;
    let text = events::Lines::default().collect(|| {
        let policy = Policy::per(Header::new("k"), ONE).require::<Plan>();
        let (limiter, _clock) = support::limiter([policy]);
        for _ in 0..100 {
            assert_eq!(limiter.decide(&with_header("k", "a")).denied().unwrap().status(), 500);
        }
        let mut request = with_header("k", "a");
        request.extensions_mut().insert(Plan);
        assert!(limiter.decide(&request).is_allowed());
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("ERROR") && text.contains("::Plan`") && text.contains("outside of the rate limit"), "{text}");
}

/// Each day has keys of its own, and under a slow quota those of all days stay: seen on the first day, and not when the map
/// is full.
#[test]
fn dates_in_keys_of_slow_quotas_are_one_line_that_names_the_policies() {
    fn dated(head: tower_quota::key::RequestHead<'_>, key: &str, today: &str) -> Option<String> {
        let user = head.headers().get("k")?.to_str().ok()?;
        Some(match key {
            // One key, and accounts that were made on different days.
            "constant" => format!("key_{today}"),
            "accounts" => format!("{}-{:02}-{user}", &today[..7], 1 + user.parse::<u32>().ok()? % 28),
            key => format!("{user}{key}{today}"),
        })
    }

    let (now, days) = (jiff::Timestamp::now(), |days: u64| std::time::Duration::from_secs(86_400 * days));
    let said = |quota: Quota, key: &'static str| {
        let today = now.strftime("%Y-%m-%d").to_string();
        events::Lines::default().collect(|| {
            let by_day = Policy::per(key_fn(move |head| dated(head, key, &today)), quota).named("by-day");
            let (limiter, _clock) = support::limiter([by_day, Policy::per(Header::new("k"), ONE)]);
            for n in 0..100 {
                let _ = limiter.decide(&with_header("k", n.to_string()));
            }
        })
    };
    let slow = said(Quota::per(1_000, days(30)), "ann:");
    assert_eq!(slow.lines().count(), 1, "{slow}");
    assert!(slow.contains("WARN") && slow.contains("by-day") && slow.contains("leave the date out"), "{slow}");
    assert_eq!(said(Quota::per_hour(1_000), "ann:"), "", "they are gone before the next day");
    for other in [":1", "constant", "accounts"] {
        assert_eq!(said(Quota::per(1_000, days(30)), other), "", "{other}");
    }
}

#[test]
fn rsp02_a_flood_of_denials_logs_one_line_a_minute_and_each_denial_at_debug() {
    let flood = |seconds: u64| {
        let (limiter, clock) = support::limiter([Policy::per(Header::new("k"), ONE)]);
        for _ in 0..seconds {
            clock.advance(std::time::Duration::from_secs(1));
            for _ in 0..50 {
                let _ = limiter.decide(&with_header("k", "S3CR3T"));
            }
        }
        let _ = (limiter.decide(&with_header("k", "other")), limiter.decide(&with_header("k", "other")));
    };
    let text = events::Lines::default().collect(|| flood(100));
    assert_eq!(text.lines().filter(|line| line.contains("INFO")).count(), 2, "{text}");
    let text = events::Lines::default().collect_from(LevelFilter::DEBUG, || flood(2));
    let keys: Vec<&str> = text.lines().map(|line| line.split("key=\"").nth(1).unwrap()).collect();
    assert_eq!(keys.len(), 2 * 50 - 1 + 1);
    assert!(keys[..99].iter().all(|key| *key == keys[0]), "one client is one hash");
    assert_ne!(keys[99], keys[0]);
    assert!(!text.contains("S3CR3T") && text.contains("per-k") && text.contains("Exceeded"), "{text}");
    // Nobody listens.
    flood(1);
}

#[test]
fn rejections_for_a_missing_header_are_not_logged_at_this_level() {
    let text = events::Lines::default().collect(|| {
        let (limiter, _clock) = support::limiter([Policy::global(ONE), Policy::per(Header::new("k"), ONE)]);
        for _ in 0..10_000 {
            let _ = limiter.decide(&Request::new(()));
        }
    });
    assert_eq!(text, "");
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
    assert!(!text.contains("per-ip-2"), "it has its name to itself: {text}");
}
