//! Which of several servers has a key: all of them the one, or, in a cluster, the node that has its slot.
//!
//! Owns the map of a cluster, and the task that asks for it anew when a node says that slots have moved or is lost. Each node
//! has a task, a connection and a gate of its own: what happens to one stops nobody at the others.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, Weak},
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
    link::{self, Address, Contact, Elsewhere, Fault, Range, Server},
    node::{Manner, Node},
    script::Limit,
};
use crate::{
    clock::{Clock, nanos},
    observe,
};

pub(super) enum Place {
    One(Arc<Node>),
    Cluster(Arc<Cluster>),
}

impl Place {
    /// Whether limits that are asked for together need to be in one slot.
    pub(super) fn has_slots(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    pub(super) fn node_of(&self, limit: &Limit) -> Option<Arc<Node>> {
        match self {
            Self::One(node) => Some(Arc::clone(node)),
            Self::Cluster(cluster) => {
                let node = cluster.map().node_of(limit.slot());
                if node.is_none() {
                    cluster.look();
                }
                node
            }
        }
    }

    /// The node that another one has named; the same one where it has named none.
    pub(super) fn follow(&self, from: Arc<Node>, to: &Elsewhere) -> Option<Arc<Node>> {
        let Self::Cluster(cluster) = self else { return None };
        match (&to.address, from.address()) {
            (None, _) => Some(from),
            (Some((host, port)), Some((own, _))) if host.is_empty() => cluster.at(&(own.clone(), *port)),
            (Some(address), _) => cluster.at(address),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        match self {
            Self::One(node) => node.is_up(),
            Self::Cluster(cluster) => {
                let map = cluster.map();
                !map.nodes.is_empty() && map.nodes.values().all(|node| node.is_up())
            }
        }
    }

    /// Ends when there is a connection to each server.
    pub(super) async fn found(&self) {
        match self {
            Self::One(node) => node.found().await,
            Self::Cluster(cluster) => cluster.found().await,
        }
    }
}

pub(super) struct Cluster {
    /// One of these is asked first, while none is known to be up.
    seeds: Vec<Contact>,
    manner: Manner,
    map: Mutex<Arc<Map>>,
    /// Told when there is another map.
    changed: Notify,
    clock: Clock,
    look: Mutex<Look>,
    unmapped: observe::Throttle,
}

/// The way to the task that makes the map.
#[derive(Default)]
struct Look {
    wanted: Option<mpsc::Sender<()>>,
    /// When the one was asked for that has not been made yet.
    since: Option<u64>,
}

/// Where the slots are.
#[derive(Default)]
struct Map {
    /// First slot, last slot; in their order.
    ranges: Vec<(u16, u16, Arc<Node>)>,
    nodes: HashMap<Address, Arc<Node>>,
}

/// A map that is wanted and not made for so long: the task's runtime is not driven. Longer than it takes to ask a few nodes that
/// are away.
const NEGLECTED: Duration = Duration::from_secs(5);

impl Map {
    fn node_of(&self, slot: u16) -> Option<Arc<Node>> {
        let after = self.ranges.partition_point(|(first, ..)| *first <= slot);
        let (_, last, node) = self.ranges.get(after.checked_sub(1)?)?;
        (slot <= *last).then(|| Arc::clone(node))
    }
}

/// Between two looks at the map, doubled up to the second while nobody knows.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
/// Of those who may know where slots are; the first answer counts.
const ASKED_AT_ONCE: usize = 4;
/// Of the looks in a row that have found nothing, the one that is reported.
const FIRST_REPORT: u32 = 3;

impl Cluster {
    pub(super) fn new(seeds: Vec<Contact>, manner: Manner) -> Self {
        Self {
            seeds,
            manner,
            map: Mutex::default(),
            changed: Notify::new(),
            clock: Clock::system(),
            look: Mutex::default(),
            unmapped: observe::Throttle::default(),
        }
    }

    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends when each node of the map has a connection: of the one that is in force then.
    async fn found(self: &Arc<Self>) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let map = self.map();
            if map.nodes.is_empty() {
                self.look();
                // Anew, for whoever should make it may be gone.
                let _ = timeout(NEGLECTED, changed).await;
                continue;
            }
            tokio::select! {
                _ = join_all(map.nodes.values().map(|node| node.found())) => return,
                () = changed => {}
            }
        }
    }

