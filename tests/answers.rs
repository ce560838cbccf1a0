//! What clients are advertised: the fields of the policies, the problem, the status of a gRPC call. The ids in the names are those
//! of the project's list of conformance tests.

mod support;

use std::{
    convert::Infallible,
    future::ready,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full, StreamBody};
use proptest::prelude::*;
use sfv::{BareItem, FieldType as _, Item, List, ListEntry, Parser};
use support::with_header;
use tower::{Layer as _, Service as _, service_fn};
use tower_quota::{
    Denied, Limiter, Policy, Quota, RateLimitLayer,
    clock::ManualClock,
    headers::{Draft, Reset},
    key::{Header, RequestHead, key_fn},
    limiter::ConfigErrorKind,
    policy::{Advertise, AtCap, Ban, Missing},
    response::{Respond, Standard},
};

/// T = 2 s.
const FIVE: Quota = Quota::per(5, Duration::from_secs(10));

/// Every request has this key.
fn everyone(quota: Quota) -> Policy {
    Policy::per(key_fn(|_head| Some(0_u64)), quota).named("per-ip")
}

fn on_manual_clock(policies: impl IntoIterator<Item = Policy>) -> (RateLimitLayer, ManualClock) {
    let (limiter, clock) = support::limiter(policies);
    (RateLimitLayer::new(&limiter), clock)
}

/// The answer of a service behind `layer` that sends `fields` itself.
fn ask_of<R>(layer: &RateLimitLayer<Limiter, R>, request: Request<()>, fields: &HeaderMap) -> Response<R::Body>
where
    R: Respond<String> + Clone,
{
    let mut response = Response::new(String::from("served"));
    *response.headers_mut() = fields.clone();
    let mut service = layer.layer(service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(response.clone()))));
    let future = service.call(request);
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future).unwrap()
}

fn ask<R>(layer: &RateLimitLayer<Limiter, R>) -> Response<R::Body>
where
    R: Respond<String> + Clone,
{
    ask_of(layer, Request::new(()), &HeaderMap::new())
}

/// The lines of a field, joined as one list is.
fn field<B>(response: &Response<B>, name: &str) -> Option<String> {
    let lines: Vec<&str> = response.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    if lines.is_empty() { None } else { Some(lines.join(", ")) }
}

