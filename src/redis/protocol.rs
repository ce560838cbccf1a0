//! Contains what is sent to the server, and its replies: the arguments of the scripts, and what
//! they return.
//!
//! This file must not know of connections.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    names::slot,
    script::Script,
    windows::{ServerWindow, WindowTimes},
};
use crate::{
    bucket::{self, Bucket},
    clock::{Nanos, Timestamp},
    decision::{Level, WindowLeft},
    limiter::Pause,
    policy::Demand,
    quota::Quota,
};

/// What a request asks of one bucket in Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RedisDemand {
    pub(super) key: String,
    pub(super) cells: u32,
    pub(super) quota: Quota,
    /// Whether the quota was chosen for the request.
    pub(super) planned: bool,
    /// How long the request may wait for its cells.
    pub(super) patience: Nanos,
    /// Whether the bucket denies nothing.
    pub(super) shadow: bool,
    /// Around now, for a policy with windows.
    pub(super) window: Option<WindowTimes>,
}

/// What a request asks of its buckets. Requests that ask the same can be asked for together.
pub(super) type RedisDemands = Arc<[RedisDemand]>;

impl RedisDemand {
    pub(super) fn new(key: String, demand: &Demand, patience: Nanos, window: Option<WindowTimes>) -> Self {
        let Demand { quota, cells, planned, shadow, .. } = *demand;
        // A request never waits for a window.
        let patience = if shadow || window.is_some() { Nanos::ZERO } else { patience };
        Self { key, cells, quota, planned, patience, shadow, window }
    }

    /// What the script reads of the windows.
    pub(super) fn boundaries(&self) -> String {
        boundaries(self.window)
    }

    /// A demand of no request, which tests whether the script runs.
    pub(super) fn probe(key: String) -> Self {
        const QUOTA: Quota = Quota::per_second(1_000).burst(2);
        Self { key, cells: 1, quota: QUOTA, planned: false, patience: Nanos::ZERO, shadow: true, window: None }
    }

    pub(super) fn slot(&self) -> u16 {
        slot(&self.key)
    }

    /// How many requests are left in a bucket. `None` where they cost nothing.
    pub(super) fn requests_left(&self, bucket: &BucketState) -> Option<u64> {
        let (quota, backlog) = (bucket.decided_by(self.quota), bucket.converted(self.quota));
        if self.cells > quota.burst_size() || (self.cells > 0 && !bucket.pause.left.is_zero()) {
            return Some(0);
        }
        bucket::requests_left(quota.burst_nanos(), backlog, quota.cost(self.cells))
    }
}

/// A time on the server's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerTime {
    /// Since 1970.
    pub(super) seconds: i64,
    pub(super) nanos: i64,
}

impl ServerTime {
    /// Since 1970, like every time of a limiter, but on the server's clock.
    pub(super) fn timestamp(self) -> Timestamp {
        let [seconds, nanos] = [self.seconds, self.nanos].map(|part| u64::try_from(part).unwrap_or(0));
        Timestamp::from_nanos(seconds.saturating_mul(Nanos::SECOND.get()).saturating_add(nanos))
    }

    pub(super) fn of(timestamp: Timestamp) -> Self {
        let nanos = timestamp.as_nanos();
        let [seconds, nanos] = [nanos / Nanos::SECOND.get(), nanos % Nanos::SECOND.get()];
        let [seconds, nanos] = [seconds, nanos].map(|part| i64::try_from(part).unwrap_or(i64::MAX));
        Self { seconds, nanos }
    }
}

/// A bucket as the server found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BucketState {
    pub(super) backlog: Nanos,
    /// The time of a cell that the backlog is in, where it is not that of the request.
    pub(super) from: Option<Nanos>,
    /// How long the key is blocked.
    pub(super) blocked: Nanos,
    /// After the call.
    pub(super) generation: u64,
    /// The quota that was chosen for the key before, where it has decided in place of that of the
    /// request.
    pub(super) plan: Option<Quota>,
    pub(super) pause: PauseState,
    /// In which it was decided, for a policy with windows.
    pub(super) window: Option<ServerWindow>,
}

/// How long a key is paused, on the server's clock. The backlog is that at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PauseState {
    pub(super) left: Nanos,
    /// The length of all pauses.
    pub(super) total: Nanos,
}

