//! Contains [`Worker`], the only task that talks to a server: it sends equal requests together,
//! watches the connection, and reconnects.
//!
//! A worker has the connection, the circuit breaker, and the requests that wait for an answer. The
//! first decision starts it, and it ends with the last handle. No request has a task of its own.
//! This file must not know of policies.
//!
//! While a call is in flight, further requests for the same buckets wait for it and are sent
//! together with the next call. So nothing waits for a timer, and together they are granted what
//! they would be granted one by one.

use std::{
    collections::HashMap,
    future::pending,
    iter,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::Either,
    stream::{FuturesUnordered, StreamExt as _},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    address::Address,
    announcement::Listener,
    connect::{Connected, Server, Test},
    connection::{Announcements, CallError, Closed, Connection, Redirect, SlotRange},
    dial::Dialer,
    health::Health,
    leases::Leases,
    pending::{Pending, RequestId},
    protocol::{Decided, Element, Query, RedisDemand, RedisDemands, Reply, Settlement, Unclaimed},
};
use crate::{
    clock::{Nanos, Timestamp},
    key::entropy,
    observe::{
        events::{self, Throttle},
        metrics,
    },
};

/// What is sent to the worker.
pub(super) enum WorkerRequest {
    /// Acquires the cells of a request, which waits for the reply. If the sender of the reply is
    /// dropped, the request is decided without Redis.
    Acquire(AcquireRequest),
    /// Refunds or charges. Nothing waits for it. If it is lost, the cells stay acquired.
    Settle(Settlement),
    /// Opens a connection now, where the last one ended in a pause.
    Connect,
    /// Does what an operator asks for. The request waits for the reply.
    Query(QueryRequest),
    /// Where are the slots of the cluster? The sender is dropped where the server does not say.
    Slots(oneshot::Sender<Vec<SlotRange>>),
}

pub(super) struct QueryRequest {
    pub(super) query: Query,
    /// Until when the operator waits.
    pub(super) deadline: Timestamp,
    /// `None` for a query whose sender does not wait.
    pub(super) reply: Option<oneshot::Sender<Result<Vec<Element>, QueryError>>>,
}

impl QueryRequest {
    pub(super) fn answer(self, answer: Result<Vec<Element>, QueryError>) {
        if let Some(reply) = self.reply {
            let _ = reply.send(answer);
        }
    }
}

/// Why a query failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum QueryError {
    /// Another node has the key. Nothing was run.
    Redirected(Redirect),
    /// The server has refused it, or there is none to ask. Nothing has changed.
    Refused(String),
    /// There was no answer in time, or the connection was lost. Nobody knows whether it was run.
    Unanswered,
}

pub(super) struct AcquireRequest {
    pub(super) demands: RedisDemands,
    /// Whether another node has named this one, to which the slot is migrating.
    pub(super) asking: bool,
    /// Whether to wait while the worker connects for the first time.
    pub(super) patient: bool,
    /// Until when the request waits.
    pub(super) deadline: Timestamp,
    pub(super) reply: oneshot::Sender<WorkerReply>,
}

pub(super) enum WorkerReply {
    Decided(Box<Decided>),
    /// Nothing was run.
    Redirected(Redirect),
}

/// The cluster that a server belongs to, as its worker sees it.
pub(super) trait ClusterEvents: Send + Sync {
    /// Slots may have moved.
    fn slots_may_have_moved(self: Arc<Self>);

    /// The slot of a settlement has moved to another node.
    fn forward(self: Arc<Self>, redirect: &Redirect, settlement: Settlement);
}