fn list(text: &str) -> List {
    Parser::new(text).parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// Name and parameters of each item of a list. All of them are numbers, but for the unit.
fn items(text: &str) -> Vec<(String, Vec<(String, i64)>)> {
    let item = |entry: &ListEntry| {
        let ListEntry::Item(Item { bare_item: BareItem::String(name), params }) = entry else {
            panic!("{entry:?} is no string")
        };
        let integer = |value: &BareItem| i64::from(value.as_integer().expect("an integer"));
        let numbers = params.iter().filter(|(key, value)| key.as_str() != "qu" || value.as_string().is_none());
        (name.as_str().to_owned(), numbers.map(|(key, value)| (key.to_string(), integer(value))).collect())
    };
    list(text).iter().map(item).collect()
}

fn param(item: &(String, Vec<(String, i64)>), key: &str) -> Option<i64> {
    item.1.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
}

/// Clients take a cell for a request, unless `qu` says what it is.
#[test]
fn c_rl4_a_cell_that_is_no_request_has_a_unit() {
    let tokens = || everyone(FIVE).named("tokens").cost_by(|_| 2);
    for (policy, expected) in [
        (everyone(FIVE), r#""per-ip";q=5;w=10"#),
        (tokens(), r#""tokens";q=5;qu="cells";w=10"#),
        (tokens().unit("tokens"), r#""tokens";q=5;qu="tokens";w=10"#),
        (everyone(FIVE).unit(r#"a "b" \c"#), r#""per-ip";q=5;qu="a \"b\" \\c";w=10"#),
    ] {
        let (layer, _clock) = on_manual_clock([policy]);
        let allowed = ask(&layer);
        let policies = field(&allowed, "ratelimit-policy").unwrap();
        assert_eq!(policies, expected);
        assert_eq!(list(&policies).len(), 1, "as an independent parser reads it");
        // The other field counts what the first one names.
        assert!(!field(&allowed, "ratelimit").unwrap().contains("qu"));
        // A draft that knows no units.
        let (layer, _clock) = on_manual_clock([tokens().unit("tokens")]);
        assert_eq!(field(&ask(&layer.draft(Draft::V7)), "ratelimit-policy").unwrap(), "5;w=10");
    }
    // A denial, also with a quota of the request's own.
    let (layer, _clock) = on_manual_clock([tokens().unit("tokens").quota_by(|_| Some(Quota::per_second(1)))]);
    let denied = ask(&layer);
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(field(&denied, "ratelimit-policy").unwrap(), r#""tokens";q=1;qu="tokens";w=1"#);
    for wrong in ["", "caf\u{e9}", &"x".repeat(65)] {
        let error = Limiter::builder().policy(tokens().unit(wrong)).build().unwrap_err();
        assert_eq!(error.kind(), ConfigErrorKind::Unit, "{error}");
    }
}

#[test]
fn the_worked_exchanges() {
    let (layer, clock) = on_manual_clock([everyone(FIVE)]);
    let allowed = ask(&layer);
    assert_eq!(allowed.status(), StatusCode::OK);
    assert_eq!(field(&allowed, "ratelimit-policy").unwrap(), r#""per-ip";q=5;w=10"#);
    assert_eq!(field(&allowed, "ratelimit").unwrap(), r#""per-ip";r=4;t=2"#);
    for _ in 0..4 {
        ask(&layer);
    }
    clock.advance(Duration::from_millis(500));
    let denied = ask(&layer);
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    let fields = ["content-type", "cache-control", "retry-after", "ratelimit-policy", "ratelimit"];
    let values = fields.map(|name| field(&denied, name).unwrap());
    let expected = ["application/problem+json", "no-store", "2", r#""per-ip";q=5;w=10"#, r#""per-ip";r=0;t=2"#];
    assert_eq!(values, expected);
    assert_eq!(denied.headers().len(), fields.len(), "and nothing else");
    assert_eq!(
        denied.body().trim_end(),
        "{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\"title\":\"Quota Exceeded\",\
         \"status\":429,\"detail\":\"Too many requests for the policy \\\"per-ip\\\". Retry in 2 s.\",\
         \"violated-policies\":[\"per-ip\"]}"
    );
}

#[test]
fn a_window_is_in_whole_seconds_and_never_tells_more_than_the_rate() {
    let advertised = |quota: &str| {
        let (layer, _clock) = on_manual_clock([everyone(quota.parse().unwrap())]);
        field(&ask(&layer), "ratelimit-policy").unwrap().split_once(';').unwrap().1.to_owned()
    };
    let table = [
        ("100/60s, burst 100", "q=100;w=60"),
        ("100/s, burst 10", "q=100;w=1"),
        ("1/s, burst 60", "q=60;w=60"),
        ("10/s, burst 15", "q=20;w=2"),
        ("1000/h, burst 100", "q=100;w=360"),
        ("3/s", "q=3;w=1"),
        ("1/d", "q=1;w=86400"),
        ("1000000000/s, burst 4294967295", "q=5000000000;w=5"),
    ];
    for (quota, expected) in table {
        assert_eq!(advertised(quota), expected, "{quota}");
    }
}

#[test]
fn nothing_owed_means_no_time_to_wait_for() {
    let (layer, _clock) = on_manual_clock([everyone(FIVE).cost_by(|_| 0)]);
    assert_eq!(field(&ask(&layer), "ratelimit").unwrap(), r#""per-ip";r=5"#);
}

fn several() -> (RateLimitLayer, ManualClock) {
    on_manual_clock([
        everyone(Quota::per_second(10)).named("burst"),
        everyone(Quota::per(2, Duration::from_secs(86_400))).named("day"),
        Policy::global(Quota::per_second(1_000)),
    ])
}

#[test]
fn several_policies_are_advertised_each_with_its_own_numbers_and_the_global_one_is_not() {
    let (layer, _clock) = several();
    let allowed = ask(&layer);
    assert_eq!(field(&allowed, "ratelimit-policy").unwrap(), r#""burst";q=10;w=1, "day";q=2;w=86400"#);
    assert_eq!(field(&allowed, "ratelimit").unwrap(), r#""burst";r=9;t=1, "day";r=1;t=43200"#);
    ask(&layer);
    let denied = ask(&layer);
    assert_eq!(field(&denied, "ratelimit-policy").unwrap(), r#""burst";q=10;w=1, "day";q=2;w=86400"#);
    assert_eq!(field(&denied, "ratelimit").unwrap(), r#""day";r=0;t=43200"#, "those that denied");
    assert_eq!(field(&denied, "retry-after").unwrap(), "43200");
}

#[test]
fn a_quota_of_the_requests_own_and_a_policy_that_does_not_apply_change_the_policy_field() {
    let policies = || {
        [
            everyone(FIVE).quota_by(|head| head.headers().get("x-pro").map(|_| Quota::per_second(100))),
            everyone(FIVE).named("writes").when(|head| head.method() == Method::POST),
        ]
    };
    let (layer, _clock) = on_manual_clock(policies());
    let read = ask(&layer);
    assert_eq!(field(&read, "ratelimit-policy").unwrap(), r#""per-ip";q=5;w=10"#);
    assert_eq!(field(&read, "ratelimit").unwrap(), r#""per-ip";r=4;t=2"#);
    let mut request = with_header("x-pro", "1");
    *request.method_mut() = Method::POST;
    let (layer, _clock) = on_manual_clock(policies());
    let write = ask_of(&layer, request, &HeaderMap::new());
    assert_eq!(field(&write, "ratelimit-policy").unwrap(), r#""per-ip";q=100;w=1, "writes";q=5;w=10"#);
    assert_eq!(field(&write, "ratelimit").unwrap(), r#""per-ip";r=99;t=1, "writes";r=4;t=2"#);
    let (layer, _clock) = on_manual_clock([everyone(FIVE).when(|_| false)]);
    assert!(ask(&layer).headers().is_empty(), "no policy, no field");
}

#[test]
fn a_lone_policy_tells_the_quota_of_the_request_also_when_it_denies() {
    let (layer, _clock) = on_manual_clock([everyone(FIVE).quota_by(|_head| Some(Quota::per_minute(1)))]);
    for _allowed_then_denied in 0..2 {
        assert_eq!(field(&ask(&layer), "ratelimit-policy").unwrap(), r#""per-ip";q=1;w=60"#);
    }
}

#[test]
fn a_rate_that_nanoseconds_do_not_divide_is_advertised_as_it_is_granted() {
    let advertised = |quota| field(&ask(&on_manual_clock([everyone(quota)]).0), "ratelimit-policy").unwrap();
    assert_eq!(advertised(Quota::per_second(700_000_000).burst(1)), r#""per-ip";q=500000000;w=1"#);
    assert_eq!(advertised(Quota::per_second(3)), r#""per-ip";q=3;w=1"#);
    assert_eq!(advertised(Quota::per_second(3).burst(1)), r#""per-ip";q=2;w=1"#);
}

#[test]
fn fields_of_any_length_are_complete() {
    let name = |n: usize| format!("{n}{}", "n".repeat(63));
    let (layer, _clock) = on_manual_clock((0..6).map(|n| everyone(FIVE).named(name(n))));
    for field_name in ["ratelimit", "ratelimit-policy"] {
        let advertised = items(&field(&ask(&layer), field_name).unwrap());
        assert!(advertised.iter().map(|(name, _)| name).cloned().eq((0..6).map(name)), "{advertised:?}");
    }
}

/// The names of the fields before a policy denies and when it does, and the body then.
fn advertised(advertise: Advertise) -> (String, String, String) {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1)).advertise(advertise)]);
    let names = |response: &Response<String>| {
        let names: Vec<&str> = response.headers().keys().map(http::HeaderName::as_str).collect();
        names.join(" ")
    };
    let (allowed, denied) = (ask(&layer), ask(&layer));
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(allowed.body(), "served");
    (names(&allowed), names(&denied), denied.into_body())
}

#[test]
fn rsp04_a_policy_tells_no_more_than_it_advertises() {
    const FIELDS: &str = "ratelimit-policy ratelimit";
    const BARE: &str = "content-type cache-control";
    let (allowed, denied, _) = advertised(Advertise::Everything);
    assert_eq!((allowed.as_str(), denied), (FIELDS, format!("{BARE} retry-after {FIELDS}")));
    let (allowed, denied, body) = advertised(Advertise::OnDenial);
    assert_eq!((allowed.as_str(), denied), ("", format!("{BARE} retry-after {FIELDS}")));
    assert!(body.contains("per-ip"));
    let (allowed, denied, body) = advertised(Advertise::RetryAfter);
    assert_eq!((allowed.as_str(), denied), ("", format!("{BARE} retry-after")));
    assert!(body.contains("Retry in 3600 s.") && !body.contains("per-ip") && !body.contains("violated"), "{body}");
    let (allowed, denied, body) = advertised(Advertise::Nothing);
    assert_eq!((allowed.as_str(), denied.as_str()), ("", BARE));
    assert!(!body.contains("3600") && !body.contains("per-ip"), "{body}");
}

/// In every protocol and for every reason, a policy that is not to be named is not, and a silent one tells one thing only.
#[test]
fn rsp04_nothing_leaks_in_any_form_or_for_any_reason() {
    let hidden = |advertise| {
        let secret = |policy: Policy| policy.named("secret").advertise(advertise);
        let full = Policy::per(Header::new("k"), FIVE).max_keys(1).at_cap(AtCap::Deny);
        [
            secret(everyone(Quota::per_second(300).burst(1))),
            secret(everyone(FIVE).cost_by(|_| 6)),
            secret(full),
            secret(Policy::per(Header::new("missing"), FIVE)),
        ]
    };
    for advertise in [Advertise::RetryAfter, Advertise::Nothing] {
        for (index, policy) in hidden(advertise).into_iter().enumerate() {
            let (layer, _clock) = on_manual_clock([policy]);
            let ask = |layer: &RateLimitLayer, key: &str, grpc: bool| {
                let mut request = with_header("k", key);
                if grpc {
                    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                    (*request.method_mut(), *request.version_mut()) = (Method::POST, Version::HTTP_2);
                }
                let response = ask_of(layer, request, &HeaderMap::new());
                format!("{:?} {}", response.headers(), response.body())
            };
            ask(&layer, "first", false);
            let legacy = layer.clone().legacy(Reset::DeltaSeconds);
            for (layer, grpc) in
                [(&layer, false), (&layer.clone().plain_text(), false), (&legacy, false), (&layer, true)]
            {
                let said = ask(layer, "second", grpc);
                assert!(!said.contains("secret") && !said.to_lowercase().contains("ratelimit"), "{index} {said}");
                if advertise == Advertise::Nothing && index < 3 {
                    assert!(said.contains("Too many requests."), "{index} {said}");
                    assert!(!said.contains("retry") && !said.contains("Retry"), "{index} {said}");
                } else if grpc && index == 0 {
                    assert!(said.contains("\"grpc-retry-pushback-ms\": \"1000\""), "not the period of a cell: {said}");
                }
            }
        }
    }
}

#[test]
fn the_message_names_the_policy_of_its_reason() {
    let said = |first: Policy, second: Policy| {
        let (limiter, _clock) = support::limiter([first.named("first"), second.named("second")]);
        let request = with_header("k", "1");
        let _ = limiter.decide(&request);
        limiter.decide(&with_header("k", "2")).denied().unwrap().to_string()
    };
    let once = || everyone(Quota::per_second(1));
    let never = everyone(FIVE).cost_by(|head| if head.headers()["k"] == "2" { 6 } else { 1 });
    assert!(said(once(), never).contains("allowed at once by the policy \"second\". Waiting"));
    let full = Policy::per(Header::new("k"), FIVE).max_keys(1).at_cap(AtCap::Deny);
    assert!(said(once(), full).contains("accepted now by the policy \"second\"."));
    let hour = || everyone(Quota::per_hour(1));
    assert!(said(once(), hour()).contains("for the policy \"second\". Retry in 3600 s."));
    assert_eq!(said(once(), hour().advertise(Advertise::RetryAfter)), "Too many requests. Retry in 3600 s.");
}

#[test]
fn a_custom_responder_gets_the_request() {
    #[derive(Clone)]
    struct Teapot;
    impl Respond<String> for Teapot {
        type Body = String;
        fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<String> {
            let advertised: Vec<_> = denied.advertised_policies().collect();
            let mut response = Response::new(format!("{} {advertised:?}", head.method()));
            response.headers_mut().insert("ratelimit", HeaderValue::from_static("\"own\";r=1"));
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            response
        }
    }
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1))]);
    let layer = layer.responder(Teapot);
    ask(&layer);
    let denial = ask(&layer);
    assert_eq!((denial.status(), denial.body().as_str()), (StatusCode::IM_A_TEAPOT, "GET [\"per-ip\"]"));
    assert_eq!(field(&denial, "ratelimit").unwrap(), "\"own\";r=1", "and not ours beside it");
}

#[test]
fn draft_7_has_one_dictionary_and_leaves_that_of_the_service_behind() {
    let mut fields = HeaderMap::new();
    fields.append("ratelimit", HeaderValue::from_static("limit=2, remaining=1, reset=1"));
    fields.append("x-ratelimit-remaining", HeaderValue::from_static("1"));
    let (layer, _clock) = on_manual_clock([everyone(FIVE)]);
    let layer = layer.draft(Draft::V7).legacy(Reset::DeltaSeconds);
    assert_eq!(ask_of(&layer, Request::new(()), &fields).headers(), &fields);
}

#[test]
fn a_policy_in_shadow_mode_is_not_advertised() {
    let (layer, _clock) =
        on_manual_clock([everyone(Quota::per_hour(1)).named("shadow").shadow(), everyone(Quota::per_hour(2))]);
    let [served, short, denied] = [ask(&layer), ask(&layer), ask(&layer)];
    assert_eq!(field(&served, "ratelimit").unwrap(), r#""per-ip";r=1;t=1800"#);
    assert_eq!(field(&short, "ratelimit").unwrap(), r#""per-ip";r=0;t=1800"#);
    assert_eq!(field(&short, "ratelimit-policy").unwrap(), r#""per-ip";q=2;w=3600"#);
    assert_eq!(field(&denied, "ratelimit").unwrap(), r#""per-ip";r=0;t=1800"#);
    assert!(!denied.body().contains("shadow"), "{}", denied.body());
}

#[test]
fn a_silent_policy_keeps_the_wait_of_the_others_back_when_it_denies() {
    let policies =
        |silent: Quota| [everyone(Quota::per_second(1)), everyone(silent).named("login").advertise(Advertise::Nothing)];
    let (layer, _clock) = on_manual_clock(policies(Quota::per_hour(1)));
    ask(&layer);
    let both = ask(&layer);
    assert_eq!(field(&both, "retry-after"), None, "one second would not be true");
    assert_eq!(field(&both, "ratelimit").unwrap(), r#""per-ip";r=0;t=1"#);
    assert!(!both.body().contains("login"), "{}", both.body());
    let (layer, _clock) = on_manual_clock(policies(Quota::per_hour(100)));
    ask(&layer);
    assert_eq!(field(&ask(&layer), "retry-after").unwrap(), "1");
}

#[test]
fn c_sf2_a_name_with_quotes_and_backslashes_is_escaped() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1)).named(r#"a"b\c, "d";r=9"#)]);
    let allowed = ask(&layer);
    assert_eq!(field(&allowed, "ratelimit").unwrap(), r#""a\"b\\c, \"d\";r=9";r=0;t=3600"#);
    assert_eq!(items(&field(&allowed, "ratelimit").unwrap())[0].0, r#"a"b\c, "d";r=9"#);
    let problem: serde_json::Value = serde_json::from_str(ask(&layer).body()).unwrap();
    assert_eq!(problem["violated-policies"], serde_json::json!([r#"a"b\c, "d";r=9"#]));
}

/// The lines that other implementations write, also broken ones: what the service behind has sent is its own affair.
#[test]
fn c_sf4_whatever_the_service_behind_has_sent_survives() {
    let sent = [
        r#""burst";q=100;w=60,"daily";q=1000;w=86400"#,
        r#""a"; r=1; t=2"#,
        r#""x";r=0;r=5"#,
        r#""a\"b\\c";q=1"#,
        "default;r=1",
        r#""x";q=999999999999999"#,
        r#""u";r=1;pk=:cHsdsRa894==:"#,
        r#""a" ;r=1"#,
        r#""a";q=1,"#,
        r#""a;q=1"#,
    ];
    for line in sent {
        let mut fields = HeaderMap::new();
        fields.append("ratelimit", HeaderValue::from_static(line));
        let (layer, _clock) = on_manual_clock([everyone(FIVE)]);
        let response = ask_of(&layer, Request::new(()), &fields);
        let lines: Vec<_> = response.headers().get_all("ratelimit").iter().collect();
        assert_eq!(lines, [line, r#""per-ip";r=4;t=2"#]);
    }
}

#[test]
fn c_rl2_items_of_the_service_behind_stay_and_ours_follow() {
    let mut fields = HeaderMap::new();
    fields.append("ratelimit-policy", HeaderValue::from_static(r#""upstream";q=9;w=1"#));
    fields.append("ratelimit", HeaderValue::from_static(r#""upstream";r=3;t=1"#));
    fields.append("x-ratelimit-limit", HeaderValue::from_static("9"));
    let (layer, _clock) = on_manual_clock([everyone(FIVE)]);
    let response = ask_of(&layer.legacy(Reset::DeltaSeconds), Request::new(()), &fields);
    assert_eq!(field(&response, "ratelimit-policy").unwrap(), r#""upstream";q=9;w=1, "per-ip";q=5;w=10"#);
    assert_eq!(field(&response, "ratelimit").unwrap(), r#""upstream";r=3;t=1, "per-ip";r=4;t=2"#);
    assert_eq!(field(&response, "x-ratelimit-limit").unwrap(), "9", "a field with one value is its own");
    assert_eq!(field(&response, "x-ratelimit-remaining"), None);
}

#[test]
fn c_rl1_fields_are_never_in_trailers() {
    let (layer, _clock) = on_manual_clock([everyone(FIVE)]);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("7"));
    let body = move || {
        let frames = [Frame::data(Bytes::from_static(b"served")), Frame::trailers(trailers.clone())];
        StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)))
    };
    let mut service =
        layer.any_body().layer(service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(body())))));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let response = runtime.block_on(service.call(Request::new(()))).unwrap();
    assert!(response.headers().contains_key("ratelimit"));
    let collected = runtime.block_on(response.into_body().collect()).unwrap();
    let names: Vec<_> = collected.trailers().unwrap().keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["x-checksum"]);
}

#[test]
fn c_ra2_what_can_never_succeed_gets_no_retry_after_and_says_so() {
    let (layer, _clock) = on_manual_clock([everyone(FIVE).cost_by(|_| 6)]);
    let denial = ask(&layer);
    assert_eq!((denial.status().as_u16(), field(&denial, "retry-after")), (429, None));
    let problem: serde_json::Value = serde_json::from_str(denial.body()).unwrap();
    assert_eq!(
        problem["detail"],
        "The request costs more than is ever allowed at once by the policy \"per-ip\". Waiting does not help."
    );
    let grpc = grpc(&layer, "application/grpc");
    assert_eq!(field(&grpc, "grpc-retry-pushback-ms").unwrap(), "-1");
    assert_eq!(field(&grpc, "grpc-status-details-bin"), None);
}

#[test]
fn c_ra3_jitter_only_ever_lengthens() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_minute(1))]);
    let layer = layer.jitter(Duration::from_secs(9));
    ask(&layer);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2_000 {
        let denial = ask(&layer);
        let seconds: u64 = field(&denial, "retry-after").unwrap().parse().unwrap();
        assert!(denial.body().contains(&format!("Retry in {seconds} s.")), "one number everywhere");
        seen.insert(seconds);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), (60..=69).collect::<Vec<_>>());
}

#[test]
fn c_429_a_denial_is_a_problem_that_no_cache_stores() {
    let missing = |missing| {
        let policy = Policy::per(Header::new("x-api-key"), FIVE).on_missing(Missing::Reject(missing));
        ask(&on_manual_clock([policy]).0)
    };
    let (spent, _clock) = on_manual_clock([everyone(Quota::per_hour(1))]);
    ask(&spent);
    let (full, _clock) = on_manual_clock([Policy::per(Header::new("k"), FIVE).max_keys(1).at_cap(AtCap::Deny)]);
    ask_of(&full, with_header("k", "1"), &HeaderMap::new());
    let full = ask_of(&full, with_header("k", "2"), &HeaderMap::new());
    let answers = [
        (ask(&spent), "Quota Exceeded"),
        (full, "Too Many Requests"),
        (missing(StatusCode::UNAUTHORIZED), "Unauthorized"),
        (missing(StatusCode::INTERNAL_SERVER_ERROR), "Internal Server Error"),
    ];
    for (answer, title) in answers {
        assert_eq!(field(&answer, "content-type").unwrap(), "application/problem+json");
        assert_eq!(field(&answer, "cache-control").unwrap(), "no-store");
        let problem: serde_json::Value = serde_json::from_str(answer.body()).unwrap();
        assert_eq!(problem["status"], answer.status().as_u16(), "the status line's");
        assert_eq!(problem["title"], title);
        assert!(problem["detail"].as_str().unwrap().ends_with('.'));
    }
}

#[test]
fn plain_text_is_one_word_away() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1))]);
    let layer = layer.plain_text();
    ask(&layer);
    let denial = ask(&layer);
    assert_eq!(field(&denial, "content-type").unwrap(), "text/plain; charset=utf-8");
    assert_eq!(denial.body(), "Too many requests for the policy \"per-ip\". Retry in 3600 s.\n");
    assert_eq!(field(&denial, "ratelimit").unwrap(), r#""per-ip";r=0;t=3600"#);
}

#[test]
fn an_answer_of_ones_own_is_completed_and_never_overwritten() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1))]);
    let own = layer.clone().respond_with(|denied| {
        let mut response = Response::new(denied.to_string());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert("retry-after", HeaderValue::from_static("7"));
        response
    });
    ask(&own);
    let denial = ask(&own);
    assert_eq!(denial.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(field(&denial, "retry-after").unwrap(), "7");
    assert_eq!(field(&denial, "cache-control").unwrap(), "no-store");
    assert_eq!(field(&denial, "ratelimit").unwrap(), r#""per-ip";r=0;t=3600"#);
    let by_request = layer
        .respond_to(|head, denied| Response::new(format!("{} {}", head.uri().path(), denied.retry_after().unwrap())));
    assert_eq!(ask(&by_request).body(), "/ 3600");
}

#[test]
fn draft_7_and_the_legacy_fields_tell_of_the_policy_that_is_nearest_to_its_end() {
    let (layer, clock) = several();
    let layer = layer.draft(Draft::V7).legacy(Reset::DeltaSeconds);
    clock.advance(Duration::from_secs(1));
    let advertised = |response: &Response<String>| {
        ["ratelimit-policy", "ratelimit", "x-ratelimit-limit", "x-ratelimit-remaining"]
            .map(|name| field(response, name).unwrap())
    };
    let expected = |left: &str, reset| {
        ["10;w=1, 2;w=86400", &format!("limit=2, remaining={left}, reset={reset}"), "2", left].map(str::to_owned)
    };
    assert_eq!(advertised(&ask(&layer)), expected("1", "43200"));
    assert_eq!(advertised(&ask(&layer)), expected("0", "86400"));
    let denied = ask(&layer);
    assert_eq!(advertised(&denied), expected("0", "43200"), "when to come back");
    assert_eq!(field(&denied, "retry-after").unwrap(), "43200");
    // The one to wait for longest, of several that deny; what no wait helps against, before all.
    let worst = |first: Policy, second: Policy| {
        let (layer, _clock) = on_manual_clock([first, second]);
        let layer = layer.legacy(Reset::DeltaSeconds);
        ask(&layer);
        field(&ask(&layer), "x-ratelimit-limit").unwrap()
    };
    let (slow, fast) = (Quota::per_hour(2), Quota::per_second(3));
    let both = |quota| everyone(quota).cost_by(move |_| quota.burst_size());
    assert_eq!(worst(both(slow), both(fast).named("b")), "2");
    assert_eq!(worst(both(fast), both(slow).named("b")), "2");
}

#[test]
fn the_nearest_to_its_end_is_the_one_with_the_smallest_share_left_in_any_order() {
    let half = || everyone(Quota::per_hour(100)).named("half").cost_by(|_head| 50);
    let nearly_full = || everyone(Quota::per_hour(10)).named("nearly-full");
    for policies in [[half(), nearly_full()], [nearly_full(), half()]] {
        let response = ask(&on_manual_clock(policies).0.legacy(Reset::DeltaSeconds));
        let advertised = ["x-ratelimit-limit", "x-ratelimit-remaining"].map(|name| field(&response, name).unwrap());
        assert_eq!(advertised, ["100", "50"]);
    }
}

#[test]
fn a_legacy_reset_in_epoch_seconds_is_a_date() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1))]);
    let response = ask(&layer.legacy(Reset::EpochSeconds));
    let reset: u64 = field(&response, "x-ratelimit-reset").unwrap().parse().unwrap();
    let date: u64 = std::process::Command::new("date")
        .arg("+%s")
        .output()
        .map_or(0, |output| String::from_utf8(output.stdout).unwrap().trim().parse().unwrap());
    assert!((date + 3_500..=date + 3_600).contains(&reset), "{reset} at {date}");
}

#[test]
fn c_cors_a_preflight_is_not_counted_when_asked() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1)).when(|head| head.method() != Method::OPTIONS)]);
    let preflight = || Request::builder().method(Method::OPTIONS).body(()).unwrap();
    for _ in 0..10 {
        assert_eq!(ask_of(&layer, preflight(), &HeaderMap::new()).status(), StatusCode::OK);
    }
    assert_eq!([ask(&layer).status(), ask(&layer).status()].map(|status| status.as_u16()), [200, 429]);
}

fn grpc(layer: &RateLimitLayer, content_type: &str) -> Response<String> {
    let mut request = with_header("content-type", content_type);
    (*request.method_mut(), *request.version_mut()) = (Method::POST, Version::HTTP_2);
    ask_of(layer, request, &HeaderMap::new())
}

#[test]
fn c_grpc2_what_is_no_call_is_denied_like_any_request() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1))]);
    ask(&layer);
    for (method, version) in [(Method::GET, Version::HTTP_2), (Method::POST, Version::HTTP_11)] {
        let mut request = with_header("content-type", "application/grpc");
        (*request.method_mut(), *request.version_mut()) = (method, version);
        assert_eq!(ask_of(&layer, request, &HeaderMap::new()).status(), StatusCode::TOO_MANY_REQUESTS);
    }
}

