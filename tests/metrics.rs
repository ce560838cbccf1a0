//! What the crate counts through `metrics`, as the exporter for Prometheus shows it.
#![cfg(feature = "metrics")]

mod support;

use std::{
    convert::Infallible,
    future::{pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use http::Request;
use metrics::{Counter, Gauge, Histogram, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::PrometheusBuilder;
use support::{admitted, from_ip, limiter, with_header};
use tower::{Layer as _, Service as _};
use tower_quota::{
    InFlightLayer, Limiter, Policy, Quota,
    key::{Header, PeerIp},
    policy::AtCap,
};

const FIVE: Quota = Quota::per_hour(5);

/// What is exported after `work`, without comments.
fn exported(work: impl FnOnce()) -> Vec<String> {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, work);
    let text = recorder.handle().render();
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect()
}

fn decisions(policy: &str, outcome: &str, mode: &str, count: u32) -> String {
    let labels = format!(r#"policy="{policy}",outcome="{outcome}",mode="{mode}",source="memory""#);
    format!("tower_quota_decisions_total{{{labels}}} {count}")
}

fn assert_has(lines: &[String], expected: &str) {
    assert!(lines.iter().any(|line| line == expected), "{expected} is not in\n{}", lines.join("\n"));
}

#[test]
fn each_decision_is_counted_once_for_each_policy_that_made_it() {
    // Made before the recorder is there, as a limiter in a constant would be.
    let (limiter, _clock) = limiter([
        Policy::per(Header::new("k"), FIVE).named("keys"),
        Policy::per(Header::new("k"), Quota::per_hour(2)).named("new").shadow(),
        Policy::global(Quota::per_hour(7)),
    ]);
    let lines = exported(|| {
        assert_eq!(admitted(&limiter, &with_header("k", "S3CR3T"), 9), 5);
        assert_eq!(admitted(&limiter, &with_header("k", "b"), 4), 2);
        assert_eq!(admitted(&limiter, &Request::new(()), 3), 0);
    });
    for (policy, outcome, mode, count) in [
        ("keys", "allowed", "enforced", 7),
        ("keys", "denied", "enforced", 4),
        ("keys", "missing_key", "enforced", 3),
        ("new", "allowed", "shadow", 4),
        ("new", "denied", "shadow", 3),
        ("global", "allowed", "enforced", 7),
        ("global", "denied", "enforced", 2),
    ] {
        assert_has(&lines, &decisions(policy, outcome, mode, count));
    }
    // The fifth of five, both seconds of two, the sixth and the seventh of seven.
    assert_has(&lines, r#"tower_quota_near_limit_total{policy="keys"} 1"#);
    assert_has(&lines, r#"tower_quota_near_limit_total{policy="new"} 2"#);
    assert_has(&lines, r#"tower_quota_near_limit_total{policy="global"} 2"#);
    // RSP07: few series, and no key in any.
    assert_eq!(lines.len(), 7 + 3, "{lines:#?}");
    assert!(!lines.concat().contains("S3CR3T"));
}

#[test]
fn the_short_way_of_a_lone_policy_is_counted_as_well() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, FIVE)]);
    let lines = exported(|| assert_eq!(admitted(&limiter, &from_ip([192, 0, 2, 1]), 12), 5));
    assert_has(&lines, &decisions("per-ip", "allowed", "enforced", 5));
    assert_has(&lines, &decisions("per-ip", "denied", "enforced", 7));
    assert_has(&lines, r#"tower_quota_near_limit_total{policy="per-ip"} 1"#);
    assert_eq!(lines.len(), 3, "{lines:#?}");
}

#[test]
fn keys_sweeps_and_a_full_map_are_seen() {
    let (limiter, clock) = limiter([Policy::per(PeerIp, FIVE).max_keys(2).at_cap(AtCap::Deny)]);
    let lines = exported(|| {
        for host in 1..=3 {
            let _ = admitted(&limiter, &from_ip([192, 0, 2, host]), 1);
        }
        clock.advance(Duration::from_secs(721));
        let _ = admitted(&limiter, &from_ip([192, 0, 2, 1]), 1);
        assert_eq!(limiter.sweep(), 1);
    });
    assert_has(&lines, r#"tower_quota_keys{policy="per-ip"} 1"#);
    assert_has(&lines, r#"tower_quota_sweeps_total{policy="per-ip"} 1"#);
    assert_has(&lines, r#"tower_quota_swept_keys_total{policy="per-ip"} 1"#);
    assert_has(&lines, r#"tower_quota_overflow_total{policy="per-ip"} 1"#);
    assert_has(&lines, &decisions("per-ip", "at_capacity", "enforced", 1));
    assert!(lines.iter().any(|line| line.starts_with("tower_quota_sweep_seconds")), "{lines:#?}");
}

#[test]
fn each_full_map_is_counted() {
    let full = |name: &'static str| Policy::per(PeerIp, FIVE).named(name).max_keys(1);
    let (limiter, _clock) = limiter([full("a"), full("b")]);
    let lines = exported(|| {
        for host in 1..=3 {
            let _ = admitted(&limiter, &from_ip([192, 0, 2, host]), 1);
        }
    });
    for policy in ["a", "b"] {
        assert_has(&lines, &format!(r#"tower_quota_overflow_total{{policy="{policy}"}} 2"#));
    }
}

#[test]
fn blocked_keys_are_distinguished_from_denied_ones() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, FIVE)]);
    limiter.block("per-ip", limiter.key(PeerIp.network([192, 0, 2, 1].into())), Duration::from_secs(60)).unwrap();
    let lines = exported(|| assert_eq!(admitted(&limiter, &from_ip([192, 0, 2, 1]), 3), 0));
    assert_has(&lines, &decisions("per-ip", "blocked", "enforced", 3));
}

#[test]
fn without_a_recorder_nothing_is_counted_and_nothing_breaks() {
    assert_eq!(admitted(&Limiter::new(Policy::per(PeerIp, FIVE)), &from_ip([192, 0, 2, 1]), 9), 5);
}

#[test]
fn requests_in_flight_are_gauged_and_the_time_of_each_is_recorded() {
    let lines = exported(|| {
        let layer = InFlightLayer::per(PeerIp, 2).named("downloads");
        let mut service = layer.layer(tower::service_fn(|_: Request<()>| {
            ready(Ok::<_, Infallible>(http::Response::new(http_body_util::Full::from("hello"))))
        }));
        let mut call = || service.call(from_ip([192, 0, 2, 1])).now_or_never().unwrap().unwrap();
        let (first, second, denied) = (call(), call(), call());
        assert_eq!(denied.status(), 429);
        drop(second);
        std::mem::forget(first);
        let shadow = InFlightLayer::global(1).shadow();
        let mut service =
            shadow.layer(tower::service_fn(|_: Request<()>| pending::<Result<http::Response<String>, Infallible>>()));
        let waiting: Vec<_> = (0..3).map(|_| service.call(Request::new(()))).collect();
        std::mem::forget(waiting);
        let queue = InFlightLayer::per(PeerIp, 1).named("reports").queue(Duration::from_secs(1), |_| pending::<()>());
        let mut service =
            queue.layer(tower::service_fn(|_: Request<()>| pending::<Result<http::Response<String>, Infallible>>()));
        let mut queued: Vec<_> = (0..3).map(|_| service.call(from_ip([192, 0, 2, 1]))).collect();
        queued.pop();
        std::mem::forget(queued);
    });
    for (policy, outcome, mode, count) in [
        ("downloads", "allowed", "enforced", 2),
        ("downloads", "denied", "enforced", 1),
        ("in-flight", "allowed", "shadow", 1),
        ("in-flight", "denied", "shadow", 2),
        ("reports", "allowed", "enforced", 1),
    ] {
        assert_has(&lines, &decisions(policy, outcome, mode, count));
    }
    for (policy, now) in [("downloads", 1), ("in-flight", 3), ("reports", 1)] {
        assert_has(&lines, &format!("tower_quota_in_flight{{policy=\"{policy}\"}} {now}"));
    }
    assert_has(&lines, "tower_quota_in_flight_waiting{policy=\"reports\"} 1");
    assert_has(&lines, "tower_quota_in_flight_seconds_count{policy=\"downloads\"} 1");
}

/// A recorder whose gauge of this name panics when it falls, or always.
struct Failing {
    gauge: &'static str,
    always: bool,
}

impl metrics::GaugeFn for Failing {
    fn increment(&self, _value: f64) {
        assert!(!self.always, "the recorder fails");
    }

    fn decrement(&self, _value: f64) {
        panic!("the recorder fails");
    }

    fn set(&self, _value: f64) {}
}

impl metrics::Recorder for Failing {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &metrics::Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &metrics::Key, _: &Metadata<'_>) -> Gauge {
        let Self { gauge, always } = *self;
        if key.name() == gauge { Gauge::from_arc(Arc::new(Self { gauge, always })) } else { Gauge::noop() }
    }

    fn register_histogram(&self, _: &metrics::Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// The number in flight after a request was served, and another one has waited and gone, where the recorder fails.
fn in_flight_after(recorder: &Failing) -> usize {
    let layer = InFlightLayer::global(1);
    metrics::with_local_recorder(recorder, || {
        let queue = layer.clone().queue(Duration::from_secs(1), |_| pending::<()>());
        let mut service = queue.layer(tower::service_fn(|_: Request<()>| {
            ready(Ok::<_, Infallible>(http::Response::new(http_body_util::Full::from("hello"))))
        }));
        let failing = |work: &mut dyn FnMut()| drop(catch_unwind(AssertUnwindSafe(work)));
        let (mut served, mut waits) = (None, None);
        failing(&mut || served = Some(service.call(Request::new(()))));
        failing(&mut || waits = Some(service.call(Request::new(()))));
        failing(&mut || drop(waits.take()));
        failing(&mut || drop(served.take()));
        assert_eq!(queue.waiting(), 0);
    });
    layer.total_in_flight()
}

#[test]
fn a_recorder_that_panics_loses_no_permit() {
    for gauge in ["tower_quota_in_flight", "tower_quota_in_flight_waiting"] {
        // If it panicked a second time on the way out, the process would abort.
        for always in [false, true] {
            assert_eq!(in_flight_after(&Failing { gauge, always }), 0, "{gauge}, always: {always}");
        }
    }
}