/// So many requests are received before the end of a call is seen to.
const MAX_TOGETHER: usize = 1_024;
/// After this number of timeouts in a row, the connection is given up.
const MAX_TIMEOUTS: u32 = 3;
/// After such a pause a device in between may have forgotten the connection. So the next request
/// waits until the connection is checked, and one timeout is enough to give it up.
const PAUSE: Nanos = Nanos::SECOND;
/// After such a pause the connection is checked although nobody asks.
const IDLE: Nanos = Nanos::new(5 * Nanos::SECOND.get());
/// A connection that the server closed in a pause is opened again after this time, or by a request.
const REST: Nanos = Nanos::new(5 * Nanos::SECOND.get());
/// Between attempts to connect: the first pause, doubled each time, up to the second one; the third
/// one after [`LASTING`] attempts, some ten seconds.
const BACKOFF: [Duration; 3] = [Duration::from_millis(25), Duration::from_millis(250), Duration::from_secs(1)];
const LASTING: u32 = 40;
/// Another reason than the last one is reported after this time.
const NEW_REASON: Nanos = Nanos::new(5 * Nanos::SECOND.get());

pub(super) struct Worker {
    pub(super) server: Server,
    pub(super) dialer: Arc<Dialer>,
    pub(super) probe: RedisDemand,
    pub(super) call_timeout: Duration,
    pub(super) health: Arc<Health>,
    /// Where the server is a node of a cluster.
    pub(super) cluster: Option<Weak<dyn ClusterEvents>>,
    pub(super) leases: Option<Leases>,
    /// The hash and the channel of what an operator says.
    pub(super) control: String,
    pub(super) listener: Weak<dyn Listener>,
    /// To itself, as long as there is a handle.
    pub(super) own: mpsc::WeakUnboundedSender<WorkerRequest>,
}

/// A call that has ended.
struct CompletedCall {
    /// Whether the connection had been idle before it.
    after_a_pause: bool,
    result: CallResult,
}

pub(super) enum CallResult {
    Acquired { call: Call, reply: Result<Reply, CallError> },
    Checked(Result<(), CallError>),
    Queried { request: QueryRequest, reply: Result<Vec<Element>, CallError> },
    Read(Result<Vec<(String, String)>, CallError>),
    Settled { settlement: Settlement, settled: Result<(), CallError> },
    Slots { reply: oneshot::Sender<Vec<SlotRange>>, slots: Result<Vec<SlotRange>, CallError> },
}

