//! An exact model of several policies in 128 bits, which shares no code with the limiter, and the comparison of the two.
//! For the tests of properties and for the fuzz target `decisions`.

use std::{collections::HashMap, time::Duration};

use http::Request;
use tower_quota::{
    Decision, Limiter, Policy, Quota,
    clock::ManualClock,
    decision::Allowed,
    key::{IntoKey, key_fn},
    limiter::{AcquireError, Admission, Sweep},
    policy::Missing,
};

/// A request as the model and the limiter both see it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) user: Option<u8>,
    pub(crate) team: u8,
    pub(crate) cost: u32,
    /// Zero says nothing; otherwise one of the [`PLANS`].
    pub(crate) plan: u8,
    pub(crate) write: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Advance(u64),
    Ask(Asked),
    /// A caller names a key and cells, of each policy that is asked.
    Acquire([Option<(u8, u32)>; 5]),
    /// A caller names a key of one policy, cells, and one of the [`PLANS`].
    AcquireAs {
        policy: u8,
        key: u8,
        cells: u32,
        plan: u8,
    },
    /// The last admission is not used after all.
    Refund,
    Charge {
        user: u8,
        cells: u32,
    },
    /// The policies' own quotas change, to one of two sets.
    SetQuotas(bool),
    Sweep,
}

/// Faster and slower ones than the policy's own quota, of large bursts and of small ones.
const PLANS: [Quota; 3] = [
    Quota::per_second(20).burst(8),
    Quota::per(1, Duration::from_secs(3)).burst(20),
    Quota::per(7, Duration::from_millis(1_100)).burst(3),
];

/// The policies' own quotas: user, team, account, cap, writes.
const OWN: [[Quota; 5]; 2] = [
    [
        Quota::per_second(3).burst(4),
        Quota::per(7, Duration::from_secs(5)),
        Quota::per_second(2).burst(6),
        Quota::per_second(9).burst(12),
        Quota::per_second(30).burst(15),
    ],
    [
        Quota::per_second(90).burst(3),
        Quota::per(2, Duration::from_secs(5)).burst(9),
        Quota::per_second(7).burst(2),
        Quota::per_second(5).burst(30),
        Quota::per_second(31).burst(2),
    ],
];

const NAMES: [&str; 5] = ["user", "team", "account", "cap", "writes"];
/// The first one that has one bucket for all keys.
const GLOBAL: usize = 3;

fn build(own: [Quota; 5]) -> (Limiter, ManualClock) {
    let asked = |head: tower_quota::key::RequestHead<'_>| head.extensions().get::<Asked>().cloned().unwrap();
    let clock = ManualClock::new();
    let policies = [
        Policy::per(key_fn(move |head| asked(head).user), own[0])
            .named("user")
            .quota_by(move |head| plan(&asked(head)))
            .cost_by(move |head| asked(head).cost)
            .on_missing(Missing::Skip),
        Policy::global(own[3]).named("cap"),
        Policy::per(key_fn(move |head| Some((asked(head).team, "team"))), own[1]).named("team"),
        Policy::by_key(own[2]).named("account"),
        Policy::global(own[4])
            .named("writes")
            .when(move |head| asked(head).write)
            .cost_by(move |head| asked(head).cost),
    ];
    let builder = Limiter::builder().policies(policies).clock(clock.clone()).sweep(Sweep::Manual);
    (builder.build().unwrap(), clock)
}

fn plan(asked: &Asked) -> Option<Quota> {
    PLANS.get(usize::from(asked.plan).checked_sub(1)?).copied()
}

/// A level of owed time, drained by hand: not an arrival time in sight. It is of the quota that decided it last.
#[derive(Clone, Copy, Default)]
pub(crate) struct Level {
    owed: i128,
    /// The time of a cell. Zero before the first decision.
    cell: i128,
    plan: Option<Quota>,
    generation: u64,
}

/// What a request would do to a level.
struct Answer {
    quota: Quota,
    plan: Option<Quota>,
    /// The level in the time of the quota.
    owed: i128,
    /// Without one, no wait helps.
    wait: Option<i128>,
    /// Whether a denial changes the level to the quota.
    takes_over: bool,
}

