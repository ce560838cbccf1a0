//! Contains [`IntoLimiter`]: what a layer can be made of.

use std::time::Duration;

use super::{admission::Settle, error::ConfigError};

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
#[expect(private_bounds, reason = "nobody else implements it")]
pub trait Handle: Settle + Clone {
    /// Lets requests wait for as long, now and later.
    fn allow_waits(&self, longest: Duration);
}