/// A call for requests that ask the same.
pub(super) struct Call {
    demands: RedisDemands,
    asking: bool,
    requests: Vec<RequestId>,
    since: Timestamp,
    /// How many announcements to forget were heard before.
    forgotten: u64,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A connection that works.
pub(super) struct Link {
    connection: Connection,
    closed: Closed,
    announcements: Announcements,
    /// Whether announcements come. Otherwise what they say is asked for.
    pub(super) subscribed: bool,
    latency: Duration,
    address: Address,
    /// When it was opened.
    since: Timestamp,
}

/// A request that waits for a connection.
struct DelayedRequest {
    demands: RedisDemands,
    asking: bool,
    id: RequestId,
}

pub(super) struct WorkerState {
    pub(super) worker: Worker,
    pub(super) link: Option<Link>,
    /// Whether the connection is being checked, and requests wait for it.
    pub(super) checking: bool,
    /// When to connect again, where the connection ended in a pause.
    rests_until: Option<Timestamp>,
    /// Whether the requests that come before there is a connection wait for it.
    reviving: bool,
    timeouts: u32,
    /// When the last answer came.
    answered: Timestamp,
    /// How often in a row a connection was attempted that has answered no request.
    attempt: u32,
    connecting: Option<Boxed<Result<Connected, String>>>,
    in_flight: FuturesUnordered<Boxed<CompletedCall>>,
    /// All requests that wait.
    pending: Pending<WorkerReply>,
    /// Those that wait for a connection.
    delayed: Vec<DelayedRequest>,
    /// Those that wait for a call for the same buckets.
    waiting: HashMap<RedisDemands, Vec<RequestId>>,
    /// Those of the calls in flight that acquire.
    acquiring: usize,
    /// What is settled when there is a connection.
    unsettled: Vec<Settlement>,
    /// What an operator asks for when there is a connection.
    pub(super) unasked: Vec<QueryRequest>,
    /// When to forget what may have been missed, and to read the settings again.
    pub(super) rereads: Option<Timestamp>,
    /// Whether the settings are being read, and whether to read them again after that.
    pub(super) reading: Option<bool>,
    /// How many announcements to forget were heard.
    pub(super) forgotten: u64,
    pub(super) reports: Reports,
}

/// What was reported of the server, so that an error that lasts is repeated once a minute.
#[derive(Default)]
pub(super) struct Reports {
    lost: Throttle,
    key_error: Throttle,
    pub(super) unheard: Throttle,
    pub(super) bans: Throttle,
    pub(super) ignored: Throttle,
    last: Option<(String, Timestamp)>,
}

impl Worker {
    /// Runs until the last handle is dropped.
    pub(super) async fn run(self, mut requests: mpsc::UnboundedReceiver<WorkerRequest>) {
        let mut state = WorkerState {
            worker: self,
            link: None,
            checking: false,
            rests_until: None,
            reviving: false,
            timeouts: 0,
            answered: Timestamp::ORIGIN,
            attempt: 0,
            connecting: None,
            in_flight: FuturesUnordered::new(),
            pending: Pending::new(),
            delayed: Vec::new(),
            waiting: HashMap::new(),
            acquiring: 0,
            unsettled: Vec::new(),
            unasked: Vec::new(),
            rereads: None,
            reading: None,
            forgotten: 0,
            reports: Reports::default(),
        };
        metrics::redis_started();
        state.connect();
        let mut timer = Box::pin(sleep_until(Instant::now()));
        // When the timer rings. Ringing too early costs nothing, so it is only ever set earlier.
        let mut rings: Option<Timestamp> = None;
        loop {
            if let Some(due) = state.next_due() {
                if rings.is_none_or(|rings| due < rings) {
                    timer.as_mut().reset(Instant::now() + Duration::from(due.since(state.now())));
                    rings = Some(due);
                }
            }
            let WorkerState { connecting, in_flight, link, .. } = &mut state;
            let connected = async {
                match connecting {
                    Some(connecting) => connecting.await,
                    None => pending().await,
                }
            };
            // Both borrow the connection.
            let (closed, announced) = match link {
                Some(Link { closed, announcements, subscribed: true, .. }) => {
                    (Either::Left(closed), Either::Left(announcements.recv()))
                }
                Some(Link { closed, .. }) => (Either::Left(closed), Either::Right(pending())),
                None => (Either::Right(pending()), Either::Right(pending())),
            };
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => state.receive(request),
                    None => break,
                },
                Some(completed) = in_flight.next() => {
                    // Those that came before the end of a call are sent together with the next one.
                    for request in iter::from_fn(|| requests.try_recv().ok()).take(MAX_TOGETHER) {
                        state.receive(request);
                    }
                    state.complete(completed);
                }
                connected = connected => state.connected(connected),
                _ = closed => state.closed(),
                Some(announcement) = announced => state.announced(&announcement),
                () = timer.as_mut(), if rings.is_some() => {
                    rings = None;
                    state.timer_rings();
                }
            }
        }
        state.end().await;
    }
}

impl Drop for WorkerState {
    fn drop(&mut self) {
        // Also after a panic: nobody asks a worker that is gone.
        self.worker.health.disconnected();
    }
}

impl WorkerState {
    pub(super) fn now(&self) -> Timestamp {
        self.worker.health.now()
    }

    /// When to call [`timer_rings`](Self::timer_rings).
    fn next_due(&mut self) -> Option<Timestamp> {
        let idle = self.is_idle().then(|| self.answered.saturating_add(IDLE));
        let lease = self.worker.leases.as_ref().and_then(Leases::next_due);
        let unasked = self.unasked.iter().map(|request| request.deadline).min();
        [idle, lease, unasked, self.rests_until, self.rereads, self.pending.next_deadline()].into_iter().flatten().min()
    }

