//! One limit for many processes: the same policies over Redis or Valkey.
//!
//! [`RedisLimiter`] decides as [`Limiter`] does, with its buckets in Redis: GCRA to the nanosecond on the server's clock, over
//! all policies or none, in one round trip. Needs tokio, and Rust 1.88.
//!
//! ```no_run
//! use tower_quota::{Policy, Quota, key::Header, redis::{OnFailure, RedisLimiter}};
//!
//! # fn app() -> axum::Router { axum::Router::new() }
//! // Four processes share the limit; without Redis each decides alone, by a quarter of it.
//! let limiter = RedisLimiter::builder("redis://127.0.0.1", b"32 random bytes of this deployment", OnFailure::Local { share: 0.25 })
//!     .policy(Policy::per(Header::new("x-api-key"), Quota::per_second(10)))
//!     .build()?;
//! let app = app().layer(limiter.layer());
//! # Ok::<(), tower_quota::redis::RedisConfigError>(())
//! ```
//!
//! # Sentinel, clusters
//!
//! [`sentinels`](Builder::sentinels) and [`cluster`](Builder::cluster). In a cluster each primary has a connection of its own,
//! and policies of several principals are asked for at once, each where it is; see there.
//!
//! # Without Redis
//!
//! Nothing is slower or less available for Redis: building never connects, a request waits 50 ms at most
//! ([`timeout`](Builder::timeout)), none is sent when no answer has come for 10 ms (or four times what an answer took when the
//! connection was made), and with the connection lost none waits at all. What becomes of requests then is said when the
//! limiter is built: [`OnFailure`]. The connection is dialled in the background, proved with the script itself, and used again.
//!
//! # What needs no Redis
//!
//! A refusal is remembered: until the cells are there the key is refused here, which is exact, for nobody can owe less than
//! time has returned. (A key that is deleted in Redis by hand stays refused where it was, until then.) Requests for the same
//! keys that come while a call is under way are asked for together with the next one.
//!
//! Unless told otherwise ([`lease`](Builder::lease)), cells are drawn for requests that are there, and for no others.
//!
//! # After the response
//!
//! [`count_if`](crate::Policy::count_if) and [`Admission`](crate::limiter::Admission) put back and charge in Redis; nobody waits
//! for it. Refusals by a policy that counts by the response are not remembered: other processes may put back at any time.
//!
//! # What stands in Redis
//!
//! `{prefix:principal}:policy:quota` → an arrival time, which expires when nothing is owed. The principal is a hash under the
//! deployment's secret: no address and no key of an API is in there. See `docs/redis.md` for operations.
//!
//! # Not over Redis
//!
//! Waiting. Bans and blocks are kept by each process alone.

mod builder;
mod cluster;
mod dispatch;
mod layer;
mod leases;
mod link;
mod node;
mod receipts;
mod script;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use http::Request;
use smallvec::{SmallVec, smallvec};
use tokio::time::timeout;

pub use self::{
    builder::{Builder, OnFailure, RedisConfigError},
    layer::{RedisRateLimit, RedisRateLimitLayer},
};
use self::{
    cluster::Place,
    dispatch::{Answer, Counts, Decided},
    link::Elsewhere,
    node::{Manner, Node},
    receipts::Receipts,
    script::{Limit, Limits, Names, Owed, Settlement},
};
use crate::{
    RateLimitLayer,
    decision::{Allowed, Decision, Denied, Draws},
    key::{Key, RequestHead},
    limiter::{Charges, Grant, Limiter},
    policy::Policy,
};

/// A limiter whose buckets are in Redis or Valkey. Clones share everything.
///
/// Made by [`builder`](Self::builder); put in front of services by [`layer`](Self::layer).
#[derive(Clone)]
pub struct RedisLimiter {
    shared: Arc<Shared>,
}

struct Shared {
    /// Policies, keys, and what is known of the buckets in Redis.
    local: Limiter,
    /// The same policies with buckets of their own, for decisions without Redis. Apart from what is known: a share of a quota
    /// takes longer to come back than the whole.
    alone: Limiter,
    /// By the policy's index.
    on_failure: Box<[OnFailure]>,
    names: Names,
    place: Place,
    manner: Manner,
}

/// What is asked, made while the request is at hand.
type Charged = Result<Charges, Denied>;

