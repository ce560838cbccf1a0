//! What a request has drawn in Redis, for what is settled after its response.
//!
//! Owns which server has which draw. Knows nothing of responses.

use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::{
    Group,
    node::Node,
    script::{Moment, Part, Settlement},
};
use crate::{
    limiter::{Limiter, Settle},
    policy::Charge,
};

pub(crate) struct Receipts {
    /// What is known of buckets in Redis.
    known: Limiter,
    /// When it was asked, on its clock.
    at: u64,
    draws: SmallVec<[Receipt; 1]>,
}

struct Receipt {
    policy: usize,
    charge: Charge,
    node: Arc<Node>,
    key: String,
    burst: u64,
    at: Moment,
}

impl Receipts {
    pub(super) fn new(known: Limiter) -> Self {
        let at = known.now();
        Self { known, at, draws: SmallVec::new() }
    }

    pub(super) fn add(&mut self, group: &Group, node: &Arc<Node>, at: Moment) {
        let draws = group.charges.iter().zip(&*group.limits).map(|((policy, charge), limit)| Receipt {
            policy: *policy,
            charge: *charge,
            node: Arc::clone(node),
            key: limit.key.clone(),
            burst: limit.burst,
            at,
        });
        self.draws.extend(draws);
    }

    fn settle(&self, policy: usize, returned: u64, charged: u64) -> bool {
        let Some(draw) = self.draws.iter().find(|draw| draw.policy == policy) else { return false };
        if returned > 0 || charged > 0 {
            self.known.unlearn(policy, &draw.charge, returned, self.at);
            let part = Part { key: draw.key.clone(), returned, charged, burst: draw.burst };
            draw.node.settle(Settlement { at: draw.at, parts: smallvec![part] });
        }
        true
    }
}

impl Settle for Receipts {
    fn put_back(&self, policy: usize, nanos: u64) -> bool {
        self.settle(policy, nanos, 0)
    }

    fn charge(&self, policy: usize, nanos: u64) -> bool {
        self.settle(policy, 0, nanos)
    }
}