impl PauseState {
    /// A backlog at the end of the pause, as it is shown now.
    pub(super) fn shown(self, backlog: Nanos, quota: Quota) -> Nanos {
        let now = Timestamp::ORIGIN;
        Pause { until: now.saturating_add(self.left), total: self.total }.shown(backlog, quota, now)
    }
}

impl PauseState {
    /// The same of a window.
    pub(super) fn shown_in_window(self, quota: Quota, backlog: Nanos, window: WindowLeft) -> Level {
        let now = Timestamp::ORIGIN;
        Pause { until: now.saturating_add(self.left), total: self.total }.shown_in_window(quota, backlog, window, now)
    }
}

impl BucketState {
    /// A bucket of which nothing else is known.
    pub(super) fn with_backlog(backlog: Nanos) -> Self {
        let pause = PauseState::default();
        Self { backlog, from: None, blocked: Nanos::ZERO, generation: 0, plan: None, pause, window: None }
    }

    /// The quota that decides, where the request has this one.
    pub(super) fn decided_by(&self, asked: Quota) -> Quota {
        self.plan.unwrap_or(asked)
    }

    /// The backlog in the time of the quota that decides.
    pub(super) fn converted(&self, asked: Quota) -> Nanos {
        let (quota, start) = (self.decided_by(asked), Timestamp::ORIGIN);
        let from = self.from.unwrap_or(quota.cell_nanos());
        Bucket::with_backlog(start, self.backlog).converted(start, from, quota.cell_nanos()).backlog(start)
    }

    /// The bucket after requests before were granted so much.
    fn with_added(&self, asked: Quota, added: Nanos) -> Self {
        if added.is_zero() {
            return *self;
        }
        Self { backlog: self.converted(asked).saturating_add(added), from: None, ..*self }
    }
}

/// The buckets of a call.
pub(super) type BucketStates = SmallVec<[BucketState; 2]>;

/// The reply of the acquiring script, for all requests of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// How many requests are granted. If none is, nothing was acquired.
    pub(super) granted: u32,
    pub(super) at: ServerTime,
    /// Before the call.
    pub(super) buckets: BucketStates,
    /// The server's time is not in the windows that were sent, and nothing was done.
    pub(super) is_outside: bool,
}

/// The server's answer to one request.
pub(super) struct Decided {
    pub(super) granted: bool,
    pub(super) at: ServerTime,
    /// The server's time is not in the windows that were sent, and nothing was done.
    pub(super) is_outside: bool,
    /// Before the request.
    pub(super) buckets: BucketStates,
    /// Cells that nobody has received.
    pub(super) unclaimed: Option<Unclaimed>,
}

impl Decided {
    /// The request has its answer: from here on its cells are its own.
    pub(super) fn is_received(&mut self) {
        if let Some(unclaimed) = &mut self.unclaimed {
            unclaimed.refund = None;
        }
    }
}

/// Refunds the cells of a request that is dropped before it has its answer.
pub(super) struct Unclaimed {
    refund: Option<(Settlement, BoxedSettle)>,
}

type BoxedSettle = Box<dyn FnOnce(Settlement) + Send>;

impl Unclaimed {
    pub(super) fn new(refund: Settlement, settle: impl FnOnce(Settlement) + Send + 'static) -> Self {
        Self { refund: Some((refund, Box::new(settle))) }
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some((refund, settle)) = self.refund.take() {
            settle(refund);
        }
    }
}

/// An element of a script's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Number(i64),
    Text(String),
}

impl Element {
    /// A number, also as text: beyond 2^53 the script has no numbers.
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => u64::try_from(*number).ok(),
            Self::Text(text) => text.parse().ok(),
        }
    }

    pub(super) fn nanos(&self) -> Option<Nanos> {
        self.number().map(Nanos::new)
    }
}

