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
    time::sleep,
};

use super::{
    address::{Endpoint, NodeAddress},
    connect::{self, Server},
    connection::{Redirect, SlotRange},
    dial::Dialer,
    node::{Node, NodeConfig},
    protocol::{RedisDemand, Settlement},
    worker::ClusterEvents,
};
use crate::{
    clock::Clock,
    key::entropy,
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

    pub(super) fn node_of(&self, slot: u16) -> Option<Arc<Node>> {
        match self {
            Self::Cluster(cluster) => {
                let node = cluster.map().node_of(slot);
                if node.is_none() {
                    cluster.refresh();
                }
                node
            }
            Self::Single(node) => Some(Arc::clone(node)),
        }
    }

    /// All servers that have keys, in a lasting order.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        match self {
            Self::Cluster(cluster) => {
                let map = cluster.map();
                let mut nodes: Vec<_> = map.nodes.iter().collect();
                if nodes.is_empty() {
                    cluster.refresh();
                }
                nodes.sort_unstable_by_key(|(address, _)| *address);
                nodes.into_iter().map(|(_, node)| Arc::clone(node)).collect()
            }
            Self::Single(node) => vec![Arc::clone(node)],
        }
    }

    /// Why there is no connection, to a server that should have one.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Cluster(cluster) => {
                let map = cluster.map();
                let nodes = map.nodes.values().find_map(|node| node.failure());
                nodes.or_else(|| cluster.lock_failure().clone())
            }
            Self::Single(node) => node.failure(),
        }
    }

    /// The node of a redirect, or the same node where it names none.
    /// It has this slot.
    pub(super) fn follow(&self, from: Arc<Node>, redirect: &Redirect, slot: u16) -> Option<Arc<Node>> {
        let Self::Cluster(cluster) = self else { return None };
        match (&redirect.address, from.address()) {
            (None, _) => Some(from),
            // The host of the node that answers, which is reached at this address already.
            (Some((host, port)), Some((own, _))) if host.is_empty() => cluster.node_at(&(own.clone(), *port), slot),
            // It has no name of the kind that it prefers. The map has its address.
            (Some((host, _)), _) if host == "?" => {
                cluster.refresh();
                None
            }
            (Some(address), _) => cluster.node_at(&cluster.config.dialer.map(address.clone()), slot),
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
    /// As the builder says. Asked for the slots beside the nodes of the map.
    seeds: Vec<Endpoint>,
    config: NodeConfig,
    map: Mutex<Arc<SlotMap>>,
    /// Notified when there is another map.
    changed: Notify,
    clock: Clock,
    /// To the task that refreshes the map.
    refresh: Mutex<Option<mpsc::Sender<()>>>,
    unmapped: Throttle,
    /// Why the slots are not known.
    failure: Mutex<Option<String>>,
}

/// Where the slots are.
#[derive(Default)]
struct SlotMap {
    /// First slot, last slot, node; sorted.
    ranges: Vec<(u16, u16, Arc<Node>)>,
    nodes: HashMap<NodeAddress, Arc<Node>>,
}

/// Between two refreshes: the first pause, doubled up to the second one while they change nothing.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];
/// The same while no node says where the slots are.
const MAX_PAUSE_OF_FAILURES: Duration = Duration::from_millis(400);
/// The number of nodes without a connection that are asked for the slots together. The first answer
/// counts.
const ASKED_TOGETHER: usize = 4;
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
            failure: Mutex::default(),
        }
    }

    fn lock_failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
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
                changed.await;
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
    fn node_at(self: &Arc<Self>, address: &NodeAddress, slot: u16) -> Option<Arc<Node>> {
        let mut map = self.lock_map();
        if let Some(node) = map.nodes.get(address) {
            return Some(Arc::clone(node));
        }
        if map.nodes.len() >= MAX_NODES {
            return None;
        }
        let node = self.new_node(address, |other| other == slot);
        let mut nodes = map.nodes.clone();
        nodes.insert(address.clone(), Arc::clone(&node));
        *map = Arc::new(SlotMap { ranges: map.ranges.clone(), nodes });
        Some(node)
    }

    fn new_node(self: &Arc<Self>, address: &NodeAddress, has_slot: impl Fn(u16) -> bool) -> Arc<Node> {
        let server = Server::Direct(self.seeds[0].beside(address.clone()));
        let probe = RedisDemand::probe(self.config.names.probe(has_slot));
        let cluster: Weak<Self> = Arc::downgrade(self);
        let node = Node::new(server, probe, self.config.clone(), Some((cluster, address.clone())));
        // Started now, so that the first request finds a connection.
        node.start();
        Arc::new(node)
    }

    /// Requests a refresh of the map. Starts the task that does it where none runs.
    fn refresh(self: &Arc<Self>) {
        let mut refresh = self.refresh.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(requests) = refresh.as_ref().filter(|requests| !requests.is_closed()) {
            // Where the channel is full, a refresh is about to start.
            let _ = requests.try_send(());
            return;
        }
        let (sender, requests) = mpsc::channel(1);
        self.config.io.spawn(refresh_on_request(Arc::downgrade(self), requests));
        let _ = sender.try_send(());
        *refresh = Some(sender);
    }

    /// All servers that may know the slots, each once: those of the map, in any order, and then the
    /// builder's.
    fn candidates(&self) -> Vec<Endpoint> {
        let map = self.map();
        let mut candidates: Vec<_> = map.nodes.keys().map(|address| self.seeds[0].beside(address.clone())).collect();
        let seeds = self
            .seeds
            .iter()
            .filter(|seed| seed.node_address().is_none_or(|address| !map.nodes.contains_key(&address)));
        candidates.extend(seeds.cloned());
        // So that those which are down are not all asked first, each time and by each process.
        let first = usize::try_from(entropy() % candidates.len() as u64).unwrap_or(0);
        candidates.rotate_left(first);
        candidates
    }

    /// Replaces the map. Nodes that are still there keep their connections. Returns whether
    /// anything is different.
    fn replace_map(self: &Arc<Self>, ranges: Vec<SlotRange>) -> bool {
        let mut slots: HashMap<NodeAddress, Vec<(u16, u16)>> = HashMap::new();
        let mut ranges: Vec<_> = ranges
            .into_iter()
            .map(|range| SlotRange { primary: self.config.dialer.map(range.primary), ..range })
            .collect();
        ranges.sort_by_key(|range| range.first);
        for SlotRange { first, last, primary } in &ranges {
            slots.entry(primary.clone()).or_default().push((*first, *last));
        }
        let mut map = self.lock_map();
        let is_same = |((first, last, node), range): (&(u16, u16, Arc<Node>), &SlotRange)| {
            (*first, *last, node.address()) == (range.first, range.last, Some(&range.primary))
        };
        if map.ranges.len() == ranges.len()
            && map.nodes.len() == slots.len()
            && map.ranges.iter().zip(&ranges).all(is_same)
        {
            return false;
        }
        let node = |address: NodeAddress, slots: Vec<(u16, u16)>| {
            let has_slot = |slot: u16| slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
            let node = map.nodes.get(&address).cloned().unwrap_or_else(|| self.new_node(&address, has_slot));
            (address, node)
        };
        let nodes: HashMap<_, _> = slots.into_iter().map(|(address, slots)| node(address, slots)).collect();
        let ranges = ranges.into_iter().map(|range| (range.first, range.last, Arc::clone(&nodes[&range.primary])));
        *map = Arc::new(SlotMap { ranges: ranges.collect(), nodes });
        drop(map);
        self.changed.notify_waiters();
        true
    }
}