#[test]
fn c_grpc1_a_denied_call_gets_trailers_only() {
    let (layer, clock) = on_manual_clock([everyone(FIVE).named("50% off").cost_by(|_| 5)]);
    ask(&layer);
    clock.advance(Duration::from_millis(8_500));
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;charset=x", "Application/GRPC"]
    {
        let denial = grpc(&layer, content_type);
        assert_eq!(denial.status(), StatusCode::OK);
        assert!(denial.body().is_empty());
        assert_eq!(field(&denial, "content-type").unwrap(), "application/grpc");
        assert_eq!(field(&denial, "grpc-status").unwrap(), "8");
        assert_eq!(
            field(&denial, "grpc-message").unwrap(),
            "Too many requests for the policy \"50%25 off\". Retry in 2 s."
        );
        assert_eq!(field(&denial, "grpc-retry-pushback-ms").unwrap(), "1500");
        let details = field(&denial, "grpc-status-details-bin").unwrap();
        assert!(details.starts_with("CAg") && !details.contains('='), "{details}");
        assert_eq!(field(&denial, "cache-control").unwrap(), "no-store");
        assert_eq!(denial.headers().len(), 6, "none of the fields that are not for trailers: {denial:?}");
    }
}

#[test]
fn c_grpc2_grpc_web_is_another_protocol() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1))]);
    ask(&layer);
    for content_type in
        ["application/grpcx", "application/grpc-webx", "application/grpc-web-textual", "application/json"]
    {
        assert_eq!(grpc(&layer, content_type).status(), StatusCode::TOO_MANY_REQUESTS, "{content_type}");
    }
    let (web, text) = ("application/grpc-web+proto", "application/grpc-web-text+proto");
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for (sent, accept, answered) in [
            ("application/grpc-web", None, web),
            (web, None, web),
            ("Application/gRPC-Web; charset=x", Some("*/*"), web),
            (text, None, text),
            (web, Some("application/grpc-web-text"), text),
            (text, Some(web), web),
        ] {
            let mut request = with_header("content-type", sent);
            (*request.method_mut(), *request.version_mut()) = (Method::POST, version);
            accept.map(|accept| request.headers_mut().insert("accept", accept.parse().unwrap()));
            let denial = ask_of(&layer, request, &HeaderMap::new());
            assert_eq!((denial.status(), denial.body().as_str()), (StatusCode::OK, ""), "{sent}");
            assert_eq!(field(&denial, "content-type").unwrap(), answered, "{sent}, accepts {accept:?}");
            assert_eq!(field(&denial, "grpc-status").unwrap(), "8", "{sent}");
            assert!(field(&denial, "retry-after").is_none(), "{denial:?}");
        }
    }
    let mut preflight = with_header("content-type", web);
    *preflight.method_mut() = Method::OPTIONS;
    assert_eq!(ask_of(&layer, preflight, &HeaderMap::new()).status(), StatusCode::TOO_MANY_REQUESTS);
}

