//! Contains [`Node`], a server as requests see it: whether to ask it, and the handle of its worker.
//!
//! A node starts a worker where none runs. This file must not know of policies, nor of other
//! servers.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    address::NodeAddress,
    announcement::Listener,
    connect::Server,
    connection::SlotRange,
    dial::Dialer,
    health::{CallCounts, Health, HealthLimits},
    io_thread::IoThread,
    leases::{LeaseConfig, Leases},
    names::KeyNames,
    protocol::{Element, Query, RedisDemand, RedisDemands, Settlement},
    worker::{AcquireRequest, ClusterEvents, QueryError, QueryRequest, Worker, WorkerReply, WorkerRequest},
};
use crate::clock::{Clock, Nanos};

/// What the nodes of a limiter have in common.
#[derive(Clone)]
pub(super) struct NodeConfig {
    pub(super) names: KeyNames,
    pub(super) listener: Weak<dyn Listener>,
    pub(super) limits: HealthLimits,
    pub(super) counts: Arc<CallCounts>,
    pub(super) lease: Option<LeaseConfig>,
    pub(super) dialer: Arc<Dialer>,
    pub(super) io: Arc<IoThread>,
}

pub(super) struct Node {
    server: Server,
    probe: RedisDemand,
    config: NodeConfig,
    /// The cluster of the node, and its address there.
    cluster: Option<(Weak<dyn ClusterEvents>, NodeAddress)>,
    worker: Mutex<Option<WorkerHandle>>,
}

#[derive(Clone)]
struct WorkerHandle {
    requests: mpsc::UnboundedSender<WorkerRequest>,
    health: Arc<Health>,
}

impl Node {
    pub(super) fn new(
        server: Server,
        probe: RedisDemand,
        config: NodeConfig,
        cluster: Option<(Weak<dyn ClusterEvents>, NodeAddress)>,
    ) -> Self {
        Self { server, probe, config, cluster, worker: Mutex::new(None) }
    }

    /// Its address, if it is a node of a cluster.
    pub(super) fn address(&self) -> Option<&NodeAddress> {
        self.cluster.as_ref().map(|(_, address)| address)
    }

    /// Connects before a request comes.
    pub(super) fn start(&self) {
        let _ = self.worker();
    }

    pub(super) fn is_up(&self) -> bool {
        self.lock().as_ref().is_some_and(|worker| worker.health.is_up())
    }

    /// Why there is no connection.
    pub(super) fn failure(&self) -> Option<String> {
        self.lock().as_ref().and_then(|worker| worker.health.failure())
    }

    /// Ends when there is a connection.
    pub(super) async fn until_connected(&self) {
        let WorkerHandle { requests, health } = self.worker();
        // Where the worker has ended, nobody connects.
        let _ = requests.send(WorkerRequest::Connect);
        health.until_connected().await;
    }

    /// Asks for the cells of a request. `None` where the server does not answer in time, or not to
    /// this. A patient request waits for the first connection.
    pub(super) async fn acquire(
        &self,
        demands: RedisDemands,
        asking: bool,
        patient: bool,
        within: Duration,
    ) -> Option<WorkerReply> {
        let WorkerHandle { requests, health } = self.worker();
        if !patient && !health.answers() {
            return None;
        }
        let (reply, replied) = oneshot::channel();
        let deadline = health.now().saturating_add(Nanos::from(within));
        health.pass();
        requests.send(WorkerRequest::Acquire(AcquireRequest { demands, asking, patient, deadline, reply })).ok()?;
        // The worker has the deadline: it drops the sender.
        replied.await.ok()
    }

    /// Sends a settlement where there is a connection, even a slow one, or one that rests. If it is
    /// lost, the cells stay acquired.
    pub(super) fn settle(&self, settlement: Settlement) {
        if let Some(worker) = self.lock().as_ref().filter(|worker| worker.health.has_server()) {
            let _ = worker.requests.send(WorkerRequest::Settle(settlement));
        }
    }

    /// Asks where the slots of the cluster are, over the connection that there is. `None` where
    /// there is none, or the node does not say.
    pub(super) async fn slots(&self) -> Option<Vec<SlotRange>> {
        let requests = {
            let worker = self.lock();
            worker.as_ref().filter(|worker| worker.health.is_up())?.requests.clone()
        };
        let (reply, replied) = oneshot::channel();
        requests.send(WorkerRequest::Slots(reply)).ok()?;
        replied.await.ok()
    }

    /// Sends a query, and waits for the answer.
    pub(super) async fn query(&self, query: Query, within: Duration) -> Result<Vec<Element>, QueryError> {
        let WorkerHandle { requests, health } = self.worker();
        let (reply, replied) = oneshot::channel();
        let deadline = health.now().saturating_add(Nanos::from(within));
        let gone = || QueryError::Refused("the thread that talks to Redis does not run".to_owned());
        requests
            .send(WorkerRequest::Query(QueryRequest { query, deadline, reply: Some(reply) }))
            .map_err(|_| gone())?;
        // The worker has the deadline. It drops the sender with the connection.
        replied.await.unwrap_or(Err(QueryError::Unanswered))
    }

    /// Sends a query without waiting for the answer, if a worker runs.
    pub(super) fn send_query(&self, query: Query, within: Duration) {
        if let Some(WorkerHandle { requests, health }) = &*self.lock() {
            let deadline = health.now().saturating_add(Nanos::from(within));
            let _ = requests.send(WorkerRequest::Query(QueryRequest { query, deadline, reply: None }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<WorkerHandle>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker, which is started where none runs.
    fn worker(&self) -> WorkerHandle {
        let mut handle = self.lock();
        match &*handle {
            Some(worker) if !worker.requests.is_closed() => worker.clone(),
            _ => handle.insert(self.start_worker()).clone(),
        }
    }

    fn start_worker(&self) -> WorkerHandle {
        let (requests, receiver) = mpsc::unbounded_channel();
        let NodeConfig { names, listener, limits, counts, lease, dialer, io } = &self.config;
        let health = Arc::new(Health::new(Clock::system(), Arc::clone(counts), *limits));
        let worker = Worker {
            server: self.server.clone(),
            dialer: Arc::clone(dialer),
            probe: self.probe.clone(),
            call_timeout: limits.call_timeout,
            health: Arc::clone(&health),
            cluster: self.cluster.as_ref().map(|(cluster, _)| Weak::clone(cluster)),
            control: names.control(),
            listener: Weak::clone(listener),
            own: requests.downgrade(),
            leases: lease.map(Leases::new),
        };
        io.spawn(worker.run(receiver));
        WorkerHandle { requests, health }
    }
}