impl ClusterEvents for Cluster {
    fn slots_may_have_moved(self: Arc<Self>) {
        self.refresh();
    }

    fn forward(self: Arc<Self>, redirect: &Redirect, settlement: Settlement) {
        let address = redirect.address.as_ref().filter(|(host, _)| !host.is_empty() && host != "?");
        let address = address.map(|address| self.config.dialer.map(address.clone()));
        if let Some(node) = address.and_then(|address| self.node_at(&address, settlement.slot())) {
            node.settle(settlement);
        }
    }
}

/// Refreshes the map on each request, and pauses longer and longer while that changes nothing. Ends
/// with the last handle.
async fn refresh_on_request(cluster: Weak<Cluster>, mut requests: mpsc::Receiver<()>) {
    let [mut pause, _] = PAUSE;
    let mut requested = requests.recv().await.is_some();
    while requested {
        let Some(refreshed) = refresh_map(&cluster).await else { return };
        pause = match refreshed {
            Ok(true) => PAUSE[0],
            Ok(false) => (pause * 2).min(PAUSE[1]),
            Err(()) => (pause * 2).min(MAX_PAUSE_OF_FAILURES),
        };
        let Some(requested_meanwhile) = pause_between(pause, &mut requests).await else { return };
        requested = requested_meanwhile || refreshed.is_err();
        if !requested {
            [pause, _] = PAUSE;
            requested = requests.recv().await.is_some();
        }
    }
}

