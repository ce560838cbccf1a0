//! Windows and rates together, against an exact model: plain counters, and arrival times in 128
//! bits.

use std::{collections::HashMap, time::Duration};

use http::Request;
use proptest::prelude::*;
use tower_quota::{
    Limiter, Policy, Quota, Window,
    clock::ManualClock,
    key::{RequestHead, key_fn},
    limiter::{AcquireError, Admission, Sweep},
    policy::Missing,
};

const MINUTE: u64 = 60_000_000_000;
const DAY: u64 = 1_440 * MINUTE;
const START: u64 = 20_000 * DAY;

/// Keyed windows of a day, whose limit a request may choose; of three hours, by callers' keys; a
/// keyed rate; and a window of five minutes for all.
const NAMES: [&str; 4] = ["day", "hours", "rate", "all"];
const DAY_POLICY: usize = 0;
const HOURS: usize = 1;
const RATE: usize = 2;
const ALL: usize = 3;
const PERIODS: [u64; 4] = [DAY, 180 * MINUTE, 0, 5 * MINUTE];
const LIMITS: [[u32; 4]; 2] = [[20, 9, 4, 12], [5, 15, 9, 30]];
const RATES: [Quota; 2] = [Quota::per_minute(6).burst(4), Quota::per_hour(40).burst(9)];

#[derive(Clone, Debug)]
struct Asked {
    user: u8,
    cost: u32,
    /// What the request's key has a day.
    plan: Option<u32>,
}

#[derive(Clone, Debug)]
enum Step {
    Advance(u64),
    /// The clock steps back.
    Back(u64),
    Ask(Asked),
    /// Keys and cells of the policies that are asked.
    Acquire([Option<(u8, u32)>; 4]),
    AcquireAs(u8, u32, u32),
    Charge(u8, u8, u32),
    /// The last admission is not used after all.
    Refund,
    /// The last admission has cost so much of the day.
    Settle(u32),
    SetLimits(bool),
    Sweep,
    Reset(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let cells = || prop_oneof![8 => 1_u32..4, 1 => Just(0), 1 => 4_u32..40];
    let key = || 0_u8..3;
    let plan = || prop_oneof![3 => Just(None), 2 => (0_u32..40).prop_map(Some)];
    let time = || {
        prop_oneof![
            2 => 0_u64..3, 3 => 0..20 * MINUTE, 3 => (0_u64..600).prop_map(|minutes| minutes * MINUTE), 1 => 0..3 * DAY
        ]
    };
    let wanted = prop::option::of((key(), cells()));
    prop_oneof![
        4 => time().prop_map(Step::Advance),
        1 => time().prop_map(Step::Back),
        8 => (key(), cells(), plan()).prop_map(|(user, cost, plan)| Step::Ask(Asked { user, cost, plan })),
        4 => [wanted.clone(), wanted.clone(), wanted.clone(), wanted].prop_map(Step::Acquire),
        1 => (key(), 1_u32..40, cells()).prop_map(|(key, plan, cells)| Step::AcquireAs(key, plan, cells)),
        1 => (0_u8..4, key(), cells()).prop_map(|(policy, key, cells)| Step::Charge(policy, key, cells)),
        2 => Just(Step::Refund),
        1 => cells().prop_map(Step::Settle),
        1 => any::<bool>().prop_map(Step::SetLimits),
        1 => Just(Step::Sweep),
        1 => (0_u8..4, key()).prop_map(|(policy, key)| Step::Reset(policy, key)),
    ]
}

fn build() -> (Limiter, ManualClock) {
    let asked = |head: RequestHead<'_>| head.extensions().get::<Asked>().cloned().unwrap();
    let clock = ManualClock::new();
    clock.set(Duration::from_nanos(START));
    let window = |policy: usize| Window::fixed(LIMITS[0][policy], Duration::from_nanos(PERIODS[policy]));
    let policies = [
        Policy::per(key_fn(move |head| Some(asked(head).user)), window(DAY_POLICY))
            .named("day")
            .limit_by(move |head| asked(head).plan)
            .cost_by(move |head| asked(head).cost),
        Policy::by_key(window(HOURS)).named("hours"),
        Policy::per(key_fn(move |head| Some(asked(head).user)), RATES[0]).named("rate").on_missing(Missing::Skip),
        Policy::global(window(ALL)).named("all").cost_by(move |head| asked(head).cost),
    ];
    let builder = Limiter::builder().policies(policies).clock(clock.clone()).sweep(Sweep::Manual);
    (builder.build().unwrap(), clock)
}

/// What was used in a window.
#[derive(Clone, Copy, Default)]
struct Counter {
    start: u64,
    used: u64,
    plan: Option<u32>,
}

/// An arrival time, and the time of a cell that it is in. Zero before the first decision.
#[derive(Clone, Copy, Default)]
struct Arrival {
    at: i128,
    cell: i128,
}

struct Model {
    now: u64,
    /// The current windows: they never go back.
    starts: [u64; 4],
    counters: HashMap<(usize, u8), Counter>,
    arrivals: HashMap<u8, Arrival>,
    /// The largest limits so far: further ahead no counter and no arrival time is.
    largest: [u64; 4],
    furthest: i128,
    limits: [u32; 4],
    rate: Quota,
    /// Changed with whatever makes receipts of the rate void, or of a key that was reset.
    rate_generation: u64,
    reset_generation: u64,
}

struct Receipt {
    at: u64,
    /// The limit a day that decided, where it was chosen for the key.
    plan: Option<u32>,
    /// Policy, key, the start of the window or the time of a cell, and what was added.
    added: Vec<(usize, u8, u64, u64)>,
    rate_generation: u64,
    reset_generation: u64,
}

/// When the window of a policy starts in which this time is.
fn start(policy: usize, time: u64) -> u64 {
    time.checked_div(PERIODS[policy]).map_or(0, |periods| periods * PERIODS[policy])
}

fn cell(rate: Quota) -> i128 {
    i128::try_from(rate.cell_period().as_nanos()).unwrap()
}

fn bucket(policy: usize, key: u8) -> (usize, u8) {
    (policy, if policy == ALL { 0 } else { key })
}

impl Model {
    fn new() -> Self {
        let burst = cell(RATES[0]) * i128::from(RATES[0].burst_size());
        Self {
            now: START,
            starts: [0, 1, 2, 3].map(|policy| start(policy, START)),
            counters: HashMap::new(),
            arrivals: HashMap::new(),
            largest: LIMITS[0].map(u64::from),
            furthest: 2 * burst,
            limits: LIMITS[0],
            rate: RATES[0],
            rate_generation: 0,
            reset_generation: 0,
        }
    }