fn cell(quota: Quota) -> i128 {
    i128::try_from(quota.cell_period().as_nanos()).unwrap()
}

impl Level {
    pub(crate) fn drain(&mut self, by: i128) {
        self.owed = (self.owed - by).max(0);
    }

    /// The owed cells in the time of another quota. A part of a cell counts as more of it, never as less.
    fn converted(&self, quota: Quota) -> i128 {
        let (from, to) = (self.cell, cell(quota));
        if from == 0 || from == to {
            return self.owed;
        }
        self.owed / from * to + (self.owed % from * to + from - 1) / from
    }

    /// The quota for who says none.
    fn remembered(&self, own: Quota) -> (Quota, Option<Quota>) {
        let plan = self.plan.filter(|_| self.owed > 0);
        (plan.unwrap_or(own), plan)
    }

    fn ask(&self, plan: Option<Quota>, own: Quota, cost: u32) -> Answer {
        let (quota, plan) = plan.map_or_else(|| self.remembered(own), |plan| (plan, Some(plan)));
        let (owed, burst, cost) = (self.converted(quota), i128::from(quota.burst_size()), i128::from(cost));
        let t = cell(quota);
        let lacking = owed + cost * t - burst * t;
        let slower = self.cell != 0 && t > self.cell;
        let (wait, takes_over) = match () {
            () if cost == 0 => (Some(0), false),
            () if cost > burst => (None, false),
            () if lacking <= 0 => (Some(0), false),
            () if slower => (Some(self.owed - (burst - cost) * self.cell), false),
            () => (Some(lacking), self.cell != 0 && t < self.cell),
        };
        Answer { quota, plan, owed, wait, takes_over }
    }

    fn become_that_of(&mut self, quota: Quota, plan: Option<Quota>, owed: i128) {
        if self.cell != 0 && self.cell != cell(quota) {
            self.generation += 1;
        }
        *self = Self { owed, cell: cell(quota), plan, ..*self };
    }

    /// Returns what is owed afterwards, by the quota that is shown.
    fn charge(&mut self, own: Quota, cells: u32) -> i128 {
        let (quota, plan) = self.remembered(own);
        let keeps = self.owed > 0 && cell(quota) > self.cell;
        let (owed, t) = if keeps { (self.owed, self.cell) } else { (self.converted(quota), cell(quota)) };
        let charged = owed.max((owed + t * i128::from(cells)).min(2 * t * i128::from(quota.burst_size())));
        if keeps {
            self.owed = charged;
        } else if charged > 0 {
            self.become_that_of(quota, plan, charged);
        }
        self.converted(quota)
    }
}

#[derive(Default)]
struct Model {
    levels: HashMap<(usize, u16), Level>,
    now: i128,
}

struct Receipt {
    at: i128,
    /// The level, what was added to it, in which generation, and in the time of which cell.
    added: Vec<((usize, u16), i128, u64, i128)>,
    /// The generations of other levels of the same policies.
    others: u64,
}

impl Model {
    fn advance(&mut self, by: i128) {
        self.now += by;
        self.levels.values_mut().for_each(|level| level.drain(by));
    }

    fn ask(&mut self, asked: &Asked, own: [Quota; 5]) -> Result<Receipt, Option<i128>> {
        let mut charges = Vec::new();
        if let Some(user) = asked.user {
            charges.push(((0, u16::from(user)), plan(asked), asked.cost));
        }
        charges.push(((1, u16::from(asked.team)), None, 1));
        charges.push(((3, 0), None, 1));
        if asked.write {
            charges.push(((4, 0), None, asked.cost));
        }
        self.acquire(charges, own)
    }