impl Reply {
    /// `None` where this is not the reply of the script.
    pub(super) fn read(reply: &[Element], buckets: usize) -> Option<Self> {
        if let Some(at) = read_outside(reply) {
            let none = BucketState::with_backlog(Nanos::ZERO);
            return Some(Self { granted: 0, at, buckets: SmallVec::from_elem(none, buckets), is_outside: true });
        }
        let [granted, seconds, nanos, rest @ ..] = reply else { return None };
        let (states, more) = rest.split_at_checked(4 * buckets)?;
        let state = |state: &[Element]| {
            let [backlog, from, blocked, generation] = state else { return None };
            let from = from.nanos()?;
            Some(BucketState {
                backlog: backlog.nanos()?,
                from: (!from.is_zero()).then_some(from),
                blocked: blocked.nanos()?,
                generation: generation.number()?,
                plan: None,
                pause: PauseState::default(),
                window: None,
            })
        };
        let mut buckets: BucketStates = states.chunks_exact(4).map(state).collect::<Option<_>>()?;
        for more in more.chunks(2) {
            let [Element::Number(number), Element::Text(more)] = more else { return None };
            let place = usize::try_from(number.unsigned_abs()).ok()?.checked_sub(1)?;
            let bucket = buckets.get_mut(place)?;
            if *number > 0 {
                bucket.plan = Some(read_quota(more)?);
            } else {
                let (left, total) = more.split_once(' ')?;
                let [left, total] = [left, total].map(|nanos| nanos.parse().ok().map(Nanos::new));
                bucket.pause = PauseState { left: left?, total: total? };
            }
        }
        let [seconds, nanos] = [seconds.number()?, nanos.number()?].map(i64::try_from);
        let at = ServerTime { seconds: seconds.ok()?, nanos: nanos.ok()? };
        Some(Self { granted: u32::try_from(granted.number()?).ok()?, at, buckets, is_outside: false })
    }

    /// The buckets before the request at this index, of those that were asked for together.
    pub(super) fn buckets_before(&self, index: u32, demands: &[RedisDemand]) -> BucketStates {
        let earlier = u64::from(index.min(self.granted));
        let buckets = self.buckets.iter().zip(demands).map(|(bucket, demand)| {
            // A bucket in shadow mode may have had less left than the others.
            let granted = if demand.shadow { demand.requests_left(bucket).unwrap_or(0).min(earlier) } else { earlier };
            let cost = bucket.decided_by(demand.quota).cost(demand.cells);
            let bucket = bucket.with_added(demand.quota, cost.saturating_mul(granted));
            BucketState { window: demand.window.map(|window| window.at(self.at.timestamp())), ..bucket }
        });
        buckets.collect()
    }

    /// The answer to the request at this index.
    pub(super) fn decided(&self, index: u32, demands: &[RedisDemand]) -> Decided {
        let buckets = self.buckets_before(index, demands);
        let is_outside = self.is_outside;
        Decided { granted: index < self.granted, at: self.at, is_outside, buckets, unclaimed: None }
    }
}

/// The server's time in the reply of a script that has done nothing, because the windows that were
/// sent are not around it.
pub(super) fn read_outside(reply: &[Element]) -> Option<ServerTime> {
    let [Element::Number(-1), seconds, nanos] = reply else { return None };
    let [seconds, nanos] = [seconds.number()?, nanos.number()?].map(i64::try_from);
    Some(ServerTime { seconds: seconds.ok()?, nanos: nanos.ok()? })
}

/// What a script reads of the windows around now.
pub(super) fn boundaries(window: Option<WindowTimes>) -> String {
    window.map(|window| window.to_string()).unwrap_or_default()
}

/// Reads count, period, burst and the time of a cell.
fn read_quota(text: &str) -> Option<Quota> {
    let mut numbers = text.split(' ').map(str::parse::<u64>);
    let [count, period, burst, cell] = [(); 4].map(|()| numbers.next().and_then(Result::ok));
    quota_of(count?, period?, burst?).filter(|quota| Some(quota.cell_nanos().get()) == cell)
}

/// Reads count, period and burst.
pub(super) fn read_plan(text: &str) -> Option<Quota> {
    let mut numbers = text.split(' ').map(str::parse::<u64>);
    let [count, period, burst] = [(); 3].map(|()| numbers.next().and_then(Result::ok));
    quota_of(count?, period?, burst?)
}

fn quota_of(count: u64, period: u64, burst: u64) -> Option<Quota> {
    let quota = Quota::new(u32::try_from(count).ok()?, Nanos::new(period).into()).ok()?;
    quota.try_burst(u32::try_from(burst).ok()?).ok()
}

/// How a quota that was chosen for a key is written: count and period.
pub(super) fn plan_text(quota: Quota) -> String {
    format!("{} {}", quota.cells(), Nanos::from(quota.period()).get())
}