/// Refreshes the map once. Returns whether it is different, or an error where nobody knows the
/// slots. `None` where the last handle is gone.
async fn refresh_map(cluster: &Weak<Cluster>) -> Option<Result<bool, ()>> {
    let (nodes, candidates, dialer) = {
        let cluster = cluster.upgrade()?;
        let map = cluster.map();
        let nodes: Vec<_> = map.nodes.values().filter(|node| node.is_up()).cloned().collect();
        (nodes, cluster.candidates(), Arc::clone(&cluster.config.dialer))
    };
    let found = ask_for_slots(nodes, &candidates, &dialer).await;
    let cluster = cluster.upgrade()?;
    Some(match found {
        Ok(ranges) => {
            *cluster.lock_failure() = None;
            Ok(cluster.replace_map(ranges))
        }
        Err(reason) => {
            events::redis_lost(&reason, &cluster.unmapped, false, cluster.clock.now());
            *cluster.lock_failure() = Some(reason);
            Err(())
        }
    })
}

/// Pauses, and returns whether a refresh was requested meanwhile. `None`, and at once, where the
/// last handle is gone.
async fn pause_between(pause: Duration, requests: &mut mpsc::Receiver<()>) -> Option<bool> {
    let mut paused = pin!(jittered(pause));
    let mut requested = false;
    loop {
        tokio::select! {
            () = &mut paused => return Some(requested),
            request = requests.recv() => {
                request?;
                requested = true;
            }
        }
    }
}

/// A random half more or less, so that many processes do not ask together.
async fn jittered(pause: Duration) {
    #[allow(clippy::cast_possible_truncation, reason = "below 1,000")]
    let thousandths = 500 + (entropy() % 1_000) as u32;
    #[expect(clippy::disallowed_methods, reason = "no test waits for it")]
    sleep(pause * thousandths / 1_000).await;
}

/// The answer of a node that has a connection, or else the first answer of any candidate, or the
/// last reason.
async fn ask_for_slots(
    nodes: Vec<Arc<Node>>,
    candidates: &[Endpoint],
    dialer: &Dialer,
) -> Result<Vec<SlotRange>, String> {
    for node in nodes {
        if let Some(slots) = node.slots().await {
            return Ok(slots);
        }
    }
    let mut failed = String::new();
    for together in candidates.chunks(ASKED_TOGETHER) {
        let mut answers: FuturesUnordered<_> =
            together.iter().map(|candidate| connect::slots(dialer, candidate)).collect();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(slots) => return Ok(slots),
                Err(reason) => failed = reason,
            }
        }
    }
    Err(failed)
}
