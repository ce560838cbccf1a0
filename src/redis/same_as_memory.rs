//! The comparison of both limiters: the same random operations, under the server's clock.
//!
//! Redis comes first, and says when. Then the clock of the limiter in memory is set to that time,
//! and it does the same.

#![expect(clippy::result_large_err, reason = "as in the code that is compared")]

use std::{cell::Cell, time::Duration};

use http::Request;
use smallvec::smallvec;

use super::{
    OnFailure, RedisLimiter,
    control::ControlError,
    protocol::Query,
    server_clock::last_time,
    servers::{Engine, Server},
};
use crate::{
    Limiter, Policy, Quota,
    clock::{ManualClock, Nanos, Timestamp},
    decision::{Denied, Receipts, Standing},
    key::{IntoKey, Key, RequestHead, key_fn},
    limit::{IntoLimit as _, Limit},
    limiter::{Demands, Grant, Handle as _, Settle as _, Sweep},
    observe::metrics::DecidedBy,
    policy::Demand,
    window::Window,
};

/// A xorshift generator: the same operations in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    #[allow(clippy::cast_possible_truncation, reason = "few")]
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// What a request says.
#[derive(Clone, Copy, Debug)]
struct TestRequest {
    user: u64,
    cost: u32,
    /// Which of the plans, if any.
    plan: Option<usize>,
    /// Whether it counts under the policies that are not the user's own.
    shared: bool,
}

/// Faster and slower than the policies' own quotas, with larger and smaller bursts; one whose cells
/// and backlog are long, so that products exceed what a number of the script is exact for.
const PLANS: [Quota; 5] = [
    Quota::per_second(20).burst(8),
    Quota::per(1, Duration::from_secs(3)).burst(20),
    Quota::per(7, Duration::from_millis(1_100)).burst(3),
    Quota::per(3, Duration::from_secs(86_400)).burst(9),
    Quota::per(1_000, Duration::from_secs(30 * 86_400)),
];

const OWN: [Quota; 4] = [
    Quota::per_second(3).burst(4),
    Quota::per(7, Duration::from_secs(5)),
    Quota::per_second(9).burst(12),
    Quota::per(11, Duration::from_secs(3_600)).burst(6),
];

/// In microseconds: what passes between two operations.
const PAUSES: [i64; 8] = [0, 0, 1, 900, 50_000, 333_333, 1_500_000, 40_000_000];

/// The cells in a window that a request may choose.
const LIMITS: [u32; 5] = [5, 30, 0, 12, 90];

/// The policies with windows, which are longer than any pause.
fn window(policy: &str, limit: u32) -> Window {
    Window::fixed(limit, Duration::from_secs(if policy == "window" { 60 } else { 300 }))
}

/// A limit of the policy's kind.
fn plan_of(policy: &str, random: &mut Random) -> Limit {
    match policy {
        "window" | "minutes" => window(policy, random.pick(&LIMITS).max(1)).into_limit(),
        _ => random.pick(&PLANS).into_limit(),
    }
}

/// The last two are not in a cluster.
const NAMES: [&str; 6] = ["user", "watched", "strict", "account", "window", "minutes"];

fn policies(several: bool) -> Vec<Policy> {
    fn asked(head: RequestHead<'_>) -> TestRequest {
        *head.extensions().get().unwrap()
    }
    let user = Policy::per(key_fn(|head| Some(asked(head).user)), OWN[0])
        .named("user")
        .quota_by(|head| asked(head).plan.map(|plan| PLANS[plan]))
        .cost_by(|head| asked(head).cost);
    let watched = Policy::per(key_fn(|head| Some(asked(head).user)), OWN[3]).named("watched").shadow();
    let strict =
        Policy::per(key_fn(|head| Some(asked(head).user)), OWN[1]).named("strict").when(|head| asked(head).shared);
    let all =
        Policy::global(OWN[2]).named("all").when(|head| asked(head).shared).cost_by(|head| asked(head).cost.min(2));
    let account = Policy::by_key(OWN[2]).named("account");
    let window = Policy::per(key_fn(|head| Some(asked(head).user)), window("window", 12))
        .named("window")
        .limit_by(|head| asked(head).plan.map(|plan| LIMITS[plan]))
        .cost_by(|head| asked(head).cost);
    let minutes = Policy::by_key(self::window("minutes", 9)).named("minutes");
    let mut policies = vec![user, watched, strict, account];
    // The nodes of a cluster have clocks of their own, and a window in memory never goes back.
    policies.extend([window, minutes, all].into_iter().filter(|_| several));
    policies
}