/// A translator of gRPC-Web leaves the version as it is, and adds `te: trailers`.
#[test]
fn a_call_of_a_translator_is_a_call_over_http1_too() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1))]);
    ask(&layer);
    let mut request = with_header("content-type", "application/grpc");
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    *request.method_mut() = Method::POST;
    let denial = ask_of(&layer, request, &HeaderMap::new());
    assert_eq!(denial.status(), StatusCode::OK);
    assert_eq!(field(&denial, "grpc-status").unwrap(), "8");
}

/// Clients fail on larger numbers, or do not wait at all.
#[test]
fn no_time_that_clients_learn_has_more_than_31_bits_of_seconds() {
    const BOUND: u64 = 2_147_483_647;
    let period = Duration::from_secs(100 * 365 * 86_400);
    let quota = Quota::every(period);
    for draft in [Draft::V11, Draft::V7] {
        let (layer, clock) = on_manual_clock([everyone(quota)]);
        let layer = layer.draft(draft).legacy(Reset::DeltaSeconds).jitter(Duration::from_secs(3_600));
        for _ in 0..2 {
            let response = ask(&layer);
            // The policy says what it is, not when to come back.
            let numbers = response.headers().iter().filter(|(name, _)| *name != "ratelimit-policy");
            for (name, value) in numbers {
                let digits = value.to_str().unwrap().split(|c: char| !c.is_ascii_digit());
                assert!(digits.flat_map(str::parse::<u64>).all(|number| number <= BOUND), "{name}: {value:?}");
            }
        }
        assert_eq!(field(&ask(&layer), "retry-after").unwrap(), BOUND.to_string());
        assert!(ask(&layer).body().contains(&format!("Retry in {BOUND} s")), "nor in the text");
        // A wait that is shorter is told as it is.
        clock.advance(period - Duration::from_secs(2_000_000_000));
        let told: u64 = field(&ask(&layer), "retry-after").unwrap().parse().unwrap();
        assert!((2_000_000_000..=2_000_003_600).contains(&told), "{told}");
    }
    let (limiter, _clock) = support::limiter([everyone(Quota::per_second(1))]);
    limiter.block("per-ip", 0_u64, Duration::MAX).unwrap();
    assert_eq!(limiter.decide(&Request::new(())).denied().unwrap().retry_after(), Some(BOUND));
}