    /// Whoever looks at a policy's buckets reads the clock for its window.
    fn look(&mut self, policy: usize) {
        self.starts[policy] = self.starts[policy].max(start(policy, self.now));
    }

    fn until_end(&self, policy: usize) -> u64 {
        self.starts[policy] + PERIODS[policy] - self.now
    }

    fn counter(&self, policy: usize, key: u8) -> Counter {
        let counter = self.counters.get(&bucket(policy, key)).copied().unwrap_or_default();
        if counter.start < self.starts[policy] {
            Counter { start: self.starts[policy], used: 0, plan: None }
        } else {
            Counter { plan: counter.plan.filter(|_| counter.used > 0), ..counter }
        }
    }

    /// What the rate owes, in the time of the current rate.
    fn owed(&self, key: u8) -> i128 {
        let Arrival { at, cell: from } = self.arrivals.get(&key).copied().unwrap_or_default();
        let owed = (at - i128::from(self.now)).clamp(0, self.furthest);
        let to = cell(self.rate);
        if from == 0 || from == to { owed } else { owed / from * to + (owed % from * to + from - 1) / from }
    }

    fn acquire(&mut self, wanted: &[(usize, u8, Option<u32>, u32)]) -> Result<Receipt, Option<u64>> {
        // None where no wait helps.
        let mut longest = Some(0);
        for &(policy, key, plan, cells) in wanted {
            self.look(policy);
            let wait = if policy == RATE {
                self.wait_of_rate(key, cells)
            } else {
                self.wait_of_window(policy, key, plan, cells)
            };
            longest = longest.zip(wait).map(|(longest, wait): (u64, u64)| longest.max(wait));
        }
        if longest != Some(0) {
            for &(policy, key, _, cells) in wanted.iter().filter(|wanted| wanted.0 == RATE) {
                debug_assert_eq!(policy, RATE);
                self.deny_rate(key, cells);
            }
            return Err(longest);
        }
        let (mut added, mut plan_of_day) = (Vec::new(), None);
        for &(policy, key, plan, cells) in wanted {
            if policy == RATE {
                let (owed, cell) = (self.owed(key), cell(self.rate));
                if cells > 0 {
                    self.become_rate(key, owed + cell * i128::from(cells));
                } else {
                    self.cut(key);
                }
                added.push((policy, key, u64::try_from(cell).unwrap(), u64::from(cells)));
            } else {
                let counter = self.counter(policy, key);
                let plan = plan.or(counter.plan);
                plan_of_day = plan_of_day.or(plan.filter(|_| policy == DAY_POLICY));
                if cells > 0 {
                    let used = counter.used + u64::from(cells);
                    self.counters.insert(bucket(policy, key), Counter { used, plan, ..counter });
                }
                added.push((policy, key, counter.start, u64::from(cells)));
            }
        }
        let (rate_generation, reset_generation) = (self.rate_generation, self.reset_generation);
        Ok(Receipt { at: self.now, plan: plan_of_day, added, rate_generation, reset_generation })
    }