/// Both limiters, and what they have granted.
struct Both {
    here: Limiter,
    there: RedisLimiter,
    clock: ManualClock,
    /// How far the server's clock is ahead of the system's, in microseconds.
    ahead: i64,
    /// Whether denials and blocks may be remembered.
    remembers: bool,
    in_cluster: bool,
    /// The server's clock has stepped back by some microseconds, as clocks do.
    stepped_back: Cell<bool>,
    admitted: Vec<(Receipts, Receipts, Timestamp)>,
}

/// A standing without the lifetime of its policy.
type Stands = (String, String, Duration, bool, Option<Duration>);

fn stands(standing: Standing<'_>) -> Stands {
    let (violated, wait) = (standing.is_violated(), standing.wait());
    (standing.policy().to_owned(), format!("{:?}", standing.quota()), standing.until_full(), violated, wait)
}

#[derive(Debug, PartialEq)]
enum Compared {
    Granted { wait: Nanos, standings: Vec<Stands> },
    Denied { standings: Vec<Stands>, retry_after: Option<Duration>, reason: String },
}

fn answer(result: &Result<Grant, Denied>, receipts: &Receipts, policies: &[Policy]) -> Compared {
    match result {
        Ok(grant) => Compared::Granted {
            wait: grant.wait,
            standings: receipts.iter().map(|receipt| stands(receipt.outcome.standing(policies))).collect(),
        },
        Err(denied) => Compared::Denied {
            standings: denied.standings().map(stands).collect(),
            retry_after: denied.wait(),
            reason: format!("{:?}", denied.reason()),
        },
    }
}

impl Both {
    async fn new(server: &Server, seed: u64, nodes: &[String], slack: Duration, ahead: i64) -> Self {
        let clock = ManualClock::new();
        let several = nodes.is_empty();
        let here = Limiter::builder().policies(policies(several)).clock(clock.clone()).sweep(Sweep::Manual).build();
        let mut there = RedisLimiter::builder(server.url(), b"the secret of these tests", OnFailure::Closed)
            .timeout(Duration::from_secs(30))
            .stall_after(Duration::from_secs(30))
            .prefix(format!("case{seed}"))
            .policies(policies(several));
        if !several {
            there = there.cluster(nodes.iter().cloned());
        }
        there.options.clock = clock.clone().into();
        there.options.sweep = Some(Sweep::Manual);
        let (here, there) = (here.unwrap(), there.build().unwrap());
        assert!(there.connect(Duration::from_secs(30)).await, "{:?}", there.last_error());
        if !slack.is_zero() {
            here.allow_waits(slack);
            there.allow_waits(slack);
        }
        Self {
            here,
            there,
            clock,
            ahead,
            remembers: several && seed % 2 == 0,
            in_cluster: !several,
            stepped_back: Cell::new(false),
            admitted: Vec::new(),
        }
    }

