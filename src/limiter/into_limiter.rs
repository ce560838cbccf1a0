//! Contains [`IntoLimiter`], what a layer can be made of, and what every limiter can do for one.

use std::time::Duration;

use super::{error::ConfigError, pauses::Pause, policy_set::PolicySet};
use crate::{clock::Timestamp, decision::Receipt};

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

/// Where receipts are refunded and charged: a limiter.
pub(crate) trait Settle: Send + Sync + 'static {
    /// What the limiter has beside its buckets.
    fn policy_set(&self) -> &PolicySet;

    /// Refunds what was acquired at `at`, less what time has returned since.
    fn refund_receipt(&self, receipt: &Receipt, at: Timestamp);

    /// The pauses of the key of a receipt, where its bucket is, as far as they are known here.
    fn pause_of(&self, receipt: &Receipt) -> Pause;

    /// Charges `cells` beyond the receipt.
    fn charge_receipt(&self, receipt: &Receipt, cells: u32);
}
