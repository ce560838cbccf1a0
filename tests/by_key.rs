//! Decisions without a request: by a key that the caller names, at once or later.

mod support;

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::Ipv4Addr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use http::Request;
use proptest::prelude::*;
use support::{admits, from_ip, limiter, with_header, within};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_quota::{
    Limiter, Policy, Quota, RateLimitLayer,
    clock::{Clock, ManualClock},
    decision::Reason,
    key::{Header, IntoKey, Key, KeyHasher, PeerIp},
    limiter::{AcquireError, Admission, ConfigErrorKind, Reservation},
    policy::{AtCap, Ban, Missing},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn accounts(quota: Quota) -> (Limiter, ManualClock) {
    limiter([Policy::by_key(quota).named("account")])
}

fn remaining(limiter: &Limiter, policy: &str, key: impl IntoKey) -> u32 {
    limiter.peek(policy, key).unwrap().remaining()
}

#[track_caller]
fn denied(result: Result<Admission, AcquireError>) -> tower_quota::Denied {
    match result {
        Err(AcquireError::Denied(denied)) => *denied,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_key_has_its_burst_and_then_waits_as_a_request_does() {
    let (limiter, clock) = accounts(Quota::per_minute(6).burst(2));
    for left in [1, 0] {
        let admission = limiter.acquire("account", "alice").unwrap();
        assert_eq!(admission.standings().map(|standing| standing.remaining()).collect::<Vec<_>>(), [left]);
    }
    let refused = denied(limiter.acquire("account", "alice"));
    assert_eq!((refused.reason(), refused.policy()), (Reason::Exceeded, "account"));
    assert_eq!(refused.wait(), Some(Duration::from_secs(10)));
    assert!(limiter.acquire("account", "bob").is_ok());
    clock.advance(Duration::from_secs(10));
    assert!(limiter.acquire("account", "alice").is_ok());
    assert!(limiter.acquire("account", "alice").is_err());
}

#[test]
fn several_cells_are_acquired_together_or_not() {
    let (limiter, _) = accounts(Quota::per_minute(10));
    limiter.acquire_n("account", 7, 8).unwrap();
    assert_eq!(denied(limiter.acquire_n("account", 7, 3)).wait(), Some(Duration::from_secs(6)));
    assert_eq!(remaining(&limiter, "account", 7), 2);
    let never = denied(limiter.acquire_n("account", 8, 11));
    assert_eq!((never.reason(), never.wait()), (Reason::CostAboveBurst, None));
    assert!(limiter.acquire_n("account", 7, 0).is_ok());
}

#[test]
fn requests_and_callers_share_the_buckets_of_a_policy() {
    let (limiter, _) =
        limiter([Policy::per(PeerIp, Quota::per_minute(3)).named("ip"), Policy::global(Quota::per_minute(5))]);
    let request = from_ip(Ipv4Addr::new(203, 0, 113, 7));
    assert!(admits(&limiter, &request));
    limiter.acquire_n("ip", Ipv4Addr::new(203, 0, 113, 7), 2).unwrap();
    assert!(!admits(&limiter, &request));
    // A global policy has one bucket, whatever the key.
    limiter.acquire_n("global", "anything", 4).unwrap();
    assert!(limiter.acquire("global", Key::GLOBAL).is_err());
    assert_eq!((remaining(&limiter, "global", "x"), remaining(&limiter, "global", Key::GLOBAL)), (0, 0));
    assert!(limiter.reset("global", "y").unwrap());
    limiter.block("global", 1, SECOND).unwrap();
    assert_eq!(limiter.blocked_for("global", 2).unwrap(), Some(SECOND));
    assert_eq!(limiter.charge("global", 3, 1).unwrap().remaining(), 4);
}

#[test]
fn requests_pass_by_a_policy_by_key() {
    let policies = || [Policy::by_key(Quota::per_hour(1)).named("account"), Policy::global(Quota::per_hour(2))];
    let (limiter, _) = limiter(policies());
    let request = Request::new(());
    limiter.acquire("account", "alice").unwrap();
    assert!(admits(&limiter, &request) && admits(&limiter, &request) && !admits(&limiter, &request));
    let _layer = RateLimitLayer::new(&limiter);

    // A layer over nothing else would limit nothing.
    let error = RateLimitLayer::try_new(Policy::by_key(Quota::per_hour(1))).unwrap_err();
    assert_eq!(error.kind(), ConfigErrorKind::NoPolicyForRequests);
    assert!(error.to_string().contains("Limiter::acquire"), "{error}");
}

#[test]
fn what_needs_a_request_is_refused_on_a_policy_by_key() {
    let policy = || Policy::by_key(Quota::per_hour(1)).named("account");
    for policy in [
        policy().when(|_| true),
        policy().quota_by(|_| None),
        policy().cost_by(|_| 1),
        policy().count_if(|_| true),
        policy().on_missing(Missing::Skip),
    ] {
        let error = Limiter::builder().policy(policy).build().unwrap_err();
        assert_eq!((error.kind(), error.policy()), (ConfigErrorKind::NoRequest, "account"));
        assert!(error.to_string().contains("acquire_as"), "{error}");
    }
}

#[test]
fn a_plan_decides_until_its_cells_are_back_and_a_change_keeps_the_count() {
    let (limiter, clock) = accounts(Quota::per_minute(2));
    let [pro, small] = [Quota::per_minute(100), Quota::per_minute(4)];
    limiter.acquire_as("account", 7, pro, 10).unwrap();
    // Who names no plan has the one that was named last.
    let admission = limiter.acquire("account", 7).unwrap();
    assert_eq!(admission.standings().next().unwrap().quota(), Some(pro));
    assert_eq!(remaining(&limiter, "account", 7), 89);
    assert_eq!(limiter.peek_as("account", 7, Quota::per_minute(1_000)).unwrap().remaining(), 989);
    assert_eq!(limiter.peek_as("account", 7, small).unwrap().remaining(), 0, "eleven are used");
    assert!(limiter.acquire_as("account", 7, small, 1).is_err());
    assert_eq!(remaining(&limiter, "account", 7), 89, "a denial and a look change nothing");
    clock.advance(MINUTE);
    assert_eq!(limiter.acquire("account", 7).unwrap().standings().next().unwrap().limit(), 2);
}

#[test]
fn a_plan_with_a_longer_burst_is_not_forgiven_by_a_bucket_without_a_memory() {
    // The bucket of the only global policy knows the time of a cell, and no plan.
    let (limiter, _) = limiter([Policy::global(Quota::per_second(1).burst(2))]);
    limiter.acquire_as("global", 0, Quota::per_second(1).burst(100), 50).unwrap();
    assert!(limiter.acquire("global", 0).is_err());
    assert_eq!(limiter.peek("global", 0).unwrap().until_full(), Duration::from_secs(50));
}

#[test]
fn all_policies_grant_or_none_is_charged_in_any_order() {
    let (limiter, _) = limiter([
        Policy::by_key(Quota::per_minute(5)).named("account"),
        Policy::by_key(Quota::per_minute(2)).named("address"),
        Policy::global(Quota::per_minute(9)),
    ]);
    let both = |first: bool| {
        let wanted: [(&str, &(dyn IntoKey + Sync), u32); 3] =
            [("address", &Ipv4Addr::LOCALHOST, 1), ("global", &0, 3), ("account", &"alice", 2)];
        let mut wanted = wanted.to_vec();
        if first {
            wanted.reverse();
        }
        limiter.acquire_all(&wanted)
    };
    for first in [true, false] {
        let admission = both(first).unwrap();
        let names: Vec<_> = admission.standings().map(|standing| standing.policy().to_owned()).collect();
        assert_eq!(names, ["account", "address", "global"]);
    }
    let refused = denied(both(true));
    let violated: Vec<_> = refused.violated().map(|standing| standing.policy().to_owned()).collect();
    assert_eq!(violated, ["account", "address"]);
    let left = |policy, key: &(dyn IntoKey + Sync)| limiter.peek(policy, key).unwrap().remaining();
    assert_eq!((left("account", &"alice"), left("address", &Ipv4Addr::LOCALHOST), left("global", &0)), (1, 0, 3));

    let error = limiter.acquire_all(&[("account", &"a", 1), ("address", &1, 1), ("account", &"b", 1)]).unwrap_err();
    assert!(matches!(&error, AcquireError::RepeatedPolicy(name) if name == "account"), "{error}");
    let error = limiter.acquire_all(&[("account", &"a", 1), ("adress", &1, 1)]).unwrap_err();
    assert!(error.to_string().contains("adress"), "{error}");
    assert_eq!(left("account", &"a"), 5);
    assert!(limiter.acquire("acount", "a").is_err() && limiter.peek_as("acount", 1, Quota::per_hour(1)).is_err());
    assert!(limiter.acquire_all(&[]).unwrap().standings().next().is_none());
}

#[test]
fn an_admission_refunds_and_charges_and_dropped_leaves_its_cells() {
    let (limiter, _) = accounts(Quota::per_hour(10));
    let left = || remaining(&limiter, "account", 7);
    drop(limiter.acquire("account", 7).unwrap());
    assert_eq!(left(), 9);
    let admission = limiter.acquire_n("account", 7, 3).unwrap();
    let clone = admission.clone();
    admission.refund();
    clone.refund();
    assert_eq!(left(), 9, "refunded once");
    let admission = limiter.acquire_n("account", 7, 3).unwrap();
    admission.settle("account", 5).unwrap();
    assert_eq!(left(), 4);
    admission.charge("account", 2).unwrap();
    assert_eq!(left(), 2);
    assert!(admission.charge("other", 1).is_err());
}

#[test]
fn shadow_mode_blocks_bans_and_the_cap_are_those_of_requests() {
    let (shadow, _) = limiter([Policy::by_key(Quota::per_hour(1)).shadow()]);
    assert_eq!(shadow.acquire("by-key", 1).unwrap().would_deny().count(), 0);
    assert_eq!(shadow.acquire("by-key", 1).unwrap().would_deny().count(), 1);

    let (blocking, clock) = accounts(Quota::per_hour(10));
    blocking.block("account", "mallory", MINUTE).unwrap();
    let refused = denied(blocking.acquire("account", "mallory"));
    assert_eq!((refused.reason(), refused.wait()), (Reason::Blocked, Some(MINUTE)));
    clock.advance(MINUTE);
    assert!(blocking.acquire("account", "mallory").is_ok());

    let ban = Ban::after(2, MINUTE).initial(MINUTE);
    let (banning, _) = limiter([Policy::by_key(Quota::per_second(1)).ban(ban)]);
    banning.acquire("by-key", 1).unwrap();
    assert_eq!(denied(banning.acquire("by-key", 1)).reason(), Reason::Exceeded);
    assert_eq!(denied(banning.acquire("by-key", 1)).reason(), Reason::Blocked);

    let (full, _) = limiter([Policy::by_key(Quota::per_hour(1)).max_keys(2).at_cap(AtCap::Deny)]);
    assert_eq!((0..9).filter(|key| full.acquire("by-key", key).is_ok()).count(), 2);
    assert_eq!(denied(full.acquire("by-key", 10)).reason(), Reason::AtCapacity);
}

#[test]
fn keys_of_ones_own_types_count_by_reference() {
    struct Account<'a>(u32, &'a str);
    impl IntoKey for Account<'_> {
        fn key(&self, hasher: &KeyHasher) -> Key {
            (self.0, self.1).key(hasher)
        }
    }
    let (limiter, _) = accounts(Quota::per_hour(9));
    let account = Account(7, "alice");
    limiter.acquire("account", &account).unwrap();
    limiter.acquire_all(&[("account", &account, 1)]).unwrap();
    limiter.acquire("account", (7, "alice".to_owned())).unwrap();
    assert_eq!(remaining(&limiter, "account", account), 6);
    for key in [&b"bytes"[..], b"bytes".as_slice()] {
        limiter.acquire("account", key).unwrap();
    }
    assert_eq!(remaining(&limiter, "account", *b"bytes"), 7);
}

#[test]
fn standings_show_a_request_what_it_has_left_under_its_plan() {
    #[derive(Clone)]
    struct Plan(Quota);
    let (limiter, _) = limiter([
        Policy::per(Header::new("x-api-key"), Quota::per_hour(10))
            .named("plan")
            .quota_by(|head| head.extensions().get::<Plan>().map(|plan| plan.0)),
        Policy::per(Header::new("x-api-key"), Quota::per_hour(3)).named("hidden").shadow(),
        Policy::by_key(Quota::per_hour(3)).named("account"),
        Policy::global(Quota::per_hour(3)),
    ]);
    let mut request = with_header("x-api-key", "k1");
    let show = |request: &Request<()>| {
        let standings = limiter.standings(request).unwrap();
        standings.iter().map(|standing| (standing.policy(), standing.limit(), standing.remaining())).collect::<Vec<_>>()
    };
    assert_eq!(show(&request), [("plan", 10, 10)]);
    request.extensions_mut().insert(Plan(Quota::per_hour(100)));
    assert!(admits(&limiter, &request));
    assert_eq!((show(&request), show(&request)), (vec![("plan", 100, 99)], vec![("plan", 100, 99)]));
    assert_eq!(limiter.standings(&Request::new(())).unwrap_err().reason(), Reason::MissingKey);
}

/// The result of a future that does not wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    let Poll::Ready(result) = pin!(future).poll(&mut Context::from_waker(Waker::noop())) else { panic!("it waits") };
    result
}