    fn timer_rings(&mut self) {
        let now = self.now();
        self.pending.expire(now);
        let refunds = self.worker.leases.as_mut().map(|leases| leases.expired(now)).unwrap_or_default();
        for settlement in refunds {
            self.settle(settlement);
        }
        let pending = &self.pending;
        self.delayed.retain(|request| pending.waits(request.id));
        let reason = self.worker.health.failure().unwrap_or_else(|| "there is no connection yet".to_owned());
        self.refuse_unasked(&reason, false);
        if self.rests_until.is_some_and(|until| until <= now) {
            self.revive();
        }
        if self.rereads.is_some_and(|due| due <= now) {
            self.reread();
        }
        if self.is_idle() && now.since(self.answered) >= IDLE {
            // A request that comes meanwhile has as much again.
            self.check(self.worker.call_timeout / 2);
        }
    }

    fn is_idle(&self) -> bool {
        self.link.is_some() && self.in_flight.is_empty()
    }

    /// The number of waiting requests has no bound: each of them is in memory anyway, and waits no
    /// longer than its timeout. A full queue would be a way to disable the limit.
    fn receive(&mut self, request: WorkerRequest) {
        let AcquireRequest { demands, asking, patient, deadline, reply } = match request {
            WorkerRequest::Acquire(request) => request,
            WorkerRequest::Settle(settlement) => return self.settle_soon(settlement),
            WorkerRequest::Slots(reply) => return self.ask_for_slots(reply),
            WorkerRequest::Query(request) => return self.query(request),
            WorkerRequest::Connect => return self.end_rest(),
        };
        if reply.is_closed() || deadline <= self.now() {
            return;
        }
        self.end_rest();
        if self.link.is_none() && !(self.reviving || patient) {
            // Decided without Redis.
            return;
        }
        let id = self.pending.add(reply, deadline);
        if let (false, Some(patience)) = (self.checking, self.patience_of_a_check()) {
            self.check(patience);
        }
        if self.link.is_none() || self.checking {
            self.delayed.push(DelayedRequest { demands, asking, id });
        } else {
            self.ask(demands, asking, id);
        }
    }

    pub(super) fn end_rest(&mut self) {
        if self.rests_until.is_some() {
            self.revive();
        }
    }

    /// Settles now, or when there is a connection again.
    fn settle_soon(&mut self, settlement: Settlement) {
        self.end_rest();
        if self.link.is_some() {
            self.settle(settlement);
        } else if self.reviving && self.unsettled.len() < MAX_TOGETHER {
            self.unsettled.push(settlement);
        }
    }

    /// How long to wait for a check of the connection before a request is sent over it. `None`
    /// where none is needed, or where the request's time does not suffice for a check, another
    /// connection and the request.
    pub(super) fn patience_of_a_check(&self) -> Option<Duration> {
        let link = self.link.as_ref().filter(|_| self.acquiring == 0 && self.is_after_a_pause())?;
        let patience = self.worker.health.stall();
        let all = patience.saturating_add(link.latency.saturating_mul(10));
        (all < self.worker.call_timeout).then_some(patience)
    }

    fn is_after_a_pause(&self) -> bool {
        self.now().since(self.answered) > PAUSE
    }

    /// Asks for the cells of a request, or has it wait for a call for the same buckets.
    fn ask(&mut self, demands: RedisDemands, asking: bool, id: RequestId) {
        if asking {
            // Too rare to be sent together.
            return self.acquire(demands, asking, vec![id]);
        }
        if self.takes_lease(&demands, id) {
            return;
        }
        if let Some(waiting) = self.waiting.get_mut(&demands) {
            waiting.push(id);
        } else {
            self.waiting.insert(Arc::clone(&demands), Vec::new());
            self.acquire(demands, asking, vec![id]);
        }
    }

