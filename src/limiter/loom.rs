//! Contains the models of the critical section: every interleaving with what may run at the same
//! time.

use std::time::Duration;

use ::loom::thread;
use http::Request;

use super::*;
use crate::{
    clock::ManualClock,
    key::{Key, key_fn},
    policy::{AtCap, Policy},
    quota::Quota,
    window::Window,
};

const CELL: Duration = Duration::from_secs(3_600);

fn per_user(cells: u32) -> Policy {
    Policy::per(key_fn(|head| head.extensions().get::<u64>().copied()), Quota::per_hour(cells)).named("user")
}

fn per_team(cells: u32) -> Policy {
    Policy::per(key_fn(|head| head.extensions().get::<u64>().map(|_| 0_u64)), Quota::per_hour(cells)).named("team")
}

fn limiter(policies: impl IntoIterator<Item = Policy>) -> (Limiter, ManualClock) {
    let clock = ManualClock::new();
    // Small maps, so that loom has few atomics to follow.
    let policies = policies.into_iter().map(|policy| if policy.is_global() { policy } else { policy.max_keys(2) });
    let limiter = Limiter::builder().policies(policies).clock(clock.clone()).sweep(Sweep::Manual).build();
    (limiter.unwrap(), clock)
}

fn request(user: u64) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(user);
    request
}

fn admits(limiter: &Limiter, user: u64) -> bool {
    limiter.decide(&request(user)).is_allowed()
}

/// Runs both at the same time, and returns what they return.
fn beside<A: Send + 'static, B>(
    limiter: &Limiter,
    first: impl FnOnce(&Limiter) -> A + Send + 'static,
    second: impl FnOnce(&Limiter) -> B,
) -> (A, B) {
    let other = limiter.clone();
    let first = thread::spawn(move || first(&other));
    let second = second(limiter);
    (first.join().unwrap(), second)
}

fn left(limiter: &Limiter, policy: &str, key: Key) -> u32 {
    limiter.peek(policy, key).unwrap().remaining()
}

fn models(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = ::loom::model::Builder::new();
    // More of them take much more time and find nothing more.
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(model);
}

#[test]
fn loom_two_requests_over_three_policies_are_allowed_by_all_or_counted_by_none() {
    models(|| {
        let (limiter, _clock) = limiter([per_user(1), per_team(1), Policy::global(Quota::per_hour(9))]);
        let (a, b) = beside(&limiter, |limiter| admits(limiter, 1), |limiter| admits(limiter, 2));
        assert!(a != b, "the team has one cell");
        let users = left(&limiter, "user", limiter.key(1_u64)) + left(&limiter, "user", limiter.key(2_u64));
        let rest = (users, left(&limiter, "team", limiter.key(0_u64)), left(&limiter, "global", Key::GLOBAL));
        assert_eq!(rest, (1, 0, 8));
    });
}

#[test]
fn loom_the_last_cell_of_the_global_bucket_is_acquired_once() {
    models(|| {
        let (limiter, _clock) = limiter([per_user(2), Policy::global(Quota::per_hour(1))]);
        let (a, b) = beside(&limiter, |limiter| admits(limiter, 1), |limiter| admits(limiter, 2));
        assert!(a != b);
        let users = left(&limiter, "user", limiter.key(1_u64)) + left(&limiter, "user", limiter.key(2_u64));
        assert_eq!(users, 3, "a denied request acquires nothing");
    });
}

#[test]
fn loom_several_global_policies_are_locked_together() {
    // In both orders: buckets exchanged one after another would count a request that the next one
    // denies.
    for cells in [[3, 1], [1, 3]] {
        models(move || {
            let policies = cells.map(|cells| Policy::global(Quota::per_hour(cells)).named(format!("of {cells}")));
            let (limiter, _clock) = limiter(policies);
            let (a, b) = beside(&limiter, |limiter| admits(limiter, 1), |limiter| admits(limiter, 2));
            assert!(a != b);
            assert_eq!((left(&limiter, "of 3", Key::GLOBAL), left(&limiter, "of 1", Key::GLOBAL)), (2, 0));
        });
    }
}

/// A clock that is read before the bucket is locked admits one more: a bucket that was idle then
/// may be swept by now.
#[test]
fn loom_a_sweep_beside_a_decision_admits_no_more() {
    for policies in [1, 2] {
        models(move || {
            let (limiter, clock) = limiter([per_user(1), per_team(9)].into_iter().take(policies));
            assert!(admits(&limiter, 1));
            let (_swept, admitted) = beside(
                &limiter,
                move |limiter| {
                    clock.advance(CELL);
                    limiter.sweep()
                },
                |limiter| admits(limiter, 1),
            );
            // An hour later there is one cell, for the one or for the other.
            assert_eq!(usize::from(admitted) + usize::from(admits(&limiter, 1)), 1);
        });
    }
}

