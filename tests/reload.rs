//! Policies that are replaced while a limiter serves: what stays keeps its buckets, and a mistake changes nothing.

mod support;

use std::{
    convert::Infallible,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{Method, Request, Response, StatusCode};
use support::{admits, admitted, limiter, with_header};
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};
use tower_quota::{
    Limiter, Policy, Quota, RateLimitLayer,
    clock::ManualClock,
    decision::Reason,
    headers::Reset,
    key::{Header, RequestHead, key_fn},
    limiter::{Admission, ConfigErrorKind, Sweep},
    policy::{AtCap, Ban},
};

const FIVE: Quota = Quota::per_hour(5);
const MINUTE: Duration = Duration::from_secs(60);

fn by_header(name: &str, quota: Quota) -> Policy {
    Policy::per(Header::new("k"), quota).named(name)
}

fn remaining(limiter: &Limiter, policy: &str) -> u32 {
    limiter.peek(policy, "a").unwrap().remaining()
}

#[test]
fn policies_that_stay_keep_their_buckets_and_others_begin_or_end() {
    let (limiter, clock) = limiter([by_header("gone", FIVE), by_header("stays", FIVE), Policy::global(FIVE)]);
    let request = with_header("k", "a");
    assert_eq!(admitted(&limiter, &request, 2), 2);
    let next = limiter
        .with_policies([
            by_header("first", FIVE),
            by_header("stays", FIVE),
            by_header("last", FIVE),
            Policy::global(FIVE),
        ])
        .unwrap();
    assert_eq!(["first", "stays", "last", "global"].map(|policy| remaining(&next, policy)), [5, 3, 5, 3]);
    assert!(next.peek("gone", "a").is_err());
    assert_eq!(admitted(&next, &request, 9), 3);
    // The former limiter has the same buckets.
    assert_eq!(["gone", "stays", "global"].map(|policy| remaining(&limiter, policy)), [3, 0, 0]);
    assert!(!admits(&limiter, &request));
    clock.advance(Duration::from_secs(720));
    assert!(admits(&limiter, &request) && !admits(&next, &request));
}

#[test]
fn the_quota_is_the_new_one_and_what_was_used_is_used() {
    let (limiter, _clock) = limiter([by_header("plan", Quota::per_hour(10))]);
    assert_eq!(admitted(&limiter, &with_header("k", "a"), 9), 9);
    let next = limiter.with_policies([by_header("plan", Quota::per_hour(100))]).unwrap();
    assert_eq!((remaining(&next, "plan"), next.limit("plan").unwrap().quota().unwrap()), (91, Quota::per_hour(100)));
    let smaller = next.with_policies([by_header("plan", FIVE)]).unwrap();
    assert!(!admits(&smaller, &with_header("k", "a")));
}

#[test]
fn blocks_bans_and_pauses_stay_and_a_ban_ends_with_its_rule() {
    let ban = Ban::after(1, MINUTE).initial(MINUTE);
    let (limiter, _clock) = limiter([by_header("p", FIVE).ban(ban)]);
    for key in ["blocked", "paused", "banned"] {
        assert!(admits(&limiter, &with_header("k", key)));
    }
    limiter.block("p", "blocked", MINUTE).unwrap();
    limiter.pause("p", "paused", MINUTE).unwrap();
    assert_eq!(admitted(&limiter, &with_header("k", "banned"), 9), 4);
    assert!(limiter.blocked_for("p", "banned").unwrap().is_some());
    let blocked = |limiter: &Limiter, key| limiter.blocked_for("p", key).unwrap().is_some();
    for rule in [Some(ban), Some(Ban::after(7, MINUTE)), None] {
        let policy = rule.map_or(by_header("p", FIVE), |rule| by_header("p", FIVE).ban(rule));
        let next = limiter.with_policies([policy]).unwrap();
        assert_eq!(["blocked", "banned"].map(|key| blocked(&next, key)), [true, rule.is_some()], "{rule:?}");
        assert!(next.paused_for("p", "paused").unwrap().is_some() && !admits(&next, &with_header("k", "paused")));
        // In both directions.
        next.block("p", "later", MINUTE).unwrap();
        assert!(blocked(&limiter, "later"));
        limiter.reset("p", "later").unwrap();
        assert!(!blocked(&next, "later"));
    }
}