    fn wait_of_window(&mut self, policy: usize, key: u8, plan: Option<u32>, cells: u32) -> Option<u64> {
        let counter = self.counter(policy, key);
        let limit = u64::from(plan.or(counter.plan).unwrap_or(self.limits[policy]));
        self.largest[policy] = self.largest[policy].max(limit);
        match u64::from(cells) {
            0 => Some(0),
            cells if cells > limit => None,
            cells if counter.used + cells <= limit => Some(0),
            _ => Some(self.until_end(policy)),
        }
    }

    fn wait_of_rate(&self, key: u8, cells: u32) -> Option<u64> {
        let (burst, to) = (i128::from(self.rate.burst_size()), cell(self.rate));
        let arrival = self.arrivals.get(&key).copied().unwrap_or_default();
        let cells = i128::from(cells);
        let lacking = self.owed(key) + cells * to - burst * to;
        let wait = match () {
            () if cells == 0 => 0,
            () if cells > burst => return None,
            () if lacking <= 0 => 0,
            // By the faster rate, whose cells it owes.
            () if arrival.cell != 0 && to > arrival.cell => {
                (arrival.at - i128::from(self.now)).min(self.furthest) - (burst - cells) * arrival.cell
            }
            () => lacking,
        };
        Some(u64::try_from(wait).unwrap())
    }

    /// What a denial changes: a faster rate takes the bucket over, and what is too far ahead is
    /// cut.
    fn deny_rate(&mut self, key: u8, cells: u32) {
        let (arrival, to) = (self.arrivals.get(&key).copied().unwrap_or_default(), cell(self.rate));
        let denies = self.wait_of_rate(key, cells).is_some_and(|wait| wait > 0);
        if denies && arrival.cell != 0 && to < arrival.cell {
            let owed = self.owed(key);
            self.become_rate(key, owed);
        } else {
            self.cut(key);
        }
    }

    fn cut(&mut self, key: u8) {
        if let Some(arrival) = self.arrivals.get_mut(&key) {
            let cut = arrival.at.min(i128::from(self.now) + self.furthest);
            if cut != arrival.at {
                arrival.at = cut;
                self.rate_generation += 1;
            }
        }
    }

    fn become_rate(&mut self, key: u8, owed: i128) {
        let before = self.arrivals.get(&key).copied().unwrap_or_default();
        let to = cell(self.rate);
        if (before.cell != 0 && before.cell != to) || before.at > i128::from(self.now) + self.furthest {
            self.rate_generation += 1;
        }
        self.arrivals.insert(key, Arrival { at: i128::from(self.now) + owed, cell: to });
    }

