//! The fields and the problem: whatever the policies are named and however they stand, every field is the canonical text
//! of a list, tells of the policies that there are, and keeps its promises; and the body is JSON.
#![no_main]

use std::{
    convert::Infallible,
    future::ready,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use sfv::{BareItem, FieldType as _, List, ListEntry, Parser};
use tower_layer::Layer as _;
use tower_quota::{Limiter, Policy, Quota, RateLimitLayer, clock::ManualClock, key::key_fn, limiter::Sweep};
use tower_service::Service as _;

#[derive(Arbitrary, Debug)]
struct Input {
    policies: Vec<One>,
    /// Nanoseconds between the requests.
    steps: Vec<u32>,
}

#[derive(Arbitrary, Debug)]
struct One {
    name: String,
    cells: u32,
    period: u64,
    burst: u32,
    cost: u32,
    unit: Option<String>,
}

/// Name, and the parameters that are numbers.
type Told = (String, Vec<(String, i64)>);

fuzz_target!(|input: Input| {
    let clock = ManualClock::new();
    let mut builder = Limiter::builder().clock(clock.clone()).sweep(Sweep::Manual);
    let mut names = Vec::new();
    for One { name, cells, period, burst, cost, unit } in input.policies.into_iter().take(4) {
        let Ok(quota) = Quota::new(cells, Duration::from_nanos(period)) else { continue };
        let Ok(quota) = quota.try_burst(burst) else { continue };
        let cost = cost % burst.saturating_add(2);
        names.push(name.clone());
        let mut policy = Policy::per(key_fn(|_| Some(0_u64)), quota).named(name).cost_by(move |_| cost);
        if let Some(unit) = unit {
            policy = policy.unit(unit);
        }
        builder = builder.policy(policy);
    }
    // Names and units that cannot be sent are denied here.
    let Ok(limiter) = builder.build() else { return };
    let mut service = RateLimitLayer::new(&limiter)
        .layer(tower::service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::new())))));
    let mut cx = Context::from_waker(Waker::noop());
    for step in input.steps.into_iter().take(16) {
        clock.advance(Duration::from_nanos(step.into()));
        let Poll::Ready(Ok(response)) = pin!(service.call(Request::new(()))).poll(&mut cx) else { panic!("at once") };
        let field = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
        let policies = told(field("ratelimit-policy").unwrap());
        assert!(policies.iter().map(|policy| &policy.0).eq(&names));
        let retry_after: Option<i64> = field("retry-after").map(|seconds| seconds.parse().unwrap());
        for (name, limit) in field("ratelimit").map(told).unwrap_or_default() {
            let (_, policy) = policies.iter().find(|policy| policy.0 == name).unwrap();
            let (q, w, r) = (param(policy, "q").unwrap(), param(policy, "w").unwrap(), param(&limit, "r").unwrap());
            assert!(w >= 1 && 0 <= r && r <= q && q <= 999_999_999_999_999);
            if let (Some(t), Some(retry_after)) = (param(&limit, "t"), retry_after) {
                assert!(1 <= t && t <= retry_after);
            }
        }
        if !response.status().is_success() {
            let problem: serde_json::Value = serde_json::from_str(response.body()).unwrap();
            for name in problem["violated-policies"].as_array().unwrap() {
                assert!(names.iter().any(|known| known == name.as_str().unwrap()));
            }
        }
    }
});

fn told(text: &str) -> Vec<Told> {
    let list: List = Parser::new(text).parse().unwrap();
    assert_eq!(list.serialize().as_deref(), Some(text));
    let told = list.iter().map(|entry| {
        let ListEntry::Item(item) = entry else { panic!("{entry:?}") };
        let BareItem::String(name) = &item.bare_item else { panic!("{item:?}") };
        let numbers = item.params.iter().filter(|(key, value)| key.as_str() != "qu" || value.as_string().is_none());
        let params = numbers.map(|(key, value)| (key.to_string(), i64::from(value.as_integer().unwrap())));
        (name.as_str().to_owned(), params.collect())
    });
    told.collect()
}

fn param(params: &[(String, i64)], key: &str) -> Option<i64> {
    params.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
}