#[test]
fn c_grpc3_a_pushback_fits_32_bits() {
    for (quota, pushback) in [("1/30d", "2147483647"), ("1/10d", "864000000"), ("1/1ms", "1"), ("1/999us", "1")] {
        let (layer, _clock) = on_manual_clock([everyone(quota.parse().unwrap())]);
        ask(&layer);
        assert_eq!(field(&grpc(&layer, "application/grpc"), "grpc-retry-pushback-ms").unwrap(), pushback, "{quota}");
    }
}

#[test]
fn a_grpc_call_without_a_key_has_the_code_that_says_so() {
    for (status, code) in [(401, "16"), (403, "7"), (400, "3"), (404, "12"), (500, "13"), (503, "14"), (429, "8")] {
        let missing = Missing::Reject(StatusCode::from_u16(status).unwrap());
        let (layer, _clock) = on_manual_clock([Policy::per(Header::new("k"), FIVE).on_missing(missing)]);
        assert_eq!(field(&grpc(&layer, "application/grpc"), "grpc-status").unwrap(), code);
    }
}

#[test]
fn a_response_of_grpc_gets_no_fields() {
    let (layer, _clock) = on_manual_clock([everyone(FIVE)]);
    let mut fields = HeaderMap::new();
    fields.append("content-type", HeaderValue::from_static("application/grpc"));
    let response = ask_of(&layer, with_header("content-type", "application/grpc"), &fields);
    assert_eq!(response.headers(), &fields);
}