/// Also the first block of a policy, and by the limiter of before: an operator's tool may have it.
#[test]
fn a_block_counts_for_both_limiters_whichever_sets_it() {
    for rule in [None, Some(Ban::after(9, MINUTE))] {
        let policy = |rule: Option<Ban>| rule.map_or(by_header("p", FIVE), |rule| by_header("p", FIVE).ban(rule));
        for later in [None, Some(Ban::after(9, MINUTE))] {
            let (former, _clock) = limiter([policy(rule)]);
            let next = former.with_policies([policy(later)]).unwrap();
            // Buckets exist, so that decisions take the short way.
            assert!(["a", "b", "c"].iter().all(|key| admits(&former, &with_header("k", key))));
            former.block("p", "a", MINUTE).unwrap();
            next.block("p", "b", MINUTE).unwrap();
            for limiter in [&former, &next] {
                let admitted = ["a", "b", "c"].map(|key| admits(limiter, &with_header("k", key)));
                assert_eq!(admitted, [false, false, true], "{rule:?} {later:?}");
            }
        }
    }
}

/// The bucket of a global policy that was the only one is an atomic number, and stays one.
#[test]
fn a_global_policy_that_gets_others_beside_it_keeps_its_bucket_for_both_limiters() {
    let second = || Policy::global(Quota::per_hour(50)).named("second");
    let reloads = [
        vec![Policy::global(FIVE), second()],
        vec![second(), Policy::global(FIVE)],
        vec![Policy::global(FIVE).quota_by(|_| None)],
    ];
    for policies in reloads {
        let (limiter, clock) = limiter([Policy::global(FIVE)]);
        clock.advance(Duration::from_secs(1_000_000));
        let admission = limiter.acquire_n("global", 0_u8, 3).unwrap();
        let next = limiter.with_policies(policies).unwrap();
        assert_eq!((remaining(&limiter, "global"), remaining(&next, "global")), (2, 2));
        // What was acquired before is refunded, charged and paused after it.
        admission.settle("global", 1).unwrap();
        assert_eq!(remaining(&next, "global"), 4);
        next.charge("global", 0_u8, 1).unwrap();
        limiter.pause("global", 0_u8, MINUTE).unwrap();
        assert!(!admits(&next, &Request::new(())) && !admits(&limiter, &Request::new(())));
        clock.advance(MINUTE);
        assert!(admits(&limiter, &Request::new(())));
        assert_eq!(admitted(&next, &Request::new(()), 9), 2);
        assert!(!admits(&limiter, &Request::new(())));
        if next.policies().len() > 1 {
            assert_eq!(remaining(&next, "second"), 48, "a denied request takes nothing");
        }
        // And back: nothing is forgotten.
        let back = next.with_policies([Policy::global(FIVE)]).unwrap();
        assert!(!admits(&back, &Request::new(())));
        back.set_limit("global", Quota::per_hour(100)).unwrap();
        assert_eq!(remaining(&back, "global"), 95);
    }
}

