//! One bucket: the vectors and the properties of GCRA.

mod support;

use std::time::Duration;

use http::Request;
use proptest::prelude::*;
use support::limiter;
use tower_quota::{
    Decision, Key, Limiter, Policy, Quota,
    clock::ManualClock,
    decision::{Reason, Standing},
};

/// A limiter whose one bucket every request charges what its extension says.
fn one_bucket(quota: Quota) -> (Limiter, ManualClock) {
    limiter([Policy::global(quota).cost_by(|head| head.extensions().get::<u32>().copied().unwrap_or(1))])
}

fn request(cost: u32) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(cost);
    request
}

fn standing(limiter: &Limiter) -> Standing<'_> {
    limiter.peek("global", Key::GLOBAL).unwrap()
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Allow,
    Never,
    Wait(Duration),
}

fn decide(limiter: &Limiter, cost: u32) -> Verdict {
    match limiter.decide(&request(cost)) {
        Decision::Allow(_) => Verdict::Allow,
        Decision::Deny(denied) if denied.reason() == Reason::CostAboveBurst => {
            assert_eq!((denied.wait(), denied.retry_after()), (None, None));
            Verdict::Never
        }
        Decision::Deny(denied) => Verdict::Wait(denied.wait().unwrap()),
    }
}

#[test]
fn c_gcra_v1_five_per_ten_seconds_burst_five() {
    let (limiter, clock) = one_bucket(Quota::per(5, Duration::from_secs(10)));
    let ms = Duration::from_millis;
    let rows = [
        // now, cost, verdict, remaining, next, full
        (0, 1, Verdict::Allow, 4, 2_000, 2_000),
        (0, 1, Verdict::Allow, 3, 2_000, 4_000),
        (0, 1, Verdict::Allow, 2, 2_000, 6_000),
        (0, 1, Verdict::Allow, 1, 2_000, 8_000),
        (0, 1, Verdict::Allow, 0, 2_000, 10_000),
        (0, 1, Verdict::Wait(ms(2_000)), 0, 2_000, 10_000),
        (500, 1, Verdict::Wait(ms(1_500)), 0, 1_500, 9_500),
        (2_000, 1, Verdict::Allow, 0, 2_000, 10_000),
        (2_000, 1, Verdict::Wait(ms(2_000)), 0, 2_000, 10_000),
        (5_300, 1, Verdict::Allow, 0, 700, 8_700),
        (5_300, 2, Verdict::Wait(ms(2_700)), 0, 700, 8_700),
        (40_000, 5, Verdict::Allow, 0, 2_000, 10_000),
        (40_000, 6, Verdict::Never, 0, 2_000, 10_000),
    ];
    for (row, (now, cost, verdict, remaining, next, full)) in rows.into_iter().enumerate() {
        clock.set(ms(now));
        assert_eq!(decide(&limiter, cost), verdict, "row {row}");
        let standing = standing(&limiter);
        assert_eq!(standing.remaining(), remaining, "row {row}");
        assert_eq!(standing.next_cell(), Some(ms(next)), "row {row}");
        assert_eq!(standing.until_full(), ms(full), "row {row}");
    }
}

#[test]
fn c_gcra_v2_a_hundred_per_second_burst_ten() {
    let (limiter, clock) = one_bucket(Quota::per_second(100).burst(10));
    let at = |ns| clock.set(Duration::from_nanos(ns));
    let ns = Duration::from_nanos;
    assert_eq!(decide(&limiter, 10), Verdict::Allow);
    assert_eq!(decide(&limiter, 1), Verdict::Wait(ns(10_000_000)));
    at(9_999_999);
    let denied = limiter.decide(&request(1)).denied().unwrap();
    assert_eq!((denied.wait(), denied.retry_after()), (Some(ns(1)), Some(1)));
    at(10_000_000);
    assert_eq!(decide(&limiter, 1), Verdict::Allow);
    assert_eq!(decide(&limiter, 1), Verdict::Wait(ns(10_000_000)));
    at(25_400_000);
    assert_eq!(decide(&limiter, 1), Verdict::Allow);
    assert_eq!(standing(&limiter).next_cell(), Some(ns(4_600_000)));
    assert_eq!(decide(&limiter, 1), Verdict::Wait(ns(4_600_000)));
}

#[test]
fn ari05_retry_after_is_rounded_up_to_whole_seconds() {
    let (limiter, clock) = one_bucket(Quota::every(Duration::from_secs(10)));
    assert_eq!(decide(&limiter, 1), Verdict::Allow);
    for (now, seconds) in [(0, 10), (1, 10), (999, 10), (1_000, 9), (8_001, 2), (9_000, 1), (9_999, 1)] {
        clock.set(Duration::from_millis(now));
        assert_eq!(limiter.decide(&request(1)).denied().unwrap().retry_after(), Some(seconds), "{now} ms");
    }
}

#[test]
fn ari04_a_cost_of_the_burst_succeeds_and_one_more_never_does() {
    let (limiter, clock) = one_bucket(Quota::per_second(5));
    assert_eq!(decide(&limiter, 6), Verdict::Never);
    assert_eq!(decide(&limiter, u32::MAX), Verdict::Never);
    assert_eq!(decide(&limiter, 5), Verdict::Allow, "a denied cost has charged something");
    clock.advance(Duration::from_secs(3_600));
    assert_eq!(decide(&limiter, 6), Verdict::Never);
}

#[test]
fn ari04_a_cost_of_zero_acquires_nothing_and_is_granted() {
    let (limiter, _clock) = one_bucket(Quota::per_second(1));
    assert_eq!(decide(&limiter, 0), Verdict::Allow);
    assert_eq!(decide(&limiter, 1), Verdict::Allow);
    let before = standing(&limiter).until_full();
    assert_eq!(decide(&limiter, 0), Verdict::Allow);
    assert_eq!(standing(&limiter).until_full(), before);
}