    fn names(&self) -> &'static [&'static str] {
        if self.in_cluster { &NAMES[..4] } else { &NAMES }
    }

    fn pass(&mut self, server: &Server, micros: i64) {
        self.ahead += micros;
        server.step_clock_by_micros(self.ahead);
    }

    /// What Redis has just done is done in memory at the same time.
    fn follow(&self) {
        let last = Duration::from_nanos(last_time().as_nanos());
        // The nodes of a cluster have clocks of their own, and a key is on one of them.
        if last < self.clock.elapsed() && !self.in_cluster {
            self.stepped_back.set(true);
        }
        self.clock.set(last);
        // Else the step of this clock counts as a difference between both.
        self.there.parts.windows.note(last_time(), last_time());
    }

    fn agree<T: PartialEq + std::fmt::Debug>(&self, here: &T, there: &T, what: &dyn std::fmt::Debug) {
        assert!(here == there || self.stepped_back.get(), "{what:?}\n  here: {here:?}\n there: {there:?}");
    }

    async fn ask(&mut self, asked: TestRequest, patience: Nanos) {
        let mut request = Request::new(());
        request.extensions_mut().insert(asked);
        let mut demands = Demands::new();
        let set = self.there.policy_set();
        set.evaluate(set.parts(&request).head(), &mut demands, DecidedBy::Cache).unwrap();
        let here = |here: &Limiter, receipts: &mut Receipts| {
            here.acquire_within(here.set().parts(&request).head(), patience, receipts)
        };
        self.acquire(demands, patience, here, &asked).await;
    }

    /// What a caller asks that names a key: of several policies, or of one by a plan.
    async fn ask_by_key(&mut self, random: &mut Random, user: u64, patience: Nanos) {
        let cells = |random: &mut Random| random.pick(&[1, 1, 1, 1, 0, 2, 3, 7, 25]);
        // A denial that is remembered asks nobody, so no faster plan takes the bucket over by it.
        let demands = if self.remembers || random.below(2) == 0 {
            let wanted = self.names().iter().rev().filter(|_| random.below(2) == 0).copied().collect::<Vec<_>>();
            let wanted: Vec<_> = wanted.into_iter().map(|name| (name, cells(random))).collect();
            let wanted: Vec<(&str, &(dyn IntoKey + Sync), u32)> =
                wanted.iter().map(|(name, cells)| (*name, &user as &(dyn IntoKey + Sync), *cells)).collect();
            self.there.policy_set().demands_by_key(&wanted).unwrap()
        } else {
            let name = random.pick(self.names());
            let set = self.there.policy_set();
            let (index, policy) = set.find(name).unwrap();
            let plan = plan_of(name, random).basis();
            let cells = cells(random).min(plan.burst_size());
            let key = user.key(set.hasher());
            smallvec![(index, policy.demand_by_key(key, cells, Some(plan), || set.quota(index)))]
        };
        let what = (demands.clone(), patience);
        let here = |here: &Limiter, receipts: &mut Receipts| {
            let of_here =
                |(index, demand): &(usize, Demand)| (*index, Demand { key: user.key(here.set().hasher()), ..*demand });
            here.acquire_demands(&what.0.iter().map(of_here).collect::<Demands>(), patience, receipts)
        };
        self.acquire(demands, patience, here, &what).await;
    }

    async fn acquire(
        &mut self,
        demands: Demands,
        patience: Nanos,
        here: impl FnOnce(&Limiter, &mut Receipts) -> Result<Grant, Denied>,
        what: &dyn std::fmt::Debug,
    ) {
        let asks_nothing = demands.is_empty();
        let (mut receipts_in_memory, mut receipts_in_redis) = (Receipts::default(), Receipts::default());
        if !self.remembers {
            self.there.parts.lower_bounds.epochs.end_all();
        }
        let before = last_time();
        let there = self.there.acquire_demands(Ok(demands), patience, &mut receipts_in_redis).await;
        self.follow();
        let here = here(&self.here, &mut receipts_in_memory);
        if last_time() == before || asks_nothing {
            // A denial that was remembered, from before the time of an answer.
            self.agree(&here.is_err(), &there.is_err(), what);
            return;
        }
        let answers = [
            answer(&here, &receipts_in_memory, self.here.policies()),
            answer(&there, &receipts_in_redis, self.there.policies()),
        ];
        self.agree(&answers[0], &answers[1], what);
        if let Ok(grant) = here {
            self.admitted.push((receipts_in_memory, receipts_in_redis, grant.at));
        }
    }

    /// Of what was admitted lately, the last one most often: refunds or charges it.
    async fn settle(&mut self, random: &mut Random) {
        let Some(last) = self.admitted.len().checked_sub(1) else { return };
        let at = last.saturating_sub(random.pick(&[0, 0, 0, 1, 3]));
        let (here, there, when) = self.admitted.swap_remove(at);
        let cells = random.pick(&[0, 0, 0, 1, 5]);
        for (here, there) in here.iter().zip(&*there) {
            assert_eq!(
                (here.added, here.cells, here.outcome.quota()),
                (there.added, there.cells, there.outcome.quota())
            );
            let refund = if cells == 0 { there.added } else { Nanos::ZERO };
            let settlement = self.there.settlement(there, refund, cells).unwrap();
            if cells == 0 {
                self.there.record_refund(there, when);
            }
            self.there.query(Query::Settle(settlement), self.there.policy_set().now()).await.unwrap();
            self.follow();
            if cells == 0 {
                self.here.refund_receipt(here, when);
            } else {
                self.here.charge_receipt(here, cells);
            }
        }
    }

    async fn control(&mut self, random: &mut Random, users: &[u64]) -> Result<(), ControlError> {
        let (here, there) = (&self.here, &self.there);
        let policy = random.pick(self.names());
        let user = random.pick(users);
        let what = random.below(14);
        match what {
            // A denial that is remembered asks nobody, so no faster quota takes the bucket over by
            // it. Under one quota that makes no difference.
            4 if self.remembers => {}
            0 | 1 => {
                let cells = random.pick(&[0, 1, 2, 9, 1_000_000]);
                let charged = stands(there.charge(policy, user, cells).await?);
                self.follow();
                self.agree(&stands(here.charge(policy, user, cells).unwrap()), &charged, &("charge", cells));
            }
            2 => {
                let reset = there.reset(policy, user).await?;
                self.follow();
                self.agree(&here.reset(policy, user).unwrap(), &reset, &"reset");
            }
            3 => {
                let time = Duration::from_micros(random.pick(&[0, 0, 1, 70_000, 3_000_000]));
                there.block(policy, user, time).await?;
                self.follow();
                here.block(policy, user, time).unwrap();
            }
            4 => {
                let limit = plan_of(policy, random);
                there.set_limit(policy, &limit).await?;
                here.set_limit(policy, &limit).unwrap();
                assert_eq!((there.limit(policy), here.limit(policy)), (Ok(limit.clone()), Ok(limit)));
            }
            5 | 6 => {
                let time = Duration::from_micros(random.pick(&[0, 1, 70_000, 900_000, 3_000_000, 60_000_000]));
                there.pause(policy, user, time).await?;
                self.follow();
                here.pause(policy, user, time).unwrap();
                let paused = there.paused_for(policy, user).await?;
                self.follow();
                self.agree(&here.paused_for(policy, user).unwrap(), &paused, &"paused");
            }
            _ => {
                let plan = plan_of(policy, random);
                let stand = stands(there.peek_as(policy, user, &plan).await?);
                self.follow();
                self.agree(&stands(here.peek_as(policy, user, &plan).unwrap()), &stand, &"peek_as");
                let blocked = there.blocked_for(policy, user).await?;
                self.follow();
                self.agree(&here.blocked_for(policy, user).unwrap(), &blocked, &"blocked");
                let stand = stands(there.peek(policy, user).await?);
                self.follow();
                self.agree(&stands(here.peek(policy, user).unwrap()), &stand, &"peek");
            }
        }
        Ok(())
    }

    /// So many random operations, which both do alike.
    async fn run(&mut self, server: &Server, random: &mut Random, operations: usize, slack: Duration) {
        // In memory, keys that share a generation make each other's receipts void.
        let users: Vec<u64> = {
            let mut generations = Vec::new();
            let key = |user: u64| -> Key { user.key(self.here.set().hasher()) };
            (0..100)
                .filter(|user| {
                    let generation = key(*user).select(256);
                    let is_new = !generations.contains(&generation);
                    generations.push(generation);
                    is_new
                })
                .take(4)
                .collect()
        };
        for _ in 0..operations {
            if self.stepped_back.get() {
                return;
            }
            if random.below(3) == 0 {
                self.pass(server, random.pick(&PAUSES));
            }
            match random.below(10) {
                0 => self.settle(random).await,
                1 | 2 => self.control(random, &users).await.unwrap(),
                3 | 4 => {
                    let patience = if random.below(2) == 0 { slack } else { Duration::ZERO };
                    let user = random.pick(&users);
                    self.ask_by_key(random, user, patience.into()).await;
                }
                _ => {
                    let mut asked = TestRequest {
                        user: random.pick(&users),
                        cost: random.pick(&[1, 1, 1, 1, 0, 2, 3, 7, 25]),
                        plan: random
                            .pick(&[None, None, Some(0), Some(1), Some(2), Some(3), Some(4)])
                            .filter(|_| !self.remembers),
                        shared: random.below(3) > 0,
                    };
                    if let Some(plan) = asked.plan {
                        // What can never be granted is denied without Redis, and takes no
                        // bucket over.
                        asked.cost = asked.cost.min(PLANS[plan].burst_size()).min(LIMITS[plan]);
                    }
                    let patience = if random.below(2) == 0 { slack } else { Duration::ZERO };
                    self.ask(asked, patience.into()).await;
                }
            }
        }
    }
}

