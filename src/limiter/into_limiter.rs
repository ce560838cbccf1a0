//! Contains [`IntoLimiter`]: what a layer can be made of.

use super::{error::ConfigError, policy_set::PolicySet};

/// A limiter, or policies to build one of.
///
/// A [`Policy`](crate::Policy), an array or a `Vec` of policies make a [`Limiter`](crate::Limiter)
/// in memory. Both limiters, and references to them, make themselves: the layer shares their
/// buckets.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not make a limiter",
    note = "use a `Policy`, an array or a `Vec` of policies, or a limiter or a reference to one"
)]
pub trait IntoLimiter {
    /// The limiter that it makes.
    type Limiter: Handle;

    /// Makes the limiter.
    ///
    /// # Errors
    ///
    /// When [`Builder::build`](super::Builder::build) fails. A limiter that is built already never
    /// fails.
    fn into_limiter(self) -> Result<Self::Limiter, ConfigError>;
}

/// A limiter, wherever its buckets are. Only the limiters of this crate implement it.
pub trait Handle: Clone + Send + Sync + 'static {
    /// What the limiter has beside its buckets.
    fn policy_set(&self) -> &PolicySet;
}
