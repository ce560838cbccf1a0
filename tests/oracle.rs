//! The limiter against two others: governor's own, for one policy; and an exact model that shares no code with it, for
//! several policies with keys, costs, changes of quota, put-backs and sweeping.

mod support;

use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use governor::{RateLimiter, clock::FakeRelativeClock};
use http::Request;
use proptest::prelude::*;
use support::limiter;
use tower_quota::{
    Decision, Limiter, Policy, Quota, clock::ManualClock, decision::Reason, key::key_fn, policy::Missing,
};

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
                    prop_assert_eq!(decision.denied().and_then(|denied| denied.retry_after()), Some(wait));
                }
                Err(_) => prop_assert_eq!(decision.denied().map(|denied| denied.reason()), Some(Reason::CostAboveBurst)),
            }
        }
    }
}

/// A request as the model and the limiter both see it.
#[derive(Clone, Debug)]
struct Asked {
    user: Option<u8>,
    team: u8,
    cost: u32,
    pro: bool,
    write: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Advance(u64),
    Ask(Asked),
    /// The last admission is not used after all.
    PutBack,
    Charge {
        user: u8,
        cells: u32,
    },
    Sweep,
}

const PRO: Quota = Quota::per_second(20).burst(8);

/// The plan is faster than the policy's own quota, or slower.
fn build(slow_plan: bool) -> (Limiter, ManualClock, [Quota; 4]) {
    let quotas = [
        if slow_plan { Quota::per_second(90).burst(3) } else { Quota::per_second(3).burst(4) },
        Quota::per(7, Duration::from_secs(5)),
        Quota::per_second(9).burst(12),
        Quota::per_second(30).burst(15),
    ];
    let asked = |head: tower_quota::key::RequestHead<'_>| head.extensions().get::<Asked>().cloned().unwrap();
    let (limiter, clock) = limiter([
        Policy::per(key_fn(move |head| asked(head).user), quotas[0])
            .named("user")
            .quota_by(move |head| asked(head).pro.then_some(PRO))
            .cost_by(move |head| asked(head).cost)
            .on_missing(Missing::Skip),
        Policy::global(quotas[2]).named("cap"),
        Policy::per(key_fn(move |head| Some((asked(head).team, "team"))), quotas[1]).named("team"),
        Policy::global(quotas[3])
            .named("writes")
            .when(move |head| asked(head).write)
            .cost_by(move |head| asked(head).cost),
    ]);
    (limiter, clock, quotas)
}

/// Levels of owed time, drained by hand: not an arrival time in sight.
#[derive(Default)]
struct Model {
    levels: HashMap<(usize, u16), i128>,
    generations: [u64; 4],
    now: i128,
}

struct Receipt {
    at: i128,
    draws: Vec<((usize, u16), i128, u64)>,
}

fn cell(quota: Quota) -> i128 {
    i128::try_from(quota.cell_period().as_nanos()).unwrap()
}

impl Model {
    fn advance(&mut self, by: i128) {
        self.now += by;
        self.levels.values_mut().for_each(|level| *level = (*level - by).max(0));
    }

    /// Cuts a level to two bursts.
    fn settle(&mut self, bucket: (usize, u16), quota: Quota) -> i128 {
        let furthest = 2 * cell(quota) * i128::from(quota.burst_size());
        let level = self.levels.entry(bucket).or_default();
        if *level > furthest {
            *level = furthest;
            self.generations[bucket.0] += 1;
        }
        *level
    }

    /// The longest wait, or none where no wait helps.
    fn ask(&mut self, asked: &Asked, quotas: [Quota; 4]) -> Result<Receipt, Option<i128>> {
        let mut charges = Vec::new();
        if let Some(user) = asked.user {
            charges.push(((0, u16::from(user)), if asked.pro { PRO } else { quotas[0] }, asked.cost));
        }
        charges.push(((1, u16::from(asked.team)), quotas[1], 1));
        charges.push(((2, 0), quotas[2], 1));
        if asked.write {
            charges.push(((3, 0), quotas[3], asked.cost));
        }
        let mut longest = Some(0);
        for (bucket, quota, cost) in &charges {
            let level = self.settle(*bucket, *quota);
            let full = cell(*quota) * i128::from(quota.burst_size());
            let wait = level + cell(*quota) * i128::from(*cost) - full;
            if cost > &quota.burst_size() {
                longest = None;
            } else if *cost > 0 {
                longest = longest.map(|longest: i128| longest.max(wait));
            }
        }
        if longest != Some(0) {
            return Err(longest);
        }
        let mut draws = Vec::new();
        for (bucket, quota, cost) in charges {
            let added = cell(quota) * i128::from(cost);
            *self.levels.entry(bucket).or_default() += added;
            draws.push((bucket, added, self.generations[bucket.0]));
        }
        Ok(Receipt { at: self.now, draws })
    }