/// In whole seconds.
fn waits(reservation: &Reservation) -> u64 {
    reservation.wait().map_or(0, |wait| wait.as_secs())
}

#[test]
fn reservations_are_served_in_order_each_when_its_cell_is_there() {
    let (limiter, clock) = accounts(Quota::every(SECOND));
    let reserve = |patience| limiter.reserve("account", 7, patience);
    let line: Vec<_> = (0..4).map(|_| reserve(MINUTE).unwrap()).collect();
    assert_eq!(line.iter().map(waits).collect::<Vec<_>>(), [0, 1, 2, 3]);
    // Nobody overtakes them, and who has less patience is denied with the wait of the line.
    assert_eq!(denied(limiter.acquire("account", 7)).wait(), Some(Duration::from_secs(4)));
    let refused = reserve(3 * SECOND).unwrap_err();
    assert_eq!(refused.denied().unwrap().wait(), Some(Duration::from_secs(4)));
    clock.advance(SECOND + SECOND / 2);
    assert_eq!(line[2].wait(), Some(SECOND / 2));
    assert_eq!(line.iter().map(waits).collect::<Vec<_>>(), [0, 0, 0, 1]);
    assert!(reserve(MINUTE).is_ok());
    assert!(limiter.reserve("acount", 7, MINUTE).is_err());
}