/// How many operations, where the environment says it.
fn operations(default: usize) -> usize {
    std::env::var("TOWER_QUOTA_OPERATIONS").map_or(default, |number| number.parse().unwrap())
}

const SLACKS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(700), Duration::from_secs(30)];

#[tokio::test]
async fn one_server_does_what_memory_does() {
    let server = Server::with_clock(Engine::Valkey, &[]);
    let cases = operations(100_000) / 1_000;
    let mut ahead = 0;
    for case in 0..cases {
        let seed = 0x9E37_79B9 + case as u64;
        let slack = SLACKS[case % SLACKS.len()];
        let mut both = Both::new(&server, seed, &[], slack, ahead).await;
        both.run(&server, &mut Random(seed), 1_000, slack).await;
        ahead = both.ahead;
    }
}

#[tokio::test]
async fn a_cluster_does_what_memory_does() {
    let nodes = Server::cluster_with_clock();
    let urls: Vec<String> = nodes[1..].iter().map(Server::url).collect();
    let cases = operations(100_000) / 1_000;
    let mut ahead = 0;
    for case in 0..cases {
        let seed = 0x51ED_2701 + case as u64;
        let slack = SLACKS[case % SLACKS.len()];
        let mut both = Both::new(&nodes[0], seed, &urls, slack, ahead).await;
        both.run(&nodes[0], &mut Random(seed), 1_000, slack).await;
        ahead = both.ahead;
    }
}

/// Otherwise each key that is decided on would take the place of one that is paused.
#[tokio::test]
async fn nothing_is_remembered_of_pauses_where_no_key_is_paused() {
    let server = Server::with_clock(Engine::Valkey, &[]);
    let mut both = Both::new(&server, 7, &[], Duration::ZERO, 0).await;
    for user in 0..9 {
        both.ask(TestRequest { user, cost: 1, plan: None, shared: true }, Nanos::ZERO).await;
    }
    let bounds = &both.there.parts.lower_bounds;
    assert!((0..both.there.policies().len()).all(|policy| !bounds.knows_pauses(policy)));
    both.there.pause("user", 7_u64, Duration::from_secs(60)).await.unwrap();
    assert!(both.there.parts.lower_bounds.knows_pauses(0));
}
