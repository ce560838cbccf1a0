//! Which of several servers has a key: all of them the one, or, in a cluster, the node that has its slot.
//!
//! Owns the map of a cluster, and the task that asks for it anew when a node says that slots have moved or is lost. Each node
//! has a task, a connection and a gate of its own: what happens to one stops nobody at the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{Notify, mpsc},
    time::sleep,
};

use super::{
    link::{self, Address, Contact, Elsewhere, Range, Server},
    node::{Manner, Node},
    script::Limit,
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
        match &to.address {
            None => Some(from),
            Some(address) => cluster.map().nodes.get(address).cloned(),
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
            Self::Cluster(cluster) => {
                let map = cluster.found().await;
                join_all(map.nodes.values().map(|node| node.found())).await;
            }
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
    /// To the task that makes it, where one runs.
    look: Mutex<Option<mpsc::Sender<()>>>,
}

/// Where the slots are.
#[derive(Default)]
struct Map {
    /// First slot, last slot; in their order.
    ranges: Vec<(u16, u16, Arc<Node>)>,
    nodes: HashMap<Address, Arc<Node>>,
}

impl Map {
    fn node_of(&self, slot: u16) -> Option<Arc<Node>> {
        let after = self.ranges.partition_point(|(first, ..)| *first <= slot);
        let (_, last, node) = self.ranges.get(after.checked_sub(1)?)?;
        (slot <= *last).then(|| Arc::clone(node))
    }
}

/// Between two looks at the map.
const PAUSE: Duration = Duration::from_millis(100);

impl Cluster {
    pub(super) fn new(seeds: Vec<Contact>, manner: Manner) -> Self {
        Self { seeds, manner, map: Mutex::default(), changed: Notify::new(), look: Mutex::default() }
    }

    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends when there is a map.
    async fn found(self: &Arc<Self>) -> Arc<Map> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let map = self.map();
            if !map.nodes.is_empty() {
                return map;
            }
            self.look();
            changed.await;
        }
    }

    /// Has the map made anew. Starts the task that does it where none runs.
    fn look(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = look.as_ref().filter(|look| !look.is_closed()) {
            let _ = look.try_send(());
            return;
        }
        let (sender, wanted) = mpsc::channel(1);
        drop(runtime.spawn(watch(Arc::downgrade(self), sender.downgrade(), wanted)));
        *look = Some(sender);
    }

    /// Those who may know: first the nodes that are up.
    fn ask_first(&self) -> Vec<Contact> {
        let map = self.map();
        let (up, down): (Vec<_>, Vec<_>) = map.nodes.iter().partition(|(_, node)| node.is_up());
        let known = up.into_iter().chain(down).map(|((host, port), _)| link::beside(&self.seeds[0], host, *port));
        known.chain(self.seeds.iter().cloned()).collect()
    }

    /// Nodes that are still there keep their connections.
    fn take(&self, ranges: Vec<Range>, moved: &mpsc::Sender<()>) {
        let mut own: HashMap<Address, Vec<(u16, u16)>> = HashMap::new();
        for (first, last, address) in &ranges {
            own.entry(address.clone()).or_default().push((*first, *last));
        }
        let former = self.map();
        let node = |address: Address, own: Vec<(u16, u16)>| {
            let has = |slot: u16| own.iter().any(|(first, last)| (*first..=*last).contains(&slot));
            // One whose probe has moved away could not be dialled again.
            let keeps = |node: &&Arc<Node>| node.is_up() || has(node.probe().slot());
            let node = former.nodes.get(&address).filter(keeps).cloned().unwrap_or_else(|| {
                let server = Server::Single(link::beside(&self.seeds[0], &address.0, address.1));
                let probe = Limit::probe(&self.manner.prefix, has);
                Arc::new(Node::new(server, probe, self.manner.clone(), Some(moved.clone())))
            });
            (address, node)
        };
        let nodes: HashMap<_, _> = own.into_iter().map(|(address, own)| node(address, own)).collect();
        let mut ranges: Vec<_> =
            ranges.into_iter().map(|(first, last, address)| (first, last, Arc::clone(&nodes[&address]))).collect();
        ranges.sort_by_key(|(first, ..)| *first);
        *self.map.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(Map { ranges, nodes });
        self.changed.notify_waiters();
    }
}

/// Looks at the map once, and whenever it is wanted. Ends with the last handle: until then the cluster has a sender, and each of
/// its nodes.
async fn watch(cluster: Weak<Cluster>, moved: mpsc::WeakSender<()>, mut wanted: mpsc::Receiver<()>) {
    loop {
        let Some(asked) = cluster.upgrade().map(|cluster| cluster.ask_first()) else { return };
        let mut found = None;
        for node in asked {
            found = link::slots(&node).await.filter(|ranges| !ranges.is_empty());
            if found.is_some() {
                break;
            }
        }
        let known = found.is_some();
        {
            let (Some(cluster), Some(moved)) = (cluster.upgrade(), moved.upgrade()) else { return };
            if let Some(ranges) = found {
                cluster.take(ranges, &moved);
            }
        }
        #[expect(clippy::disallowed_methods, reason = "no test waits for it")]
        sleep(PAUSE).await;
        if known && wanted.recv().await.is_none() {
            return;
        }
    }
}