    fn put_back(&mut self, receipt: &Receipt) {
        for (bucket, added, generation) in &receipt.draws {
            if self.generations[bucket.0] == *generation {
                let left = (added - (self.now - receipt.at)).max(0);
                let level = self.levels.entry(*bucket).or_default();
                *level = (*level - left).max(0);
            }
        }
    }

    fn charge(&mut self, bucket: (usize, u16), quota: Quota, cells: u32) {
        let furthest = 2 * cell(quota) * i128::from(quota.burst_size());
        let level = self.levels.entry(bucket).or_default();
        *level = (*level).max((*level + cell(quota) * i128::from(cells)).min(furthest));
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let asked = (prop::option::of(0_u8..3), 0_u8..2, 0_u32..6, any::<bool>(), any::<bool>())
        .prop_map(|(user, team, cost, pro, write)| Asked { user, team, cost, pro, write });
    let step = prop_oneof![
        3 => (0_u64..400_000_000).prop_map(Step::Advance),
        1 => (0_u64..4_000_000_000).prop_map(Step::Advance),
        8 => asked.prop_map(Step::Ask),
        2 => Just(Step::PutBack),
        1 => (0_u8..3, 0_u32..9).prop_map(|(user, cells)| Step::Charge { user, cells }),
        1 => Just(Step::Sweep),
    ];
    prop::collection::vec(step, 1..120)
}

/// Runs the steps on the limiter and on the model, and compares every decision to the nanosecond.
fn agrees(steps: &[Step], slow_plan: bool, sweeping: bool) -> Result<(), TestCaseError> {
    let (limiter, clock, quotas) = build(slow_plan);
    let mut model = Model::default();
    let mut last = None;
    for step in steps {
        match step {
            Step::Advance(by) => {
                clock.advance(Duration::from_nanos(*by));
                model.advance(i128::from(*by));
            }
            Step::Ask(asked) => {
                let mut request = Request::new(());
                request.extensions_mut().insert(asked.clone());
                match (limiter.decide(&request), model.ask(asked, quotas)) {
                    (Decision::Allow(allowed), Ok(receipt)) => last = Some((allowed, receipt)),
                    (Decision::Deny(denied), Err(wait)) => {
                        let ours = denied.retry_after().map(|wait| i128::try_from(wait.as_nanos()).unwrap());
                        prop_assert_eq!(ours, wait, "{:?}", asked);
                    }
                    (ours, theirs) => prop_assert!(false, "{asked:?}: {ours:?}, and the model {:?}", theirs.err()),
                }
            }
            Step::PutBack => {
                if let Some((allowed, receipt)) = last.take() {
                    limiter.put_back(allowed);
                    model.put_back(&receipt);
                }
            }
            Step::Charge { user, cells } => {
                let standing = limiter.charge("user", limiter.key_of(*user), *cells).unwrap();
                model.charge((0, u16::from(*user)), quotas[0], *cells);
                // What a slower plan owes beyond two bursts of the policy's own is cut in the answer alone.
                let after = model.levels[&(0, u16::from(*user))]
                    .min(2 * i128::try_from(quotas[0].time_to_fill().as_nanos()).unwrap());
                prop_assert_eq!(i128::try_from(standing.until_full().as_nanos()).unwrap(), after);
            }
            Step::Sweep => {
                if sweeping {
                    limiter.sweep();
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn several_policies_decide_as_the_exact_model_does(steps in steps(), slow_plan: bool) {
        agrees(&steps, slow_plan, false)?;
    }

    #[test]
    fn m3_sweeping_changes_no_decision(steps in steps(), slow_plan: bool) {
        agrees(&steps, slow_plan, true)?;
    }
}