#[test]
fn only_the_last_in_line_gives_its_cell_back_and_gives_it_back_whole() {
    let (limiter, clock) = accounts(Quota::every(SECOND));
    let reserve = || limiter.reserve("account", 7, MINUTE).unwrap();
    let full = || limiter.peek("account", 7).unwrap().until_full();
    let (_now, first, second) = (reserve(), reserve(), reserve());
    clock.advance(SECOND / 2);
    drop(first);
    assert_eq!(full(), 2 * SECOND + SECOND / 2, "from the middle, it would serve two at once");
    drop(second);
    assert_eq!(full(), SECOND + SECOND / 2, "nothing of it has been there");
    let third = reserve();
    clock.advance(MINUTE);
    drop(third);
    let taken = reserve();
    assert_eq!(taken.wait(), None);
    drop(taken);
    assert_eq!(remaining(&limiter, "account", 7), 0, "a cell that is there was used");
}

#[test]
fn a_reservation_waits_for_several_cells_and_at_most_a_day() {
    let (limiter, _) = accounts(Quota::per_hour(1).burst(100));
    limiter.acquire_n("account", 7, 100).unwrap();
    let reservation = limiter.reserve_n("account", 7, 24, Duration::MAX).unwrap();
    assert_eq!(reservation.wait(), Some(24 * 60 * MINUTE));
    assert!(limiter.reserve_n("account", 7, 1, Duration::MAX).is_err());
    assert_eq!(limiter.reserve_n("account", 8, 101, Duration::MAX).unwrap_err().denied().unwrap().wait(), None);
}

#[test]
fn the_admission_of_a_reservation_stands_as_it_does_then() {
    let (limiter, clock) = accounts(Quota::every(SECOND));
    limiter.acquire("account", 7).unwrap();
    let reservation = limiter.reserve("account", 7, MINUTE).unwrap();
    let mut ready = Box::pin(reservation.ready(|time| clock.sleep(time)));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(ready.as_mut().poll(&mut cx).is_pending());
    clock.advance(SECOND);
    let Poll::Ready(admission) = ready.as_mut().poll(&mut cx) else { panic!("its time has come") };
    assert_eq!(admission.standings().next().unwrap().until_full(), SECOND);
    admission.charge("account", 1).unwrap();
    assert_eq!(limiter.peek("account", 7).unwrap().until_full(), 2 * SECOND);
}

