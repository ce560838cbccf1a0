//! Contains decisions without a request: the caller names the policy and the key.
//!
//! They are the decisions that requests get, over the same buckets. This file must not know how a
//! decision is made.

use std::time::Duration;

use http::Request;

use super::{
    Limiter,
    acquire::Grant,
    admission::Admission,
    error::AcquireError,
    local_buckets::Slack,
    moment::{Moment, RatesOnly, WithWindows},
    policy_set::Demands,
    reservation::{MAX_PATIENCE, Reservation, ReservedCells},
};
use crate::{
    clock::Nanos,
    decision::{Denied, Receipts, Standing},
    key::IntoKey,
    limit::IntoLimit,
    policy::{Basis, Demand},
};

impl Limiter {
    /// Acquires one cell from the bucket of `key` under the policy of this name.
    ///
    /// Use it where no request head has the key: an account name in a body, a message of a
    /// WebSocket, a job, an outgoing call. Any policy can be asked, also those by which requests
    /// are counted; a global policy has one bucket, whatever the key. [`Policy::by_key`] is for
    /// keys that no request has.
    ///
    /// The answer is that of a request: blocks, bans, shadow mode, the cap on keys, metrics and
    /// events are the same. The quota is the one that was chosen for the key last
    /// ([`acquire_as`](Self::acquire_as), [`quota_by`](crate::Policy::quota_by)), as long as
    /// something of it is used, and otherwise the policy's own.
    ///
    /// The [`Admission`] refunds or charges afterwards. Dropped, it leaves the cells acquired.
    ///
    /// ```
    /// use tower_quota::{Limiter, Policy, Quota};
    ///
    /// // Five failures an hour for each account, whatever address they come from.
    /// let accounts = Limiter::new(Policy::by_key(Quota::per_hour(5)).named("account"));
    /// let right_password = true;
    /// match accounts.acquire("account", "alice@example.org") {
    ///     Ok(admission) if right_password => admission.refund(),
    ///     Ok(_failure) => {}
    ///     Err(denied) => println!("{denied}"),
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// When the policy denies, or there is no policy of this name.
    ///
    /// [`Policy::by_key`]: crate::Policy::by_key
    pub fn acquire(&self, policy: &str, key: impl IntoKey) -> Result<Admission, AcquireError> {
        self.acquire_n(policy, key, 1)
    }

    /// Acquires `cells` cells, all or none. See [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// When the policy denies, or there is no policy of this name. More cells than the burst can
    /// never be granted.
    pub fn acquire_n(&self, policy: &str, key: impl IntoKey, cells: u32) -> Result<Admission, AcquireError> {
        let demand = self.set().demand_by_key(policy, key, cells, None)?;
        self.acquire_one(demand)
    }

    /// Acquires `cells` cells by the limit `plan` instead of the policy's own, as
    /// [`quota_by`](crate::Policy::quota_by) and [`limit_by`](crate::Policy::limit_by) do for
    /// requests: a quota for a policy with a rate, and a window of the same period for one with a
    /// window. A change of plan keeps the count.
    ///
    /// Later calls that name no plan use this one, as long as something of it is used. The bucket
    /// of a global policy without `quota_by` remembers no plan.
    ///
    /// # Errors
    ///
    /// When the policy denies, there is no policy of this name, or `plan` is no limit for it.
    pub fn acquire_as(
        &self,
        policy: &str,
        key: impl IntoKey,
        plan: impl IntoLimit,
        cells: u32,
    ) -> Result<Admission, AcquireError> {
        let (_, named, buckets) = self.find(policy)?;
        let plan = buckets.basis_of(named, &plan.into_limit())?;
        let (index, demand) = self.set().demand_by_key(policy, key, cells, Some(plan))?;
        // A bucket that remembers no plan does not see that it is another quota.
        self.parts.buckets.each[index].allow_quota(plan);
        self.acquire_one((index, demand))
    }

    /// Acquires cells under several policies, or nothing under any: for each policy its name, the
    /// key, and the cells.
    ///
    /// ```
    /// use std::net::Ipv4Addr;
    /// use tower_quota::{Limiter, Policy, Quota};
    ///
    /// let limiter = Limiter::new([
    ///     Policy::by_key(Quota::per_hour(5)).named("account"),
    ///     Policy::by_key(Quota::per_minute(20)).named("address"),
    /// ]);
    /// let admission = limiter.acquire_all(&[
    ///     ("account", &"alice@example.org", 1),
    ///     ("address", &Ipv4Addr::new(203, 0, 113, 7), 2),
    /// ])?;
    /// assert_eq!(admission.standings().map(|standing| standing.remaining()).collect::<Vec<_>>(), [4, 18]);
    /// # Ok::<(), tower_quota::limiter::AcquireError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When a policy denies; when there is no policy of a name; when a policy stands twice.
    pub fn acquire_all(&self, wanted: &[(&str, &(dyn IntoKey + Sync), u32)]) -> Result<Admission, AcquireError> {
        self.acquire_slowly(&self.set().demands_by_key(wanted)?)
    }