/// Whoever was on it is counted by what there is now.
#[test]
fn a_plan_that_is_gone_ends_while_its_keys_are_busy() {
    fn plan(head: RequestHead<'_>) -> Option<&str> {
        head.headers().get("plan")?.to_str().ok()
    }

    let pro = || {
        let mut request = with_header("k", "a");
        request.headers_mut().insert("plan", "pro".parse().unwrap());
        request
    };
    let with_plans = |plans: &[(&str, Quota)]| by_header("p", FIVE).plans(plans.iter().copied()).plan_by(plan);
    let former = || with_plans(&[("pro", Quota::per_hour(1_000))]);
    for (policy, limit) in [
        (by_header("p", FIVE), 5),
        // It is deleted, and requests still have it.
        (with_plans(&[("team", Quota::per_hour(2_000))]), 5),
        // It is smaller, and stays.
        (with_plans(&[("pro", Quota::per_hour(10))]), 10),
        (former(), 1_000),
    ] {
        let (limiter, _clock) = limiter([former()]);
        assert_eq!(admitted(&limiter, &pro(), 4), 4);
        let next = limiter.with_policies([policy]).unwrap();
        assert_eq!(admitted(&next, &pro(), 2_000), limit - 4, "{limit}");
        // Who names no plan has the one that the key had, if there still is one.
        let (limiter, _clock) = support::limiter([former()]);
        assert_eq!(admitted(&limiter, &pro(), 4), 4);
        let next = limiter.with_policies([with_plans(&[("pro", Quota::per_hour(10))])]).unwrap();
        assert_eq!(admitted(&next, &with_header("k", "a"), 2_000), 1);
    }
    // A global policy, too.
    let (limiter, _clock) = limiter([Policy::global(FIVE).quota_by(|_| Some(Quota::per_hour(1_000)))]);
    assert_eq!(admitted(&limiter, &Request::new(()), 4), 4);
    assert_eq!(admitted(&limiter.with_policies([Policy::global(FIVE)]).unwrap(), &Request::new(()), 9), 1);
    // Where the reload fails, the plan stays.
    let layer = RateLimitLayer::new(former()).reloadable();
    assert_eq!(admitted(&layer.limiter(), &pro(), 4), 4);
    assert!(layer.set_policies([Policy::by_key(FIVE).named("p")]).is_err());
    assert_eq!(layer.limiter().peek("p", "a").unwrap().limit(), 1_000);
    // Plans that callers name stay: the policy never knew them.
    let (limiter, _clock) = support::limiter([Policy::by_key(FIVE)]);
    limiter.acquire_as("by-key", 7_u8, Quota::per_hour(1_000), 20).unwrap();
    let next = limiter.with_policies([Policy::by_key(FIVE)]).unwrap();
    assert!(next.acquire("by-key", 7_u8).is_ok());
}

/// It may ask the layer itself.
#[test]
fn policies_are_made_before_anything_is_locked() {
    let layer = RateLimitLayer::new(by_header("p", FIVE)).reloadable();
    let asking = layer.clone();
    support::within(Duration::from_secs(60), move || {
        let policies = std::iter::once_with(|| {
            asking.set_policies([by_header("p", Quota::per_hour(7))]).unwrap();
            by_header("p", asking.limiter().limit("p").unwrap().quota().unwrap())
        });
        asking.set_policies(policies).unwrap();
    });
    assert_eq!(layer.limiter().limit("p").unwrap(), Quota::per_hour(7));
}

#[test]
fn what_cannot_change_is_an_error_with_the_reason_and_changes_nothing() {
    let (limiter, _clock) = limiter([by_header("a", FIVE), by_header("b", FIVE)]);
    let kind = |policies: Vec<Policy>| {
        let error = limiter.with_policies(policies).unwrap_err();
        assert!(!error.to_string().is_empty());
        error.kind()
    };
    assert_eq!(kind(vec![]), ConfigErrorKind::NoPolicy);
    // Two decisions, of the one limiter and of the other, could wait for each other.
    assert_eq!(kind(vec![by_header("b", FIVE), by_header("a", FIVE)]), ConfigErrorKind::Reordered);
    assert_eq!(kind(vec![by_header("a", FIVE).max_keys(7)]), ConfigErrorKind::ChangedCap);
    assert_eq!(kind(vec![by_header("a", FIVE).at_cap(AtCap::Deny)]), ConfigErrorKind::ChangedCap);
    assert_eq!(kind(vec![by_header("a", FIVE), by_header("a", FIVE)]), ConfigErrorKind::DuplicateName);
    // Keys become a key for all: that is another policy, with a bucket of its own.
    assert!(admits(&limiter, &with_header("k", "a")));
    assert_eq!(remaining(&limiter.with_policies([Policy::global(FIVE).named("a")]).unwrap(), "a"), 5);
    // Where it was said that there may be none.
    let empty = Limiter::builder().policy(by_header("a", FIVE)).allow_empty().build().unwrap();
    assert!(admits(&empty.with_policies([]).unwrap(), &with_header("k", "a")));
}

