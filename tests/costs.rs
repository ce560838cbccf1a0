//! Costs that are known after the work: admissions that are settled, charged and refund; responses that do not count.

mod support;

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use http::{Request, Response, StatusCode};
use proptest::prelude::*;
use tower::{Layer as _, Service as _, service_fn};
use tower_quota::{Key, Limiter, Policy, Quota, RateLimitLayer, clock::ManualClock, key::key_fn, limiter::Admission};

const MS: u64 = 1_000_000;
/// T = 100 ms.
const TEN: Quota = Quota::per_second(10);

fn cost(head: tower_quota::key::RequestHead<'_>) -> u32 {
    head.extensions().get::<u32>().copied().unwrap_or(1)
}

fn tokens(quota: Quota) -> Policy {
    Policy::global(quota).named("tokens").cost_by(cost)
}

fn remaining(limiter: &Limiter) -> u32 {
    limiter.peek("tokens", Key::GLOBAL).unwrap().remaining()
}

/// Asks for so many cells; the admission, if it is admitted.
fn ask(limiter: &Limiter, cells: u32) -> Option<Admission> {
    let seen = Arc::new(Mutex::new(None));
    let inner = Arc::clone(&seen);
    let mut service = RateLimitLayer::new(limiter).admissions().layer(service_fn(move |request: Request<()>| {
        *inner.lock().unwrap() = Some(request.extensions().get::<Admission>().unwrap().clone());
        ready(Ok::<_, Infallible>(Response::new(String::new())))
    }));
    let mut request = Request::new(());
    request.extensions_mut().insert(cells);
    let Poll::Ready(Ok(_)) = pin!(service.call(request)).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("answers at once")
    };
    seen.lock().unwrap().take()
}

#[test]
fn what_was_reserved_and_not_used_comes_back() {
    let (limiter, clock) = support::limiter([tokens(TEN)]);
    let admission = ask(&limiter, 8).unwrap();
    assert_eq!(remaining(&limiter), 2);
    clock.advance(Duration::from_millis(200));
    admission.settle("tokens", 3).unwrap();
    // Of the five, time has returned two, whoever they belonged to.
    assert_eq!(remaining(&limiter), 7);
    admission.settle("tokens", 0).unwrap();
    admission.refund();
    assert_eq!(remaining(&limiter), 7, "a receipt is used once");
}

#[test]
fn what_was_used_beyond_the_reservation_is_owed_up_to_one_burst() {
    let (limiter, clock) = support::limiter([tokens(TEN)]);
    let admission = ask(&limiter, 8).unwrap();
    admission.settle("tokens", 14).unwrap();
    assert_eq!(remaining(&limiter), 0);
    clock.advance(Duration::from_millis(400));
    assert!(ask(&limiter, 1).is_none(), "the debt of four cells is paid, and no more");
    clock.advance(Duration::from_millis(100));
    let admission = ask(&limiter, 1).unwrap();
    admission.charge("tokens", u32::MAX).unwrap();
    assert_eq!(limiter.peek("tokens", Key::GLOBAL).unwrap().until_full(), Duration::from_secs(2));
}

#[test]
fn clones_share_one_receipt_and_charges_add_up() {
    let (limiter, _clock) = support::limiter([tokens(TEN)]);
    let admission = ask(&limiter, 4).unwrap();
    let clone = admission.clone();
    clone.charge("tokens", 1).unwrap();
    admission.charge("tokens", 1).unwrap();
    assert_eq!(remaining(&limiter), 4);
    admission.refund();
    clone.refund();
    assert_eq!(remaining(&limiter), 8, "what was charged stays charged");
}

#[test]
fn an_unknown_policy_is_an_error_that_lists_those_that_applied() {
    let (limiter, _clock) = support::limiter([tokens(TEN), Policy::global(TEN).named("off").when(|_| false)]);
    let error = ask(&limiter, 1).unwrap().settle("off", 1).unwrap_err();
    assert_eq!(error.to_string(), "no policy is named \"off\": use one of [\"tokens\"]");
}

