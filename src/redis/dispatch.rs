//! The one task that talks to a server: it asks for requests of one kind together, watches the connection, and dials.
//!
//! Owns connection, breaker and the requests that wait for an answer. It is started by the first decision, ends with the last
//! handle, and no request has a task of its own. Knows nothing of policies.
//!
//! While a call for some limits is under way, further requests for the same limits wait for it and are asked for together with
//! the next: nobody waits for a timer, and what is granted is what would have been granted one by one.

use std::{
    collections::HashMap,
    future::pending,
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    cluster::Cluster,
    leases::Leases,
    link::{Elsewhere, Fault, Link, Server},
    script::{Limit, Limits, Moment, Owed, Reply, Settlement},
};
use crate::{
    clock::{Clock, nanos},
    key::entropy,
    observe,
};

/// What the task is asked for.
pub(super) enum Ask {
    /// The cells of a request, which waits for its answer. Without one (the sender is dropped) it is decided without Redis.
    Draw(Draw),
    /// Nobody waits for it; what is lost on the way stays as it was drawn.
    Settle(Settlement),
}

pub(super) struct Draw {
    pub(super) limits: Limits,
    /// Whether another node has sent it here, to which the slot is still on its way.
    pub(super) asking: bool,
    pub(super) answer: oneshot::Sender<Answer>,
}

pub(super) enum Answer {
    Decided(Decided),
    /// Nothing was carried out.
    Elsewhere(Elsewhere),
}

pub(super) struct Decided {
    pub(super) granted: bool,
    pub(super) at: Moment,
    pub(super) owed: Owed,
}

/// Over all tasks that a limiter has had.
#[derive(Default)]
pub(super) struct Counts {
    /// Requests that were handed over.
    pub(super) asked: AtomicU64,
    /// Calls that went out.
    pub(super) calls: AtomicU64,
}

/// What handles see of one task: a few atomics, read before anything is asked. Each task has its own: one that nobody drives
/// any more may end long after the next has begun.
pub(super) struct Health {
    clock: Clock,
    /// Whether there is a connection that has proved itself.
    up: AtomicBool,
    /// Calls that have no answer yet.
    under_way: AtomicUsize,
    /// When the last answer came, or the first call after a pause went out.
    progress: AtomicU64,
    /// Nanoseconds without any answer after which none is expected.
    stall: AtomicU64,
    /// Requests that were handed to this task.
    handed: AtomicU64,
    /// Of those, the ones that it has seen.
    taken: AtomicU64,
    counts: Arc<Counts>,
    /// Told when there is a connection.
    changed: Notify,
}

impl Health {
    pub(super) fn new(clock: Clock, counts: Arc<Counts>) -> Self {
        Self {
            clock,
            up: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            stall: AtomicU64::new(nanos(STALL)),
            handed: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            counts,
            changed: Notify::new(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Ends when there is a connection.
    pub(super) async fn found(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Before it is looked at: what changes from here on is told.
            changed.as_mut().enable();
            if self.is_up() {
                return;
            }
            changed.await;
        }
    }

    /// Whether it is worth asking: there is a connection, and it is answering.
    pub(super) fn answers(&self) -> bool {
        self.is_up() && !self.is_stalled()
    }

    fn is_stalled(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0
            && self.clock.now().saturating_sub(self.progress.load(Ordering::Acquire))
                > self.stall.load(Ordering::Relaxed)
    }

    /// A server far away does not answer sooner for being in order.
    fn expect_answers_like(&self, took: Duration, patience: Duration) {
        self.stall.store(nanos(took.saturating_mul(4).max(STALL).min(patience)), Ordering::Relaxed);
    }

    /// A request is about to be handed over.
    pub(super) fn begin(&self) -> Waiting<'_> {
        self.counts.asked.fetch_add(1, Ordering::Relaxed);
        Waiting { health: self, ticket: self.handed.fetch_add(1, Ordering::AcqRel) }
    }

    /// A call goes out.
    fn sent(&self) {
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        observe::redis_called();
        // Before the count, or a request would take the pause for a stall. Nobody else counts: there is one task.
        if self.under_way.load(Ordering::Acquire) == 0 {
            self.progressed();
        }
        self.under_way.fetch_add(1, Ordering::AcqRel);
    }

    fn returned(&self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }

    /// Nothing is under way: so it is where a connection or a task ends.
    fn nothing_is_sent(&self) {
        if self.up.swap(false, Ordering::AcqRel) {
            observe::redis_connections(false);
        }
        self.under_way.store(0, Ordering::Release);
    }

    fn progressed(&self) {
        self.progress.store(self.clock.now(), Ordering::Release);
    }
}

/// A request that was handed over.
pub(super) struct Waiting<'a> {
    health: &'a Health,
    ticket: u64,
}