#[test]
fn a_task_that_waits_under_a_manual_clock_ends_when_the_clock_is_moved() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    within(MINUTE, move || {
        runtime.block_on(async {
            let clock = ManualClock::new();
            let sleeping = [3, 1, 2].map(|seconds| tokio::spawn(clock.sleep(seconds * SECOND)));
            tokio::task::yield_now().await;
            clock.advance(2 * SECOND);
            let [late, early, exact] = sleeping;
            early.await.unwrap();
            exact.await.unwrap();
            assert!(!late.is_finished());
            clock.set(3 * SECOND);
            late.await.unwrap();
            clock.sleep(Duration::ZERO).await;
        });
    });
}

#[test]
fn a_sleep_that_is_dropped_leaves_nothing_behind() {
    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (clock, count) = (ManualClock::new(), Arc::new(Count(AtomicUsize::new(0))));
    let waker = Arc::clone(&count).into();
    let mut cx = Context::from_waker(&waker);
    let [mut dropped, mut stays] = [1, 1].map(|seconds| Box::pin(clock.sleep(seconds * SECOND)));
    for _polled_again in 0..2 {
        assert!(dropped.as_mut().poll(&mut cx).is_pending() && stays.as_mut().poll(&mut cx).is_pending());
    }
    drop(dropped);
    clock.advance(SECOND);
    assert_eq!(count.0.load(Ordering::Relaxed), 1, "one sleeper, woken once");
    assert!(stays.as_mut().poll(&mut cx).is_ready());
    drop(stays);
    assert_eq!(Arc::strong_count(&count), 2, "the count and the waker");
}

/// Threads that reserve, drop, acquire and pause: at no time are more cells there than the quota has.
#[test]
fn threads_that_reserve_give_up_and_pause_never_exceed_the_quota() {
    const THREADS: u32 = 4;
    let quota = Quota::every(SECOND).burst(3);
    let (limiter, clock) = accounts(quota);
    within(2 * MINUTE, move || {
        let (start, limiter) = (Barrier::new(THREADS as usize), &limiter);
        let served = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (start, clock) = (&start, &clock);
                    scope.spawn(move || {
                        start.wait();
                        let mut served = Vec::new();
                        for turn in 0..2_000_u32 {
                            match (turn + thread) % 4 {
                                0 => drop(limiter.reserve("account", 7, 5 * SECOND)),
                                1 => served.extend(limiter.acquire("account", 7).ok().map(|_| clock.elapsed())),
                                2 if turn % 16 == 2 => limiter.pause("account", 7, SECOND / 5).unwrap(),
                                2 => clock.advance(SECOND / 10),
                                _ => {
                                    if let Ok(reservation) = limiter.reserve("account", 7, 5 * SECOND) {
                                        while let Some(wait) = reservation.wait() {
                                            clock.advance(wait.min(SECOND / 10));
                                        }
                                        served.push(clock.elapsed());
                                    }
                                }
                            }
                        }
                        served
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).count()
        });
        let most = 3 + usize::try_from(clock.elapsed().as_secs()).unwrap();
        assert!(served <= most, "{served} were served in a time for {most}");
        assert!(served > most / 3, "{served} of {most}");
    });
}

#[test]
fn a_paused_key_is_granted_nothing_and_nothing_comes_back_to_it() {
    let (limiter, clock) = accounts(Quota::per_second(1).burst(3));
    limiter.acquire_n("account", 7, 2).unwrap();
    limiter.pause("account", 7, MINUTE).unwrap();
    clock.advance(MINUTE / 2);
    assert_eq!(limiter.paused_for("account", 7).unwrap(), Some(MINUTE / 2));
    let refused = denied(limiter.acquire("account", 7));
    assert_eq!((refused.reason(), refused.wait()), (Reason::Exceeded, Some(MINUTE / 2)));
    let wait = |cells| denied(limiter.acquire_n("account", 7, cells)).wait();
    assert_eq!((wait(2), wait(3), wait(4)), (Some(MINUTE / 2 + SECOND), Some(MINUTE / 2 + 2 * SECOND), None));
    // No cells now, and the next one at the end.
    let standing = limiter.peek("account", 7).unwrap();
    assert_eq!((standing.remaining(), standing.next_cell()), (0, Some(MINUTE / 2)));
    assert!(limiter.acquire_n("account", 7, 0).is_ok() && limiter.acquire("account", 8).is_ok());
    clock.advance(MINUTE / 2);
    assert_eq!((limiter.paused_for("account", 7).unwrap(), remaining(&limiter, "account", 7)), (None, 1));
    limiter.acquire("account", 7).unwrap();
    assert_eq!(wait(1), Some(SECOND));
    assert!(limiter.pause("acount", 7, SECOND).is_err() && limiter.paused_for("acount", 7).is_err());
}

#[test]
fn the_wait_of_a_paused_key_is_true_for_requests_too() {
    let (limiter, clock) = limiter([
        Policy::per(Header::new("k"), Quota::per_second(1).burst(2)).named("key"),
        Policy::global(Quota::per_second(50)),
    ]);
    let request = with_header("k", "a");
    assert!(admits(&limiter, &request));
    limiter.pause("key", "a", 5 * SECOND).unwrap();
    clock.advance(SECOND);
    assert_eq!(support::wait(&limiter, &request), Some(4 * SECOND));
    assert!(admits(&limiter, &with_header("k", "b")));
    clock.advance(4 * SECOND - Duration::from_nanos(1));
    assert!(!admits(&limiter, &request));
    clock.advance(Duration::from_nanos(1));
    assert!(admits(&limiter, &request) && !admits(&limiter, &request));
    // All together, too, under the only global policy.
    limiter.pause("global", 0, SECOND).unwrap();
    assert_eq!(support::wait(&limiter, &with_header("k", "b")), Some(SECOND));
}