    /// Decides on a request by a lease, if there is one.
    fn takes_lease(&mut self, demands: &RedisDemands, id: RequestId) -> bool {
        let now = self.now();
        let decided = self.worker.leases.as_mut().and_then(|leases| leases.take(demands, now));
        decided.map(|decided| self.pending.reply(id, WorkerReply::Decided(Box::new(decided)))).is_some()
    }

    /// The last handle is dropped: leases are refunded, and calls in flight end.
    async fn end(&mut self) {
        for settlement in self.worker.leases.as_mut().map(Leases::end_all).unwrap_or_default() {
            self.settle(settlement);
        }
        let ended = async { while self.in_flight.next().await.is_some() {} };
        let _ = timeout(self.worker.call_timeout, ended).await;
    }

    fn acquire(&mut self, demands: RedisDemands, asking: bool, requests: Vec<RequestId>) {
        let since = self.now();
        // While a slot migrates there are no leases, and none of cells that will be there later.
        let is_patient = demands.iter().any(|demand| !demand.patience.is_zero());
        let leases = self.worker.leases.as_ref().filter(|_| !asking && !is_patient);
        let in_advance = leases.map_or(0, |leases| leases.in_advance(&demands, since));
        let cells = count(requests.len()).saturating_add(in_advance);
        let call = Call { demands, asking, requests, since, forgotten: self.forgotten };
        self.acquiring += 1;
        self.send(self.worker.call_timeout, |mut connection, within| async move {
            let reply = timeout(within, connection.acquire(&call.demands, cells, call.asking)).await;
            CallResult::Acquired { call, reply: reply.unwrap_or(Err(CallError::Timeout)) }
        });
    }

    pub(super) fn settle(&mut self, settlement: Settlement) {
        self.send(self.worker.call_timeout, |mut connection, within| async move {
            let settled = timeout(within, connection.settle(&settlement)).await;
            CallResult::Settled { settlement, settled: settled.unwrap_or(Err(CallError::Timeout)).map(drop) }
        });
    }

    /// Runs the script, as it is run for requests: a server that answers to a PING may still not
    /// write.
    pub(super) fn check(&mut self, patience: Duration) {
        self.checking = true;
        let probe = self.worker.probe.clone();
        self.send(patience, |mut connection, within| async move {
            let reply = timeout(within, connection.acquire(&[probe], 1, false)).await;
            CallResult::Checked(reply.unwrap_or(Err(CallError::Timeout)).map(drop))
        });
    }

    fn ask_for_slots(&mut self, reply: oneshot::Sender<Vec<SlotRange>>) {
        let host = match self.link.as_ref().map(|link| &link.address) {
            Some(Address::Tcp { host, .. }) => host.clone(),
            _ => return,
        };
        self.send(self.worker.call_timeout, |mut connection, within| async move {
            let slots = timeout(within, connection.slots(&host)).await;
            CallResult::Slots { reply, slots: slots.unwrap_or(Err(CallError::Timeout)) }
        });
    }

    pub(super) fn send<F>(&mut self, within: Duration, call: impl FnOnce(Connection, Duration) -> F)
    where
        F: Future<Output = CallResult> + Send + 'static,
    {
        let Some(Link { connection, .. }) = &self.link else { return };
        let call = call(connection.clone(), within);
        let after_a_pause = self.is_after_a_pause();
        self.worker.health.sent();
        self.in_flight.push(Box::pin(async move { CompletedCall { after_a_pause, result: call.await } }));
    }