#[test]
fn the_keys_that_were_denied_most_stay_with_their_policies() {
    let limiter = Limiter::builder()
        .policies([by_header("a", FIVE), by_header("b", FIVE)])
        .top_denied(8)
        .clock(ManualClock::new())
        .build()
        .unwrap();
    for name in ["a", "b"] {
        limiter.block(name, name, MINUTE).unwrap();
        assert!(!admits(&limiter, &with_header("k", name)));
    }
    let top = limiter.with_policies([by_header("b", FIVE)]).unwrap().top_denied();
    assert_eq!(top.iter().map(|denied| (&*denied.policy, denied.key)).collect::<Vec<_>>(), [("b", limiter.key("b"))]);
}

/// A response with its status only.
async fn status<S>(service: &S, request: Request<()>) -> Response<String>
where
    S: tower::Service<Request<()>, Response = Response<String>, Error = Infallible> + Clone,
{
    service.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn a_layer_that_serves_takes_new_policies_and_keeps_its_options() {
    let (limiter, _clock) = limiter([by_header("p", FIVE)]);
    let layer = RateLimitLayer::new(&limiter).legacy(Reset::DeltaSeconds).admissions().attach_denied().reloadable();
    let service = layer.layer(service_fn(async |request: Request<()>| {
        let has_admission = request.extensions().get::<Admission>().is_some();
        Ok::<_, Infallible>(Response::new(has_admission.to_string()))
    }));
    let request = || with_header("k", "a");
    assert_eq!(status(&service, request()).await.status(), StatusCode::OK);
    // A rule for posts is added, and the quota of the other changes.
    layer
        .set_policies([
            by_header("p", Quota::per_hour(2)),
            by_header("posts", Quota::per_hour(1)).methods([Method::POST]),
        ])
        .unwrap();
    let served = status(&service, request()).await;
    assert_eq!(served.headers()["ratelimit-policy"], "\"p\";q=2;w=3600");
    assert_eq!(
        (&served.headers()["x-ratelimit-remaining"], served.body()),
        (&"0".parse().unwrap(), &"true".to_owned())
    );
    let denied = status(&service, request()).await;
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(denied.extensions().get::<tower_quota::Denied>().is_some());
    assert_eq!(layer.limiter().policies().len(), 2);
    // A mistake changes nothing; a layer has to have something to limit.
    let error = layer.set_policies([Policy::by_key(FIVE)]).unwrap_err();
    assert_eq!(error.kind(), ConfigErrorKind::NoPolicyForRequests);
    assert!(layer.clone().set_policies([by_header("posts", FIVE), by_header("p", FIVE)]).is_err());
    assert_eq!(status(&service, request()).await.status(), StatusCode::TOO_MANY_REQUESTS);
    // The rule is removed, and everything is as it was before it came.
    layer.set_policies([by_header("p", FIVE)]).unwrap();
    assert_eq!(status(&service, request()).await.headers()["ratelimit"], "\"p\";r=2;t=720");
    // A service that is made now has the present policies, too.
    let fresh = layer.layer(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new()))));
    assert_eq!(status(&fresh, request()).await.headers()["ratelimit"], "\"p\";r=1;t=720");
    layer.replace(Limiter::new(Policy::global(FIVE).named("other"))).unwrap();
    assert_eq!(layer.limiter().policies()[0].name(), "other");
}

/// What was admitted before a change is refunded after it.
#[test]
fn receipts_from_before_a_change_are_settled_after_it() {
    let (limiter, _clock) = limiter([Policy::by_key(FIVE).named("a"), Policy::by_key(FIVE).named("b")]);
    let admission = limiter.acquire_n("b", "x", 3).unwrap();
    let next = limiter.with_policies([Policy::by_key(FIVE).named("b")]).unwrap();
    admission.refund();
    assert_eq!(next.peek("b", "x").unwrap().remaining(), 5);
}

#[test]
fn a_layer_that_delays_lets_requests_wait_for_added_policies() {
    let (limiter, _clock) = limiter([by_header("wide", Quota::per_hour(1_000))]);
    let layer = RateLimitLayer::new(&limiter).max_delay(MINUTE, |_| std::future::pending::<()>()).reloadable();
    let mut service = layer.layer(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new()))));
    let mut call = || service.call(with_header("k", "a")).now_or_never().map(|response| response.unwrap().status());
    assert_eq!(call(), Some(StatusCode::OK));
    let narrow = by_header("narrow", Quota::per_minute(2).burst(1));
    layer.set_policies([by_header("wide", Quota::per_hour(1_000)), narrow]).unwrap();
    assert_eq!(call(), Some(StatusCode::OK));
    let mut waiting = Box::pin(service.call(with_header("k", "a")));
    assert!((&mut waiting).now_or_never().is_none(), "it waits");
    assert_eq!(layer.limiter().peek("narrow", "a").unwrap().remaining(), 0);
}

