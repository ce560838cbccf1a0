//! Contains how the quota of a request is chosen: by a closure that returns it, or by the name of a
//! plan, whose quota stands beside the policy's own.
//!
//! This file must not know of keys or buckets.

use std::collections::HashMap;

use crate::{
    key::RequestHead,
    observe::events::{self, Throttle},
    quota::Quota,
};

type QuotaBy = dyn Fn(RequestHead<'_>) -> Option<Quota> + Send + Sync;
type PlanBy = dyn Fn(RequestHead<'_>) -> Option<&str> + Send + Sync;

/// How the quota of a request is chosen.
pub(super) enum Chooser {
    Quota(Box<QuotaBy>),
    Plan(Box<PlanBy>),
}

/// What was chosen for a request.
#[derive(Clone, Copy)]
pub(super) enum Choice {
    None,
    /// The policy's own quota, whatever was chosen for the key before.
    Own,
    Quota(Quota),
}

impl Chooser {
    /// The quota of a request, whose plan is one of `plans` of the policy of this name. Reports a
    /// plan that nobody has set.
    #[cold]
    #[inline(never)]
    pub(super) fn choose(&self, policy: &str, plans: Option<&Plans>, head: RequestHead<'_>) -> Choice {
        match self {
            Self::Quota(choose) => choose(head).map_or(Choice::None, Choice::Quota),
            Self::Plan(name) => {
                let (Some(name), Some(plans)) = (name(head), plans) else { return Choice::None };
                plans.get(name).map_or_else(
                    || {
                        events::unknown_plan(policy, name, &plans.unknown);
                        Choice::Own
                    },
                    Choice::Quota,
                )
            }
        }
    }
}

/// The quotas of plans, by their names.
#[derive(Debug, Default)]
pub(super) struct Plans {
    quotas: HashMap<Box<str>, Quota>,
    unknown: Throttle,
}

impl Plans {
    pub(super) fn new<N: AsRef<str>>(quotas: impl IntoIterator<Item = (N, Quota)>) -> Self {
        let quotas = quotas.into_iter().map(|(name, quota)| (name.as_ref().into(), quota)).collect();
        Self { quotas, unknown: Throttle::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.quotas.is_empty()
    }

    pub(super) fn get(&self, plan: &str) -> Option<Quota> {
        self.quotas.get(plan).copied()
    }

    pub(super) fn contain(&self, quota: Quota) -> bool {
        self.quotas.values().any(|plan| *plan == quota)
    }
}
