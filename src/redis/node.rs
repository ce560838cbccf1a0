//! Contains [`Node`], a server as requests see it: whether to ask it, and the handle of its worker.
//!
//! A node starts a worker where none runs. This file must not know of policies, nor of other
//! servers.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    connect::Server,
    connection::NodeAddress,
    health::{CallCounts, Health},
    leases::{LeaseConfig, Leases},
    protocol::{RedisDemand, RedisDemands, Settlement},
    worker::{AcquireRequest, ClusterEvents, Throttles, Worker, WorkerReply, WorkerRequest},
};
use crate::clock::Clock;

/// What the nodes of a limiter have in common.
#[derive(Clone)]
pub(super) struct NodeConfig {
    pub(super) prefix: String,
    /// How long a request waits for an answer.
    pub(super) call_timeout: Duration,
    pub(super) counts: Arc<CallCounts>,
    pub(super) lease: Option<LeaseConfig>,
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

    /// Ends when there is a connection. Outside of a runtime it never ends.
    pub(super) async fn until_connected(&self) {
        match self.worker() {
            Some(worker) => worker.health.until_connected().await,
            None => std::future::pending().await,
        }
    }

    /// Asks for the cells of a request. `None` where the server does not answer in time, or not to
    /// this.
    pub(super) async fn acquire(&self, demands: RedisDemands, asking: bool, within: Duration) -> Option<WorkerReply> {
        let worker = self.worker()?;
        if !worker.health.answers() {
            return None;
        }
        let (reply, replied) = oneshot::channel();
        let ticket = worker.health.pass();
        worker.requests.send(WorkerRequest::Acquire(AcquireRequest { demands, asking, reply })).ok()?;
        if let Ok(reply) = timeout(within, replied).await {
            return reply.ok();
        }
        // With less time than usual the worker may only not have run yet.
        if within > self.config.call_timeout / 2 && ticket.is_ignored() {
            // The worker's runtime is not driven, or blocked. The next decision starts a worker in
            // its own.
            self.abandon(&worker);
        }
        None
    }

    /// Sends a settlement where there is a connection, even a slow one, from any thread. If it is
    /// lost, the cells stay acquired.
    pub(super) fn settle(&self, settlement: Settlement) {
        if let Some(worker) = self.lock().as_ref().filter(|worker| worker.health.is_up()) {
            let _ = worker.requests.send(WorkerRequest::Settle(settlement));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<WorkerHandle>> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker, which is started where none runs. `None` outside of a runtime, where there is no
    /// Redis.
    fn worker(&self) -> Option<WorkerHandle> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let mut handle = self.lock();
        if handle.as_ref().is_none_or(|worker| worker.requests.is_closed()) {
            let (requests, receiver) = mpsc::unbounded_channel();
            let NodeConfig { call_timeout, counts, lease, .. } = &self.config;
            let health = Arc::new(Health::new(Clock::system(), Arc::clone(counts)));
            let worker = Worker {
                server: self.server.clone(),
                probe: self.probe.clone(),
                call_timeout: *call_timeout,
                health: Arc::clone(&health),
                throttles: Throttles::default(),
                cluster: self.cluster.as_ref().map(|(cluster, _)| Weak::clone(cluster)),
                leases: lease.map(Leases::new),
            };
            drop(runtime.spawn(worker.run(receiver)));
            *handle = Some(WorkerHandle { requests, health });
        }
        handle.clone()
    }

    fn abandon(&self, ignoring: &WorkerHandle) {
        let mut handle = self.lock();
        if handle.as_ref().is_some_and(|worker| worker.requests.same_channel(&ignoring.requests)) {
            *handle = None;
        }
    }
}