#[test]
fn loom_the_last_place_is_reserved_once() {
    models(|| {
        let (limiter, _clock) = limiter([per_user(1).at_cap(AtCap::Deny), per_team(9)]);
        assert!(admits(&limiter, 1));
        let (a, b) = beside(&limiter, |limiter| admits(limiter, 2), |limiter| admits(limiter, 3));
        assert!(a != b, "two places for three keys");
        assert_eq!(limiter.len(), 2 + 1);
    });
}

#[test]
fn loom_one_key_does_not_compete_with_itself() {
    models(|| {
        let (limiter, _clock) = limiter([per_user(2).at_cap(AtCap::Deny)]);
        assert!(admits(&limiter, 1));
        let (a, b) = beside(&limiter, |limiter| admits(limiter, 2), |limiter| admits(limiter, 2));
        assert!(a && b, "one place for one key with two cells");
    });
}

#[test]
fn loom_a_refund_beside_an_acquisition_returns_cells_once() {
    models(|| {
        let (limiter, _clock) = limiter([per_user(1), per_team(2)]);
        let (_, admitted) = beside(
            &limiter,
            |limiter| match limiter.decide(&request(1)) {
                Decision::Allow(allowed) => limiter.refund(allowed),
                Decision::Deny(_) => {}
            },
            |limiter| admits(limiter, 1),
        );
        let left = (left(&limiter, "user", limiter.key(1_u64)), left(&limiter, "team", limiter.key(0_u64)));
        assert_eq!(left, if admitted { (0, 1) } else { (1, 2) });
    });
}

/// Each decision uses the old quota or the new one, and what was used stays used.
#[test]
fn loom_a_change_of_quota_beside_decisions_admits_what_one_of_the_quotas_does() {
    models(|| {
        let (limiter, _clock) = limiter([per_user(1)]);
        let ((), admitted) = beside(
            &limiter,
            |limiter| limiter.set_limit("user", Quota::per_hour(2)).unwrap(),
            |limiter| [admits(limiter, 1), admits(limiter, 1), admits(limiter, 1)],
        );
        // The first by both quotas, and one more after the change.
        let count = admitted.into_iter().filter(|admitted| *admitted).count();
        assert!(admitted[0] && count <= 2, "{admitted:?}");
        let left = left(&limiter, "user", limiter.key(1_u64));
        assert_eq!(left as usize, 2 - count, "{admitted:?}");
    });
}

fn by_key(cells: u32) -> Policy {
    Policy::by_key(Quota::per_hour(cells)).named("key")
}

#[test]
fn loom_callers_and_requests_share_what_is_left() {
    models(|| {
        let (limiter, _clock) = limiter([per_user(1), by_key(9)]);
        let (a, b) = beside(
            &limiter,
            |limiter| limiter.acquire_all(&[("key", &7, 1), ("user", &1_u64, 1)]).is_ok(),
            |limiter| admits(limiter, 1),
        );
        assert!(a != b);
        assert_eq!(left(&limiter, "key", limiter.key(7)), if a { 8 } else { 9 });
    });
}

#[test]
fn loom_reservations_beside_each_other_stand_in_line() {
    models(|| {
        let (limiter, _clock) = limiter([by_key(1)]);
        let reserve = |limiter: &Limiter| limiter.reserve("key", 7, 9 * CELL).unwrap();
        let (a, b) = beside(&limiter, reserve, reserve);
        let mut waits = [a.wait(), b.wait()];
        waits.sort();
        assert_eq!(waits, [None, Some(CELL)]);
    });
}

/// Given up, the last place in line is there for the next one, and another place for nobody: two
/// callers would have one cell.
#[test]
fn loom_a_reservation_that_is_dropped_beside_another_leaves_its_place_or_nothing() {
    models(|| {
        let (limiter, _clock) = limiter([by_key(1)]);
        limiter.acquire("key", 7).unwrap();
        let first = limiter.reserve("key", 7, 9 * CELL).unwrap();
        let ((), second) =
            beside(&limiter, move |_| drop(first), |limiter| limiter.reserve("key", 7, 9 * CELL).unwrap());
        let wait = second.wait().unwrap();
        assert!(wait == CELL || wait == 2 * CELL, "{wait:?}");
        let third = limiter.reserve("key", 7, 9 * CELL).unwrap();
        assert_eq!(third.wait(), Some(wait + CELL));
    });
}

