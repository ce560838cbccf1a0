//! The limiter against two others: governor's own, for one policy; and an exact model that shares no code with it, for
//! several policies with keys, costs, changes of quota, refunds, calls by key and sweeping.

#[path = "support/exact.rs"]
mod exact;
mod support;

use std::{num::NonZeroU32, time::Duration};

use exact::{Asked, Step, agree, agree_on_one};
use governor::{RateLimiter, clock::FakeRelativeClock};
use http::Request;
use proptest::prelude::*;
use support::limiter;
use tower_quota::{Policy, Quota, decision::Reason};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn one_policy_decides_as_governor_does(
        count in 1_u32..1_000,
        burst in 1_u32..50,
        arrivals in prop::collection::vec((0_u64..400_000_000, 1_u32..5), 1..100),
    ) {
        let quota = Quota::per_second(count).burst(burst);
        let theirs = governor::Quota::with_period(quota.cell_period()).unwrap().allow_burst(NonZeroU32::new(burst).unwrap());
        let their_clock = FakeRelativeClock::default();
        let theirs = RateLimiter::direct_with_clock(theirs, their_clock.clone());
        let (ours, our_clock) = limiter([
            Policy::global(quota).cost_by(|head| *head.extensions().get::<u32>().unwrap()),
        ]);
        for (gap, cost) in arrivals {
            our_clock.advance(Duration::from_nanos(gap));
            their_clock.advance(Duration::from_nanos(gap));
            let mut request = Request::new(());
            request.extensions_mut().insert(cost);
            let decision = ours.decide(&request);
            match theirs.check_n(NonZeroU32::new(cost).unwrap()) {
                Ok(Ok(())) => prop_assert!(decision.is_allowed()),
                Ok(Err(not_until)) => {
                    let wait = not_until.wait_time_from(governor::clock::Clock::now(&their_clock));
                    prop_assert_eq!(decision.denied().and_then(|denied| denied.wait()), Some(wait));
                }
                Err(_) => prop_assert_eq!(decision.denied().map(|denied| denied.reason()), Some(Reason::CostAboveBurst)),
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let asked = (prop::option::of(0_u8..3), 0_u8..2, 0_u32..6, 0_u8..4, any::<bool>())
        .prop_map(|(user, team, cost, plan, write)| Asked { user, team, cost, plan, write });
    let step = prop_oneof![
        3 => (0_u64..400_000_000).prop_map(Step::Advance),
        1 => (0_u64..4_000_000_000).prop_map(Step::Advance),
        8 => asked.prop_map(Step::Ask),
        3 => prop::array::uniform5(prop::option::of((0_u8..3, 0_u32..6))).prop_map(Step::Acquire),
        2 => (0_u8..5, 0_u8..3, 0_u32..9, 0_u8..3)
            .prop_map(|(policy, key, cells, plan)| Step::AcquireAs { policy, key, cells, plan }),
        2 => Just(Step::Refund),
        1 => (0_u8..3, 0_u32..9).prop_map(|(user, cells)| Step::Charge { user, cells }),
        1 => any::<bool>().prop_map(Step::SetQuotas),
        1 => Just(Step::Sweep),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn several_policies_decide_as_the_exact_model_does(steps in steps(), second: bool) {
        agree(&steps, second, false);
    }

    #[test]
    fn m3_sweeping_changes_no_decision(steps in steps(), second: bool) {
        agree(&steps, second, true);
    }

    #[test]
    fn a_single_global_policy_decides_as_the_exact_model_does_through_changes_of_quota(
        steps in prop::collection::vec((0_u64..400_000_000, 0_u32..9, 0_u8..8), 1..120),
    ) {
        agree_on_one(&steps);
    }
}
