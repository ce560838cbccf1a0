//! An exact model of several policies, which shares no code with the limiter, and the comparison of the two. For the tests of
//! properties and for the fuzz target `decisions`.

use std::{collections::HashMap, time::Duration};

use http::Request;
use tower_quota::{Decision, Limiter, Policy, Quota, clock::ManualClock, key::key_fn, limiter::Sweep, policy::Missing};

/// A request as the model and the limiter both see it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) user: Option<u8>,
    pub(crate) team: u8,
    pub(crate) cost: u32,
    pub(crate) pro: bool,
    pub(crate) write: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Advance(u64),
    Ask(Asked),
    /// The last admission is not used after all.
    Refund,
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
    let clock = ManualClock::new();
    let policies = [
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
    ];
    let builder = Limiter::builder().policies(policies).clock(clock.clone()).sweep(Sweep::Manual);
    (builder.build().unwrap(), clock, quotas)
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

    fn refund(&mut self, receipt: &Receipt) {
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

/// Runs the steps on the limiter and on the model, and compares every decision to the nanosecond.
pub(crate) fn agree(steps: &[Step], slow_plan: bool, sweeping: bool) {
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
                        assert_eq!(ours, wait, "{asked:?}");
                    }
                    (ours, theirs) => panic!("{asked:?}: {ours:?}, and the model {:?}", theirs.err()),
                }
            }
            Step::Refund => {
                if let Some((allowed, receipt)) = last.take() {
                    limiter.refund(allowed);
                    model.refund(&receipt);
                }
            }
            Step::Charge { user, cells } => {
                let standing = limiter.charge("user", limiter.key_of(*user), *cells).unwrap();
                model.charge((0, u16::from(*user)), quotas[0], *cells);
                // What a slower plan owes beyond two bursts of the policy's own is cut in the answer alone.
                let after = model.levels[&(0, u16::from(*user))]
                    .min(2 * i128::try_from(quotas[0].time_to_fill().as_nanos()).unwrap());
                assert_eq!(i128::try_from(standing.until_full().as_nanos()).unwrap(), after);
            }
            Step::Sweep => {
                if sweeping {
                    limiter.sweep();
                }
            }
        }
    }
}
