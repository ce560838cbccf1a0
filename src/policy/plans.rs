//! Contains how the limit of a request is chosen: by a closure that returns it, or by the name of a
//! plan, whose limit stands beside the policy's own.
//!
//! This file must not know of keys or buckets.

use std::collections::HashMap;

use crate::{
    key::RequestHead,
    limit::{IntoLimit, Limit},
    observe::events::{self, Throttle},
    quota::Quota,
};

type LimitBy = dyn Fn(RequestHead<'_>) -> Option<u32> + Send + Sync;
type QuotaBy = dyn Fn(RequestHead<'_>) -> Option<Quota> + Send + Sync;
type PlanBy = dyn Fn(RequestHead<'_>) -> Option<&str> + Send + Sync;

/// How the limit of a request is chosen.
pub(super) enum Chooser {
    /// For a policy with a window: the number of cells.
    Limit(Box<LimitBy>),
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
            Self::Limit(choose) => choose(head).map_or(Choice::None, |limit| Choice::Quota(Quota::of_window(limit))),
            Self::Quota(choose) => choose(head).map_or(Choice::None, Choice::Quota),
            Self::Plan(name) => {
                let (Some(name), Some(plans)) = (name(head), plans) else { return Choice::None };
                plans.get(name).map_or_else(
                    || {
                        events::unknown_plan(policy, name, &plans.unknown);
                        Choice::Own
                    },
                    |plan| Choice::Quota(plan.basis()),
                )
            }
        }
    }
}

/// The limits of plans, by their names.
#[derive(Debug, Default)]
pub(super) struct Plans {
    limits: HashMap<Box<str>, Limit>,
    unknown: Throttle,
}

impl Plans {
    pub(super) fn new<N: AsRef<str>, L: IntoLimit>(plans: impl IntoIterator<Item = (N, L)>) -> Self {
        let limits = plans.into_iter().map(|(name, limit)| (name.as_ref().into(), limit.into_limit())).collect();
        Self { limits, unknown: Throttle::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Limit> {
        self.limits.values()
    }

    pub(super) fn get(&self, plan: &str) -> Option<&Limit> {
        self.limits.get(plan)
    }

    pub(super) fn contain(&self, quota: Quota) -> bool {
        self.all().any(|plan| plan.basis() == quota)
    }
}