impl Waiting<'_> {
    /// Whether the task has not even seen it.
    pub(super) fn is_ignored(&self) -> bool {
        self.health.taken.load(Ordering::Acquire) <= self.ticket
    }
}

/// Without any answer for so long, or for four times what an answer takes, new requests are decided without Redis; those that
/// wait already go on waiting.
const STALL: Duration = Duration::from_millis(10);
/// Answers in a row that did not come, until the connection is given up.
const MOST_LATE: u32 = 3;
/// After such a pause, one is enough: what stands between may have forgotten the connection.
const IDLE: Duration = Duration::from_secs(5);
/// Between attempts to dial: doubled each time, up to the second.
const BACKOFF: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(250)];

pub(super) struct Dispatcher {
    pub(super) server: Server,
    pub(super) probe: Limit,
    pub(super) patience: Duration,
    pub(super) health: Arc<Health>,
    pub(super) throttles: Throttles,
    /// Where the server is one of several: who wants to know that slots may have moved.
    pub(super) cluster: Option<Weak<Cluster>>,
    pub(super) leases: Option<Leases>,
}

/// Of the events that may come often.
#[derive(Default)]
pub(super) struct Throttles {
    lost: observe::Throttle,
    strange: observe::Throttle,
}

/// A call that has ended.
struct Done {
    /// Whether the connection had been idle before it.
    after_a_pause: bool,
    was: Was,
}

enum Was {
    Drawn { call: Call, reply: Result<Reply, Fault> },
    Settled { settlement: Settlement, settled: Result<(), Fault> },
}

/// For requests that have asked for the same.
struct Call {
    limits: Limits,
    asking: bool,
    answers: Vec<oneshot::Sender<Answer>>,
    /// When it was made.
    since: u64,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct State {
    task: Dispatcher,
    link: Option<Link>,
    late: u32,
    /// When the last answer came.
    answered: u64,
    /// How often in a row dialling has brought no answer to a request.
    attempt: u32,
    dialling: Option<Boxed<Result<Link, Fault>>>,
    under_way: FuturesUnordered<Boxed<Done>>,
    /// Who waits for a call for the same limits.
    waiting: HashMap<Limits, Vec<oneshot::Sender<Answer>>>,
}

impl Dispatcher {
    /// Runs until the last handle is gone.
    pub(super) async fn run(self, mut asks: mpsc::UnboundedReceiver<Ask>) {
        let mut state = State {
            task: self,
            link: None,
            late: 0,
            answered: 0,
            attempt: 0,
            dialling: None,
            under_way: FuturesUnordered::new(),
            waiting: HashMap::new(),
        };
        observe::redis_starts();
        state.dial();
        loop {
            let expiring = expiring(&state.task);
            let State { dialling, under_way, .. } = &mut state;
            let dialled = async {
                match dialling {
                    Some(dialling) => dialling.await,
                    None => pending().await,
                }
            };
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => state.take(ask),
                    None => break,
                },
                Some(done) = under_way.next() => state.ended(done),
                link = dialled => state.dialled(link),
                () = expiring => state.return_leases(),
            }
        }
        state.end().await;
    }
}

