//! Contains decisions over Redis without a request: the caller names the policy and the key.
//!
//! They are the decisions that requests get, over the same buckets. This file must not know how a
//! decision is made.

use std::time::Duration;

use futures_util::future::join_all;
use http::Request;
use smallvec::smallvec;

use super::{
    control::{ControlError, StandingsError},
    limiter::{RedisLimiter, RedisParts},
    lower_bounds::AskedBy,
    names::Principal,
};
use crate::{
    clock::Nanos,
    decision::{Receipts, Standing},
    key::{IntoKey, Key},
    limit::IntoLimit,
    limiter::{AcquireError, Admission, Demands, LimitError, MAX_PATIENCE, Reservation, ReservedCells, Slack},
    quota::Quota,
};

impl RedisLimiter {
    /// Acquires one cell from the bucket of `key` under the policy of this name. See
    /// [`Limiter::acquire`](crate::Limiter::acquire).
    ///
    /// The key is made at once, and the future does not borrow it. If the future is dropped before
    /// its end, the cell may be acquired. Without Redis the policy's
    /// [`OnFailure`](super::OnFailure) decides.
    ///
    /// # Errors
    ///
    /// When the policy denies, or there is no policy of this name.
    pub fn acquire<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
    ) -> impl Future<Output = Result<Admission, AcquireError>> + Send + use<'_, K> {
        self.acquire_n(policy, key, 1)
    }

    /// Acquires `cells` cells, all or none. See [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// When the policy denies, or there is no policy of this name.
    pub fn acquire_n<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
        cells: u32,
    ) -> impl Future<Output = Result<Admission, AcquireError>> + Send + use<'_, K> {
        self.admission(self.demand(policy, key, cells, None))
    }

    /// Acquires `cells` cells by the limit `plan` instead of the policy's own. See
    /// [`Limiter::acquire_as`](crate::Limiter::acquire_as). Here the bucket of every policy
    /// remembers the plan. Another process that remembers a denial of a *request* for this key
    /// denies further requests until the former wait is over; calls by key always ask Redis.
    ///
    /// # Errors
    ///
    /// When the policy denies, there is no policy of this name, or `plan` is no limit for it.
    pub fn acquire_as<K: IntoKey, L: IntoLimit>(
        &self,
        policy: &str,
        key: K,
        plan: L,
        cells: u32,
    ) -> impl Future<Output = Result<Admission, AcquireError>> + Send + use<'_, K, L> {
        let plan = self.basis_of(policy, plan).map_err(AcquireError::from);
        let demand = plan.and_then(|plan| self.demand(policy, key, cells, Some(plan)));
        async move {
            let asked: Option<Key> =
                demand.as_ref().ok().and_then(|demands| demands.first()).map(|(_, demand)| demand.key);
            let admission = self.admission(demand).await;
            if let (Some(key), true) = (asked, admission.is_ok()) {
                // What is known of the bucket under another quota may be true no more.
                let RedisParts { set, lower_bounds, .. } = &*self.parts;
                lower_bounds.epochs.end(Principal::of(key, set.hasher()));
            }
            admission
        }
    }

    /// Acquires cells under several policies, or nothing under any. See
    /// [`Limiter::acquire_all`](crate::Limiter::acquire_all).
    ///
    /// # Errors
    ///
    /// When a policy denies; when there is no policy of a name; when a policy stands twice.
    pub fn acquire_all(
        &self,
        wanted: &[(&str, &(dyn IntoKey + Sync), u32)],
    ) -> impl Future<Output = Result<Admission, AcquireError>> + Send + use<'_> {
        self.admission(self.parts.set.demands_by_key(wanted))
    }

    /// Reserves one cell that will be there within `patience`, and says how long to wait for it.
    /// See [`Limiter::reserve`](crate::Limiter::reserve).
    ///
    /// # Errors
    ///
    /// When the policy denies, also after that wait; or when there is no policy of this name.
    pub fn reserve<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
        patience: Duration,
    ) -> impl Future<Output = Result<Reservation<Self>, AcquireError>> + Send + use<'_, K> {
        self.reserve_n(policy, key, 1, patience)
    }

    /// Reserves `cells` cells that will be there within `patience`. See [`reserve`](Self::reserve).
    ///
    /// # Errors
    ///
    /// When the policy denies, also after that wait; or when there is no policy of this name.
    pub fn reserve_n<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
        cells: u32,
        patience: Duration,
    ) -> impl Future<Output = Result<Reservation<Self>, AcquireError>> + Send + use<'_, K> {
        let demand = self.demand(policy, key, cells, None);
        let patience = Nanos::from(patience).min(MAX_PATIENCE);
        async move {
            let demands = demand?;
            for (policy, _) in &demands {
                self.allow_slack(*policy, Slack::OfReservation(patience));
            }
            let mut receipts = Receipts::default();
            let grant = self.acquire_from(AskedBy::Caller, demands, patience, &mut receipts).await?;
            // From now on, and not from when Redis was asked: nobody is early.
            let cells = ReservedCells::new(self.clone(), grant, receipts, self.parts.set.now());
            Ok(Reservation::new(cells))
        }
    }

    /// Returns how a request stands under each policy that applies to it, by the quota that is
    /// chosen for it, and acquires nothing. See
    /// [`Limiter::standings`](crate::Limiter::standings).
    ///
    /// # Errors
    ///
    /// The denial of a request that lacks a key; or that Redis does not answer within the
    /// [timeout](super::RedisBuilder::timeout).
    pub fn standings<'a, B>(
        &'a self,
        request: &Request<B>,
    ) -> impl Future<Output = Result<Vec<Standing<'a>>, StandingsError>> + Send + use<'a, B> {
        let set = &self.parts.set;
        let demands = self.evaluate(set.parts(request).head());
        async move {
            let demands = demands.map_err(|denied| StandingsError::Denied(Box::new(denied)))?;
            let start = set.now();
            let asked = demands.iter().filter(|demand| set.is_advertised(demand));
            let standings = join_all(asked.map(|demand| self.standing_of(demand, start))).await;
            standings.into_iter().collect::<Result<_, ControlError>>().map_err(StandingsError::Control)
        }
    }

    /// What buckets of the policy of this name are decided by under this limit of a key.
    pub(super) fn basis_of(&self, policy: &str, limit: impl IntoLimit) -> Result<Quota, LimitError> {
        let (index, policy) = self.parts.set.find(policy)?;
        self.parts.fallback.basis_of(index, policy, &limit.into_limit())
    }

    fn demand(
        &self,
        policy: &str,
        key: impl IntoKey,
        cells: u32,
        plan: Option<Quota>,
    ) -> Result<Demands, AcquireError> {
        Ok(smallvec![self.parts.set.demand_by_key(policy, key, cells, plan)?])
    }

    async fn admission(&self, demands: Result<Demands, AcquireError>) -> Result<Admission, AcquireError> {
        let mut receipts = Receipts::default();
        let grant = self.acquire_from(AskedBy::Caller, demands?, Nanos::ZERO, &mut receipts).await?;
        Ok(Admission::new(self.clone(), grant.at, &receipts))
    }
}