/// What comes of a call.
enum Asked {
    Decided(Arc<Node>, Decided),
    /// Redis does not answer in time, or not to this.
    Nothing,
    /// Some keys are here and others there.
    Torn,
}

struct Answered {
    group: Group,
    decided: Option<(Arc<Node>, Decided)>,
}

/// What is asked for in one call.
#[derive(Clone)]
struct Group {
    charges: Charges,
    limits: Limits,
}

impl RedisLimiter {
    /// Begins with the server's address (`redis://[user:password@]host[:port][/db]`), the secret that this deployment's keys
    /// are hashed under, and what becomes of requests where Redis does not answer.
    ///
    /// Processes that share buckets need the same secret. Whoever knows it can tell which keys are whose.
    pub fn builder(url: impl Into<String>, secret: impl AsRef<[u8]>, on_failure: OnFailure) -> Builder {
        Builder::new(url.into(), secret.as_ref(), on_failure)
    }

    /// Puts this limiter in front of services.
    pub fn layer(&self) -> RedisRateLimitLayer {
        self.layer_with(|layer| layer)
    }

    /// Puts this limiter in front of services, with the answers and fields that a [`RateLimitLayer`] is set to.
    ///
    /// ```no_run
    /// # let limiter: tower_quota::redis::RedisLimiter = unimplemented!();
    /// let layer = limiter.layer_with(|layer| layer.plain_text());
    /// ```
    ///
    /// What handlers settle by an [`Admission`](crate::limiter::Admission) is sent to Redis and not waited for; what is lost on
    /// the way stays as it was drawn. A charge ends at one burst there. A policy that let the request pass without Redis
    /// ([`OnFailure::Open`]) has drawn nothing and is not among those that can be settled.
    pub fn layer_with<R>(&self, set: impl FnOnce(RateLimitLayer) -> RateLimitLayer<R>) -> RedisRateLimitLayer<R> {
        let (front, respond) = set(RateLimitLayer::new(&self.shared.alone)).into_parts();
        RedisRateLimitLayer::new(self.clone(), front, respond)
    }

