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
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    connect::{Connected, Server},
    connection::{CallError, Connection, Redirect},
    health::Health,
    leases::Leases,
    protocol::{Decided, RedisDemand, RedisDemands, Reply, Settlement},
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
}

pub(super) struct AcquireRequest {
    pub(super) demands: RedisDemands,
    /// Whether another node has named this one, to which the slot is migrating.
    pub(super) asking: bool,
    pub(super) reply: oneshot::Sender<WorkerReply>,
}

pub(super) enum WorkerReply {
    Decided(Decided),
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

/// After this number of timeouts in a row, the connection is given up.
const MAX_TIMEOUTS: u32 = 3;
/// After such a pause, one timeout is enough: a device in between may have forgotten the
/// connection.
const IDLE: Nanos = Nanos::new(5_000_000_000);
/// Between attempts to connect: the first pause, doubled each time, up to the second one.
const BACKOFF: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(250)];
/// The attempt to connect whose failure is reported, so that a wrong password or address is not
/// silent, and a server that is just starting is.
const FIRST_REPORT: u32 = 3;

pub(super) struct Worker {
    pub(super) server: Server,
    pub(super) probe: RedisDemand,
    pub(super) call_timeout: Duration,
    pub(super) health: Arc<Health>,
    pub(super) throttles: Throttles,
    /// Where the server is a node of a cluster.
    pub(super) cluster: Option<Weak<dyn ClusterEvents>>,
    pub(super) leases: Option<Leases>,
}

/// Of the events that may come often.
#[derive(Default)]
pub(super) struct Throttles {
    lost: Throttle,
    key_error: Throttle,
}

/// A call that has ended.
struct CompletedCall {
    /// Whether the connection had been idle before it.
    after_a_pause: bool,
    result: CallResult,
}

enum CallResult {
    Acquired { call: Call, reply: Result<Reply, CallError> },
    Settled { settlement: Settlement, settled: Result<(), CallError> },
}

/// A call for requests that ask the same.
struct Call {
    demands: RedisDemands,
    asking: bool,
    replies: Vec<oneshot::Sender<WorkerReply>>,
    since: Timestamp,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct WorkerState {
    worker: Worker,
    connection: Option<Connection>,
    timeouts: u32,
    /// When the last answer came.
    answered: Timestamp,
    /// How often in a row a connection was attempted that has answered no request.
    attempt: u32,
    connecting: Option<Boxed<Result<Connected, CallError>>>,
    in_flight: FuturesUnordered<Boxed<CompletedCall>>,
    /// The requests that wait for a call for the same buckets.
    waiting: HashMap<RedisDemands, Vec<oneshot::Sender<WorkerReply>>>,
}

impl Worker {
    /// Runs until the last handle is dropped.
    pub(super) async fn run(self, mut requests: mpsc::UnboundedReceiver<WorkerRequest>) {
        let mut state = WorkerState {
            worker: self,
            connection: None,
            timeouts: 0,
            answered: Timestamp::ORIGIN,
            attempt: 0,
            connecting: None,
            in_flight: FuturesUnordered::new(),
            waiting: HashMap::new(),
        };
        metrics::redis_started();
        state.connect();
        loop {
            let lease_ends = until_a_lease_ends(&state.worker);
            let WorkerState { connecting, in_flight, .. } = &mut state;
            let connected = async {
                match connecting {
                    Some(connecting) => connecting.await,
                    None => pending().await,
                }
            };
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => state.receive(request),
                    None => break,
                },
                Some(completed) = in_flight.next() => state.complete(completed),
                connected = connected => state.connected(connected),
                () = lease_ends => state.refund_leases(),
            }
        }
        state.end().await;
    }
}

fn until_a_lease_ends(worker: &Worker) -> impl Future<Output = ()> + Send + use<> {
    let due = worker.leases.as_ref().and_then(Leases::next_due);
    let wait = due.map(|due| Duration::from(due.since(worker.health.now())));
    async move {
        match wait {
            #[expect(clippy::disallowed_methods, reason = "tests give what it ends a clock of its own")]
            Some(wait) => sleep(wait).await,
            None => pending().await,
        }
    }
}

impl Drop for WorkerState {
    fn drop(&mut self) {
        // Also where the runtime ends first, or a panic does: nobody asks a worker that is gone.
        self.worker.health.disconnected();
    }
}

impl WorkerState {
    fn now(&self) -> Timestamp {
        self.worker.health.now()
    }