    fn complete(&mut self, completed: CompletedCall) {
        self.worker.health.returned();
        let after_a_pause = completed.after_a_pause;
        match completed.result {
            CallResult::Acquired { call, reply } => {
                self.acquiring -= 1;
                self.acquired(call, reply, after_a_pause);
            }
            CallResult::Checked(checked) => self.checked(checked),
            CallResult::Queried { request, reply } => self.queried(request, reply, after_a_pause),
            CallResult::Read(read) => self.settings_read(read, after_a_pause),
            CallResult::Settled { settlement, settled } => {
                // While a slot migrates, its settlements are lost.
                if let (Err(CallError::Redirect(redirect)), Some(cluster)) = (&settled, self.cluster()) {
                    if !redirect.asking {
                        cluster.forward(redirect, settlement);
                    }
                }
                self.assess(settled.err(), after_a_pause);
            }
            CallResult::Slots { reply, slots } => match slots {
                Ok(slots) => {
                    self.answered();
                    let _ = reply.send(slots);
                }
                // It answers, and has no map: another node is asked.
                Err(CallError::Connection(_) | CallError::Key(_)) => self.answered(),
                Err(error) => self.assess(Some(error), after_a_pause),
            },
        }
    }

    fn acquired(&mut self, call: Call, reply: Result<Reply, CallError>, after_a_pause: bool) {
        let Call { demands, asking, requests, since, forgotten } = call;
        let mut refunds = Vec::new();
        let error = match reply {
            Ok(reply) => {
                let asked = count(requests.len());
                let is_patient = demands.iter().any(|demand| !demand.patience.is_zero());
                for (index, id) in (0..).zip(requests) {
                    // A request that no longer waits has acquired its cells all the same.
                    let mut decided = reply.decided(index, &demands);
                    if is_patient {
                        decided.unclaimed = self.unclaimed(&decided, &demands);
                    }
                    self.pending.reply(id, WorkerReply::Decided(Box::new(decided)));
                }
                if let (Some(leases), false, false) = (&mut self.worker.leases, asking, is_patient) {
                    refunds.extend(leases.renew(&demands, reply, asked, since));
                    if forgotten != self.forgotten {
                        // The reply may be from before what was announced.
                        refunds.extend(leases.end_one(&demands));
                    }
                }
                None
            }
            Err(CallError::Redirect(redirect)) if self.worker.cluster.is_some() => {
                for id in requests {
                    self.pending.reply(id, WorkerReply::Redirected(redirect.clone()));
                }
                Some(CallError::Redirect(redirect))
            }
            Err(error) => {
                for id in requests {
                    self.pending.give_up(id);
                }
                Some(error)
            }
        };
        self.assess(error, after_a_pause);
        for refund in refunds {
            self.settle(refund);
        }
        if !asking {
            self.acquire_for_waiting(demands);
        }
    }

    /// What refunds the cells of a request that waits for them, and is dropped before it has its
    /// answer.
    fn unclaimed(&self, decided: &Decided, demands: &RedisDemands) -> Option<Unclaimed> {
        let demands = demands.iter().zip(decided.buckets.iter().copied());
        let refund = Settlement::refund_all(demands, decided.at).filter(|_| decided.granted)?;
        let own = self.worker.own.clone();
        Some(Unclaimed::new(refund, move |refund| {
            if let Some(own) = own.upgrade() {
                let _ = own.send(WorkerRequest::Settle(refund));
            }
        }))
    }

    /// Sends the requests that came during a call. There is none where the connection was given up.
    fn acquire_for_waiting(&mut self, demands: RedisDemands) {
        self.pending.expire(self.worker.health.now());
        let Some(waiting) = self.waiting.get_mut(&demands) else { return };
        let mut waiting = std::mem::take(waiting);
        waiting.retain(|id| self.pending.waits(*id) && !self.takes_lease(&demands, *id));
        if waiting.is_empty() {
            self.waiting.remove(&demands);
        } else {
            self.acquire(demands, false, waiting);
        }
    }