#[test]
fn ari07_the_end_of_the_clock_denies() {
    let (limiter, clock) = one_bucket(Quota::per_second(10));
    for k in 0..10 {
        clock.set(Duration::from_nanos(u64::MAX - k * 10_000_000));
        assert!(matches!(decide(&limiter, 1), Verdict::Wait(_)), "{k}");
    }
    clock.set(Duration::MAX);
    assert!(matches!(decide(&limiter, 1), Verdict::Wait(_)));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Advance(u64),
    Draw(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_u64..3_000_000_000).prop_map(Step::Advance),
        (0_u64..20).prop_map(|ms| Step::Advance(ms * 1_000_000)),
        (0_u32..12).prop_map(Step::Draw),
        Just(Step::Draw(1)),
    ];
    prop::collection::vec(step, 1..60)
}

fn quotas() -> impl Strategy<Value = Quota> {
    (1_u32..50, 1_u64..10_000, 1_u32..12)
        .prop_map(|(cells, ms, burst)| Quota::per(cells, Duration::from_millis(ms)).burst(burst))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn c_gcra_p1_to_p6_on_any_schedule(quota in quotas(), steps in steps()) {
        let (limiter, clock) = one_bucket(quota);
        let mut now = 0_u64;
        let mut admitted: Vec<(u64, u64)> = Vec::new();
        for step in steps {
            let cost = match step {
                Step::Advance(by) => {
                    now += by;
                    clock.set(Duration::from_nanos(now));
                    continue;
                }
                Step::Draw(cost) => cost,
            };
            let before = standing(&limiter);
            let verdict = decide(&limiter, cost);
            let after = standing(&limiter);
            if cost > 0 {
                // P3: allowed exactly if as many remain.
                prop_assert_eq!(verdict == Verdict::Allow, before.remaining() >= cost);
            }
            match verdict {
                Verdict::Allow => {
                    // P4
                    prop_assert_eq!(after.remaining(), before.remaining() - cost);
                    admitted.push((now, u64::from(cost)));
                }
                Verdict::Never => {
                    prop_assert!(cost > quota.burst_size());
                    prop_assert_eq!(before, after);
                }
                Verdict::Wait(wait) => {
                    // P1, P5
                    prop_assert_eq!(before, after);
                    prop_assert!(wait >= before.next_cell().unwrap());
                    // P2: one nanosecond before the wait is over it is denied, and when it is over admitted.
                    let wait = u64::try_from(wait.as_nanos()).unwrap();
                    clock.set(Duration::from_nanos(now + wait - 1));
                    prop_assert_eq!(decide(&limiter, cost), Verdict::Wait(Duration::from_nanos(1)));
                    now += wait;
                    clock.set(Duration::from_nanos(now));
                    prop_assert_eq!(decide(&limiter, cost), Verdict::Allow);
                    admitted.push((now, u64::from(cost)));
                }
            }
        }
        // P6: in no interval more than the burst and what the rate gives.
        let cell = u64::try_from(quota.cell_period().as_nanos()).unwrap();
        for (first, (from, _)) in admitted.iter().enumerate() {
            let mut sum = 0;
            for (to, cost) in &admitted[first..] {
                sum += cost;
                prop_assert!(sum <= u64::from(quota.burst_size()) + (to - from) / cell);
            }
        }
    }

    #[test]
    fn ari08_remaining_is_the_number_of_requests_that_pass_now(quota in quotas(), ahead in 0_u32..12, ns in 0_u64..5_000_000_000) {
        let (limiter, clock) = one_bucket(quota);
        let _ = decide(&limiter, ahead.min(quota.burst_size()));
        clock.advance(Duration::from_nanos(ns));
        let remaining = standing(&limiter).remaining();
        let passed = (0..100).take_while(|_| decide(&limiter, 1) == Verdict::Allow).count();
        prop_assert_eq!(passed, remaining as usize);
    }

    /// What a step back repeats has passed once more in truth: time that counts is the sum of the steps forward.
    #[test]
    fn clk02_a_clock_that_steps_back_never_admits_more(
        quota in quotas(),
        walk in prop::collection::vec(-5_000_i64..5_000, 1..80),
    ) {
        let (limiter, clock) = one_bucket(quota);
        let (mut now, mut forward, mut admitted) = (0_i64, 0_i64, 0_u64);
        for step in walk {
            let next = (now + step).max(0);
            forward += (next - now).max(0);
            now = next;
            clock.set(Duration::from_millis(now.unsigned_abs()));
            while decide(&limiter, 1) == Verdict::Allow {
                admitted += 1;
            }
        }
        let cell = quota.cell_period().as_nanos();
        let time = u128::from(forward.unsigned_abs()) * 1_000_000;
        prop_assert!(u128::from(admitted) <= u128::from(quota.burst_size()) + time / cell);
    }

    #[test]
    fn clk02_a_clock_that_steps_back_delays_by_two_bursts_at_most(quota in quotas(), back in 0_u64..1_000_000) {
        let (limiter, clock) = one_bucket(quota);
        clock.set(Duration::from_secs(1_000));
        while decide(&limiter, 1) == Verdict::Allow {}
        let now = Duration::from_millis(1_000_000 - back);
        clock.set(now);
        let _ = decide(&limiter, 1);
        clock.set(now + quota.time_to_fill() * 2);
        prop_assert_eq!(standing(&limiter).remaining(), quota.burst_size());
    }
}