    /// The longest wait, or none where no wait helps.
    fn acquire(
        &mut self,
        charges: Vec<((usize, u16), Option<Quota>, u32)>,
        own: [Quota; 5],
    ) -> Result<Receipt, Option<i128>> {
        let mut longest = Some(0);
        let mut answers = Vec::new();
        for (bucket, plan, cost) in charges {
            let answer = self.levels.entry(bucket).or_default().ask(plan, own[bucket.0], cost);
            longest = longest.zip(answer.wait).map(|(longest, wait): (i128, i128)| longest.max(wait));
            answers.push((bucket, cost, answer));
        }
        let mut added = Vec::new();
        for (bucket, cost, Answer { quota, plan, owed, takes_over, .. }) in answers {
            let level = self.levels.get_mut(&bucket).unwrap();
            let more = cell(quota) * i128::from(cost);
            if longest == Some(0) && cost > 0 {
                level.become_that_of(quota, plan, owed + more);
                added.push((bucket, more, level.generation, level.cell));
            } else if longest != Some(0) && takes_over {
                level.become_that_of(quota, plan, owed);
            }
        }
        let others = self.others(&added);
        if longest == Some(0) { Ok(Receipt { at: self.now, added, others }) } else { Err(longest) }
    }

    fn others(&self, added: &[((usize, u16), i128, u64, i128)]) -> u64 {
        let others = |bucket: (usize, u16)| {
            let same_policy = self.levels.iter().filter(move |(other, _)| other.0 == bucket.0 && **other != bucket);
            same_policy.map(|(_, level)| level.generation).sum::<u64>()
        };
        added.iter().map(|(bucket, ..)| others(*bucket)).sum()
    }

    /// Whether another key was converted since. Keys share generations by chance, so the limiter may then void the
    /// receipt, and need not.
    fn may_be_void(&self, receipt: &Receipt) -> bool {
        self.others(&receipt.added) != receipt.others
    }

    fn refund(&mut self, receipt: &Receipt) {
        for (bucket, added, generation, cell) in &receipt.added {
            let level = self.levels.get_mut(bucket).unwrap();
            if (level.generation, level.cell) == (*generation, *cell) {
                level.drain((added - (self.now - receipt.at)).max(0));
            }
        }
    }
}

/// A bucket of the model.
fn bucket(policy: usize, key: u8) -> (usize, u16) {
    (policy, if policy < GLOBAL { key.into() } else { 0 })
}

/// Cells that the limiter has granted.
enum Granted<'a> {
    Request(Box<Allowed<'a>>),
    Caller(Admission),
}

#[track_caller]
fn compare<'a>(
    ours: Result<Admission, AcquireError>,
    theirs: Result<Receipt, Option<i128>>,
) -> Option<(Granted<'a>, Receipt)> {
    match (ours, theirs) {
        (Ok(admission), Ok(receipt)) => Some((Granted::Caller(admission), receipt)),
        (Err(AcquireError::Denied(denied)), Err(wait)) => {
            assert_eq!(denied.wait().map(|wait| i128::try_from(wait.as_nanos()).unwrap()), wait);
            None
        }
        (ours, theirs) => panic!("{ours:?}, and the model {:?}", theirs.err()),
    }
}