    /// Reserves one cell that will be there within `patience`, and says how long to wait for it.
    ///
    /// The caller sleeps with a timer of its own: see [`Reservation`]. Callers of one key are
    /// served in the order in which they came. At most a day.
    ///
    /// After the first reservation of a policy, a refund for a key in debt returns its cells only
    /// if they were the last ones acquired or reserved for the key. Those who wait already have
    /// their times.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_quota::{Limiter, Policy, Quota};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tower_quota::limiter::AcquireError> {
    /// // What the partner allows: further calls wait for at most two seconds.
    /// let outgoing = Limiter::new(Policy::by_key(Quota::per_second(100).burst(1)).named("partner"));
    /// for _call in 0..3 {
    ///     let reservation = outgoing.reserve("partner", "api.example.com", Duration::from_secs(2))?;
    ///     reservation.ready(tokio::time::sleep).await;
    ///     // Call the partner.
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When the policy denies, also after that wait; or when there is no policy of this name.
    pub fn reserve(
        &self,
        policy: &str,
        key: impl IntoKey,
        patience: Duration,
    ) -> Result<Reservation<Self>, AcquireError> {
        self.reserve_n(policy, key, 1, patience)
    }

    /// Reserves `cells` cells that will be there within `patience`. See [`reserve`](Self::reserve).
    ///
    /// # Errors
    ///
    /// When the policy denies, also after that wait; or when there is no policy of this name.
    pub fn reserve_n(
        &self,
        policy: &str,
        key: impl IntoKey,
        cells: u32,
        patience: Duration,
    ) -> Result<Reservation<Self>, AcquireError> {
        let demand = self.set().demand_by_key(policy, key, cells, None)?;
        let patience = Nanos::from(patience).min(MAX_PATIENCE);
        self.parts.buckets.allow_slack(demand.0, Slack::OfReservation(patience));
        let mut receipts = Receipts::default();
        let grant = self.acquire_demands(&[demand], patience, &mut receipts)?;
        Ok(Reservation::new(ReservedCells::new(self.clone(), grant, receipts, grant.at)))
    }

    /// Returns how a request stands under each policy that applies to it, by the quota that is
    /// chosen for it, and acquires nothing. Use it for a page that shows customers what they have
    /// left.
    ///
    /// Contains what responses [advertise](crate::Policy::advertise) always: other policies, and
    /// those in [shadow mode](crate::Policy::shadow), are left out.
    ///
    /// # Errors
    ///
    /// The denial of a request that lacks a key.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    pub fn standings<B>(&self, request: &Request<B>) -> Result<Vec<Standing<'_>>, Denied> {
        let set = self.set();
        let mut demands = Demands::new();
        set.evaluate(set.parts(request).head(), &mut demands, self.parts.buckets.decided_by)?;
        let standing = |(index, demand): &(usize, Demand)| {
            let asked: Basis = demand.basis();
            let level = self.parts.buckets.each[*index].peek(demand.key, asked, set.clock());
            Standing::of(set.policies()[*index].name(), level)
        };
        Ok(demands.iter().filter(|demand| set.is_advertised(demand)).map(standing).collect())
    }

    #[inline(always)]
    fn acquire_one(&self, demand: (usize, Demand)) -> Result<Admission, AcquireError> {
        if self.parts.buckets.has_windows {
            self.acquire_one_window(demand)
        } else {
            self.acquire_one_in::<RatesOnly>(demand)
        }
    }

    #[inline(never)]
    fn acquire_one_window(&self, demand: (usize, Demand)) -> Result<Admission, AcquireError> {
        self.acquire_one_in::<WithWindows>(demand)
    }

    #[inline(always)]
    fn acquire_one_in<M: Moment>(&self, demand: (usize, Demand)) -> Result<Admission, AcquireError> {
        match self.parts.buckets.acquire_by_key::<M>(self.set(), demand) {
            Some(Ok((at, receipt))) => Ok(Admission::of_one(self.clone(), at, receipt)),
            Some(Err(denied)) => Err(denied.into()),
            None => self.acquire_slowly(&[demand]),
        }
    }

    #[inline(never)]
    fn acquire_slowly(&self, demands: &[(usize, Demand)]) -> Result<Admission, AcquireError> {
        let mut receipts = Receipts::default();
        let grant = self.acquire_demands(demands, Nanos::ZERO, &mut receipts)?;
        Ok(Admission::new(self.clone(), grant.at, &receipts))
    }

    /// Acquires what is asked of several policies, in the limiter's order, or nothing.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    pub(crate) fn acquire_demands(
        &self,
        demands: &[(usize, Demand)],
        patience: Nanos,
        receipts: &mut Receipts,
    ) -> Result<Grant, Denied> {
        self.parts.buckets.acquire_all(self.set(), demands, Some(receipts), patience)
    }
}