#[test]
fn an_admission_outlives_the_layer_the_request_and_a_panic() {
    let (limiter, _clock) = support::limiter([tokens(TEN)]);
    let kept = Arc::new(Mutex::new(None));
    let inner = Arc::clone(&kept);
    let layer = RateLimitLayer::new(&limiter).admissions();
    let mut service = layer.layer(service_fn(move |request: Request<()>| {
        *inner.lock().unwrap() = request.extensions().get::<Admission>().cloned();
        assert!(request.uri().path() != "/", "the handler panics");
        ready(Ok::<_, Infallible>(Response::new(String::new())))
    }));
    assert!(catch_unwind(AssertUnwindSafe(|| service.call(Request::new(())))).is_err());
    assert_eq!(remaining(&limiter), 9, "a request that panics keeps its charge");
    drop((service, layer));
    kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take().unwrap().refund();
    assert_eq!(remaining(&limiter), 10);
}

#[test]
fn a_reset_makes_receipts_void() {
    let (limiter, _clock) = support::limiter([tokens(TEN)]);
    let before = ask(&limiter, 6).unwrap();
    assert!(limiter.reset("tokens", Key::GLOBAL).unwrap());
    ask(&limiter, 5).unwrap();
    before.refund();
    assert_eq!(remaining(&limiter), 5);
}

#[test]
fn a_policy_in_shadow_mode_that_would_deny_has_nothing_to_return() {
    let (limiter, _clock) =
        support::limiter([tokens(TEN).shadow(), Policy::global(Quota::per_hour(100)).named("real")]);
    ask(&limiter, 8).unwrap();
    let short = ask(&limiter, 5).unwrap();
    assert_eq!(short.would_deny().map(|standing| standing.policy().to_owned()).collect::<Vec<_>>(), ["tokens"]);
    short.refund();
    assert_eq!(remaining(&limiter), 2, "only what was drawn comes back");
    let short = ask(&limiter, 5).unwrap();
    short.settle("tokens", 1).unwrap();
    assert_eq!(remaining(&limiter), 1, "what was used is counted all the same");
}

/// A service that answers with the status that the request names, unless it hangs.
fn failures_only(limiter: &Limiter, status: u16) -> Option<u16> {
    let mut service = RateLimitLayer::new(limiter).layer(service_fn(|request: Request<u16>| async move {
        if *request.body() == 0 {
            pending::<()>().await;
        }
        let mut response = Response::new(String::new());
        *response.status_mut() = StatusCode::from_u16(*request.body()).unwrap();
        Ok::<_, Infallible>(response)
    }));
    match pin!(service.call(Request::new(status))).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(response)) => Some(response.status().as_u16()),
        Poll::Pending => None,
    }
}

#[test]
fn only_responses_that_count_are_counted() {
    let counts = |policy: Policy| policy.count_if(|response| response.status() == StatusCode::UNAUTHORIZED);
    let (limiter, _clock) = support::limiter([
        counts(Policy::per(key_fn(|_| Some(0_u64)), Quota::per_hour(3))).named("failures"),
        tokens(Quota::per_hour(100)),
    ]);
    for _ in 0..20 {
        assert_eq!(failures_only(&limiter, 200), Some(200));
    }
    assert_eq!(remaining(&limiter), 80, "the other policy counts all");
    assert_eq!(failures_only(&limiter, 401), Some(401));
    assert_eq!(failures_only(&limiter, 0), None, "a client that goes away keeps its charge");
    assert_eq!([failures_only(&limiter, 401), failures_only(&limiter, 401)], [Some(401), Some(429)]);
    assert_eq!(failures_only(&limiter, 200), Some(429), "the limit is reached for everybody");
}

#[test]
fn an_uncounted_response_and_a_handler_return_a_charge_once() {
    let policy = tokens(TEN).count_if(|_| false);
    let (limiter, _clock) = support::limiter([policy]);
    ask(&limiter, 4).unwrap().refund();
    assert_eq!(remaining(&limiter), 10);
    ask(&limiter, 4).unwrap();
    assert_eq!(remaining(&limiter), 10);
}