    /// Decides what the end of a call means for the connection.
    pub(super) fn assess(&mut self, error: Option<CallError>, after_a_pause: bool) {
        match error {
            None => self.answered(),
            Some(CallError::Key(reason)) => {
                self.answered();
                events::redis_key_error(&reason, &self.reports.key_error, self.answered);
            }
            Some(CallError::Redirect(redirect)) if self.worker.cluster.is_some() => {
                self.answered();
                if !redirect.asking {
                    self.slots_may_have_moved();
                }
            }
            Some(error @ (CallError::Closed | CallError::Timeout)) if self.checking => self.checked(Err(error)),
            Some(CallError::Timeout) if self.timeouts + 1 < MAX_TIMEOUTS && !after_a_pause => self.timeouts += 1,
            Some(error) => self.give_up(&error),
        }
    }

    /// The connection was checked. Where it is dead, the requests that wait for it wait for
    /// another.
    fn checked(&mut self, checked: Result<(), CallError>) {
        self.checking = false;
        match checked {
            Ok(()) => self.assess(None, false),
            Err(CallError::Redirect(redirect)) if self.worker.cluster.is_some() => {
                self.assess(Some(CallError::Redirect(redirect)), false);
            }
            Err(error) => {
                if !matches!(error, CallError::Closed | CallError::Timeout) {
                    self.report(&error);
                }
                self.drop_link();
                self.revive();
                return;
            }
        }
        self.ask_for_delayed();
    }

    fn ask_for_delayed(&mut self) {
        self.pending.expire(self.now());
        for settlement in std::mem::take(&mut self.unsettled) {
            self.settle(settlement);
        }
        for request in std::mem::take(&mut self.unasked) {
            self.query(request);
        }
        for DelayedRequest { demands, asking, id } in std::mem::take(&mut self.delayed) {
            if self.pending.waits(id) {
                self.ask(demands, asking, id);
            }
        }
    }

    /// The server, or a device in between, has closed the connection.
    fn closed(&mut self) {
        // What was answered before it.
        while let Some(Some(completed)) = self.in_flight.next().now_or_never() {
            self.complete(completed);
        }
        if self.link.is_none() {
            return;
        }
        if self.checking {
            self.checked(Err(CallError::Closed));
        } else if self.in_flight.is_empty() {
            if self.is_of_age() {
                self.attempt = 0;
            }
            self.drop_link();
            self.worker.health.rests();
            self.rests_until = Some(self.now().saturating_add(REST));
        } else {
            self.give_up(&CallError::Closed);
        }
    }

    /// Whether the connection has lasted: it was not closed for what it is.
    fn is_of_age(&self) -> bool {
        self.link.as_ref().is_some_and(|link| self.now().since(link.since) >= PAUSE)
    }

    pub(super) fn answered(&mut self) {
        self.timeouts = 0;
        self.attempt = 0;
        self.answered = self.now();
        self.worker.health.progressed();
    }

    fn cluster(&self) -> Option<Arc<dyn ClusterEvents>> {
        self.worker.cluster.as_ref().and_then(Weak::upgrade)
    }

    fn slots_may_have_moved(&self) {
        if let Some(cluster) = self.cluster() {
            cluster.slots_may_have_moved();
        }
    }

    /// Drops the connection and opens another one. The requests that wait are decided without
    /// Redis.
    fn give_up(&mut self, error: &CallError) {
        self.worker.health.disconnected();
        metrics::redis_lost();
        self.report(error);
        if !self.is_of_age() {
            // Not again and again without a pause.
            self.attempt = self.attempt.max(1);
        }
        self.drop_link();
        self.abandon_delayed(error.reason());
        self.slots_may_have_moved();
        self.connect();
    }

    /// All that wait are decided without Redis.
    fn abandon_delayed(&mut self, reason: &str) {
        self.refuse_unasked(reason, true);
        self.pending.give_up_all();
        self.delayed.clear();
        self.unsettled.clear();
    }

    fn drop_link(&mut self) {
        self.link = None;
        self.rereads = None;
        self.reading = None;
        self.checking = false;
        self.timeouts = 0;
        self.in_flight.clear();
        self.acquiring = 0;
        self.waiting.clear();
        if let Some(leases) = &mut self.worker.leases {
            leases.clear();
        }
    }