/// Runs the steps on the limiter and on the model, and compares every decision to the nanosecond.
pub(crate) fn agree(steps: &[Step], second: bool, sweeping: bool) {
    let mut own = OWN[usize::from(second)];
    let (limiter, clock) = build(own);
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
                match (limiter.decide(&request), model.ask(asked, own)) {
                    (Decision::Allow(allowed), Ok(receipt)) => {
                        last = Some((Granted::Request(Box::new(allowed)), receipt));
                    }
                    (Decision::Deny(denied), Err(wait)) => {
                        let ours = denied.wait().map(|wait| i128::try_from(wait.as_nanos()).unwrap());
                        assert_eq!(ours, wait, "{asked:?}");
                        for standing in denied.violated() {
                            let wait = standing.wait();
                            assert!(wait.is_none() || standing.next_cell() <= wait, "{standing:?}");
                        }
                    }
                    (ours, theirs) => panic!("{asked:?}: {ours:?}, and the model {:?}", theirs.err()),
                }
            }
            Step::Acquire(wanted) => {
                let wanted = || wanted.iter().enumerate().filter_map(|(policy, wanted)| Some((policy, (*wanted)?)));
                // A team has a key of two parts.
                let teams: Vec<_> = wanted().map(|(_, (key, _))| (key, "team")).collect();
                let mut ours: Vec<(&str, &(dyn IntoKey + Sync), u32)> = wanted()
                    .zip(&teams)
                    .map(|((policy, (_, cells)), team)| {
                        let key: &(dyn IntoKey + Sync) = if policy == 1 { team } else { &team.0 };
                        (NAMES[policy], key, cells)
                    })
                    .collect();
                // Not the limiter's order.
                ours.reverse();
                let theirs = wanted().map(|(policy, (key, cells))| (bucket(policy, key), None, cells)).collect();
                last = compare(limiter.acquire_all(&ours), model.acquire(theirs, own)).or(last);
            }
            Step::AcquireAs { policy, key, cells, plan } => {
                let (policy, plan) = (usize::from(*policy), PLANS[usize::from(*plan)]);
                let ours = if policy == 1 {
                    limiter.acquire_as(NAMES[policy], (*key, "team"), plan, *cells)
                } else {
                    limiter.acquire_as(NAMES[policy], *key, plan, *cells)
                };
                let theirs = model.acquire(vec![(bucket(policy, *key), Some(plan), *cells)], own);
                last = compare(ours, theirs).or(last);
            }
            Step::Refund => {
                if let Some((granted, receipt)) = last.take().filter(|(_, receipt)| !model.may_be_void(receipt)) {
                    match granted {
                        Granted::Request(allowed) => limiter.refund(*allowed),
                        Granted::Caller(admission) => admission.refund(),
                    }
                    model.refund(&receipt);
                }
            }
            Step::Charge { user, cells } => {
                let standing = limiter.charge("user", limiter.key(*user), *cells).unwrap();
                let after = model.levels.entry((0, u16::from(*user))).or_default().charge(own[0], *cells);
                assert_eq!(i128::try_from(standing.until_full().as_nanos()).unwrap(), after);
                let peeked = limiter.peek("user", limiter.key(*user)).unwrap();
                assert_eq!(peeked.until_full(), standing.until_full());
            }
            Step::SetQuotas(second) => {
                own = OWN[usize::from(*second)];
                limiter.set_limits(NAMES.into_iter().zip(own)).unwrap();
            }
            Step::Sweep => {
                if sweeping {
                    limiter.sweep();
                }
            }
        }
    }
}

/// The same for a single global policy, whose bucket is an atomic: requests by cost, changes of quota, time, and refunds
/// (a cost of zero).
pub(crate) fn agree_on_one(steps: &[(u64, u32, u8)]) {
    let clock = ManualClock::new();
    let cost = |head: tower_quota::key::RequestHead<'_>| *head.extensions().get::<u32>().unwrap();
    let policy = Policy::global(PLANS[0]).cost_by(cost);
    let limiter = Limiter::builder().policy(policy).clock(clock.clone()).build().unwrap();
    let (mut level, mut own, mut now) = (Level { cell: cell(PLANS[0]), ..Level::default() }, PLANS[0], 0);
    let mut last = None;
    for (by, cost, quota) in steps {
        clock.advance(Duration::from_nanos(*by));
        level.drain(i128::from(*by));
        now += i128::from(*by);
        if let Some(quota) = PLANS.get(usize::from(*quota)) {
            own = *quota;
            limiter.set_limit("global", own).unwrap();
        }
        if *cost == 0 {
            if let Some((allowed, at, added, generation)) = last.take() {
                limiter.refund(allowed);
                if generation == level.generation {
                    level.drain(i128::max(added - (now - at), 0));
                }
            }
            continue;
        }
        let mut request = Request::new(());
        request.extensions_mut().insert(*cost);
        let Answer { quota, owed, wait, takes_over, .. } = level.ask(None, own, *cost);
        match limiter.decide(&request) {
            Decision::Allow(allowed) => {
                assert_eq!(wait, Some(0));
                let added = cell(quota) * i128::from(*cost);
                level.become_that_of(quota, None, owed + added);
                last = Some((allowed, now, added, level.generation));
            }
            Decision::Deny(denied) => {
                assert_eq!(denied.wait().map(|wait| i128::try_from(wait.as_nanos()).unwrap()), wait);
                if takes_over {
                    level.become_that_of(quota, None, owed);
                }
            }
        }
        let peeked = limiter.peek("global", tower_quota::Key::GLOBAL).unwrap();
        assert_eq!(i128::try_from(peeked.until_full().as_nanos()).unwrap(), level.converted(own));
    }
}