/// Ends when a lease does.
fn expiring(task: &Dispatcher) -> impl Future<Output = ()> + Send + use<> {
    let next = task.leases.as_ref().and_then(Leases::next);
    let wait = next.map(|next| Duration::from_nanos(next.saturating_sub(task.health.clock.now())));
    async move {
        match wait {
            #[expect(clippy::disallowed_methods, reason = "what it ends has a clock of its own in tests")]
            Some(wait) => sleep(wait).await,
            None => pending().await,
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Also where the runtime ends first, or a panic does: nobody asks what is gone.
        self.task.health.nothing_is_sent();
    }
}

impl State {
    /// No bound on how many wait: each is a request that is in memory anyhow, and waits no longer than its patience. A full
    /// queue would be a way to switch the limit off.
    fn take(&mut self, ask: Ask) {
        let draw = match ask {
            Ask::Draw(draw) => draw,
            Ask::Settle(settlement) => return self.settle(settlement),
        };
        self.task.health.taken.fetch_add(1, Ordering::AcqRel);
        let Draw { limits, asking, answer } = draw;
        if self.link.is_none() || answer.is_closed() {
            return;
        }
        if asking {
            // Too rare to be asked for together.
            return self.call(limits, asking, vec![answer]);
        }
        let Some(answer) = self.lease_to(&limits, answer) else { return };
        if let Some(waiting) = self.waiting.get_mut(&limits) {
            waiting.push(answer);
        } else {
            self.waiting.insert(Arc::clone(&limits), Vec::new());
            self.call(limits, asking, vec![answer]);
        }
    }

    /// Out of what was drawn ahead. Returns who has to ask.
    fn lease_to(&mut self, limits: &Limits, answer: oneshot::Sender<Answer>) -> Option<oneshot::Sender<Answer>> {
        let now = self.task.health.clock.now();
        let Some(decided) = self.task.leases.as_mut().and_then(|leases| leases.take(limits, now)) else {
            return Some(answer);
        };
        let _ = answer.send(Answer::Decided(decided));
        None
    }

    /// The last handle is gone: what was drawn ahead goes back, and what is on its way arrives.
    async fn end(&mut self) {
        for settlement in self.task.leases.as_mut().map(Leases::take_all).unwrap_or_default() {
            self.settle(settlement);
        }
        let arrive = async { while self.under_way.next().await.is_some() {} };
        let _ = timeout(self.task.patience, arrive).await;
    }

    fn return_leases(&mut self) {
        let now = self.task.health.clock.now();
        let back = self.task.leases.as_mut().map(|leases| leases.expired(now)).unwrap_or_default();
        for settlement in back {
            self.settle(settlement);
        }
    }

    fn call(&mut self, limits: Limits, asking: bool, answers: Vec<oneshot::Sender<Answer>>) {
        let since = self.task.health.clock.now();
        // Where a slot is on its way, nobody keeps anything.
        let leases = self.task.leases.as_ref().filter(|_| !asking);
        let ahead = leases.map_or(0, |leases| leases.ahead(&limits, since));
        let want = u32::try_from(answers.len()).unwrap_or(u32::MAX).saturating_add(ahead);
        let call = Call { limits, asking, answers, since };
        self.send(|mut link, patience| async move {
            let reply = timeout(patience, link.acquire(&call.limits, want, call.asking)).await;
            Was::Drawn { call, reply: reply.unwrap_or(Err(Fault::Late)) }
        });
    }

    fn settle(&mut self, settlement: Settlement) {
        self.send(|mut link, patience| async move {
            let settled = timeout(patience, link.settle(&settlement)).await.unwrap_or(Err(Fault::Late));
            Was::Settled { settlement, settled }
        });
    }

    fn ended(&mut self, done: Done) {
        self.task.health.returned();
        let after_a_pause = done.after_a_pause;
        let (call, reply) = match done.was {
            Was::Settled { settlement, settled } => {
                // A slot that has moved; of one that is on its way, what is settled is lost.
                if let (Err(Fault::Elsewhere(to)), Some(cluster)) = (&settled, &self.task.cluster) {
                    if let Some(node) = cluster.upgrade().filter(|_| !to.asking).and_then(|cluster| cluster.named(to)) {
                        node.settle(settlement);
                    }
                }
                return self.weigh(settled.err(), after_a_pause);
            }
            Was::Drawn { call, reply } => (call, reply),
        };
        let Call { limits, asking, answers, since } = call;
        let mut rest = None;
        let fault = match reply {
            Ok(reply) => {
                let requests = u32::try_from(answers.len()).unwrap_or(u32::MAX);
                for (index, answer) in (0..).zip(answers) {
                    let owed = reply.owed_before(index, &limits);
                    // Who no longer waits has been charged all the same.
                    let _ =
                        answer.send(Answer::Decided(Decided { granted: index < reply.granted, at: reply.at, owed }));
                }
                if let (Some(leases), false) = (&mut self.task.leases, asking) {
                    rest = leases.keep(&limits, reply, requests, since);
                }
                None
            }
            Err(Fault::Elsewhere(elsewhere)) if self.task.cluster.is_some() => {
                for answer in answers {
                    let _ = answer.send(Answer::Elsewhere(elsewhere.clone()));
                }
                Some(Fault::Elsewhere(elsewhere))
            }
            Err(fault) => Some(fault),
        };
        self.weigh(fault, after_a_pause);
        if let Some(rest) = rest {
            self.settle(rest);
        }
        if asking {
            return;
        }
        // Those that came meanwhile, and still wait; none, where the connection was given up.
        let Some(waiting) = self.waiting.get_mut(&limits) else { return };
        let waiting: Vec<_> = waiting.drain(..).filter(|answer| !answer.is_closed()).collect();
        let answers: Vec<_> = waiting.into_iter().filter_map(|answer| self.lease_to(&limits, answer)).collect();
        if answers.is_empty() {
            self.waiting.remove(&limits);
        } else {
            self.call(limits, asking, answers);
        }
    }

    fn send<F>(&mut self, call: impl FnOnce(Link, Duration) -> F)
    where
        F: Future<Output = Was> + Send + 'static,
    {
        let Some(link) = self.link.clone() else { return };
        let health = &self.task.health;
        let after_a_pause = health.clock.now().saturating_sub(self.answered) > nanos(IDLE);
        health.sent();
        let call = call(link, self.task.patience);
        self.under_way.push(Box::pin(async move { Done { after_a_pause, was: call.await } }));
    }

    /// What the end of a call means for the connection.
    fn weigh(&mut self, fault: Option<Fault>, after_a_pause: bool) {
        match fault {
            None => self.answered(),
            Some(Fault::Key(why)) => {
                self.answered();
                observe::redis_strange(&why, &self.task.throttles.strange, self.answered);
            }
            Some(Fault::Elsewhere(elsewhere)) if self.task.cluster.is_some() => {
                self.answered();
                if !elsewhere.asking {
                    self.look_for_slots();
                }
            }
            Some(Fault::Late) if self.late + 1 < MOST_LATE && !after_a_pause => self.late += 1,
            Some(fault) => self.give_up(&fault),
        }
    }

    fn answered(&mut self) {
        self.late = 0;
        self.attempt = 0;
        self.answered = self.task.health.clock.now();
        self.task.health.progressed();
    }

    fn look_for_slots(&self) {
        if let Some(cluster) = self.task.cluster.as_ref().and_then(Weak::upgrade) {
            cluster.look();
        }
    }

    /// The connection is of no use: nobody waits for it any longer, and another one is dialled.
    fn give_up(&mut self, fault: &Fault) {
        self.task.health.nothing_is_sent();
        observe::redis_given_up();
        self.report(fault);
        self.link = None;
        self.late = 0;
        // Whoever waits for one of these is told at once, by its end.
        self.waiting.clear();
        self.under_way.clear();
        if let Some(leases) = &mut self.task.leases {
            leases.clear();
        }
        self.look_for_slots();
        self.dial();
    }

    fn report(&self, fault: &Fault) {
        observe::redis_lost(fault.why(), &self.task.throttles.lost, self.task.health.clock.now());
    }

    fn dial(&mut self) {
        let (server, probe, patience) = (self.task.server.clone(), self.task.probe.clone(), self.task.patience);
        let in_cluster = self.task.cluster.is_some();
        let wait = pause(self.attempt);
        self.dialling = Some(Box::pin(async move {
            #[expect(clippy::disallowed_methods, reason = "no test waits for it")]
            sleep(wait).await;
            server.dial(&probe, in_cluster, patience).await
        }));
    }

    fn dialled(&mut self, link: Result<Link, Fault>) {
        self.dialling = None;
        match link {
            Ok(link) => {
                self.task.health.expect_answers_like(link.took, self.task.patience);
                self.link = Some(link);
                self.answered = self.task.health.clock.now();
                self.task.health.up.store(true, Ordering::Release);
                observe::redis_connections(true);
                self.task.health.changed.notify_waiters();
                observe::redis_found();
                // Until a request was answered, the next redial waits.
                self.attempt += 1;
            }
            Err(fault) => {
                if self.attempt == FIRST_REPORT {
                    self.report(&fault);
                }
                self.attempt = self.attempt.saturating_add(1);
                self.look_for_slots();
                self.dial();
            }
        }
    }
}

/// Of the attempts to dial, the one that is reported when it fails: so that a wrong password or address is not silent, and a
/// server that is just being started is.
const FIRST_REPORT: u32 = 3;

/// None before the first attempt; then with a random half more or less, so that a fleet does not return together.
fn pause(attempt: u32) -> Duration {
    let [first, most] = BACKOFF;
    match attempt.checked_sub(1) {
        None => Duration::ZERO,
        Some(doubled) => {
            let pause = first.saturating_mul(1 << doubled.min(10)).min(most);
            #[allow(clippy::cast_possible_truncation, reason = "below 1,000")]
            let thousandths = 500 + (entropy() % 1_000) as u32;
            pause * thousandths / 1_000
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const MS: Duration = Duration::from_millis(1);

    fn up() -> (Health, ManualClock) {
        let clock = ManualClock::new();
        let health = Health::new(clock.clone().into(), Arc::default());
        health.up.store(true, Ordering::Release);
        (health, clock)
    }

    #[test]
    fn rds02_after_ten_milliseconds_without_an_answer_none_is_expected() {
        let (health, clock) = up();
        clock.advance(1_000 * MS);
        assert!(health.answers(), "a pause is no stall");
        health.sent();
        clock.advance(10 * MS);
        assert!(health.answers());
        clock.advance(MS);
        assert!(!health.answers());
        health.progressed();
        assert!(health.answers(), "others are answered");
        clock.advance(11 * MS);
        health.returned();
        assert!(health.answers(), "nothing is under way");
        health.sent();
        assert!(health.answers(), "it counts from the first call after the pause");
        health.nothing_is_sent();
        assert!(!health.answers(), "without a connection");
        health.up.store(true, Ordering::Release);
        clock.advance(1_000 * MS);
        assert!(health.answers(), "what went out over the former connection counts no longer");
    }

    #[test]
    fn a_server_far_away_has_four_times_its_time_and_no_more_than_the_patience() {
        let (health, clock) = up();
        for (took, patience, stall) in
            [(MS, 50 * MS, 10 * MS), (30 * MS, 2_000 * MS, 120 * MS), (30 * MS, 50 * MS, 50 * MS)]
        {
            health.expect_answers_like(took, patience);
            health.sent();
            clock.advance(stall);
            assert!(health.answers(), "{took:?}");
            clock.advance(MS);
            assert!(!health.answers(), "{took:?}");
            health.returned();
        }
    }

    #[test]
    fn a_request_that_the_task_has_not_seen_is_ignored() {
        let (health, _clock) = up();
        let (first, second) = (health.begin(), health.begin());
        assert!(first.is_ignored() && second.is_ignored());
        health.taken.fetch_add(1, Ordering::AcqRel);
        assert!(!first.is_ignored() && second.is_ignored());
    }

    #[test]
    fn the_first_redial_is_at_once_and_later_ones_end_at_a_quarter_second_and_a_half() {
        assert_eq!(pause(0), Duration::ZERO);
        for attempt in 1..100 {
            let most = BACKOFF[0].saturating_mul(1 << (attempt - 1).min(10)).min(BACKOFF[1]);
            let pause = pause(attempt);
            assert!(pause >= most / 2 && pause < most * 3 / 2, "{attempt}: {pause:?}");
        }
    }
}
