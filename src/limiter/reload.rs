//! Contains the change of a limiter's policies: those that stay keep their buckets.
//!
//! This file must not know of layers, nor of files.

use super::{Limiter, error::ConfigError, policy_set::PolicySet};
use crate::policy::Policy;

impl Limiter {
    /// Returns a limiter with other policies, for a configuration that has changed. Policies that
    /// stay have their buckets, blocks, bans and pauses in common with this limiter: those of the
    /// same name, if both are global or neither is, and both have a rate or a window. Their limits,
    /// closures and options are the new ones. Added policies begin with full buckets, and those
    /// that are left out are gone.
    ///
    /// This limiter stays as it is, and layers that have it still use it. Only the period of a
    /// window is that of both, from now on. To change a layer, see
    /// [`RateLimitLayer::reloadable`](crate::RateLimitLayer::reloadable).
    ///
    /// A plan that the new policy does not have ends: the key is counted by the policy's own quota,
    /// and what was used is used. A global policy that gets plans where it was the only one
    /// remembers none: a request without a plan is counted by the policy's own quota.
    ///
    /// What a policy counts by may change, too. The same value has the same bucket then.
    ///
    /// ```
    /// use tower_quota::{Limiter, Policy, Quota};
    ///
    /// let limiter = Limiter::new(Policy::by_key(Quota::per_hour(5)).named("account"));
    /// limiter.acquire("account", "ann").unwrap();
    /// let limiter = limiter.with_policies([
    ///     Policy::by_key(Quota::per_hour(3)).named("account"),
    ///     Policy::by_key(Quota::per_hour(20)).named("address"),
    /// ])?;
    /// assert_eq!(limiter.peek("account", "ann").unwrap().remaining(), 2);
    /// # Ok::<(), tower_quota::limiter::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When [`Builder::build`](super::Builder::build) fails for the policies; when policies that
    /// stay are in another order; when one of them has another
    /// [`max_keys`](Policy::max_keys), [`max_keys_per_network`](Policy::max_keys_per_network) or
    /// [`at_cap`](Policy::at_cap).
    pub fn with_policies(&self, policies: impl IntoIterator<Item = Policy>) -> Result<Self, ConfigError> {
        self.successor(policies.into_iter().collect(), |_| Ok(()))
    }

    /// The same for a layer, which has to have something to limit.
    pub(crate) fn with_policies_for_requests(&self, policies: Vec<Policy>) -> Result<Self, ConfigError> {
        self.successor(policies, PolicySet::check_for_requests)
    }

    /// Changes nothing where `check` fails.
    fn successor(
        &self,
        policies: Vec<Policy>,
        check: impl FnOnce(&PolicySet) -> Result<(), ConfigError>,
    ) -> Result<Self, ConfigError> {
        let (set, origins) = self.set().successor(policies)?;
        check(&set)?;
        let buckets = self.parts.buckets.successor(self.set(), &set, &origins);
        Ok(Self::of(set, buckets))
    }
}