    /// The number of waiting requests has no bound: each of them is in memory anyway, and waits no
    /// longer than its timeout. A full queue would be a way to disable the limit.
    fn receive(&mut self, request: WorkerRequest) {
        let AcquireRequest { demands, asking, reply } = match request {
            WorkerRequest::Acquire(request) => request,
            WorkerRequest::Settle(settlement) => return self.settle(settlement),
        };
        self.worker.health.received();
        if self.connection.is_none() || reply.is_closed() {
            return;
        }
        if asking {
            // Too rare to be sent together.
            return self.acquire(demands, asking, vec![reply]);
        }
        let Some(reply) = self.take_lease(&demands, reply) else { return };
        if let Some(waiting) = self.waiting.get_mut(&demands) {
            waiting.push(reply);
        } else {
            self.waiting.insert(Arc::clone(&demands), Vec::new());
            self.acquire(demands, asking, vec![reply]);
        }
    }

    /// Tries a lease. Returns the sender if Redis must be asked.
    fn take_lease(
        &mut self,
        demands: &RedisDemands,
        reply: oneshot::Sender<WorkerReply>,
    ) -> Option<oneshot::Sender<WorkerReply>> {
        let now = self.now();
        let Some(decided) = self.worker.leases.as_mut().and_then(|leases| leases.take(demands, now)) else {
            return Some(reply);
        };
        let _ = reply.send(WorkerReply::Decided(decided));
        None
    }

    /// The last handle is dropped: leases are refunded, and calls in flight end.
    async fn end(&mut self) {
        for settlement in self.worker.leases.as_mut().map(Leases::end_all).unwrap_or_default() {
            self.settle(settlement);
        }
        let ended = async { while self.in_flight.next().await.is_some() {} };
        let _ = timeout(self.worker.call_timeout, ended).await;
    }

    fn refund_leases(&mut self) {
        let now = self.now();
        let refunds = self.worker.leases.as_mut().map(|leases| leases.expired(now)).unwrap_or_default();
        for settlement in refunds {
            self.settle(settlement);
        }
    }

    fn acquire(&mut self, demands: RedisDemands, asking: bool, replies: Vec<oneshot::Sender<WorkerReply>>) {
        let since = self.now();
        // While a slot migrates there are no leases.
        let leases = self.worker.leases.as_ref().filter(|_| !asking);
        let in_advance = leases.map_or(0, |leases| leases.in_advance(&demands, since));
        let requests = count(replies.len()).saturating_add(in_advance);
        let call = Call { demands, asking, replies, since };
        self.send(|mut connection, call_timeout| async move {
            let reply = timeout(call_timeout, connection.acquire(&call.demands, requests, call.asking)).await;
            CallResult::Acquired { call, reply: reply.unwrap_or(Err(CallError::Timeout)) }
        });
    }

    fn settle(&mut self, settlement: Settlement) {
        self.send(|mut connection, call_timeout| async move {
            let settled = timeout(call_timeout, connection.settle(&settlement)).await;
            CallResult::Settled { settlement, settled: settled.unwrap_or(Err(CallError::Timeout)) }
        });
    }

    fn send<F>(&mut self, call: impl FnOnce(Connection, Duration) -> F)
    where
        F: Future<Output = CallResult> + Send + 'static,
    {
        let Some(connection) = self.connection.clone() else { return };
        let after_a_pause = self.now().since(self.answered) > IDLE;
        self.worker.health.sent();
        let call = call(connection, self.worker.call_timeout);
        self.in_flight.push(Box::pin(async move { CompletedCall { after_a_pause, result: call.await } }));
    }

    fn complete(&mut self, completed: CompletedCall) {
        self.worker.health.returned();
        let after_a_pause = completed.after_a_pause;
        match completed.result {
            CallResult::Acquired { call, reply } => self.acquired(call, reply, after_a_pause),
            CallResult::Settled { settlement, settled } => {
                // While a slot migrates, its settlements are lost.
                if let (Err(CallError::Redirect(redirect)), Some(cluster)) = (&settled, self.cluster()) {
                    if !redirect.asking {
                        cluster.forward(redirect, settlement);
                    }
                }
                self.assess(settled.err(), after_a_pause);
            }
        }
    }

