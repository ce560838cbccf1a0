//! Windows: when they start and end, what they count, and what clocks that step do to them.

mod support;

use std::{convert::Infallible, future::ready, time::Duration};

use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use support::{admits, admitted, limiter, wait, with_header};
use tower::{Layer as _, Service as _, service_fn};
use tower_quota::{
    Decision, Limiter, Policy, Quota, RateLimitLayer, Window,
    clock::ManualClock,
    headers::{Draft, Reset},
    key::Header,
    limit::{IntoLimit, Limit},
    limiter::{AcquireError, ConfigErrorKind, LimitError},
    policy::Advertise,
    window::WindowErrorKind,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const NANO: Duration = Duration::from_nanos(1);

fn per_key(window: impl IntoLimit) -> Policy {
    Policy::per(Header::new("x-k"), window).named("w")
}

/// A limiter whose clock stands at a time of the calendar.
#[cfg(feature = "calendar")]
fn limiter_at(policy: Policy, time: &str) -> (Limiter, ManualClock) {
    let (limiter, clock) = limiter([policy]);
    set(&clock, time);
    (limiter, clock)
}

#[cfg(feature = "calendar")]
fn set(clock: &ManualClock, time: &str) {
    let time: jiff::Timestamp = time.parse().unwrap();
    clock.set(Duration::from_nanos(time.as_nanosecond().try_into().unwrap()));
}

fn left(limiter: &Limiter) -> u32 {
    limiter.peek("w", "a").unwrap().remaining()
}

#[test]
fn all_cells_come_back_at_the_end_of_the_window_and_none_before() {
    let (limiter, clock) = limiter([per_key(Window::daily(3))]);
    let a = with_header("x-k", "a");
    clock.set(DAY * 100 + HOUR);
    assert_eq!(admitted(&limiter, &a, 9), 3);
    assert_eq!(wait(&limiter, &a), Some(HOUR * 23));
    clock.advance(HOUR * 23 - NANO);
    assert_eq!(wait(&limiter, &a), Some(NANO), "the last nanosecond of the window");
    clock.advance(NANO);
    assert_eq!(admitted(&limiter, &a, 9), 3, "the first nanosecond of the next one");
    assert_eq!(wait(&limiter, &a), Some(DAY));
    // The other keys have windows of their own, which start at the same time.
    assert_eq!(admitted(&limiter, &with_header("x-k", "b"), 9), 3);
}

#[test]
fn a_window_is_what_its_text_says() {
    for (text, window) in [
        ("60 hourly", Window::hourly(60)),
        ("1000 daily", Window::daily(1_000)),
        ("7000 weekly", Window::weekly(7_000)),
        ("5 every 1m", Window::fixed(5, MINUTE)),
        ("5 every 90m", Window::fixed(5, MINUTE * 90)),
        ("5 every 2d", Window::fixed(5, DAY * 2)),
    ] {
        assert_eq!(text.parse(), Ok(window.clone()));
        assert_eq!(window.to_string(), text);
    }
    assert_eq!("5 every 60m".parse(), Ok(Window::hourly(5)));
    assert_eq!("  5   every 86400s ".parse(), Ok(Window::daily(5)));
    for text in
        ["", "5", "5 sometimes", "x daily", "-5 daily", "5 every", "5 every x", "5 daily UTC", "99999999999 daily"]
    {
        assert_eq!(text.parse::<Window>().unwrap_err().kind(), WindowErrorKind::Syntax, "{text}");
    }
    assert_eq!("5/s".parse::<Limit>().unwrap(), Quota::per_second(5));
    assert_eq!("5 / s, burst 9".parse::<Limit>().unwrap(), Quota::per_second(5).burst(9));
    assert_eq!("5 daily".parse::<Limit>().unwrap(), Window::daily(5));
    assert!("5".parse::<Limit>().is_err() && "5 often".parse::<Limit>().is_err());
}

#[test]
fn windows_that_are_none_are_refused_with_the_rule() {
    let kind = |limit, period| Window::new(limit, period).unwrap_err().kind();
    assert_eq!(kind(0, DAY), WindowErrorKind::ZeroLimit);
    assert_eq!(kind(1, Duration::ZERO), WindowErrorKind::ShortPeriod);
    assert_eq!(kind(1, MINUTE - NANO), WindowErrorKind::ShortPeriod);
    assert_eq!(kind(1, MINUTE + NANO), WindowErrorKind::UnevenPeriod);
    assert_eq!(kind(1, Duration::from_secs(90)), WindowErrorKind::UnevenPeriod);
    assert_eq!(kind(1, Duration::from_nanos(1 << 62) + NANO), WindowErrorKind::LongPeriod);
    assert_eq!(kind(1, Duration::MAX), WindowErrorKind::LongPeriod);
    let longest = Duration::from_secs((1_u64 << 62) / 60_000_000_000 * 60);
    assert_eq!(Window::new(u32::MAX, longest).unwrap().limit(), u32::MAX);
    assert_eq!("0 daily".parse::<Window>().unwrap_err().kind(), WindowErrorKind::ZeroLimit);
    assert_eq!("5 every 30s".parse::<Window>().unwrap_err().kind(), WindowErrorKind::ShortPeriod);
    assert!(Window::daily(1).with_limit(0).is_err());
    assert!(std::panic::catch_unwind(|| Window::weekly(0)).is_err());
    let text = Window::new(1, MINUTE - NANO).unwrap_err().to_string();
    assert!(text.contains("at least a minute") && text.contains("Quota"), "{text}");
}

#[test]
fn weeks_start_on_monday_and_fixed_periods_at_1970() {
    let (weekly, clock) = limiter([per_key(Window::weekly(1))]);
    let a = with_header("x-k", "a");
    // 1970 began on a Thursday.
    assert!(admits(&weekly, &a));
    assert_eq!(wait(&weekly, &a), Some(DAY * 4));
    clock.set(DAY * 4);
    assert!(admits(&weekly, &a));
    assert_eq!(wait(&weekly, &a), Some(DAY * 7));
    let (fixed, clock) = limiter([per_key(Window::fixed(1, MINUTE * 7))]);
    clock.set(MINUTE * 7 * 1_000_000 - NANO);
    assert!(admits(&fixed, &a));
    clock.advance(NANO);
    assert!(admits(&fixed, &a));
    assert_eq!(wait(&fixed, &a), Some(MINUTE * 7));
}

#[test]
fn a_rate_and_a_window_decide_together_and_a_denied_request_takes_nothing() {
    let rate = Policy::per(Header::new("x-k"), Quota::per_second(2)).named("rate");
    let (limiter, clock) = limiter([rate, per_key(Window::hourly(3))]);
    let a = with_header("x-k", "a");
    assert_eq!(admitted(&limiter, &a, 9), 2);
    assert_eq!(left(&limiter), 1);
    assert_eq!(wait(&limiter, &a), Some(Duration::from_millis(500)), "that of the rate");
    clock.advance(Duration::from_secs(10));
    assert_eq!(admitted(&limiter, &a, 9), 1);
    assert_eq!(limiter.peek("rate", "a").unwrap().remaining(), 1, "what the window denies costs the rate nothing");
    let denied = limiter.decide(&a).denied().unwrap();
    assert_eq!(denied.wait(), Some(HOUR - Duration::from_secs(10)), "the longest");
    assert_eq!((denied.policy(), denied.retry_after()), ("w", Some(3_590)));
    clock.advance(denied.wait().unwrap());
    assert!(admits(&limiter, &a), "whoever waits as long is admitted");
}

#[test]
fn a_change_of_limit_keeps_the_count() {
    #[derive(Clone)]
    struct Plan(u32);
    let policy = per_key(Window::daily(1_000)).limit_by(|head| Some(head.extensions().get::<Plan>()?.0));
    let (limiter, clock) = limiter([policy]);
    let request = |plan: Option<u32>| {
        let mut request = with_header("x-k", "a");
        plan.map(|plan| request.extensions_mut().insert(Plan(plan)));
        request
    };
    assert_eq!(admitted(&limiter, &request(None), 500), 500);
    assert!(admits(&limiter, &request(Some(10_000))));
    assert_eq!(left(&limiter), 9_499);
    // A smaller one denies until the end, and does not forget.
    assert_eq!(wait(&limiter, &request(Some(100))), Some(DAY));
    assert_eq!(admitted(&limiter, &request(Some(502)), 9), 1);
    assert_eq!(admitted(&limiter, &request(Some(1_000)), 9), 9);
    // Who says no plan has the last one, as long as something is used.
    assert_eq!(left(&limiter), 489);
    assert!(limiter.peek_as("w", "a", Window::daily(600)).unwrap().remaining() == 89);
    // No plan at all.
    let none = limiter.decide(&request(Some(0))).denied().unwrap();
    assert_eq!((none.wait(), none.retry_after()), (None, None));
    limiter.set_limit("w", Window::daily(5)).unwrap();
    assert_eq!(limiter.limit("w").unwrap(), Window::daily(5));
    clock.advance(DAY);
    assert_eq!(admitted(&limiter, &request(None), 9), 5);
    assert_eq!(admitted(&limiter, &request(Some(7)), 9), 2);
}

#[test]
fn refunds_are_whole_in_the_window_and_nothing_after_it() {
    let (limiter, clock) = limiter([per_key(Window::daily(10))]);
    let acquire = |cells| limiter.acquire_n("w", "a", cells).unwrap();
    let first = acquire(4);
    clock.advance(HOUR * 23);
    first.refund();
    assert_eq!(left(&limiter), 10);
    let late = acquire(4);
    clock.advance(HOUR);
    assert_eq!(left(&limiter), 10);
    let next = acquire(3);
    late.refund();
    assert_eq!(left(&limiter), 7, "what was acquired yesterday is not returned today");
    next.settle("w", 1).unwrap();
    assert_eq!(left(&limiter), 9);
    let Decision::Allow(allowed) = limiter.decide(&with_header("x-k", "a")) else { panic!() };
    limiter.refund(allowed);
    assert_eq!(left(&limiter), 9);
}

#[test]
fn a_charge_goes_one_limit_into_debt_which_ends_with_the_window() {
    let (limiter, clock) = limiter([per_key(Window::hourly(10))]);
    assert_eq!(limiter.charge("w", "a", 7).unwrap().remaining(), 3);
    assert_eq!(limiter.charge("w", "a", 1_000).unwrap().remaining(), 0);
    let admission = limiter.acquire("w", "b").unwrap();
    admission.charge("w", 500).unwrap();
    assert_eq!(limiter.peek("w", "b").unwrap().remaining(), 0);
    assert!(limiter.acquire("w", "a").is_err());
    limiter.set_limit("w", Window::hourly(20)).unwrap();
    assert!(limiter.acquire("w", "a").is_err(), "twenty are used");
    limiter.set_limit("w", Window::hourly(21)).unwrap();
    assert!(limiter.acquire("w", "a").is_ok());
    clock.advance(HOUR);
    assert_eq!((left(&limiter), limiter.peek("w", "b").unwrap().remaining()), (21, 21));
}

#[test]
fn a_clock_that_steps_back_never_begins_a_window_twice() {
    let (limiter, clock) = limiter([per_key(Window::daily(3))]);
    let a = with_header("x-k", "a");
    clock.set(DAY * 101 + HOUR);
    assert_eq!(admitted(&limiter, &a, 9), 3);
    for back in [HOUR, HOUR * 2, DAY, DAY * 50] {
        clock.set(DAY * 101 + HOUR - back);
        assert_eq!(admitted(&limiter, &a, 9), 0, "{back:?} earlier");
        assert_eq!(wait(&limiter, &a), Some(HOUR * 23 + back));
        limiter.sweep();
        // A key that was not there yet counts in the same window.
        assert_eq!(limiter.acquire_n("w", format!("{back:?}"), 3).map(drop).map_err(|_| ()), Ok(()));
    }
    clock.set(DAY * 102);
    assert_eq!(admitted(&limiter, &a, 9), 3);
    // By a month, and back: the window of that month is the current one until its end.
    clock.set(DAY * 132);
    assert_eq!(admitted(&limiter, &a, 9), 3);
    clock.set(DAY * 102);
    assert_eq!(admitted(&limiter, &a, 9), 0);
    assert_eq!(wait(&limiter, &a), Some(DAY * 31));
}

#[test]
fn the_sweeper_removes_keys_of_earlier_windows_and_no_others() {
    let (limiter, clock) = limiter([per_key(Window::daily(3))]);
    clock.set(DAY * 100);
    for key in 0..100_u32 {
        limiter.acquire("w", key).unwrap();
    }
    clock.advance(DAY - NANO);
    assert_eq!((limiter.sweep(), limiter.len()), (0, 100));
    clock.advance(NANO);
    limiter.acquire("w", 7_u32).unwrap();
    assert_eq!((limiter.sweep(), limiter.len()), (99, 1));
    assert_eq!(limiter.peek("w", 7_u32).unwrap().remaining(), 2);
}

#[test]
fn nobody_waits_for_a_window() {
    let (limiter, _clock) = limiter([per_key(Window::fixed(1, MINUTE))]);
    let _reserved = limiter.reserve("w", "a", HOUR).unwrap();
    let denied = limiter.reserve("w", "a", HOUR).unwrap_err();
    assert_eq!(denied.denied().unwrap().wait(), Some(MINUTE));
}

#[test]
fn blocks_and_pauses_of_a_window() {
    let (limiter, clock) = limiter([per_key(Window::hourly(3))]);
    let a = with_header("x-k", "a");
    assert!(admits(&limiter, &a));
    limiter.pause("w", "a", HOUR * 2).unwrap();
    assert_eq!(wait(&limiter, &a), Some(HOUR * 2), "the pause outlasts the window");
    let standing = limiter.peek("w", "a").unwrap();
    assert_eq!((standing.remaining(), standing.until_full()), (0, HOUR * 2));
    clock.advance(HOUR * 2);
    assert_eq!(admitted(&limiter, &a, 9), 3);
    limiter.pause("w", "a", MINUTE).unwrap();
    assert_eq!(wait(&limiter, &a), Some(HOUR), "the window outlasts the pause");
    assert!(limiter.reset("w", "a").unwrap());
    limiter.block("w", "a", MINUTE).unwrap();
    assert_eq!(wait(&limiter, &a), Some(MINUTE));
    clock.advance(MINUTE);
    assert_eq!(admitted(&limiter, &a, 9), 3);
}

#[test]
fn a_global_window_by_itself_and_beside_others() {
    let (alone, clock) = limiter([Policy::global(Window::hourly(5)).named("w")]);
    let any = Request::new(());
    let admission = alone.acquire("w", "any").unwrap();
    assert_eq!(admitted(&alone, &any, 9), 4);
    admission.refund();
    assert_eq!(admitted(&alone, &any, 9), 1);
    assert_eq!(wait(&alone, &any), Some(HOUR));
    assert!(alone.reset("w", "any").unwrap() && admits(&alone, &any));
    clock.advance(HOUR);
    alone.sweep();
    assert_eq!(admitted(&alone, &any, 9), 5);
    clock.set(Duration::ZERO);
    assert_eq!(admitted(&alone, &any, 9), 0);
    let (both, clock) =
        limiter([Policy::global(Window::hourly(5)).named("w"), Policy::global(Window::daily(6)).named("d")]);
    assert_eq!(admitted(&both, &any, 9), 5);
    clock.advance(HOUR);
    assert_eq!(admitted(&both, &any, 9), 1);
    assert_eq!(both.decide(&any).denied().unwrap().policy(), "d");
}

#[test]
fn keys_beyond_the_cap_share_a_window() {
    let (limiter, clock) = limiter([per_key(Window::hourly(2)).max_keys(10)]);
    clock.set(DAY * 100);
    for key in 0..10_u32 {
        assert!(limiter.acquire("w", key).is_ok());
    }
    let beyond = (100..200_u32).filter(|key| limiter.acquire("w", *key).is_ok()).count();
    assert_eq!(beyond, 2, "a map for ten keys has one slot beyond");
    clock.advance(HOUR);
    assert!(limiter.acquire("w", 300_u32).is_ok());
}

#[test]
fn limits_of_the_other_kind_are_refused() {
    let kind = |policy: Policy| Limiter::builder().policy(policy).build().unwrap_err().kind();
    let day = || per_key(Window::daily(9));
    assert_eq!(kind(day().quota_by(|_| None)), ConfigErrorKind::QuotaByOnWindow);
    assert_eq!(kind(per_key(Quota::per_hour(9)).limit_by(|_| None)), ConfigErrorKind::LimitByOnQuota);
    assert_eq!(kind(day().plans([("pro", Quota::per_hour(9))]).plan_by(|_| None)), ConfigErrorKind::PlanMisfit);
    assert_eq!(kind(day().plans([("pro", Window::weekly(9))]).plan_by(|_| None)), ConfigErrorKind::PlanMisfit);
    assert_eq!(kind(Policy::by_key(Window::daily(9)).limit_by(|_| None)), ConfigErrorKind::NoRequest);
    let (limiter, _clock) = limiter([day(), Policy::by_key(Quota::per_hour(9)).named("r")]);
    let misfit = limiter.set_limit("w", Quota::per_hour(1)).unwrap_err();
    assert!(matches!(misfit, LimitError::Misfit { .. }), "{misfit}");
    assert!(misfit.to_string().contains("\"9 daily\""), "{misfit}");
    assert!(limiter.set_limit("r", Window::daily(1)).is_err());
    let mixed = [("w", Window::daily(7).into_limit()), ("r", Window::daily(7).into_limit())];
    assert!(limiter.set_limits(mixed).is_err());
    assert_eq!(limiter.limit("w").unwrap(), Window::daily(9), "all or none");
    assert!(matches!(limiter.acquire_as("w", 1, Quota::per_hour(1), 1), Err(AcquireError::Limit(_))));
    assert!(matches!(limiter.acquire_as("w", 1, Window::weekly(1), 1), Err(AcquireError::Limit(_))));
    assert!(limiter.peek_as("r", 1, Window::weekly(1)).is_err());
    assert_eq!(limiter.acquire_as("w", 1, Window::daily(50), 20).map(drop).map_err(|_| ()), Ok(()));
}

#[test]
fn a_window_of_another_period_locks_nobody_out_and_forgets_nothing_of_today() {
    let (limiter, clock) = limiter([per_key(Window::daily(10))]);
    let a = with_header("x-k", "a");
    clock.set(DAY * 106 + MINUTE * 30);
    assert_eq!(admitted(&limiter, &a, 4), 4);
    limiter.set_limit("w", Window::weekly(10)).unwrap();
    assert_eq!(admitted(&limiter, &a, 99), 6);
    assert_eq!(wait(&limiter, &a), Some(DAY * 3 - MINUTE * 30), "the day 109 is a Monday");
    let limiter = limiter.with_policies([per_key(Window::hourly(3))]).unwrap();
    assert_eq!(admitted(&limiter, &a, 99), 0, "ten are used since midnight");
    clock.advance(HOUR);
    assert_eq!(admitted(&limiter, &a, 99), 3);
    // A rate of the same name is another policy.
    let limiter = limiter.with_policies([per_key(Quota::per_hour(5))]).unwrap();
    assert_eq!(admitted(&limiter, &a, 99), 5);
}

#[test]
fn the_last_and_the_first_time_that_a_clock_can_say() {
    let (limiter, clock) = limiter([per_key(Window::daily(2))]);
    let a = with_header("x-k", "a");
    assert_eq!(admitted(&limiter, &a, 9), 2);
    clock.set(Duration::from_nanos(u64::MAX));
    assert_eq!(admitted(&limiter, &a, 9), 2);
    assert!(wait(&limiter, &a).unwrap() > Duration::ZERO);
    limiter.sweep();
    assert_eq!(admitted(&limiter, &a, 9), 0);
}

#[test]
fn a_plain_limiter_on_the_systems_clock_counts_windows() {
    let limiter = Limiter::new([per_key(Window::weekly(2)), Policy::global(Window::weekly(5)).named("all")]);
    let admitted = (0..9_u8).filter(|_| limiter.acquire_all(&[("w", &"a", 1), ("all", &0, 1)]).is_ok()).count();
    assert_eq!(admitted, 2);
    limiter.sweep();
    let standing = limiter.peek("w", "a").unwrap();
    assert_eq!((standing.remaining(), standing.window(), standing.quota()), (0, Some(DAY * 7), None));
    assert!(standing.until_full() <= DAY * 7);
}

#[test]
fn what_is_used_stays_used_where_the_calendar_changes_within_a_window() {
    let (limiter, clock) = limiter([per_key(Window::daily(10))]);
    let a = with_header("x-k", "a");
    clock.set(DAY * 106 + HOUR * 14 + MINUTE * 30);
    assert_eq!(admitted(&limiter, &a, 99), 10);
    limiter.set_limit("w", Window::hourly(10)).unwrap();
    assert_eq!(wait(&limiter, &a), Some(MINUTE * 30), "until the hour ends");
    clock.advance(MINUTE * 30);
    assert_eq!(admitted(&limiter, &a, 99), 10);
    // The clock was a day ahead, and steps back.
    clock.set(DAY * 107);
    assert_eq!(admitted(&limiter, &a, 99), 10);
    clock.set(DAY * 106);
    limiter.set_limit("w", Window::fixed(10, MINUTE)).unwrap();
    let wait = wait(&limiter, &a).unwrap();
    assert_eq!(wait, DAY + MINUTE);
    clock.advance(wait);
    assert!(admits(&limiter, &a));
}

#[test]
fn each_limiter_says_its_own_limit_after_a_reload() {
    let (old, _clock) = limiter([per_key(Window::daily(1_000))]);
    let new = old.with_policies([per_key(Window::daily(3))]).unwrap();
    assert_eq!(
        (old.limit("w").unwrap(), new.limit("w").unwrap()),
        (Window::daily(1_000).into_limit(), Window::daily(3).into_limit())
    );
    new.set_limit("w", Window::daily(7)).unwrap();
    assert_eq!(old.limit("w").unwrap(), Window::daily(1_000));
}

#[tokio::test]
async fn a_request_that_waits_for_a_rate_shows_what_is_left_of_its_window() {
    let window = Policy::global(Window::daily(5)).named("w").advertise(Advertise::Everything);
    let rate = Policy::per(Header::new("x-k"), Quota::per_second(10).burst(1)).named("rate");
    let (limiter, clock) = limiter([window, rate]);
    let timer = move |time| {
        clock.advance(time);
        ready(())
    };
    let layer = RateLimitLayer::new(&limiter).max_delay(Duration::from_secs(5), timer);
    let inner = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::from("served")))));
    let mut service = layer.layer(inner);
    for left in (0..5).rev() {
        let response = service.call(with_header("x-k", "a")).await.unwrap();
        let limits = field(response.headers(), "ratelimit");
        assert!(limits.contains(&format!("\"w\";r={left};t=")), "{limits}");
    }
}