/// Levels of owed time for one bucket, drained by hand.
#[derive(Debug, Default)]
struct Model {
    owed: i128,
    now: i128,
    receipts: HashMap<usize, (i128, u32)>,
}

#[derive(Clone, Debug)]
enum Step {
    Advance(u64),
    Ask(u32),
    Settle(usize, u32),
    Charge(usize, u32),
    Refund(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..400 * MS).prop_map(Step::Advance),
        4 => (1..8_u32).prop_map(Step::Ask),
        2 => (any::<usize>(), 0..12_u32).prop_map(|(which, cells)| Step::Settle(which, cells)),
        1 => (any::<usize>(), 0..12_u32).prop_map(|(which, cells)| Step::Charge(which, cells)),
        1 => any::<usize>().prop_map(Step::Refund),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever is settled, charged and refund, and when: the next decision is the one of an exact model, whose debt is
    /// one burst at most. So never more is admitted than the quota and what was rightly returned.
    #[test]
    fn admissions_count_as_the_exact_model_does(steps in steps()) {
        let (limiter, clock) = support::limiter([tokens(TEN)]);
        let (cell, burst) = (i128::from(100 * MS), 10);
        let mut model = Model::default();
        let mut admissions = Vec::new();
        for step in steps {
            match step {
                Step::Advance(by) => {
                    clock.advance(Duration::from_nanos(by));
                    model.now += i128::from(by);
                    model.owed = (model.owed - i128::from(by)).max(0);
                }
                Step::Ask(cells) => {
                    let fits = model.owed + i128::from(cells) * cell <= burst * cell;
                    let admission = ask(&limiter, cells);
                    prop_assert_eq!(admission.is_some(), fits);
                    if let Some(admission) = admission {
                        model.owed += i128::from(cells) * cell;
                        model.receipts.insert(admissions.len(), (model.now, cells));
                        admissions.push(admission);
                    }
                }
                Step::Settle(which, cells) if !admissions.is_empty() => {
                    let which = which % admissions.len();
                    admissions[which].settle("tokens", cells).unwrap();
                    let Some((at, drawn)) = model.receipts.remove(&which) else { continue };
                    let difference = (i128::from(cells) - i128::from(drawn)) * cell;
                    if difference >= 0 {
                        model.owed = (model.owed + difference).min(2 * burst * cell).max(model.owed);
                    } else {
                        model.owed = (model.owed - (-difference - (model.now - at)).max(0)).max(0);
                    }
                }
                Step::Charge(which, cells) if !admissions.is_empty() => {
                    admissions[which % admissions.len()].charge("tokens", cells).unwrap();
                    model.owed = (model.owed + i128::from(cells) * cell).min(2 * burst * cell).max(model.owed);
                }
                Step::Refund(which) if !admissions.is_empty() => {
                    let which = which % admissions.len();
                    admissions[which].refund();
                    let Some((at, drawn)) = model.receipts.remove(&which) else { continue };
                    model.owed = (model.owed - (i128::from(drawn) * cell - (model.now - at)).max(0)).max(0);
                }
                Step::Settle(..) | Step::Charge(..) | Step::Refund(_) => {}
            }
            let until_full = limiter.peek("tokens", Key::GLOBAL).unwrap().until_full();
            prop_assert_eq!(until_full.as_nanos(), u128::try_from(model.owed).unwrap());
        }
    }
}