    /// What a refund must return, if it is known.
    fn refund(&mut self, receipt: &Receipt, of: impl Fn(usize, u64) -> u64) {
        for &(policy, key, since, cells) in &receipt.added {
            let back = of(policy, cells);
            if policy == RATE {
                let Some(arrival) = self.arrivals.get_mut(&key) else { continue };
                let added = i128::from(back) * i128::from(since);
                let more = added - i128::from(self.now.saturating_sub(receipt.at));
                // A full bucket is as full as it gets.
                if arrival.cell == i128::from(since) && arrival.at > i128::from(self.now) {
                    arrival.at -= more.max(0);
                }
            } else {
                self.look(policy);
                if let Some(counter) =
                    self.counters.get_mut(&bucket(policy, key)).filter(|counter| counter.start == since)
                {
                    counter.used = counter.used.saturating_sub(back);
                }
            }
        }
    }

    fn charge(&mut self, policy: usize, key: u8, cells: u32) {
        self.look(policy);
        let counter = self.counter(policy, key);
        let limit = u64::from(counter.plan.unwrap_or(self.limits[policy]));
        let used = counter.used.max((counter.used + u64::from(cells)).min(2 * limit));
        if used > 0 {
            self.counters.insert(bucket(policy, key), Counter { used, ..counter });
        }
    }
}

#[expect(clippy::too_many_lines, reason = "an arm for each step")]
fn agree(steps: &[Step]) {
    let (limiter, clock) = build();
    let mut model = Model::new();
    let mut last: Option<(Admission, Receipt)> = None;
    for step in steps {
        match step {
            Step::Advance(by) => {
                clock.advance(Duration::from_nanos(*by));
                model.now += by;
            }
            Step::Back(by) => {
                model.now -= by;
                clock.set(Duration::from_nanos(model.now));
            }
            Step::Ask(asked) => {
                let mut request = Request::new(());
                request.extensions_mut().insert(asked.clone());
                let wanted = [
                    (DAY_POLICY, asked.user, asked.plan, asked.cost),
                    (RATE, asked.user, None, 1),
                    (ALL, 0, None, asked.cost),
                ];
                match (limiter.decide(&request).denied(), model.acquire(&wanted)) {
                    (None, Ok(_)) => {}
                    (Some(denied), Err(wait)) => assert_eq!(denied.wait(), wait.map(Duration::from_nanos), "{asked:?}"),
                    (ours, theirs) => panic!("{asked:?}: {ours:?}, and the model {:?}", theirs.err()),
                }
            }
            Step::Acquire(wanted) => {
                let named: Vec<_> =
                    wanted.iter().enumerate().filter_map(|(policy, wanted)| Some((policy, (*wanted)?))).collect();
                let ours: Vec<(&str, &(dyn tower_quota::key::IntoKey + Sync), u32)> =
                    named.iter().map(|(policy, (key, cells))| (NAMES[*policy], key as _, *cells)).collect();
                let theirs: Vec<_> = named.iter().map(|(policy, (key, cells))| (*policy, *key, None, *cells)).collect();
                last = compare(limiter.acquire_all(&ours), model.acquire(&theirs)).or(last);
            }
            Step::AcquireAs(key, plan, cells) => {
                let window = Window::daily(*plan);
                let theirs = model.acquire(&[(DAY_POLICY, *key, Some(*plan), *cells)]);
                last = compare(limiter.acquire_as("day", *key, window, *cells), theirs).or(last);
            }
            Step::Charge(policy, key, cells) => {
                let policy = usize::from(*policy);
                if policy != RATE {
                    let standing = limiter.charge(NAMES[policy], *key, *cells).unwrap();
                    model.charge(policy, *key, *cells);
                    check(&model, policy, *key, &standing);
                }
            }
            Step::Refund => {
                if let Some((admission, receipt)) = last.take() {
                    if is_certain(&model, &receipt) {
                        admission.refund();
                        model.refund(&receipt, |_, cells| cells);
                    }
                }
            }
            Step::Settle(cells) => {
                if let Some((admission, receipt)) = last.take() {
                    let acquired = receipt.added.iter().find(|added| added.0 == DAY_POLICY).copied();
                    if let (Some((_, key, _, acquired)), true) = (acquired, is_certain(&model, &receipt)) {
                        let cells = u64::from(*cells);
                        admission.settle("day", u32::try_from(cells).unwrap()).unwrap();
                        if cells >= acquired {
                            settle_more(&mut model, &receipt, key, cells - acquired, &admission);
                        } else {
                            model.refund(&receipt, |policy, _| if policy == DAY_POLICY { acquired - cells } else { 0 });
                        }
                    }
                }
            }
            Step::SetLimits(second) => {
                let at = usize::from(*second);
                (model.limits, model.rate) = (LIMITS[at], RATES[at]);
                for (policy, name) in NAMES.into_iter().enumerate() {
                    if policy == RATE {
                        limiter.set_limit(name, RATES[at]).unwrap();
                    } else {
                        let period = Duration::from_nanos(PERIODS[policy]);
                        limiter.set_limit(name, Window::fixed(LIMITS[at][policy], period)).unwrap();
                        model.largest[policy] = model.largest[policy].max(LIMITS[at][policy].into());
                    }
                }
                model.furthest = model.furthest.max(2 * cell(RATES[at]) * i128::from(RATES[at].burst_size()));
            }
            Step::Sweep => {
                limiter.sweep();
                NAMES.iter().enumerate().for_each(|(policy, _)| model.look(policy));
                let now = i128::from(model.now);
                model.arrivals.retain(|_, arrival| arrival.at > now);
            }
            Step::Reset(policy, key) => {
                let policy = usize::from(*policy);
                limiter.reset(NAMES[policy], *key).unwrap();
                model.look(policy);
                model.reset_generation += 1;
                if policy == RATE {
                    // A full bucket is as it was.
                    let now = i128::from(model.now);
                    model.arrivals.retain(|other, arrival| other != key || arrival.at <= now);
                } else {
                    model.counters.remove(&bucket(policy, *key));
                }
            }
        }
        for (policy, name) in NAMES.into_iter().enumerate().filter(|(policy, _)| *policy != RATE) {
            for key in 0..3 {
                let standing = limiter.peek(name, key).unwrap();
                model.look(policy);
                check(&model, policy, key, &standing);
            }
        }
    }
}

/// Cells beyond a receipt are charged by its limit, unless another one has decided since.
fn settle_more(model: &mut Model, receipt: &Receipt, key: u8, cells: u64, admission: &Admission) {
    model.look(DAY_POLICY);
    let counter = model.counter(DAY_POLICY, key);
    let limit = admission.standings().find(|standing| standing.policy() == "day").unwrap().limit();
    let used = counter.used.max((counter.used + cells).min(2 * u64::from(limit)));
    if used > 0 {
        // A bucket from which nothing is used has the limit of the receipt.
        let plan = if counter.used > 0 { counter.plan } else { receipt.plan };
        model.counters.insert(bucket(DAY_POLICY, key), Counter { used, plan, ..counter });
    }
}

fn check(model: &Model, policy: usize, key: u8, standing: &tower_quota::decision::Standing<'_>) {
    let counter = model.counter(policy, key);
    let limit = u64::from(counter.plan.unwrap_or(model.limits[policy]));
    assert_eq!(u64::from(standing.remaining()), limit.saturating_sub(counter.used), "{}", NAMES[policy]);
    let until_full = if counter.used == 0 { 0 } else { model.until_end(policy) };
    assert_eq!(standing.until_full(), Duration::from_nanos(until_full));
}

/// Whether a refund is sure to be valid. Keys share generations by chance, so after a reset or a
/// conversion of another key it may be void, and need not.
fn is_certain(model: &Model, receipt: &Receipt) -> bool {
    (model.rate_generation, model.reset_generation) == (receipt.rate_generation, receipt.reset_generation)
}

fn compare(
    ours: Result<Admission, AcquireError>,
    theirs: Result<Receipt, Option<u64>>,
) -> Option<(Admission, Receipt)> {
    match (ours, theirs) {
        (Ok(admission), Ok(receipt)) => Some((admission, receipt)),
        (Err(AcquireError::Denied(denied)), Err(wait)) => {
            assert_eq!(denied.wait(), wait.map(Duration::from_nanos));
            None
        }
        (ours, theirs) => panic!("{ours:?}, and the model {:?}", theirs.err()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn windows_and_rates_decide_as_the_exact_model_does(steps in prop::collection::vec(step(), 1..60)) {
        agree(&steps);
    }
}