    fn acquired(&mut self, call: Call, reply: Result<Reply, CallError>, after_a_pause: bool) {
        let Call { demands, asking, replies, since } = call;
        let mut refund = None;
        let error = match reply {
            Ok(reply) => {
                let requests = count(replies.len());
                for (index, sender) in (0..).zip(replies) {
                    // A request that no longer waits has acquired its cells all the same.
                    let _ = sender.send(WorkerReply::Decided(reply.decided(index, &demands)));
                }
                if let (Some(leases), false) = (&mut self.worker.leases, asking) {
                    refund = leases.renew(&demands, reply, requests, since);
                }
                None
            }
            Err(CallError::Redirect(redirect)) if self.worker.cluster.is_some() => {
                for sender in replies {
                    let _ = sender.send(WorkerReply::Redirected(redirect.clone()));
                }
                Some(CallError::Redirect(redirect))
            }
            Err(error) => Some(error),
        };
        self.assess(error, after_a_pause);
        if let Some(refund) = refund {
            self.settle(refund);
        }
        if !asking {
            self.acquire_for_waiting(demands);
        }
    }

    /// Sends the requests that came during a call. There is none where the connection was given up.
    fn acquire_for_waiting(&mut self, demands: RedisDemands) {
        let Some(waiting) = self.waiting.get_mut(&demands) else { return };
        let waiting: Vec<_> = waiting.drain(..).filter(|reply| !reply.is_closed()).collect();
        let replies: Vec<_> = waiting.into_iter().filter_map(|reply| self.take_lease(&demands, reply)).collect();
        if replies.is_empty() {
            self.waiting.remove(&demands);
        } else {
            self.acquire(demands, false, replies);
        }
    }

    /// Decides what the end of a call means for the connection.
    fn assess(&mut self, error: Option<CallError>, after_a_pause: bool) {
        match error {
            None => self.answered(),
            Some(CallError::Key(reason)) => {
                self.answered();
                events::redis_key_error(&reason, &self.worker.throttles.key_error, self.answered);
            }
            Some(CallError::Redirect(redirect)) if self.worker.cluster.is_some() => {
                self.answered();
                if !redirect.asking {
                    self.slots_may_have_moved();
                }
            }
            Some(CallError::Timeout) if self.timeouts + 1 < MAX_TIMEOUTS && !after_a_pause => self.timeouts += 1,
            Some(error) => self.give_up(&error),
        }
    }

    fn answered(&mut self) {
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

    /// Drops the connection and opens another one. The requests that wait for it are decided
    /// without Redis.
    fn give_up(&mut self, error: &CallError) {
        self.worker.health.disconnected();
        metrics::redis_lost();
        self.report(error);
        self.connection = None;
        self.timeouts = 0;
        // Dropping the senders tells the requests at once.
        self.waiting.clear();
        self.in_flight.clear();
        if let Some(leases) = &mut self.worker.leases {
            leases.clear();
        }
        self.slots_may_have_moved();
        self.connect();
    }

    fn report(&self, error: &CallError) {
        events::redis_lost(error.reason(), &self.worker.throttles.lost, self.now());
    }

    fn connect(&mut self) {
        let Worker { server, probe, call_timeout, cluster, .. } = &self.worker;
        let (server, probe, call_timeout, in_cluster) =
            (server.clone(), probe.clone(), *call_timeout, cluster.is_some());
        let wait = backoff(self.attempt);
        self.connecting = Some(Box::pin(async move {
            #[expect(clippy::disallowed_methods, reason = "no test waits for it")]
            sleep(wait).await;
            server.connect(&probe, in_cluster, call_timeout).await
        }));
    }

    fn connected(&mut self, connected: Result<Connected, CallError>) {
        self.connecting = None;
        match connected {
            Ok(Connected { connection, latency }) => {
                self.connection = Some(connection);
                self.answered = self.now();
                self.worker.health.connected(latency, self.worker.call_timeout);
                events::redis_connected();
                // Until a request is answered, the next attempt backs off.
                self.attempt += 1;
            }
            Err(error) => {
                if self.attempt == FIRST_REPORT {
                    self.report(&error);
                }
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
    let [first, max] = BACKOFF;
    match attempt.checked_sub(1) {
        None => Duration::ZERO,
        Some(doubled) => {
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
    fn the_first_attempt_is_at_once_and_later_ones_back_off_to_a_quarter_second_and_a_half() {
        assert_eq!(backoff(0), Duration::ZERO);
        for attempt in 1..100 {
            let max = BACKOFF[0].saturating_mul(1 << (attempt - 1).min(10)).min(BACKOFF[1]);
            let pause = backoff(attempt);
            assert!(pause >= max / 2 && pause < max * 3 / 2, "{attempt}: {pause:?}");
        }
    }
}
