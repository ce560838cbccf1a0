//! Contains [`InFlightState`], what the services of one layer share: the policy, the permits, and
//! what responses say.
//!
//! This file must not know of futures, nor of waiting.

use std::{fmt, slice};

use http::{Request, Response};
use smallvec::smallvec;

use super::registry::Registry;
use crate::{
    clock::Nanos,
    decision::{Denied, PolicyOutcome, Verdict},
    key::{IntoKey, Key, RequestHead},
    limiter::{ConfigError, PolicySet, PolicySetOptions, is_near_limit},
    observe::{
        metrics::{DecidedBy, InFlightMeters, Outcome, PermitStart},
        suspicions,
    },
    policy::{Demand, Policy},
    response::{
        DenialFields, Respond,
        headers::{AllowedFields, FieldStyle},
    },
    sweeper::Sweep,
};

/// What the services of one layer share.
///
/// Aligned so that what every request reads is not on the cache line with the count of references,
/// which clones of a service and permits write.
#[repr(align(128))]
pub(super) struct InFlightState {
    /// Of one policy.
    set: PolicySet,
    registry: Registry,
    meters: InFlightMeters,
    fields: DenialFields,
}

/// What a layer does beside counting.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// What `Retry-After` says, or zero.
    pub(super) retry_after: Nanos,
    /// Whether every request has its permit in the extensions.
    pub(super) permits: bool,
    /// Whether responses to denied requests have the [`Denied`] in their extensions.
    pub(super) attaches_denied: bool,
}

impl InFlightState {
    pub(super) fn new(policy: Policy) -> Result<Self, ConfigError> {
        let fields = DenialFields::new(slice::from_ref(&policy), FieldStyle::default());
        // There is nothing to sweep: permits return by themselves.
        let options = PolicySetOptions { sweep: Some(Sweep::Manual), ..PolicySetOptions::default() };
        let set = PolicySet::new(vec![policy], options)?;
        Ok(Self { set, registry: Registry::new(), meters: InFlightMeters::default(), fields })
    }

    pub(super) fn set(&self) -> &PolicySet {
        &self.set
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.set.policies()[0]
    }

    /// How many requests of a key are in flight.
    pub(super) fn in_flight(&self, key: impl IntoKey) -> u32 {
        self.registry.in_use(self.policy().key(key.key(self.set.hasher())))
    }

    /// Notes that a request passes this layer.
    #[inline]
    pub(super) fn passed_by<Q>(&self, request: &mut Request<Q>) {
        suspicions::passes(request, self.set.identity());
    }

    pub(super) fn begin_wait(&self) {
        self.meters.wait(self.policy().name());
    }

    pub(super) fn end_wait(&self) {
        self.meters.end_wait(self.policy().name());
    }

    /// Counts a request in flight, and returns how many there are. In shadow mode it is counted
    /// above the limit, too.
    ///
    /// # Errors
    ///
    /// How many there are, where no permit is left.
    #[inline(always)]
    pub(super) fn begin(&self, demand: &Demand) -> Result<u32, u32> {
        let begun = self.registry.acquire(demand.key, demand.quota.burst_size());
        if begun.is_err() && demand.shadow { self.registry.acquire(demand.key, u32::MAX) } else { begun }
    }

    /// Counts a request in flight no longer.
    #[inline(always)]
    pub(super) fn end(&self, key: Key, start: Option<PermitStart>) {
        // Before the metrics, so that a recorder that panics loses no permit.
        self.registry.release(key);
        if let Some(start) = start {
            self.meters.end(self.policy().name(), self.set.clock(), start);
        }
    }

    #[inline(always)]
    pub(super) fn report_begin(&self) -> PermitStart {
        self.meters.begin(self.policy().name(), self.set.clock())
    }

    /// Reports a request that is one of so many in flight.
    #[inline(always)]
    pub(super) fn report(&self, demand: &Demand, in_flight: u32) {
        // Above its limit only in shadow mode.
        let is_over = in_flight > demand.quota.burst_size();
        let outcome = if is_over { Outcome::Denied } else { Outcome::Allowed };
        let near = || !is_over && is_near_limit(Nanos::new(in_flight.into()), demand.quota);
        self.set.count((0, self.policy()), outcome, demand.shadow, DecidedBy::Memory, near);
    }

    /// Makes and reports the denial of a request for which there is no permit.
    #[cold]
    pub(super) fn full(&self, demand: &Demand, in_flight: u32, options: Options) -> Denied {
        let outcome = PolicyOutcome::of_permits(demand, in_flight, Verdict::NoPermit(options.retry_after));
        let keys = [(0, demand.key)];
        self.set.denied(smallvec![outcome], &keys, &[], self.set.now(), DecidedBy::Memory, |_, _, _| {})
    }

    /// The fields of the response to a request that is one of so many in flight. Boxed, because few
    /// layers advertise them, and every request would make room for them.
    #[inline(always)]
    pub(super) fn fields(&self, demand: &Demand, in_flight: u32) -> Option<Box<AllowedFields>> {
        if self.fields.writer().writes_always() { self.advertise(demand, in_flight) } else { None }
    }

    #[cold]
    fn advertise(&self, demand: &Demand, in_flight: u32) -> Option<Box<AllowedFields>> {
        let outcome = PolicyOutcome::of_permits(demand, in_flight, Verdict::Granted);
        self.fields.writer().allowed_by(&slice::from_ref(&outcome).iter()).map(Box::new)
    }

    /// Makes the response to a denied request.
    #[cold]
    pub(super) fn respond<B, R: Respond<B>>(
        &self,
        respond: &R,
        denied: &Denied,
        head: RequestHead<'_>,
        options: Options,
    ) -> Response<R::Body> {
        let mut response = respond.respond_complete(denied, head, &self.fields);
        if options.attaches_denied {
            response.extensions_mut().insert(denied.clone());
        }
        response
    }
}

impl fmt::Debug for InFlightState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlightState").field("policy", self.policy()).finish_non_exhaustive()
    }
}