/// What is to be refunded of acquired cells, or charged beyond them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settlement {
    /// When the cells were acquired: time has returned a part since.
    pub(super) at: ServerTime,
    pub(super) parts: SmallVec<[SettlementPart; 1]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SettlementPart {
    pub(super) key: String,
    pub(super) refund: Nanos,
    pub(super) generation: u64,
    /// By which the cells were acquired.
    pub(super) quota: Quota,
    /// Whether the quota was chosen for the request.
    pub(super) planned: bool,
    /// The arrival time after the cells were acquired, where requests wait in line.
    pub(super) arrival: Option<Timestamp>,
    /// Cells to charge.
    pub(super) charge: u32,
    /// How long debts may be beyond the burst.
    pub(super) slack: Nanos,
    /// How long requests may wait.
    pub(super) waits: Nanos,
    /// The length of the key's pauses until the cells were acquired.
    pub(super) paused: Nanos,
    /// Around now, for a policy with windows.
    pub(super) window: Option<WindowTimes>,
    /// Of the window in which the cells were acquired.
    pub(super) window_start: Timestamp,
}

/// What an operator asks of a server.
#[derive(Clone, Debug)]
pub(super) enum Query {
    /// Runs a script for one key.
    Script {
        script: &'static Script,
        key: String,
        arguments: Vec<String>,
    },
    /// Lists some of the names that match.
    Scan {
        cursor: String,
        pattern: String,
        count: usize,
    },
    /// Reads a hash, and applies what an operator has set there.
    Settings {
        hash: String,
    },
    Settle(Settlement),
}

impl Settlement {
    /// All its keys are in one.
    pub(super) fn slot(&self) -> u16 {
        self.parts.first().map_or(0, |part| slot(&part.key))
    }

