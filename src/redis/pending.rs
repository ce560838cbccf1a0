//! Contains [`Pending`], the requests that wait for a reply of a worker, and their deadlines.
//!
//! The deadlines are the worker's, because the clock of a request's own runtime may be paused, or
//! not run. This file must not know what is asked.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use tokio::sync::oneshot;

use crate::clock::Timestamp;

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestId(u64);

pub(super) struct Pending<T> {
    last: u64,
    replies: HashMap<RequestId, oneshot::Sender<T>, foldhash::fast::RandomState>,
    /// Also of requests that have their reply, until their deadline or [`compact`](Self::compact).
    deadlines: BinaryHeap<Reverse<(Timestamp, RequestId)>>,
}

/// So many deadlines of requests that have their reply are not worth removing.
const SLACK: usize = 1_024;

impl<T> Pending<T> {
    pub(super) fn new() -> Self {
        Self { last: 0, replies: HashMap::default(), deadlines: BinaryHeap::new() }
    }

    pub(super) fn add(&mut self, reply: oneshot::Sender<T>, deadline: Timestamp) -> RequestId {
        self.last += 1;
        let id = RequestId(self.last);
        self.replies.insert(id, reply);
        self.deadlines.push(Reverse((deadline, id)));
        if self.deadlines.len() > 2 * self.replies.len() + SLACK {
            self.compact();
        }
        id
    }

    fn compact(&mut self) {
        self.deadlines.retain(|Reverse((_, id))| self.replies.contains_key(id));
    }

    /// Whether the request still waits.
    pub(super) fn waits(&self, id: RequestId) -> bool {
        self.replies.get(&id).is_some_and(|reply| !reply.is_closed())
    }

    /// Sends a reply, if the request still waits.
    pub(super) fn reply(&mut self, id: RequestId, reply: T) {
        if let Some(sender) = self.replies.remove(&id) {
            let _ = sender.send(reply);
        }
    }

    /// Ends the waiting of a request without a reply.
    pub(super) fn give_up(&mut self, id: RequestId) {
        self.replies.remove(&id);
    }

    /// Ends the waiting of all requests, without replies.
    pub(super) fn give_up_all(&mut self) {
        self.replies.clear();
        self.deadlines.clear();
    }

    /// The first deadline of a request that waits.
    pub(super) fn next_deadline(&mut self) -> Option<Timestamp> {
        loop {
            let Reverse((deadline, id)) = self.deadlines.peek()?;
            if self.replies.contains_key(id) {
                return Some(*deadline);
            }
            self.deadlines.pop();
        }
    }

    /// Ends the waiting of requests whose deadline has come.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some(Reverse((deadline, id))) = self.deadlines.peek() {
            if *deadline > now {
                break;
            }
            self.replies.remove(id);
            self.deadlines.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    #[test]
    fn a_request_gets_its_reply_or_its_deadline() {
        let mut pending = Pending::new();
        let mut receivers = Vec::new();
        let mut add = |pending: &mut Pending<u8>, deadline| {
            let (reply, receiver) = oneshot::channel();
            receivers.push(receiver);
            pending.add(reply, at(deadline))
        };
        // A later request with an earlier deadline.
        let ids = [50, 20, 40].map(|deadline| add(&mut pending, deadline));
        assert_eq!(pending.next_deadline(), Some(at(20)));
        pending.reply(ids[1], 7);
        assert_eq!(pending.next_deadline(), Some(at(40)));
        pending.expire(at(39));
        assert!(pending.waits(ids[2]));
        pending.expire(at(40));
        assert!(!pending.waits(ids[2]));
        pending.reply(ids[2], 8);
        assert_eq!(pending.next_deadline(), Some(at(50)));
        pending.give_up_all();
        assert_eq!(pending.next_deadline(), None);
        let replies: Vec<_> = receivers.into_iter().map(|mut receiver| receiver.try_recv().ok()).collect();
        assert_eq!(replies, [None, Some(7), None]);
    }

    #[test]
    fn a_request_that_is_dropped_does_not_wait() {
        let mut pending = Pending::<u8>::new();
        let (reply, receiver) = oneshot::channel();
        let id = pending.add(reply, at(1));
        assert!(pending.waits(id));
        drop(receiver);
        assert!(!pending.waits(id));
    }

    #[test]
    fn what_has_its_reply_takes_no_memory_for_long() {
        let mut pending = Pending::<u8>::new();
        for _ in 0..100_000 {
            let (reply, _receiver) = oneshot::channel();
            let id = pending.add(reply, at(u64::MAX));
            pending.reply(id, 0);
        }
        assert!(pending.deadlines.len() <= SLACK + 2);
    }
}
