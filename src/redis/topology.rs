//! Contains [`Topology`]: which server has a key. It is one server, or in a cluster the node that
//! has the key's slot.
//!
//! This file contains the map of a cluster's slots, and the task that refreshes it when a node says
//! that slots have moved, or is lost. Each node has a worker, a connection and a breaker of its
//! own, so that the failure of one does not affect the others.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::{
    future::join_all,
    stream::{FuturesUnordered, StreamExt as _},
};
use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};

use super::{
    connect::{CONNECT_TIMEOUT, Server},
    connection::{CallError, Endpoint, NodeAddress, Redirect, SlotRange},
    node::{Node, NodeConfig},
    protocol::{RedisDemand, Settlement},
    worker::ClusterEvents,
};
use crate::{
    clock::{Clock, Nanos, Timestamp},
    observe::events::{self, Throttle},
};

pub(super) enum Topology {
    Cluster(Arc<Cluster>),
    Single(Arc<Node>),
}

impl Topology {
    /// Whether the buckets of a call must be in one slot.
    pub(super) fn has_slots(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    pub(super) fn node_of(&self, demand: &RedisDemand) -> Option<Arc<Node>> {
        match self {
            Self::Cluster(cluster) => {
                let node = cluster.map().node_of(demand.slot());
                if node.is_none() {
                    cluster.refresh();
                }
                node
            }
            Self::Single(node) => Some(Arc::clone(node)),
        }
    }

    /// The node of a redirect, or the same node where it names none.
    pub(super) fn follow(&self, from: Arc<Node>, redirect: &Redirect) -> Option<Arc<Node>> {
        let Self::Cluster(cluster) = self else { return None };
        match (&redirect.address, from.address()) {
            (None, _) => Some(from),
            (Some((host, port)), Some((own, _))) if host.is_empty() => cluster.node_at(&(own.clone(), *port)),
            (Some(address), _) => cluster.node_at(address),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        match self {
            Self::Cluster(cluster) => {
                let map = cluster.map();
                !map.nodes.is_empty() && map.nodes.values().all(|node| node.is_up())
            }
            Self::Single(node) => node.is_up(),
        }
    }

    /// Ends when there is a connection to each server.
    pub(super) async fn until_connected(&self) {
        match self {
            Self::Cluster(cluster) => cluster.until_connected().await,
            Self::Single(node) => node.until_connected().await,
        }
    }
}

pub(super) struct Cluster {
    /// Asked for the slots while no node is known to be up.
    seeds: Vec<Endpoint>,
    config: NodeConfig,
    map: Mutex<Arc<SlotMap>>,
    /// Notified when there is another map.
    changed: Notify,
    clock: Clock,
    refresh: Mutex<RefreshState>,
    unmapped: Throttle,
}

/// The task that refreshes the map.
#[derive(Default)]
struct RefreshState {
    requests: Option<mpsc::Sender<()>>,
    /// When a refresh was requested that has not been done yet.
    since: Option<Timestamp>,
}

/// Where the slots are.
#[derive(Default)]
struct SlotMap {
    /// First slot, last slot, node; sorted.
    ranges: Vec<(u16, u16, Arc<Node>)>,
    nodes: HashMap<NodeAddress, Arc<Node>>,
}

/// After this time without a requested refresh, the task's runtime is not driven. It is longer than
/// asking a few nodes that are down.
const NEGLECTED: Duration = Duration::from_secs(5);
/// Between two refreshes: the first pause, doubled up to the second one while none succeeds.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
/// The number of nodes that are asked for the slots together. The first answer counts.
const ASKED_TOGETHER: usize = 4;
/// The failed refresh in a row that is reported.
const FIRST_REPORT: u32 = 3;
/// No cluster has as many primaries.
const MAX_NODES: usize = 2_048;

impl SlotMap {
    fn node_of(&self, slot: u16) -> Option<Arc<Node>> {
        let after = self.ranges.partition_point(|(first, ..)| *first <= slot);
        let (_, last, node) = self.ranges.get(after.checked_sub(1)?)?;
        (slot <= *last).then(|| Arc::clone(node))
    }
}

impl Cluster {
    pub(super) fn new(seeds: Vec<Endpoint>, config: NodeConfig) -> Self {
        Self {
            seeds,
            config,
            map: Mutex::default(),
            changed: Notify::new(),
            clock: Clock::system(),
            refresh: Mutex::default(),
            unmapped: Throttle::default(),
        }
    }

    fn lock_map(&self) -> MutexGuard<'_, Arc<SlotMap>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn map(&self) -> Arc<SlotMap> {
        Arc::clone(&self.lock_map())
    }

    /// Ends when each node of the map has a connection: of the map that is in force then.
    async fn until_connected(self: &Arc<Self>) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let map = self.map();
            if map.nodes.is_empty() {
                self.refresh();
                // Requested again later, because the task may have ended.
                let _ = timeout(NEGLECTED, changed).await;
                continue;
            }
            tokio::select! {
                _ = join_all(map.nodes.values().map(|node| node.until_connected())) => return,
                () = changed => {}
            }
        }
    }

    /// The node at this address. One that is not on the map is new, has no slots yet, and connects
    /// now. It stays on the map until the next refresh.
    fn node_at(self: &Arc<Self>, address: &NodeAddress) -> Option<Arc<Node>> {
        let mut map = self.lock_map();
        if let Some(node) = map.nodes.get(address) {
            return Some(Arc::clone(node));
        }
        if map.nodes.len() >= MAX_NODES {
            return None;
        }
        let node = self.new_node(address, |_| true);
        let mut nodes = map.nodes.clone();
        nodes.insert(address.clone(), Arc::clone(&node));
        *map = Arc::new(SlotMap { ranges: map.ranges.clone(), nodes });
        Some(node)
    }

    fn new_node(self: &Arc<Self>, address: &NodeAddress, has_slot: impl Fn(u16) -> bool) -> Arc<Node> {
        let server = Server::Direct(self.seeds[0].beside(&address.0, address.1));
        let probe = RedisDemand::probe(&self.config.prefix, has_slot);
        let cluster: Weak<Self> = Arc::downgrade(self);
        let node = Node::new(server, probe, self.config.clone(), Some((cluster, address.clone())));
        // Started now, so that the first request finds a connection.
        node.start();
        Arc::new(node)
    }

    /// Requests a refresh of the map. Starts the task that does it where none runs, or its runtime
    /// is not driven.
    fn refresh(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let now = self.clock.now();
        let mut refresh = self.refresh.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *refresh.since.get_or_insert(now);
        if let Some(requests) = refresh.requests.as_ref().filter(|requests| !requests.is_closed()) {
            // Where the channel is full, a refresh is about to start.
            let _ = requests.try_send(());
            if now.since(since) < Nanos::from(NEGLECTED) {
                return;
            }
        }
        let (sender, requests) = mpsc::channel(1);
        drop(runtime.spawn(refresh_on_request(Arc::downgrade(self), sender.downgrade(), requests)));
        *refresh = RefreshState { requests: Some(sender), since: Some(now) };
    }

    /// The nodes to ask for the slots: first those that are up.
    fn candidates(&self) -> Vec<Endpoint> {
        let map = self.map();
        let (up, down): (Vec<_>, Vec<_>) = map.nodes.iter().partition(|(_, node)| node.is_up());
        let known = up.into_iter().chain(down).map(|((host, port), _)| self.seeds[0].beside(host, *port));
        known.take(ASKED_TOGETHER).chain(self.seeds.iter().take(ASKED_TOGETHER).cloned()).collect()
    }

    /// Replaces the map. Nodes that are still there keep their connections.
    fn replace_map(self: &Arc<Self>, ranges: Vec<SlotRange>) {
        let mut slots: HashMap<NodeAddress, Vec<(u16, u16)>> = HashMap::new();
        for SlotRange { first, last, primary } in &ranges {
            slots.entry(primary.clone()).or_default().push((*first, *last));
        }
        let mut map = self.lock_map();
        let node = |address: NodeAddress, slots: Vec<(u16, u16)>| {
            let has_slot = |slot: u16| slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
            let node = map.nodes.get(&address).cloned().unwrap_or_else(|| self.new_node(&address, has_slot));
            (address, node)
        };
        let nodes: HashMap<_, _> = slots.into_iter().map(|(address, slots)| node(address, slots)).collect();
        let ranges = ranges.into_iter().map(|range| (range.first, range.last, Arc::clone(&nodes[&range.primary])));
        let mut ranges: Vec<_> = ranges.collect();
        ranges.sort_by_key(|(first, ..)| *first);
        *map = Arc::new(SlotMap { ranges, nodes });
        drop(map);
        self.changed.notify_waiters();
    }

    /// A task has refreshed the map. Returns whether it still is the one that gets the requests.
    fn refreshed(&self, sender: &mpsc::WeakSender<()>) -> bool {
        let mut refresh = self.refresh.lock().unwrap_or_else(PoisonError::into_inner);
        let own = sender.upgrade();
        let is_current = own.zip(refresh.requests.as_ref()).is_some_and(|(own, current)| own.same_channel(current));
        if is_current {
            refresh.since = None;
        }
        is_current
    }
}