    /// Refunds a granted request before which the buckets were these. `None` where it has acquired
    /// nothing.
    pub(super) fn refund_all<'a>(
        demands: impl IntoIterator<Item = (&'a RedisDemand, BucketState)>,
        at: ServerTime,
    ) -> Option<Self> {
        let parts = demands.into_iter().filter_map(|(demand, bucket)| {
            let quota = bucket.decided_by(demand.quota);
            let added = quota.cost(demand.cells);
            if added.is_zero() || (demand.shadow && demand.requests_left(&bucket) == Some(0)) {
                return None;
            }
            let ahead = bucket.pause.left.saturating_add(bucket.converted(demand.quota)).saturating_add(added);
            let arrival = at.timestamp().saturating_add(ahead);
            Some(SettlementPart {
                key: demand.key.clone(),
                refund: added,
                generation: bucket.generation,
                quota,
                planned: demand.planned || bucket.plan.is_some(),
                arrival: (!demand.patience.is_zero()).then_some(arrival),
                charge: 0,
                slack: Nanos::ZERO,
                waits: Nanos::ZERO,
                paused: bucket.pause.total,
                window: demand.window,
                window_start: bucket.window.map(|window| window.start).unwrap_or_default(),
            })
        });
        let parts: SmallVec<_> = parts.collect();
        (!parts.is_empty()).then_some(Self { at, parts })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const AT: ServerTime = ServerTime { seconds: 7, nanos: 8 };

    fn demand(key: &str, cost: u64, shadow: bool) -> RedisDemand {
        // A cell takes a nanosecond.
        let quota = Quota::every(Duration::from_nanos(1)).burst(100);
        let cells = u32::try_from(cost).unwrap();
        RedisDemand { key: key.to_owned(), cells, quota, planned: false, patience: Nanos::ZERO, shadow, window: None }
    }

    fn state(backlog: u64) -> BucketState {
        BucketState { generation: 3, ..BucketState::with_backlog(Nanos::new(backlog)) }
    }

    fn states(backlogs: &[u64]) -> BucketStates {
        backlogs.iter().copied().map(state).collect()
    }

    fn numbers(numbers: &[i64]) -> Vec<Element> {
        numbers.iter().copied().map(Element::Number).collect()
    }

    #[test]
    fn rds09_elements_that_are_not_a_reply_of_the_script_are_none() {
        let read = |elements: &[i64]| Reply::read(&numbers(elements), 2);
        let reply = |granted| Some(Reply { granted, at: AT, buckets: states(&[5, 0]), is_outside: false });
        assert_eq!(read(&[1, 7, 8, 5, 0, 0, 3, 0, 0, 0, 3]), reply(1));
        assert_eq!(read(&[0, 7, 8, 5, 0, 0, 3, 0, 0, 0, 3]), reply(0));
        for wrong in [
            &[][..],
            &[1],
            &[1, 7, 8, 5, 0, 0, 3],
            &[1, 7, 8, 5, 0, 0, 3, 0, 0, 0, 3, 0],
            &[-1, 7, 8, 5, 0, 0, 3, 0, 0, 0, 3],
            &[1, 7, 8, -5, 0, 0, 3, 0, 0, 0, 3],
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_quota_that_was_chosen_before_stands_behind_the_buckets() {
        let read = |number: i64, plan: &str| {
            let mut elements = numbers(&[1, 7, 8, 5, 0, 0, 3]);
            elements.extend([Element::Number(number), Element::Text(plan.to_owned())]);
            Reply::read(&elements, 1).map(|reply| reply.buckets[0].plan)
        };
        let plan = Quota::per(3, Duration::from_secs(90)).burst(9);
        assert_eq!(read(1, "3 90000000000 9 30000000000"), Some(Some(plan)));
        assert_eq!(plan_text(plan), "3 90000000000");
        for (number, wrong) in
            [(0, "3 90000000000 9 30000000000"), (2, "3 90000000000 9 30000000000"), (1, "3 9 9 7"), (1, "")]
        {
            assert_eq!(read(number, wrong), None, "{number} {wrong}");
        }
    }

    #[test]
    fn requests_that_are_granted_together_follow_one_another() {
        let demands = [demand("a", 10, false), demand("b", 0, false), demand("c", 60, true)];
        let reply = Reply { granted: 3, at: AT, buckets: states(&[20, 7, 30]), is_outside: false };
        let before = |index| reply.buckets_before(index, &demands);
        assert_eq!(before(0), states(&[20, 7, 30]));
        // The bucket in shadow mode grants only one of them.
        assert_eq!(before(1), states(&[30, 7, 90]));
        assert_eq!(before(2), states(&[40, 7, 90]));
        assert_eq!(before(5), states(&[50, 7, 90]), "a denied request finds what the granted ones left");
    }

    #[test]
    fn after_the_first_grant_a_bucket_is_one_of_the_quota_that_granted() {
        let demands = [demand("a", 10, false)];
        // Two cells, of five nanoseconds each.
        let found = BucketState { from: Some(Nanos::new(5)), ..state(10) };
        let reply = Reply { granted: 1, at: AT, buckets: [found].into_iter().collect(), is_outside: false };
        assert_eq!(reply.buckets_before(0, &demands)[0], found);
        assert_eq!(reply.buckets_before(1, &demands), states(&[12]));
    }

    #[test]
    fn a_refund_returns_only_what_was_acquired() {
        let demands = [demand("a", 10, true), demand("free", 0, true), demand("short", 60, true)];
        let settlement = Settlement::refund_all(demands.iter().zip(states(&[20, 7, 50])), AT).unwrap();
        let refunds: Vec<_> = settlement.parts.iter().map(|part| (&*part.key, part.refund.get())).collect();
        assert_eq!(refunds, [("a", 10)]);
        assert_eq!(Settlement::refund_all(demands[1..].iter().zip(states(&[7, 50])), AT), None);
    }

    #[test]
    fn a_request_that_is_dropped_before_its_answer_refunds_its_cells_once() {
        let demands = [demand("a", 10, false)];
        let refund = || Settlement::refund_all(demands.iter().zip(states(&[20])), AT).unwrap();
        let (sent, received) = std::sync::mpsc::channel();
        let decided = |received: bool| {
            let sent = sent.clone();
            let unclaimed = Unclaimed::new(refund(), move |refund| drop(sent.send(refund)));
            let mut decided = Decided {
                granted: true,
                at: AT,
                is_outside: false,
                buckets: states(&[20]),
                unclaimed: Some(unclaimed),
            };
            if received {
                decided.is_received();
            }
        };
        decided(true);
        decided(false);
        assert_eq!(received.try_iter().collect::<Vec<_>>(), [refund()]);
    }
}