/// The fields and the body of the answer of a layer over this limiter.
fn answer(layer: &RateLimitLayer, request: Request<()>) -> (StatusCode, HeaderMap, String) {
    let inner = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::from("served")))));
    let future = layer.layer(inner).call(request);
    let response = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future).unwrap();
    let (head, body) = response.into_parts();
    (head.status, head.headers, body)
}

fn field(fields: &HeaderMap, name: &str) -> String {
    fields.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[test]
fn the_fields_of_a_window_say_its_limit_its_length_and_the_time_to_its_end() {
    let (limiter, clock) = limiter([per_key(Window::daily(2))]);
    clock.set(DAY * 100 + HOUR * 23);
    let layer = RateLimitLayer::new(&limiter);
    let ask = || answer(&layer, with_header("x-k", "a"));
    let (_, fields, body) = ask();
    assert_eq!(body, "served");
    assert_eq!(field(&fields, "ratelimit-policy"), "\"w\";q=2;w=86400");
    assert_eq!(field(&fields, "ratelimit"), "\"w\";r=1;t=3600");
    ask();
    clock.advance(MINUTE + NANO);
    let (status, fields, body) = ask();
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(field(&fields, "ratelimit"), "\"w\";r=0;t=3540");
    assert_eq!(field(&fields, "retry-after"), "3540");
    assert!(body.contains("\"violated-policies\":[\"w\"]") && body.contains("quota-exceeded"), "{body}");
    assert!(body.contains("3540"), "{body}");
    for (layer, limit, remaining, reset) in [
        (RateLimitLayer::new(&limiter).legacy(Reset::DeltaSeconds), "2", "0", "3540"),
        (RateLimitLayer::new(&limiter).draft(Draft::V7), "", "", ""),
    ] {
        let (_, fields, _) = answer(&layer, with_header("x-k", "a"));
        assert_eq!(field(&fields, "x-ratelimit-limit"), limit);
        assert_eq!(field(&fields, "x-ratelimit-remaining"), remaining);
        assert_eq!(field(&fields, "x-ratelimit-reset"), reset);
        if limit.is_empty() {
            assert_eq!(field(&fields, "ratelimit-policy"), "2;w=86400");
            assert_eq!(field(&fields, "ratelimit"), "limit=2, remaining=0, reset=3540");
        }
    }
}

#[test]
fn a_denied_grpc_call_learns_when_the_window_ends() {
    let (limiter, _clock) = limiter([per_key(Window::hourly(1))]);
    let layer = RateLimitLayer::new(&limiter);
    let mut request = with_header("x-k", "a");
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    (*request.method_mut(), *request.version_mut()) = (Method::POST, Version::HTTP_2);
    assert_eq!(answer(&layer, request.clone()).2, "served");
    let (status, fields, _) = answer(&layer, request);
    assert_eq!((status, field(&fields, "grpc-status")), (StatusCode::OK, "8".to_owned()));
    assert!(field(&fields, "grpc-message").contains("3600"), "{fields:?}");
}

#[cfg(feature = "calendar")]
mod calendar {
    use super::*;

    #[test]
    fn the_fields_say_how_long_this_month_is() {
        let (limiter, clock) = limiter_at(per_key(Window::monthly(5)), "2026-02-28T00:00:00Z");
        let layer = RateLimitLayer::new(&limiter);
        let ask = || answer(&layer, with_header("x-k", "a")).1;
        assert_eq!(field(&ask(), "ratelimit-policy"), "\"w\";q=5;w=2419200");
        assert_eq!(field(&ask(), "ratelimit"), "\"w\";r=3;t=86400");
        clock.advance(DAY);
        assert_eq!(field(&ask(), "ratelimit-policy"), "\"w\";q=5;w=2678400");
        assert_eq!(field(&ask(), "ratelimit"), "\"w\";r=3;t=2678400");
    }

    /// When the window starts and ends in which `time` is.
    fn bounds(window: &str, time: &str) -> (String, Duration) {
        let (limiter, _clock) = limiter_at(per_key(window.parse::<Window>().unwrap()), time);
        limiter.charge("w", "a", 1).unwrap();
        let standing = limiter.peek("w", "a").unwrap();
        let time: jiff::Timestamp = time.parse().unwrap();
        let left = jiff::SignedDuration::try_from(standing.until_full()).unwrap();
        ((time + left).to_string(), standing.window().unwrap())
    }

    #[test]
    fn months_have_28_to_31_days() {
        for (month, days, end) in [
            ("2026-02-11T12:00:00Z", 28, "2026-03-01T00:00:00Z"),
            ("2028-02-28T23:59:59Z", 29, "2028-03-01T00:00:00Z"),
            ("2026-04-30T23:59:59.999999999Z", 30, "2026-05-01T00:00:00Z"),
            ("2026-12-31T23:59:59.999999999Z", 31, "2027-01-01T00:00:00Z"),
            ("2027-01-01T00:00:00Z", 31, "2027-02-01T00:00:00Z"),
        ] {
            assert_eq!(bounds("5 monthly", month), (end.to_owned(), DAY * days), "{month}");
        }
    }

    #[test]
    fn the_last_nanosecond_of_a_month_and_the_first_of_the_next() {
        let (limiter, clock) = limiter_at(per_key(Window::monthly(3)), "2026-02-28T23:59:59.999999999Z");
        let a = with_header("x-k", "a");
        assert_eq!(admitted(&limiter, &a, 9), 3);
        assert_eq!(wait(&limiter, &a), Some(NANO));
        clock.advance(NANO);
        assert_eq!(admitted(&limiter, &a, 9), 3);
        assert_eq!(wait(&limiter, &a), Some(DAY * 31));
    }

    #[test]
    fn a_leap_day_is_a_day_and_part_of_its_month() {
        assert_eq!(bounds("5 daily in Europe/Zurich", "2028-02-29T12:00:00Z").0, "2028-02-29T23:00:00Z");
        assert_eq!(bounds("5 monthly in Europe/Zurich", "2028-02-29T22:59:59Z").0, "2028-02-29T23:00:00Z");
        assert_eq!(bounds("5 monthly in Europe/Zurich", "2028-02-29T23:00:00Z").0, "2028-03-31T22:00:00Z");
    }

    #[test]
    fn days_of_23_and_25_hours_where_daylight_saving_begins_and_ends() {
        for (zone, noon, end, hours) in [
            ("America/New_York", "2026-03-08T16:00:00Z", "2026-03-09T04:00:00Z", 23),
            ("America/New_York", "2026-11-01T17:00:00Z", "2026-11-02T05:00:00Z", 25),
            ("Europe/Zurich", "2026-03-29T11:00:00Z", "2026-03-29T22:00:00Z", 23),
            ("Europe/Zurich", "2026-10-25T11:00:00Z", "2026-10-25T23:00:00Z", 25),
            ("Europe/Zurich", "2026-10-26T11:00:00Z", "2026-10-26T23:00:00Z", 24),
        ] {
            assert_eq!(bounds(&format!("5 daily in {zone}"), noon), (end.to_owned(), HOUR * hours), "{zone} {noon}");
        }
        // A week and a month with a switch in them.
        assert_eq!(bounds("5 weekly in America/New_York", "2026-03-04T12:00:00Z").1, DAY * 7 - HOUR);
        assert_eq!(bounds("5 monthly in Europe/Zurich", "2026-10-04T12:00:00Z").1, DAY * 31 + HOUR);
    }

    #[test]
    fn a_day_without_midnight_starts_with_its_first_instant() {
        // In Santiago clocks went from 24:00 on the fifth to 1:00.
        let before = bounds("5 daily in America/Santiago", "2026-09-06T03:59:59Z");
        assert_eq!(before, ("2026-09-06T04:00:00Z".to_owned(), DAY));
        let after = bounds("5 daily in America/Santiago", "2026-09-06T04:00:00Z");
        assert_eq!(after, ("2026-09-07T03:00:00Z".to_owned(), HOUR * 23));
        // And back from 24:00 to 23:00: the hour comes twice, the day once.
        let long = bounds("5 daily in America/Santiago", "2026-04-05T03:30:00Z");
        assert_eq!(long, ("2026-04-05T04:00:00Z".to_owned(), HOUR * 25));
    }

    /// In St. John's clocks went from 0:01 back to 23:01 of the day before.
    #[test]
    fn a_day_that_has_begun_does_not_begin_again() {
        let (limiter, clock) = limiter_at(
            per_key("3 daily in America/St_Johns".parse::<Window>().unwrap()),
            "2010-11-07T02:30:30Z", // 0:00:30
        );
        let a = with_header("x-k", "a");
        assert_eq!(admitted(&limiter, &a, 9), 3);
        set(&clock, "2010-11-07T02:45:00Z"); // 23:15 of the day before
        assert_eq!(admitted(&limiter, &a, 9), 0);
        let end: jiff::Timestamp = "2010-11-08T03:30:00Z".parse().unwrap();
        let now: jiff::Timestamp = "2010-11-07T02:45:00Z".parse().unwrap();
        assert_eq!(wait(&limiter, &a), Some(end.duration_since(now).unsigned_abs()));
        set(&clock, "2010-11-07T03:31:00Z");
        assert_eq!(admitted(&limiter, &a, 9), 0);
    }

    #[test]
    fn months_start_on_a_billing_day() {
        let window = Window::monthly(5).starting_on(15).unwrap();
        assert_eq!(window.to_string(), "5 monthly from day 15");
        for (time, end, days) in [
            ("2026-02-14T23:59:59Z", "2026-02-15T00:00:00Z", 31),
            ("2026-02-15T00:00:00Z", "2026-03-15T00:00:00Z", 28),
            ("2026-12-20T00:00:00Z", "2027-01-15T00:00:00Z", 31),
            ("2027-01-01T00:00:00Z", "2027-01-15T00:00:00Z", 31),
        ] {
            assert_eq!(bounds("5 monthly from day 15", time), (end.to_owned(), DAY * days), "{time}");
        }
        for day in [0, 29, 31, 255] {
            let error = Window::monthly(5).starting_on(day).unwrap_err();
            assert_eq!(error.kind(), WindowErrorKind::StartingDay);
        }
        assert!(Window::daily(5).starting_on(1).is_err());
    }

    #[test]
    fn time_zones_by_their_names() {
        for text in ["5 monthly from day 3 in Asia/Kolkata", "5 weekly in Europe/Zurich", "5 daily in America/New_York"]
        {
            let window: Window = text.parse().unwrap();
            assert_eq!(window.to_string(), text);
            assert_eq!(window.to_string().parse(), Ok(window));
        }
        let unknown = Window::daily(5).time_zone("Europe/Atlantis").unwrap_err();
        assert_eq!(unknown.kind(), WindowErrorKind::UnknownTimeZone);
        assert!(unknown.to_string().contains("\"Europe/Atlantis\""), "{unknown}");
        for window in [Window::hourly(5), Window::fixed(5, MINUTE * 90)] {
            assert_eq!(window.time_zone("UTC").unwrap_err().kind(), WindowErrorKind::NoTimeZone);
        }
        for text in ["5 monthly in", "5 monthly from day", "5 monthly from day x", "5 monthly in Europe/Zurich x"] {
            assert_eq!(text.parse::<Window>().unwrap_err().kind(), WindowErrorKind::Syntax, "{text}");
        }
        // UTC is what is meant where no zone is written.
        for window in [Window::daily(5), Window::weekly(5), Window::monthly(5)] {
            assert_eq!(window.clone().time_zone("UTC"), Ok(window));
        }
        assert_eq!("5 monthly in Mars/Base".parse::<Window>().unwrap_err().kind(), WindowErrorKind::UnknownTimeZone);
        // Half an hour from UTC.
        assert_eq!(bounds("5 daily in Asia/Kolkata", "2026-05-05T12:00:00Z").0, "2026-05-05T18:30:00Z");
    }

    /// An offset of 44 minutes and 30 seconds.
    #[test]
    fn windows_start_on_whole_minutes_where_the_zone_had_seconds() {
        let (end, _) = bounds("5 daily in Africa/Monrovia", "1971-05-05T12:00:00Z");
        assert_eq!(end, "1971-05-06T00:45:00Z");
    }

    #[test]
    fn a_month_before_1970() {
        assert_eq!(bounds("5 monthly in America/New_York", "1970-01-01T00:00:00Z").0, "1970-01-01T05:00:00Z");
        assert_eq!(
            bounds("5 weekly in Europe/Zurich", "1970-01-01T00:00:00Z"),
            ("1970-01-04T23:00:00Z".to_owned(), DAY * 7)
        );
    }
}