    /// Decides whether a request is admitted, and draws its cells if it is. See [`Limiter::decide`].
    ///
    /// Keys, quotas and costs are found at once; the future does not hold the request. Dropped before its end, it may
    /// have drawn.
    pub fn decide<'a, B>(&'a self, request: &Request<B>) -> impl Future<Output = Decision<'a>> + Send + use<'a, B> {
        let asked = self.asked(self.shared.local.parts(request).head());
        async move {
            let mut draws = Draws::default();
            match self.answered(asked, &mut draws, None).await {
                Ok(grant) => Decision::Allow(Allowed { policies: self.shared.local.policies(), at: grant.at, draws }),
                Err(denied) => Decision::Deny(denied),
            }
        }
    }

    /// The policies, in the limiter's order.
    pub fn policies(&self) -> &[Policy] {
        self.shared.local.policies()
    }

    /// The key of a value, as a request has it that carries the value. See [`Limiter::key_of`].
    #[must_use]
    pub fn key_of(&self, value: impl crate::key::IntoKey) -> Key {
        self.shared.local.key_of(value)
    }

    /// Connects in advance, and waits for it so long at most: true where there is a connection then. For the start of a
    /// process whose first requests are not to be decided without Redis. Needs a runtime of tokio.
    pub async fn connect(&self, within: Duration) -> bool {
        timeout(within, self.shared.place.found()).await.is_ok()
    }

    /// Whether there is a connection that has proved itself, in a cluster one to each primary. Without one, [`OnFailure`]
    /// decides.
    ///
    /// There is none before the first decision, or [`connect`](Self::connect).
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.place.is_up()
    }

    /// How many decisions were left to Redis, and how many calls that took, since the limiter was built.
    #[must_use]
    pub fn calls(&self) -> Calls {
        let Counts { asked, calls } = &*self.shared.manner.counts;
        Calls { decisions: asked.load(Ordering::Relaxed), calls: calls.load(Ordering::Relaxed) }
    }

    #[expect(clippy::result_large_err, reason = "made where it is returned, on the path that is not taken often")]
    pub(crate) fn asked(&self, head: RequestHead<'_>) -> Charged {
        self.shared.local.charges(head)
    }

    /// `receipts` are for what is settled afterwards.
    pub(crate) async fn answered(
        &self,
        asked: Charged,
        draws: &mut Draws,
        receipts: Option<&mut Receipts>,
    ) -> Result<Grant, Denied> {
        let charges = asked?;
        let local = &self.shared.local;
        if let Some(denied) = local.foresee(&charges) {
            return Err(denied);
        }
        // Before it is asked: then what is learnt is no more than what is true.
        let at = local.now();
        let groups = self.groups(charges);
        let mut answered: SmallVec<[Answered; 1]> = match &groups[..] {
            [only] => self.ask_for(only.clone()).await,
            several => {
                join_all(several.iter().map(|group| self.ask_for(group.clone()))).await.into_iter().flatten().collect()
            }
        };
        let granted = match &mut answered[..] {
            // No policy applies.
            [] => Ok(Grant { at, wait: 0 }),
            [Answered { group, decided: Some((_, Decided { granted, owed, .. })) }] => {
                local.learn(&group.charges, owed, *granted, at, draws)
            }
            [Answered { group, decided: None }] => self.without_redis(&group.charges, draws),
            several => self.weigh(several, at, draws),
        };
        if let (Ok(_), Some(receipts)) = (&granted, receipts) {
            for Answered { group, decided } in &answered {
                if let Some((node, decided)) = decided {
                    receipts.add(group, node, decided.at);
                }
            }
        }
        granted
    }

    /// For what is drawn from now on.
    pub(crate) fn receipts(&self) -> Receipts {
        Receipts::new(self.shared.local.clone())
    }

    /// What can be asked for together. In a cluster that is what is in one slot: the policies that count one principal.
    fn groups(&self, charges: Charges) -> SmallVec<[Group; 1]> {
        let Shared { names, place, .. } = &*self.shared;
        let mut groups: SmallVec<[(Charges, Vec<Limit>); 1]> = SmallVec::new();
        for (policy, charge) in charges {
            let limit = Limit::new(names, self.policies()[policy].name(), &charge);
            let slot = |limit: &Limit| if place.has_slots() { limit.slot() } else { 0 };
            match groups.iter_mut().find(|(_, limits)| slot(&limits[0]) == slot(&limit)) {
                Some((charges, limits)) => {
                    charges.push((policy, charge));
                    limits.push(limit);
                }
                None => groups.push((smallvec![(policy, charge)], vec![limit])),
            }
        }
        groups.into_iter().map(|(charges, limits)| Group { charges, limits: limits.into() }).collect()
    }

    /// All grant, or what some have granted is put back: in a cluster no call is carried out over several slots.
    #[expect(clippy::result_large_err, reason = "made where it is returned, on the path that is not taken often")]
    fn weigh(&self, answered: &[Answered], at: u64, draws: &mut Draws) -> Result<Grant, Denied> {
        let local = &self.shared.local;
        let (mut known, mut unanswered) = (SmallVec::<[_; 4]>::new(), Charges::new());
        for Answered { group, decided } in answered {
            match decided {
                Some((_, decided)) => known.extend(group.charges.iter().copied().zip(decided.owed.iter().copied())),
                None => unanswered.extend_from_slice(&group.charges),
            }
        }
        // In the limiter's order, as all that is told.
        known.sort_unstable_by_key(|((policy, _), _)| *policy);
        let (charges, owed): (Charges, Owed) = known.into_iter().unzip();
        let granted = answered.iter().flat_map(|answered| &answered.decided).all(|(_, decided)| decided.granted);
        let denied = if !granted {
            None
        } else if unanswered.is_empty() {
            return local.learn(&charges, &owed, true, at, draws);
        } else {
            match self.without_redis(&unanswered, draws) {
                Ok(here) => {
                    let granted = local.learn(&charges, &owed, true, at, draws);
                    draws.sort();
                    // Of the draws here the time counts; those there have their own.
                    return granted.map(|_| here);
                }
                Err(denied) => Some(denied),
            }
        };
        for Answered { group, decided } in answered {
            if let Some((node, Decided { granted: true, at, owed })) = decided {
                let limits = group.limits.iter().zip(owed.iter().copied());
                if let Some(all) = Settlement::all_of(limits, *at) {
                    node.settle(all);
                }
            }
        }
        match denied {
            Some(denied) => Err(denied),
            None => local.learn(&charges, &owed, false, at, draws),
        }
    }

    /// In one call; in as many as there are limits, where their slot is on its way to another node and some keys are here and
    /// others there.
    async fn ask_for(&self, group: Group) -> SmallVec<[Answered; 1]> {
        let begun = self.shared.local.now();
        match self.ask(&group.limits, begun).await {
            Asked::Decided(node, decided) => smallvec![Answered { group, decided: Some((node, decided)) }],
            Asked::Torn if group.limits.len() > 1 => {
                let each = group.charges.iter().zip(&*group.limits);
                let each =
                    each.map(|(charge, limit)| Group { charges: smallvec![*charge], limits: [limit.clone()].into() });
                let ask = async |group: Group| {
                    let decided = match self.ask(&group.limits, begun).await {
                        Asked::Decided(node, decided) => Some((node, decided)),
                        Asked::Torn | Asked::Nothing => None,
                    };
                    Answered { group, decided }
                };
                join_all(each.map(ask)).await.into()
            }
            Asked::Torn | Asked::Nothing => smallvec![Answered { group, decided: None }],
        }
    }

    async fn ask(&self, limits: &Limits, begun: u64) -> Asked {
        let Shared { place, manner, local, .. } = &*self.shared;
        let Some(mut node) = place.node_of(&limits[0]) else { return Asked::Nothing };
        let (mut asking, mut torn) = (false, false);
        // Once more than a slot that moves asks for.
        for _ in 0..3 {
            let gone = Duration::from_nanos(local.now().saturating_sub(begun));
            let left = manner.patience.saturating_sub(gone);
            if left.is_zero() {
                return Asked::Nothing;
            }
            match node.ask(Arc::clone(limits), asking, left).await {
                None => return Asked::Nothing,
                Some(Answer::Decided(decided)) => return Asked::Decided(node, decided),
                // Some keys are there and some are not; it helps to ask again only if they are just on their way.
                Some(Answer::Elsewhere(Elsewhere { address: None, .. })) if torn => return Asked::Torn,
                Some(Answer::Elsewhere(to)) => {
                    torn = to.address.is_none();
                    asking = to.asking || (torn && asking);
                    let Some(next) = place.follow(node, &to) else { return Asked::Nothing };
                    node = next;
                    if !node.is_up() {
                        // It has been named just now, and may be new.
                        let gone = Duration::from_nanos(local.now().saturating_sub(begun));
                        let _ = timeout(manner.patience.saturating_sub(gone), node.found()).await;
                    }
                }
            }
        }
        if torn { Asked::Torn } else { Asked::Nothing }
    }

    #[expect(clippy::result_large_err, reason = "made where it is returned, on the path that is not taken often")]
    fn without_redis(&self, charges: &Charges, draws: &mut Draws) -> Result<Grant, Denied> {
        let Shared { local, alone, on_failure, .. } = &*self.shared;
        let mut here = Charges::new();
        for (policy, charge) in charges {
            match on_failure[*policy] {
                OnFailure::Open => {}
                OnFailure::Closed if charge.shadow => {}
                OnFailure::Closed => return Err(local.unavailable(*policy)),
                OnFailure::Local { share } => {
                    let mut charge = *charge;
                    let whole = charge.quota.burst_size();
                    charge.quota = charge.quota.scaled(share);
                    if (charge.quota.burst_size() + 1..=whole).contains(&charge.cells) && !charge.shadow {
                        // It could be paid out of the whole limit, and is more than a share ever has.
                        return Err(local.unavailable(*policy));
                    }
                    here.push((*policy, charge));
                }
            }
        }
        alone.decide_here(&here, draws).inspect(|_| {
            let passed = charges.iter().filter(|(policy, _)| on_failure[*policy] == OnFailure::Open);
            passed.for_each(|(policy, _)| local.passed(*policy));
        })
    }
}

/// How many calls decisions took: see [`RedisLimiter::calls`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Calls {
    /// Decisions that were left to Redis. Refusals that were certain without it are not among them.
    pub decisions: u64,
    /// Calls of the script.
    pub calls: u64,
}

impl fmt::Debug for RedisLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLimiter")
            .field("policies", &self.policies())
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}