    /// The node of this address. One that is not on the map is new, has no slots yet, and is dialled now; until it has some, it
    /// is kept with the others.
    fn at(self: &Arc<Self>, address: &Address) -> Option<Arc<Node>> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = map.nodes.get(address) {
            return Some(Arc::clone(node));
        }
        if map.nodes.len() >= MOST_NODES {
            return None;
        }
        let node = self.node(address, |_| true);
        let mut nodes = map.nodes.clone();
        nodes.insert(address.clone(), Arc::clone(&node));
        *map = Arc::new(Map { ranges: map.ranges.clone(), nodes });
        Some(node)
    }

    /// The node that another one has named, if that says where.
    pub(super) fn named(self: &Arc<Self>, to: &Elsewhere) -> Option<Arc<Node>> {
        to.address.as_ref().filter(|(host, _)| !host.is_empty()).and_then(|address| self.at(address))
    }

    fn node(self: &Arc<Self>, address: &Address, has: impl Fn(u16) -> bool) -> Arc<Node> {
        let server = Server::Single(link::beside(&self.seeds[0], &address.0, address.1));
        let probe = Limit::probe(&self.manner.prefix, has);
        let node = Node::new(server, probe, self.manner.clone(), Some((Arc::downgrade(self), address.clone())));
        // Who is sent there need not be the first to find that there is no connection.
        node.start();
        Arc::new(node)
    }

    /// Has the map made anew. Starts the task that does it where none runs, or nobody drives it.
    pub(super) fn look(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let now = self.clock.now();
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *look.since.get_or_insert(now);
        if let Some(wanted) = look.wanted.as_ref().filter(|wanted| !wanted.is_closed()) {
            // Where it is full, somebody is about to look.
            let _ = wanted.try_send(());
            if now.saturating_sub(since) < nanos(NEGLECTED) {
                return;
            }
        }
        let (sender, wanted) = mpsc::channel(1);
        drop(runtime.spawn(watch(Arc::downgrade(self), sender.downgrade(), wanted)));
        *look = Look { wanted: Some(sender), since: Some(now) };
    }

    /// Those who may know: first the nodes that are up.
    fn ask_first(&self) -> Vec<Contact> {
        let map = self.map();
        let (up, down): (Vec<_>, Vec<_>) = map.nodes.iter().partition(|(_, node)| node.is_up());
        let known = up.into_iter().chain(down).map(|((host, port), _)| link::beside(&self.seeds[0], host, *port));
        known.take(ASKED_AT_ONCE).chain(self.seeds.iter().take(ASKED_AT_ONCE).cloned()).collect()
    }

    /// Nodes that are still there keep their connections.
    fn take(self: &Arc<Self>, ranges: Vec<Range>) {
        let mut own: HashMap<Address, Vec<(u16, u16)>> = HashMap::new();
        for (first, last, address) in &ranges {
            own.entry(address.clone()).or_default().push((*first, *last));
        }
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let node = |address: Address, own: Vec<(u16, u16)>| {
            let has = |slot: u16| own.iter().any(|(first, last)| (*first..=*last).contains(&slot));
            let node = map.nodes.get(&address).cloned().unwrap_or_else(|| self.node(&address, has));
            (address, node)
        };
        let nodes: HashMap<_, _> = own.into_iter().map(|(address, own)| node(address, own)).collect();
        let mut ranges: Vec<_> =
            ranges.into_iter().map(|(first, last, address)| (first, last, Arc::clone(&nodes[&address]))).collect();
        ranges.sort_by_key(|(first, ..)| *first);
        *map = Arc::new(Map { ranges, nodes });
        drop(map);
        self.changed.notify_waiters();
    }

    /// The task that has looked: whether it still is the one that is asked.
    fn looked(&self, sender: &mpsc::WeakSender<()>) -> bool {
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let own = sender.upgrade();
        let is_asked = own.zip(look.wanted.as_ref()).is_some_and(|(own, asked)| own.same_channel(asked));
        if is_asked {
            look.since = None;
        }
        is_asked
    }
}

/// No cluster has as many primaries.
const MOST_NODES: usize = 2_048;

/// Looks at the map once, and whenever it is wanted. Ends with the last handle, or when another one looks in its place.
async fn watch(cluster: Weak<Cluster>, sender: mpsc::WeakSender<()>, mut wanted: mpsc::Receiver<()>) {
    let mut failures = 0;
    loop {
        let Some(asked) = cluster.upgrade().map(|cluster| cluster.ask_first()) else { return };
        let mut found = Err(Fault::Late);
        for some in asked.chunks(ASKED_AT_ONCE) {
            let mut answers: FuturesUnordered<_> = some.iter().map(link::slots).collect();
            while let Some(answer) = answers.next().await {
                found = answer;
                if found.is_ok() {
                    break;
                }
            }
            if found.is_ok() {
                break;
            }
        }
        {
            let Some(cluster) = cluster.upgrade() else { return };
            if !cluster.looked(&sender) {
                return;
            }
            match found {
                Ok(ranges) => {
                    failures = 0;
                    cluster.take(ranges);
                }
                Err(fault) => {
                    failures += 1;
                    if failures == FIRST_REPORT {
                        observe::redis_lost(fault.why(), &cluster.unmapped, cluster.clock.now());
                    }
                }
            }
        }
        let [first, most] = PAUSE;
        #[expect(clippy::disallowed_methods, reason = "no test waits for it")]
        sleep(first.saturating_mul(1 << failures.min(4)).min(most)).await;
        if failures == 0 && wanted.recv().await.is_none() {
            return;
        }
    }
}