#[test]
fn threads_that_settle_and_refund_leave_exactly_what_was_used() {
    let used = AtomicU32::new(0);
    for global in [true, false] {
        used.store(0, Ordering::Relaxed);
        let quota = Quota::per_hour(10_000);
        let policy = if global { Policy::global(quota) } else { Policy::per(key_fn(|_| Some(0_u64)), quota) };
        let (limiter, _clock): (Limiter, ManualClock) = support::limiter([policy.named("tokens").cost_by(cost)]);
        thread::scope(|scope| {
            for worker in 0..4_u32 {
                let (limiter, used) = (&limiter, &used);
                scope.spawn(move || {
                    for n in 0..2_000_u32 {
                        let Some(admission) = ask(limiter, 5) else { continue };
                        match (n + worker) % 4 {
                            0 => admission.refund(),
                            1 => {
                                admission.settle("tokens", 2).unwrap();
                                used.fetch_add(2, Ordering::Relaxed);
                            }
                            _ => _ = used.fetch_add(5, Ordering::Relaxed),
                        }
                    }
                });
            }
        });
        let key = if global { Key::GLOBAL } else { limiter.key(0_u64) };
        let standing = limiter.peek("tokens", key).unwrap();
        assert_eq!(standing.limit() - standing.remaining(), used.load(Ordering::Relaxed));
        assert!(standing.remaining() < 5, "they used all that there was");
    }
}

/// A charge for what a request has cost keeps the plan that has decided since.
#[test]
fn a_late_charge_is_in_cells_and_changes_no_plan() {
    let [pro, free] = [Quota::per_hour(1_000), Quota::per_hour(10)];
    let policy = tokens(free).quota_by(|head| head.extensions().get::<Quota>().copied());
    let (limiter, _clock) = support::limiter([policy]);
    let admission = Arc::new(Mutex::new(None));
    let inner = Arc::clone(&admission);
    let mut service = RateLimitLayer::new(&limiter).admissions().layer(service_fn(move |request: Request<()>| {
        inner.lock().unwrap().get_or_insert(request.extensions().get::<Admission>().unwrap().clone());
        ready(Ok::<_, Infallible>(Response::new(String::new())))
    }));
    for plan in [pro, free] {
        let mut request = Request::new(());
        request.extensions_mut().insert(plan);
        drop(service.call(request));
    }
    admission.lock().unwrap().as_ref().unwrap().charge("tokens", 3).unwrap();
    let standing = limiter.peek("tokens", Key::GLOBAL).unwrap();
    assert_eq!((standing.quota(), standing.remaining()), (Some(free), 5));
}

/// A late charge for a key that has lost its place goes to the slot that it shares: as many cells.
#[test]
fn a_late_charge_of_a_plan_is_in_cells_of_a_shared_slot() {
    let [own, pro] = [Quota::per_hour(10), Quota::per_hour(1_000)];
    let by_user = key_fn(|head| head.extensions().get::<u64>().copied());
    let policy = Policy::per(by_user, own).named("tokens").max_keys(1);
    let policy = policy.quota_by(|head| head.extensions().get::<Quota>().copied());
    let (limiter, clock) = support::limiter([policy]);
    let admission = Arc::new(Mutex::new(None));
    let inner = Arc::clone(&admission);
    let mut service = RateLimitLayer::new(&limiter).admissions().layer(service_fn(move |request: Request<()>| {
        inner.lock().unwrap().get_or_insert(request.extensions().get::<Admission>().unwrap().clone());
        ready(Ok::<_, Infallible>(Response::new(String::new())))
    }));
    let mut ask = |user: u64, plan: Option<Quota>| {
        let mut request = Request::new(());
        request.extensions_mut().insert(user);
        plan.map(|plan| request.extensions_mut().insert(plan));
        drop(service.call(request));
    };
    ask(1, Some(pro));
    clock.advance(Duration::from_secs(60));
    limiter.sweep();
    ask(2, None);
    let left = |limiter: &Limiter| {
        let mut request = Request::new(());
        request.extensions_mut().insert(3_u64);
        (0..20).filter(|_| limiter.decide(&request).is_allowed()).count()
    };
    admission.lock().unwrap().as_ref().unwrap().charge("tokens", 4).unwrap();
    // One slot for all keys without a place, in a map of one.
    assert_eq!(left(&limiter), 6);
}