#[test]
fn a_pause_is_never_shorter_lasts_at_most_a_day_and_ends_with_a_reset() {
    let (limiter, clock) = accounts(Quota::per_second(1).burst(3));
    let left = || limiter.paused_for("account", 7).unwrap();
    limiter.pause("account", 7, MINUTE).unwrap();
    limiter.pause("account", 7, SECOND).unwrap();
    limiter.pause("account", 7, Duration::ZERO).unwrap();
    assert_eq!(left(), Some(MINUTE));
    limiter.pause("account", 7, Duration::MAX).unwrap();
    assert_eq!(left(), Some(24 * 60 * MINUTE));
    assert!(limiter.reset("account", 7).unwrap());
    assert_eq!(left(), None);
    assert!(limiter.acquire_n("account", 7, 3).is_ok());
    // A key without a bucket, and without a pause.
    assert!(!limiter.reset("account", 8).unwrap());
    limiter.pause("account", 8, MINUTE).unwrap();
    assert!(limiter.reset("account", 8).unwrap());
    clock.advance(MINUTE);
    assert_eq!((limiter.sweep(), limiter.len()), (1, 0));
}

#[test]
fn reservations_move_with_a_pause_and_stay_in_line() {
    for policies in [
        vec![Policy::by_key(Quota::every(SECOND)).named("key")],
        vec![Policy::global(Quota::every(SECOND)).named("key")],
    ] {
        let (limiter, clock) = limiter(policies);
        let reserve = || limiter.reserve("key", 7, MINUTE).unwrap();
        let line: Vec<_> = (0..4).map(|_| reserve()).collect();
        clock.advance(SECOND + SECOND / 2);
        limiter.pause("key", 7, 10 * SECOND).unwrap();
        // The first two had their cells. Now nobody goes before the end, and then each a second later.
        let wait = |reservation: &Reservation| reservation.wait().unwrap();
        let ends = |at: u32| 10 * SECOND + at * SECOND / 2;
        assert_eq!(line.iter().map(wait).collect::<Vec<_>>(), [ends(0), ends(0), ends(1), ends(3)]);
        clock.advance(4 * SECOND);
        // Who comes in the pause stands behind them, and a longer pause moves all of them.
        let late = reserve();
        assert_eq!(wait(&late), 6 * SECOND + 5 * SECOND / 2);
        limiter.pause("key", 7, 8 * SECOND).unwrap();
        assert_eq!([&line[2], &line[3], &late].map(wait), [17, 19, 21].map(|half| half * SECOND / 2));
        // A pause that comes later moves who waits still.
        clock.advance(9 * SECOND);
        assert_eq!(line[2].wait(), None);
        limiter.pause("key", 7, 3 * SECOND).unwrap();
        assert_eq!([&line[3], &late].map(wait), [7, 9].map(|half| half * SECOND / 2));
        assert_eq!(denied(limiter.acquire("key", 7)).wait(), Some(11 * SECOND / 2));
        // The last in line gives its cell back, wherever it stands by now.
        drop(late);
        assert_eq!(denied(limiter.acquire("key", 7)).wait(), Some(9 * SECOND / 2));
    }
}

#[test]
fn a_refund_after_a_pause_returns_what_time_has_not_returned() {
    let (limiter, clock) = accounts(Quota::every(SECOND).burst(10));
    let admission = limiter.acquire_n("account", 7, 8).unwrap();
    clock.advance(2 * SECOND);
    limiter.pause("account", 7, MINUTE).unwrap();
    clock.advance(MINUTE + SECOND);
    assert_eq!(limiter.peek("account", 7).unwrap().until_full(), 5 * SECOND, "two and one have come back");
    admission.refund();
    assert_eq!(limiter.peek("account", 7).unwrap().until_full(), Duration::ZERO);
    limiter.pause("account", 7, MINUTE).unwrap();
    let charged = limiter.charge("account", 7, 4).unwrap();
    assert_eq!((charged.remaining(), charged.next_cell()), (0, Some(MINUTE)));
    clock.advance(MINUTE);
    assert_eq!(remaining(&limiter, "account", 7), 6);
}

#[test]
fn a_pause_is_no_offence_and_denies_nothing_in_shadow_mode() {
    let ban = Ban::after(1, MINUTE).initial(MINUTE);
    let (banning, _) = limiter([Policy::by_key(Quota::per_second(9)).ban(ban)]);
    banning.pause("by-key", 7, SECOND).unwrap();
    for _ in 0..9 {
        assert_eq!(denied(banning.acquire("by-key", 7)).reason(), Reason::Exceeded);
    }
    let (shadow, _) = limiter([Policy::by_key(Quota::per_second(9)).shadow()]);
    shadow.pause("by-key", 7, SECOND).unwrap();
    let admission = shadow.acquire("by-key", 7).unwrap();
    assert_eq!(admission.would_deny().next().unwrap().wait(), Some(SECOND));
    admission.refund();
    assert!(shadow.reset("by-key", 7).unwrap());
    assert_eq!(remaining(&shadow, "by-key", 7), 9);
}

#[test]
fn a_full_table_of_pauses_is_an_error() {
    let (limiter, clock) = accounts(Quota::per_second(9));
    // Of one network there are fewer places.
    let address = |n: u32| Ipv4Addr::from(0x0A00_0000 + n);
    for n in 0..1_024 {
        limiter.pause("account", address(n), MINUTE).unwrap();
    }
    let error = limiter.pause("account", address(1_024), MINUTE).unwrap_err();
    assert!(error.to_string().contains("paused"), "{error}");
    assert!(limiter.acquire("account", address(1_024)).is_ok());
    limiter.pause("account", address(5), 2 * MINUTE).unwrap();
    clock.advance(MINUTE);
    limiter.sweep();
    limiter.pause("account", address(1_024), MINUTE).unwrap();
}