const PAUSE: Duration = Duration::from_secs(7 * 3_600);

/// One policy with a map, and the only global one, whose bucket is an atomic.
fn with_and_without_keys(model: impl Fn(&Limiter) + Clone + Send + Sync + 'static) {
    for policy in [by_key(1), Policy::global(Quota::per_hour(1)).named("key")] {
        let model = model.clone();
        models(move || {
            let (limiter, _clock) = limiter([policy.clone()]);
            // Not one of two threads makes the table.
            limiter.pause("key", 1, Duration::ZERO).unwrap();
            model(&limiter);
        });
    }
}

#[test]
fn loom_who_acquires_beside_a_pause_does_so_before_it() {
    with_and_without_keys(|limiter| {
        let (acquired, ()) = beside(
            limiter,
            |limiter| limiter.acquire("key", 7),
            |limiter| {
                limiter.pause("key", 7, PAUSE).unwrap();
                assert!(limiter.acquire("key", 7).is_err());
            },
        );
        // One cell is used, or is there at the end.
        let wait = limiter.reserve("key", 7, 99 * CELL).unwrap().wait();
        assert_eq!(wait, Some(PAUSE + if acquired.is_ok() { CELL } else { Duration::ZERO }));
    });
}

#[test]
fn loom_who_reserves_beside_a_pause_stands_in_line_behind_it() {
    with_and_without_keys(|limiter| {
        limiter.acquire("key", 7).unwrap();
        let reserve = |limiter: &Limiter| limiter.reserve("key", 7, 99 * CELL).unwrap();
        let (reservation, ()) = beside(limiter, reserve, |limiter| limiter.pause("key", 7, PAUSE).unwrap());
        assert_eq!(reservation.wait(), Some(PAUSE + CELL));
        assert_eq!(reserve(limiter).wait(), Some(PAUSE + 2 * CELL));
    });
}

#[test]
fn loom_who_gives_up_beside_a_pause_leaves_its_place() {
    with_and_without_keys(|limiter| {
        limiter.acquire("key", 7).unwrap();
        let first = limiter.reserve("key", 7, 99 * CELL).unwrap();
        beside(limiter, move |_| drop(first), |limiter| limiter.pause("key", 7, PAUSE).unwrap());
        assert_eq!(limiter.reserve("key", 7, 99 * CELL).unwrap().wait(), Some(PAUSE + CELL));
    });
}

/// In a map, and as the only global one, whose bucket is an atomic: a window of two cells, used up
/// in the last minute.
fn at_the_end_of_a_window(model: impl Fn(&Limiter, &ManualClock) + Clone + Send + Sync + 'static) {
    const MINUTE: Duration = Duration::from_secs(60);
    for policy in [Policy::by_key(Window::fixed(2, MINUTE)), Policy::global(Window::fixed(2, MINUTE))] {
        let model = model.clone();
        models(move || {
            let (limiter, clock) = limiter([policy.clone().named("key")]);
            clock.set(2 * MINUTE - Duration::from_nanos(1));
            limiter.acquire_n("key", 7, 2).unwrap();
            model(&limiter, &clock);
        });
    }
}

fn acquires(limiter: &Limiter) -> usize {
    (0..2).filter(|_| limiter.acquire("key", 7).is_ok()).count()
}

#[test]
fn loom_the_cells_of_a_window_that_two_threads_begin_come_back_once() {
    at_the_end_of_a_window(|limiter, clock| {
        clock.advance(Duration::from_nanos(1));
        let (a, b) = beside(limiter, acquires, acquires);
        assert_eq!(a + b, 2);
    });
}

/// While the clock moves on, and the sweeper begins the next window, too.
#[test]
fn loom_a_window_that_ends_beside_a_decision_and_a_sweep_gives_its_cells_once() {
    at_the_end_of_a_window(|limiter, clock| {
        let clock = clock.clone();
        let (a, ()) = beside(limiter, acquires, move |limiter| {
            clock.advance(Duration::from_nanos(1));
            limiter.sweep();
        });
        assert_eq!(a + acquires(limiter), 2);
    });
}

/// A refund of the last window returns nothing to the next one.
#[test]
fn loom_a_refund_beside_the_end_of_its_window_returns_cells_to_no_other() {
    at_the_end_of_a_window(|limiter, clock| {
        limiter.reset("key", 7).unwrap();
        let admission = limiter.acquire("key", 7).unwrap();
        clock.advance(Duration::from_nanos(1));
        beside(limiter, move |_| admission.refund(), |limiter| limiter.acquire("key", 7).unwrap());
        assert_eq!(acquires(limiter), 1);
    });
}