/// Names that the limiter takes, the worst among them.
fn names() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{1,20}", r#"["\\;=,: ]{1,8}"#]
}

fn quotas() -> impl Strategy<Value = Quota> {
    let cells = prop_oneof![1..=10_u32, Just(u32::MAX), any::<u32>()];
    // A year at most: the waits of a test add up, and the clock ends after 584 years.
    let periods = prop_oneof![1..=10_000_000_000_u64, 1..=(1_u64 << 55)];
    let bursts = prop_oneof![3 => 1..=4_u32, 1 => 1..=u32::MAX];
    (cells, periods, bursts).prop_filter_map("a quota", |(cells, period, burst)| {
        Quota::new(cells, Duration::from_nanos(period)).ok()?.try_burst(burst).ok()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    fn on_any_policies_any_costs_and_any_clock(
        policies in prop::collection::btree_map(names(), (quotas(), 1_u32..6), 1..4),
        steps in prop::collection::vec(0_u64..5_000_000_000, 1..12),
    ) {
        let names: Vec<_> = policies.keys().cloned().collect();
        let (limiter, clock) = support::limiter(policies.into_iter().map(|(name, (quota, cost))| {
            everyone(quota).named(name).cost_by(move |_| cost)
        }));
        let layer = RateLimitLayer::new(&limiter);
        for step in steps {
            clock.advance(Duration::from_nanos(step));
            let response = ask(&layer);
            let policy_line = field(&response, "ratelimit-policy").unwrap();
            let line = field(&response, "ratelimit").unwrap();
            for line in [&policy_line, &line] {
                prop_assert_eq!(&list(line).serialize().unwrap(), line);
            }
            let advertised = items(&policy_line);
            prop_assert_eq!(advertised.iter().map(|item| item.0.clone()).collect::<Vec<_>>(), names.clone());
            let retry_after = field(&response, "retry-after");
            if let Some(seconds) = &retry_after {
                prop_assert!(seconds.bytes().all(|byte| byte.is_ascii_digit()) && seconds != "0");
            }
            for item in items(&line) {
                let policy = advertised.iter().find(|policy| policy.0 == item.0).unwrap();
                let (q, w, r) = (param(policy, "q").unwrap(), param(policy, "w").unwrap(), param(&item, "r").unwrap());
                prop_assert!(w >= 1 && 0 <= r && r <= q && q <= 999_999_999_999_999);
                if let (Some(t), Some(retry_after)) = (param(&item, "t"), &retry_after) {
                    prop_assert!(1 <= t && t <= retry_after.parse::<i64>().unwrap());
                }
            }
            if response.status() != StatusCode::OK {
                DENIALS.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(retry_after) = retry_after {
                clock.advance(Duration::from_secs(retry_after.parse().unwrap()));
                prop_assert!(ask(&layer).status() == StatusCode::OK, "waiting as advertised helps");
            }
        }
    }
}

/// Of the property above, which would prove nothing without them.
static DENIALS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn c_sf1_c_sf3_c_rl3_c_ra1_fields_are_canonical_bounded_and_true() {
    on_any_policies_any_costs_and_any_clock();
    let denials = DENIALS.load(Ordering::Relaxed);
    assert!(denials > 1_000, "{denials} denials were looked at");
}

#[test]
fn the_wait_of_a_nanosecond_is_rounded_up_to_a_second() {
    let (layer, clock) = on_manual_clock([everyone(Quota::per_second(1))]);
    ask(&layer);
    clock.advance(Duration::from_nanos(999_999_999));
    let denial = ask(&layer);
    assert_eq!(
        (field(&denial, "retry-after").unwrap(), field(&denial, "ratelimit").unwrap()),
        ("1".into(), r#""per-ip";r=0;t=1"#.into())
    );
}

#[test]
fn a_layer_that_is_styled_keeps_its_limiter() {
    let limiter = Limiter::new(everyone(Quota::per_hour(1)));
    let layer = RateLimitLayer::new(&limiter);
    ask(&layer);
    assert_eq!(
        ask(&layer.clone().jitter(Duration::MAX)).status(),
        StatusCode::TOO_MANY_REQUESTS,
        "and does not overflow"
    );
    let styled = layer.clone().draft(Draft::V7).legacy(Reset::DeltaSeconds).jitter(Duration::from_secs(1)).plain_text();
    assert_eq!(ask(&styled).status(), StatusCode::TOO_MANY_REQUESTS);
}

/// The bodies that hyper sends without chunks.
#[tokio::test]
async fn a_trailers_only_answer_ends_with_its_head() {
    let (layer, _clock) = on_manual_clock([everyone(Quota::per_hour(1))]);
    let mut service =
        layer.layer(service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))));
    let _ = service.call(Request::new(())).await.unwrap();
    let mut call = with_header("content-type", "application/grpc");
    (*call.method_mut(), *call.version_mut()) = (Method::POST, Version::HTTP_2);
    let denial = service.call(call).await.unwrap();
    assert!(denial.body().is_end_stream());
}

/// Hands the default answer on, which then has its fields added one by one.
#[derive(Clone)]
struct HandedOn;

impl Respond<String> for HandedOn {
    type Body = String;

    fn respond(&self, denied: &Denied, head: RequestHead<'_>) -> Response<String> {
        Respond::<String>::respond(&Standard::default(), denied, head)
    }
}

#[test]
fn what_is_rendered_in_advance_equals_what_is_rendered_for_a_request() {
    let costing =
        |quota: Quota| everyone(quota).cost_by(|head| head.headers()["cost"].to_str().unwrap().parse().unwrap());
    let with = |advertise| costing(FIVE).advertise(advertise);
    let second = || costing(Quota::per_hour(7)).named("second \"one\"");
    let sets: Vec<Vec<Policy>> = vec![
        vec![with(Advertise::Everything)],
        vec![with(Advertise::OnDenial)],
        vec![with(Advertise::RetryAfter)],
        vec![with(Advertise::Nothing)],
        vec![with(Advertise::Everything), second()],
        vec![with(Advertise::RetryAfter), second()],
        vec![with(Advertise::Nothing), second()],
        vec![with(Advertise::Everything), second().shadow()],
        vec![with(Advertise::Everything).quota_by(|_head| Some(Quota::per_minute(3)))],
        vec![with(Advertise::Everything), second().when(|head| head.headers()["cost"] == "1")],
        vec![costing(FIVE), Policy::global(Quota::per_hour(2))],
        vec![Policy::per(Header::new("x-api-key"), FIVE), costing(FIVE)],
        vec![costing(FIVE).ban(Ban::after(2, Duration::from_secs(60)))],
    ];
    let served = [HeaderMap::new(), HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("a/b"))])];
    let (mut denials, mut admissions) = (0, 0);
    for policies in sets {
        for (draft, legacy) in [Draft::V7, Draft::V11]
            .into_iter()
            .flat_map(|draft| [None, Some(Reset::DeltaSeconds)].map(|legacy| (draft, legacy)))
        {
            // Two limiters that are asked the same at the same times.
            let [(beforehand, clock), (together, other_clock)] = [(); 2].map(|()| {
                let (layer, clock) = on_manual_clock(policies.clone());
                (legacy.into_iter().fold(layer.draft(draft), RateLimitLayer::legacy), clock)
            });
            let together = together.responder(HandedOn);
            for cost in ["0", "1", "3", "5", "1", "8", "4", "1", "1", "1", "2"] {
                for clock in [&clock, &other_clock] {
                    clock.advance(Duration::from_millis(700));
                }
                let request = || with_header("cost", cost);
                let [bare, typed] = [0, 1].map(|fields| {
                    let mut response = ask_of(&beforehand, request(), &served[fields]);
                    let same = ask_of(&together, request(), &served[fields]);
                    assert_eq!((response.status(), response.body()), (same.status(), same.body()));
                    assert_eq!(response.headers(), same.headers(), "{policies:?} {cost}");
                    response.headers_mut().remove(header::CONTENT_TYPE);
                    response
                });
                let denied = |response: &Response<String>| response.status() != StatusCode::OK;
                denials += usize::from(denied(&bare));
                admissions += usize::from(!denied(&bare) && !denied(&typed));
                if !denied(&bare) {
                    let names = |response: &Response<String>| {
                        let mut names: Vec<_> = response.headers().keys().cloned().collect();
                        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
                        names
                    };
                    assert!(denied(&typed) || names(&bare) == names(&typed), "{policies:?} {cost}");
                }
            }
        }
    }
    assert!(denials > 100 && admissions > 20, "{denials} {admissions}");
}