#[test]
fn a_policy_at_its_cap_pauses_a_key_and_no_other() {
    let (limiter, clock) = limiter([Policy::by_key(Quota::per_second(1).burst(2)).max_keys(1)]);
    limiter.acquire("by-key", 1).unwrap();
    // These share a bucket.
    limiter.acquire("by-key", 2).unwrap();
    limiter.pause("by-key", 2, MINUTE).unwrap();
    assert_eq!(denied(limiter.acquire("by-key", 2)).wait(), Some(MINUTE));
    assert!(limiter.reserve("by-key", 2, 2 * MINUTE).is_err());
    clock.advance(SECOND);
    assert!((3..40).any(|key| limiter.acquire("by-key", key).is_ok()));
}

#[test]
fn what_denies_nothing_makes_nobody_wait_for_its_pause() {
    let hour = Duration::from_secs(3_600);
    let (shadow, _) = limiter([Policy::by_key(Quota::per_second(1)).named("trial").shadow()]);
    shadow.pause("trial", 7, hour).unwrap();
    assert_eq!(shadow.reserve("trial", 7, Duration::ZERO).unwrap().wait(), None);
    let (limiter, _) = accounts(Quota::per_second(1));
    limiter.pause("account", 7, hour).unwrap();
    assert_eq!(limiter.reserve_n("account", 7, 0, Duration::ZERO).unwrap().wait(), None);

    // A request that waits for one policy, beside another one that only reports.
    let (limiter, clock) = support::limiter([
        Policy::per(Header::new("k"), Quota::every(SECOND)).named("key"),
        Policy::per(Header::new("k"), Quota::every(SECOND)).named("trial").shadow(),
    ]);
    let timer = clock.clone();
    let layer = RateLimitLayer::new(&limiter).max_delay(2 * SECOND, move |time| timer.sleep(time));
    let service = layer.layer(service_fn(|_: Request<()>| async { Ok::<_, Infallible>(http::Response::new(())) }));
    limiter.pause("trial", "a", hour).unwrap();
    assert!(at_once(service.clone().oneshot(with_header("k", "a"))).is_ok());
    let mut second = pin!(service.oneshot(with_header("k", "a")));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(second.as_mut().poll(&mut cx).is_pending());
    clock.advance(SECOND);
    assert!(second.as_mut().poll(&mut cx).is_ready());
}

#[test]
fn a_refund_after_the_pause_of_a_key_that_shares_a_bucket_returns_no_more_than_is_due() {
    let (limiter, clock) = limiter([Policy::by_key(Quota::every(SECOND).burst(10)).max_keys(1)]);
    limiter.acquire("by-key", 0).unwrap();
    // These share a bucket.
    let first = limiter.acquire_n("by-key", 1, 10).unwrap();
    limiter.pause("by-key", 1, 10 * SECOND).unwrap();
    clock.advance(10 * SECOND);
    limiter.acquire_n("by-key", 2, 10).unwrap();
    // Time has returned all of it: the bucket has not moved with the pause of one of its keys.
    first.refund();
    assert!(limiter.acquire("by-key", 2).is_err());
}

#[test]
fn a_reservation_that_was_made_in_a_pause_stands_afterwards_as_its_bucket_does() {
    let (limiter, clock) = accounts(Quota::every(SECOND).burst(5));
    limiter.pause("account", 7, 10 * SECOND).unwrap();
    let reservation = limiter.reserve("account", 7, MINUTE).unwrap();
    clock.advance(10 * SECOND);
    let admission = at_once(reservation.ready(|time| clock.sleep(time)));
    assert_eq!(admission.standings().next().unwrap().remaining(), 4);
    assert_eq!(remaining(&limiter, "account", 7), 4);
}

#[test]
fn cells_that_were_waited_for_and_not_used_come_back_whole() {
    let (limiter, clock) = accounts(Quota::every(SECOND));
    limiter.acquire("account", 7).unwrap();
    let reservation = limiter.reserve("account", 7, MINUTE).unwrap();
    limiter.pause("account", 7, MINUTE).unwrap();
    clock.advance(MINUTE + SECOND);
    at_once(reservation.ready(|time| clock.sleep(time))).refund();
    assert_eq!(remaining(&limiter, "account", 7), 1);
}

#[test]
fn a_reset_ends_the_pause_for_those_who_waited_before_it() {
    let (limiter, clock) = accounts(Quota::every(SECOND));
    limiter.acquire("account", 7).unwrap();
    let before = limiter.reserve("account", 7, MINUTE).unwrap();
    limiter.pause("account", 7, 60 * MINUTE).unwrap();
    clock.advance(10 * SECOND);
    limiter.reset("account", 7).unwrap();
    assert!(limiter.acquire("account", 7).is_ok());
    assert_eq!(before.wait(), Some(SECOND), "as long as when the pause began");
}

#[test]
fn a_reset_where_nothing_is_used_leaves_the_receipts_of_others() {
    let (limiter, _) = accounts(Quota::per_hour(5));
    // Keys share generations: one in 256 has the same.
    let admission = limiter.acquire("account", 0).unwrap();
    assert!((1..5_000).all(|key| !limiter.reset("account", key).unwrap()));
    admission.refund();
    assert_eq!((remaining(&limiter, "account", 0), limiter.len()), (5, 1));
}