impl ClusterEvents for Cluster {
    fn slots_may_have_moved(self: Arc<Self>) {
        self.refresh();
    }

    fn forward(self: Arc<Self>, redirect: &Redirect, settlement: Settlement) {
        let address = redirect.address.as_ref().filter(|(host, _)| !host.is_empty());
        if let Some(node) = address.and_then(|address| self.node_at(address)) {
            node.settle(settlement);
        }
    }
}

/// Refreshes the map once, and on each request. Ends with the last handle, or when another task
/// replaces it.
async fn refresh_on_request(cluster: Weak<Cluster>, sender: mpsc::WeakSender<()>, mut requests: mpsc::Receiver<()>) {
    let mut failures = 0;
    loop {
        let Some(candidates) = cluster.upgrade().map(|cluster| cluster.candidates()) else { return };
        let found = ask_for_slots(&candidates).await;
        {
            let Some(cluster) = cluster.upgrade() else { return };
            if !cluster.refreshed(&sender) {
                return;
            }
            match found {
                Ok(ranges) => {
                    failures = 0;
                    cluster.replace_map(ranges);
                }
                Err(error) => {
                    failures += 1;
                    if failures == FIRST_REPORT {
                        events::redis_lost(error.reason(), &cluster.unmapped, cluster.clock.now());
                    }
                }
            }
        }
        let [first, max] = PAUSE;
        #[expect(clippy::disallowed_methods, reason = "no test waits for it")]
        sleep(first.saturating_mul(1 << failures.min(4)).min(max)).await;
        if failures == 0 && requests.recv().await.is_none() {
            return;
        }
    }
}

/// The first answer of any candidate, or the last error.
async fn ask_for_slots(candidates: &[Endpoint]) -> Result<Vec<SlotRange>, CallError> {
    let mut found = Err(CallError::Timeout);
    for together in candidates.chunks(ASKED_TOGETHER) {
        let mut answers: FuturesUnordered<_> =
            together.iter().map(|candidate| candidate.slots(CONNECT_TIMEOUT)).collect();
        while let Some(answer) = answers.next().await {
            found = answer;
            if found.is_ok() {
                return found;
            }
        }
    }
    found
}