    /// Connects for requests that wait, or are about to come.
    fn revive(&mut self) {
        self.rests_until = None;
        self.reviving = true;
        self.worker.health.revives();
        self.connect();
    }

    fn report(&mut self, error: &CallError) {
        let reason = error.reason().to_owned();
        let reason = match &self.link {
            Some(Link { address, .. }) => address.with(&reason),
            None => reason,
        };
        self.report_reason(reason);
    }

    /// Reports why Redis is not used: at once, again each minute, and when the reason is another.
    fn report_reason(&mut self, reason: String) {
        let now = self.now();
        self.worker.health.fails_by(&reason);
        let is_new = self.reports.last.as_ref().is_none_or(|(last, at)| *last != reason && now.since(*at) > NEW_REASON);
        if events::redis_lost(&reason, &self.reports.lost, is_new, now) {
            self.reports.last = Some((reason, now));
        }
    }

    fn connect(&mut self) {
        let Worker { server, dialer, probe, control, call_timeout, cluster, .. } = &self.worker;
        let (server, dialer, probe, control, call_timeout, in_cluster) =
            (server.clone(), Arc::clone(dialer), probe.clone(), control.clone(), *call_timeout, cluster.is_some());
        let wait = backoff(self.attempt);
        self.connecting = Some(Box::pin(async move {
            #[expect(clippy::disallowed_methods, reason = "no test waits for it")]
            sleep(wait).await;
            server.connect(&dialer, Test { probe: &probe, control: &control, in_cluster, call_timeout }).await
        }));
    }

    fn connected(&mut self, connected: Result<Connected, String>) {
        self.connecting = None;
        let was_reviving = std::mem::take(&mut self.reviving);
        match connected {
            Ok(Connected { connection, closed, announcements, prepared, latency, address }) => {
                let subscribed = prepared.subscribed.is_ok();
                let since = self.now();
                self.link = Some(Link { connection, closed, announcements, subscribed, latency, address, since });
                self.answered = since;
                self.listen(prepared);
                self.worker.health.connected(latency);
                events::redis_connected();
                // Until a request is answered, the next attempt backs off.
                self.attempt += 1;
                self.ask_for_delayed();
            }
            Err(reason) => {
                self.worker.health.disconnected();
                if was_reviving {
                    metrics::redis_lost();
                }
                self.abandon_delayed(&reason);
                self.report_reason(reason);
                self.attempt = self.attempt.saturating_add(1);
                self.slots_may_have_moved();
                self.connect();
            }
        }
    }
}

fn count(requests: usize) -> u32 {
    u32::try_from(requests).unwrap_or(u32::MAX)
}

/// The pause before this attempt: none before the first, then with a random half more or less, so
/// that many processes do not reconnect together.
fn backoff(attempt: u32) -> Duration {
    let [first, max, lasting] = BACKOFF;
    match attempt.checked_sub(1) {
        None => Duration::ZERO,
        Some(doubled) => {
            let max = if attempt > LASTING { lasting } else { max };
            let pause = first.saturating_mul(1 << doubled.min(10)).min(max);
            #[allow(clippy::cast_possible_truncation, reason = "below 1,000")]
            let thousandths = 500 + (entropy() % 1_000) as u32;
            pause * thousandths / 1_000
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_at_once_and_later_ones_back_off() {
        assert_eq!(backoff(0), Duration::ZERO);
        for attempt in 1..100 {
            let max = BACKOFF[if attempt > LASTING { 2 } else { 1 }];
            let max = BACKOFF[0].saturating_mul(1 << (attempt - 1).min(10)).min(max);
            let pause = backoff(attempt);
            assert!(pause >= max / 2 && pause < max * 3 / 2, "{attempt}: {pause:?}");
        }
    }
}