/// Decisions of the former and of the present limiter lock the same buckets. No thread waits for ever, and nothing is
/// admitted twice.
#[test]
fn decisions_beside_changes_admit_what_is_there() {
    let quota = Quota::per_hour(2_000);
    let global = |name: &str| Policy::global(Quota::per_hour(1_000_000)).named(name);
    let limiter = Limiter::builder()
        .policies([by_header("a", quota), by_header("b", quota), global("c"), global("d")])
        .clock(ManualClock::new())
        .sweep(Sweep::Manual)
        .build()
        .unwrap();
    let layer = RateLimitLayer::new(&limiter).reloadable();
    let stop = AtomicBool::new(false);
    let admitted: usize = thread::scope(|scope| {
        let layer = &layer;
        let deciding = [(); 3]
            .map(|()| scope.spawn(|| (0..4_000).filter(|_| admits(&layer.limiter(), &with_header("k", "a"))).count()));
        let stop = &stop;
        scope.spawn(move || {
            let mut added = 0_u32;
            while !stop.load(Ordering::Acquire) {
                added += 1;
                let extra = by_header(&format!("extra {added}"), Quota::per_hour(1_000_000));
                layer
                    .set_policies([by_header("a", quota), extra, by_header("b", quota), global("c"), global("d")])
                    .unwrap();
            }
        });
        let admitted = deciding.map(|thread| thread.join().unwrap()).iter().sum();
        stop.store(true, Ordering::Release);
        admitted
    });
    assert_eq!(admitted, 2_000);
    assert_eq!(["a", "b"].map(|name| remaining(&layer.limiter(), name)), [0, 0]);
    let requests = |name| layer.limiter().peek(name, 0_u8).unwrap().remaining();
    assert_eq!(["c", "d"].map(requests), [998_000, 998_000]);
}

/// The atomic bucket stands between locked ones, and changes while others are locked.
#[test]
fn an_atomic_bucket_beside_locked_ones_admits_what_is_there_and_a_denial_takes_nothing() {
    let wide = |name: &str| Policy::global(Quota::per_hour(1_000_000)).named(name);
    let former = Limiter::builder()
        .policy(Policy::global(Quota::per_hour(2_000)))
        .clock(ManualClock::new())
        .sweep(Sweep::Manual)
        .build()
        .unwrap();
    let next = former
        .with_policies([
            by_header("k", Quota::per_hour(1_000_000)),
            wide("a"),
            Policy::global(Quota::per_hour(2_000)),
            wide("b"),
        ])
        .unwrap();
    let admitted_by = |limiter: &Limiter| (0..1_500).filter(|_| admits(limiter, &with_header("k", "a"))).count();
    let [by_former, by_next]: [usize; 2] = thread::scope(|scope| {
        [&former, &next]
            .map(|limiter| [(); 2].map(|()| scope.spawn(|| admitted_by(limiter))))
            .map(|threads| threads.map(|thread| thread.join().unwrap()).iter().sum())
    });
    assert_eq!(by_former + by_next, 2_000);
    assert_eq!(["k", "a", "b"].map(|name| 1_000_000 - remaining(&next, name) as usize), [by_next; 3]);
}

#[test]
fn a_denial_names_the_policies_of_its_limiter() {
    let (limiter, _clock) = limiter([Policy::per(key_fn(|_| Some(7_u8)), FIVE).named("p")]);
    let next = limiter
        .with_policies([by_header("first", FIVE), Policy::per(key_fn(|_| Some(7_u8)), FIVE).named("p")])
        .unwrap();
    assert_eq!(admitted(&limiter, &with_header("k", "a"), 9), 5);
    let denied = next.decide(&with_header("k", "a")).denied().unwrap();
    assert_eq!((denied.policy(), denied.reason()), ("p", Reason::Exceeded));
}
