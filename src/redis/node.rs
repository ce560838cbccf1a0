//! A server, as those see it that ask: whether it is worth asking, and the way to the task that talks to it.
//!
//! Owns the way, and starts a task where none runs. Knows nothing of policies, or of other servers.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    cluster::Cluster,
    dispatch::{Answer, Ask, Counts, Dispatcher, Draw, Health, Throttles},
    leases::{Lease, Leases},
    link::{Address, Server},
    script::{Limit, Limits, Settlement},
};
use crate::clock::Clock;

/// What all servers of a limiter are asked with.
#[derive(Clone)]
pub(super) struct Manner {
    pub(super) prefix: String,
    /// How long a request waits.
    pub(super) patience: Duration,
    pub(super) counts: Arc<Counts>,
    /// Where cells are drawn ahead.
    pub(super) lease: Option<Lease>,
}

pub(super) struct Node {
    server: Server,
    probe: Limit,
    manner: Manner,
    /// Where it is one of several: these, and where it is.
    cluster: Option<(Weak<Cluster>, Address)>,
    /// To the task, where one runs.
    way: Mutex<Option<Way>>,
}

/// The way to a task, and how it fares.
#[derive(Clone)]
struct Way {
    asks: mpsc::UnboundedSender<Ask>,
    health: Arc<Health>,
}

impl Node {
    pub(super) fn new(server: Server, probe: Limit, manner: Manner, cluster: Option<(Weak<Cluster>, Address)>) -> Self {
        Self { server, probe, manner, cluster, way: Mutex::new(None) }
    }

    /// Where it is, if it is one of several.
    pub(super) fn address(&self) -> Option<&Address> {
        self.cluster.as_ref().map(|(_, address)| address)
    }

    /// Dials, before anybody asks.
    pub(super) fn start(&self) {
        let _ = self.way();
    }

    pub(super) fn is_up(&self) -> bool {
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        way.as_ref().is_some_and(|way| way.health.is_up())
    }

    /// Ends when there is a connection; never, outside of a runtime.
    pub(super) async fn found(&self) {
        match self.way() {
            Some(way) => way.health.found().await,
            None => std::future::pending().await,
        }
    }

    /// `None` where it does not answer in time, or not to this.
    pub(super) async fn ask(&self, limits: Limits, asking: bool, within: Duration) -> Option<Answer> {
        let way = self.way()?;
        if !way.health.answers() {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        let waiting = way.health.begin();
        way.asks.send(Ask::Draw(Draw { limits, asking, answer })).ok()?;
        if let Ok(answer) = timeout(within, answered).await {
            return answer.ok();
        }
        // With less than its time it may only have had no turn yet.
        if within > self.manner.patience / 2 && waiting.is_ignored() {
            // Its runtime is not driven, or blocked. The next decision starts a task where it is itself.
            self.leave(&way);
        }
        None
    }

    /// Where there is a connection, also one that is slow, and from any thread. What is lost on the way stays as it was drawn.
    pub(super) fn settle(&self, settlement: Settlement) {
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = way.as_ref().filter(|way| way.health.is_up()) {
            let _ = way.asks.send(Ask::Settle(settlement));
        }
    }

    /// The way to the task, which is started where none runs. `None` where there is no runtime: there, there is no Redis.
    fn way(&self) -> Option<Way> {
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if way.as_ref().is_none_or(|way| way.asks.is_closed()) {
            let (asks, receiver) = mpsc::unbounded_channel();
            let Manner { patience, counts, lease, .. } = &self.manner;
            let health = Arc::new(Health::new(Clock::system(), Arc::clone(counts)));
            let task = Dispatcher {
                server: self.server.clone(),
                probe: self.probe.clone(),
                patience: *patience,
                health: Arc::clone(&health),
                throttles: Throttles::default(),
                cluster: self.cluster.as_ref().map(|(cluster, _)| Weak::clone(cluster)),
                leases: lease.map(Leases::new),
            };
            drop(runtime.spawn(task.run(receiver)));
            *way = Some(Way { asks, health });
        }
        way.clone()
    }

    fn leave(&self, ignoring: &Way) {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        if way.as_ref().is_some_and(|way| way.asks.same_channel(&ignoring.asks)) {
            *way = None;
        }
    }
}