#[test]
fn a_charge_behind_a_line_is_not_forgiven() {
    let (limiter, _) = accounts(Quota::every(SECOND));
    let line: Vec<_> = (0..5).map(|_| limiter.reserve("account", 7, MINUTE).unwrap()).collect();
    assert_eq!(limiter.charge("account", 7, 3).unwrap().until_full(), 8 * SECOND);
    assert_eq!(limiter.charge("account", 7, 1_000).unwrap().until_full(), MINUTE + SECOND, "as far as a line may grow");
    drop(line);
}

#[test]
fn patience_deepens_no_debt() {
    let (limiter, _) = accounts(Quota::every(SECOND).burst(5));
    drop(limiter.reserve("account", 7, Duration::MAX).unwrap());
    assert_eq!(limiter.charge("account", 8, 1_000_000).unwrap().until_full(), 10 * SECOND);
}

#[test]
fn a_timer_that_ends_at_once_lets_other_tasks_run() {
    let (limiter, _) = accounts(Quota::every(SECOND));
    limiter.acquire("account", 7).unwrap();
    let reservation = limiter.reserve("account", 7, MINUTE).unwrap();
    within(MINUTE, move || {
        let mut ready = Box::pin(reservation.ready(|_| std::future::ready(())));
        let mut cx = Context::from_waker(Waker::noop());
        assert!((0..9).all(|_| ready.as_mut().poll(&mut cx).is_pending()));
    });
}

#[test]
fn a_clock_that_panics_in_a_pause_or_a_reset_leaves_the_bucket_open() {
    let fails = Arc::new(AtomicUsize::new(0));
    let reads = Arc::clone(&fails);
    let clock = Clock::from_fn(move || {
        assert_eq!(reads.load(Ordering::Relaxed), 0, "the clock fails");
        SECOND
    });
    let limiter = Limiter::builder().policy(Policy::global(Quota::per_hour(5))).clock(clock).build().unwrap();
    limiter.acquire("global", 0).unwrap();
    fails.store(1, Ordering::Relaxed);
    let actions: [fn(&Limiter); 2] =
        [|limiter| drop(limiter.pause("global", 0, SECOND)), |limiter| drop(limiter.reset("global", 0))];
    for action in actions {
        assert!(catch_unwind(AssertUnwindSafe(|| action(&limiter))).is_err());
    }
    fails.store(0, Ordering::Relaxed);
    assert_eq!(within(MINUTE, move || remaining(&limiter, "global", 0)), 4);
}

/// In tenths of a second: whoever is served, at once or after a wait.
fn serve_at_random(policies: Vec<Policy>, burst: u32, steps: &[(u8, u8, u8)]) {
    let (limiter, clock) = limiter(policies);
    clock.advance(MINUTE);
    let (mut now, mut paused_until) = (0_u32, 0);
    let (mut served, mut waiting) = (Vec::<(u32, u32)>::new(), VecDeque::new());
    for (what, size, passes) in steps {
        let cells = 1 + u32::from(*size) % burst;
        match what % 6 {
            0 => {
                if limiter.acquire_n("key", 7, cells).is_ok() {
                    assert!(now >= paused_until, "acquired in a pause");
                    served.push((now, cells));
                }
            }
            1 | 2 => {
                let reserved = limiter.reserve_n("key", 7, cells, u32::from(*size) % 20 * SECOND);
                waiting.extend(reserved.ok().map(|reservation| (cells, reservation)));
            }
            3 => {
                // One that waits gives up.
                let at = usize::from(*size) % waiting.len().max(1);
                if waiting.get(at).is_some_and(|(_, reservation): &(u32, Reservation)| reservation.wait().is_some()) {
                    waiting.remove(at);
                }
            }
            4 => {
                let tenths = u32::from(*size) % 60;
                limiter.pause("key", 7, tenths * SECOND / 10).unwrap();
                paused_until = paused_until.max(now + tenths);
            }
            _ => drop(limiter.sweep()),
        }
        for _tenth in 0..passes % 25 {
            while waiting.front().is_some_and(|(_, reservation)| reservation.wait().is_none()) {
                assert!(now >= paused_until, "served in a pause");
                served.extend(waiting.pop_front().map(|(cells, _)| (now, cells)));
            }
            assert!(waiting.iter().all(|(_, reservation)| reservation.wait().is_some()), "out of order");
            clock.advance(SECOND / 10);
            now += 1;
        }
    }
    for (first, (start, _)) in served.iter().enumerate() {
        let mut sum = 0;
        for (end, cells) in &served[first..] {
            sum += cells;
            assert!(sum <= burst + (end - start) / 10, "{sum} cells from {start} to {end}: {served:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn whoever_waits_is_served_in_order_within_the_quota_and_in_no_pause(
        burst in 1_u32..5,
        kind in 0_usize..3,
        steps in prop::collection::vec(any::<(u8, u8, u8)>(), 1..100),
    ) {
        let quota = Quota::every(SECOND).burst(burst);
        let policies = [
            vec![Policy::by_key(quota).named("key")],
            vec![Policy::global(quota).named("key")],
            vec![Policy::global(quota).named("key"), Policy::global(quota).named("other")],
        ];
        serve_at_random(policies[kind].clone(), burst, &steps);
    }
}

mod answers {
    use axum::{
        Router,
        body::{Body, to_bytes},
        response::{IntoResponse as _, Response},
        routing::get,
    };
    use http::{HeaderMap, StatusCode};
    use tower::ServiceExt as _;
    use tower_quota::policy::Advertise;

    use super::*;

    async fn content(response: Response) -> (StatusCode, HeaderMap, String) {
        let (parts, body) = response.into_parts();
        let mut headers = parts.headers;
        // The router adds it.
        headers.remove(http::header::CONTENT_LENGTH);
        (parts.status, headers, String::from_utf8(to_bytes(body, 10_000).await.unwrap().to_vec()).unwrap())
    }

    fn refused(policy: Policy) -> (Limiter, Request<Body>) {
        let (limiter, _) = limiter([policy]);
        limiter.acquire_n(limiter.policies()[0].name(), "k1", 2).unwrap();
        (limiter, Request::builder().header("x-api-key", "k1").body(Body::empty()).unwrap())
    }

    #[tokio::test]
    async fn a_denial_by_key_is_answered_as_the_layer_answers_a_request() {
        let per_key = || Policy::per(Header::new("x-api-key"), Quota::per_minute(2));
        for policy in [
            per_key(),
            per_key().named("with \"quotes\""),
            per_key().advertise(Advertise::RetryAfter),
            per_key().advertise(Advertise::Nothing),
            per_key().ban(Ban::after(1, MINUTE)),
        ] {
            let name = policy.name().to_owned();
            let (limiter, request) = refused(policy.clone());
            let app = Router::new().route("/", get(|| async {})).layer(RateLimitLayer::new(&limiter));
            let by_layer = content(app.oneshot(request).await.unwrap()).await;
            assert_eq!(by_layer.0, StatusCode::TOO_MANY_REQUESTS);
            let (limiter, _) = refused(policy);
            let by_handler = content(limiter.acquire(&name, "k1").unwrap_err().into_response()).await;
            assert_eq!(by_layer, by_handler);
        }
    }

    #[tokio::test]
    async fn a_policy_by_key_is_in_the_fields_of_its_denials_and_of_no_response_to_a_request() {
        let (limiter, _) = limiter([
            Policy::by_key(Quota::per_minute(2)).named("account"),
            Policy::per(Header::new("x-api-key"), Quota::per_minute(2)).named("key"),
        ]);
        let app = Router::new().route("/", get(|| async {})).layer(RateLimitLayer::new(&limiter));
        for (status, limits) in [(200, r#""key";r=1;t=30"#), (200, r#""key";r=0;t=30"#), (429, r#""key";r=0;t=30"#)] {
            let request = Request::builder().header("x-api-key", "k1").body(Body::empty()).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()["ratelimit-policy"], r#""key";q=2;w=60"#);
            assert_eq!(response.headers()["ratelimit"], limits);
        }
        limiter.acquire_n("account", "alice", 2).unwrap();
        let (status, headers, body) = content(limiter.acquire("account", "alice").unwrap_err().into_response()).await;
        assert_eq!((status, &headers["retry-after"]), (StatusCode::TOO_MANY_REQUESTS, &"30".parse().unwrap()));
        assert_eq!(headers["ratelimit-policy"], r#""account";q=2;w=60"#);
        assert_eq!(headers["ratelimit"], r#""account";r=0;t=30"#);
        assert!(body.contains(r#""violated-policies":["account"]"#), "{body}");
    }

    #[tokio::test]
    async fn a_fault_of_the_server_is_a_500_without_its_reason() {
        let (limiter, _) = accounts(Quota::per_minute(2));
        let (status, _, body) = content(limiter.acquire("acount", "alice").unwrap_err().into_response()).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(body, "{\"title\":\"Internal Server Error\",\"status\":500}\n");
    }

    #[tokio::test]
    async fn a_handler_extracts_its_admission_or_answers_what_is_missing() {
        let (limiter, _) = limiter([Policy::global(Quota::per_minute(9))]);
        let layer = RateLimitLayer::new(&limiter);
        let app =
            Router::new().route("/", get(|admission: Admission| async move { admission.charge("global", 3).unwrap() }));
        let ask = |app: Router| async { content(app.oneshot(Request::new(Body::empty())).await.unwrap()).await };
        assert_eq!(ask(app.clone().layer(layer.clone().admissions())).await.0, StatusCode::OK);
        assert_eq!(remaining(&limiter, "global", 0), 5);
        let (status, _, body) = ask(app.layer(layer)).await;
        assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(body.contains("call `.admissions()` on the layer"), "{body}");
        let optional = get(|admission: Option<Admission>| async move { assert!(admission.is_none()) });
        assert_eq!(ask(Router::new().route("/", optional)).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_status_of_grpc_says_what_the_layer_says() {
        let policy = || Policy::per(Header::new("x-api-key"), Quota::per_minute(2));
        let call = |limiter: &Limiter| {
            let service = service_fn(|_: Request<Body>| async {
                Ok::<_, Infallible>(http::Response::new(tonic::body::Body::empty()))
            });
            let mut request = Request::post("/").header("x-api-key", "k1").body(Body::empty()).unwrap();
            request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            *request.version_mut() = http::Version::HTTP_2;
            tower::Layer::layer(&RateLimitLayer::new(limiter), service).oneshot(request)
        };
        for cells in [1, 3] {
            let policy = policy().cost_by(move |_| cells);
            let (limiter, _) = refused(policy.clone());
            let headers = call(&limiter).await.unwrap().into_parts().0.headers;
            let by_layer = tonic::Status::from_header_map(&headers).unwrap();
            let (limiter, _) = refused(policy);
            let error = limiter.acquire_n("per-x-api-key", "k1", cells).unwrap_err();
            let status = tonic::Status::from(error);
            assert_eq!(status.code(), tonic::Code::ResourceExhausted);
            assert_eq!(
                (status.code(), status.message(), status.details()),
                (by_layer.code(), by_layer.message(), by_layer.details())
            );
            let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
            assert_eq!(pushback.as_bytes(), headers["grpc-retry-pushback-ms"].as_bytes());
        }
        let (limiter, _) = accounts(Quota::per_minute(2));
        let status = tonic::Status::from(limiter.acquire("acount", 1).unwrap_err());
        assert_eq!(status.code(), tonic::Code::Internal);
    }
}
