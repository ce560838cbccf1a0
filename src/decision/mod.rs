//! The decision over all policies: [`Decision`], and each policy's [`Standing`] in it.
//!
//! This folder contains what a decision means: which policies are violated, how long to wait, what
//! to say (`message`). It must not know how a decision was reached, nor how it is written into a
//! response.

mod denied;
mod message;
mod reason;
mod receipt;
mod standing;

use std::fmt;

pub use self::{denied::Denied, reason::Reason, standing::Standing};
pub(crate) use self::{
    denied::LONGEST_ADVERTISED,
    message::{Message, RETRY_IN},
    receipt::{PolicyOutcome, PolicyOutcomes, Receipt, ReceiptOrigin, Receipts},
    standing::{DecidedLimit, Level, Verdict, WindowLeft},
};
use crate::{clock::Timestamp, policy::Policy};

/// Whether a request is allowed.
#[derive(Debug)]
#[must_use]
#[expect(clippy::large_enum_variant, reason = "built where it is returned; an allocation would cost more than a copy")]
pub enum Decision<'a> {
    /// Every policy that applies has granted its cells, and they are acquired.
    Allow(Allowed<'a>),
    /// At least one policy has denied, and nothing is acquired.
    Deny(Denied),
}

impl Decision<'_> {
    /// Whether the request is allowed.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// Returns the denial, if it is one.
    #[must_use]
    pub fn denied(self) -> Option<Denied> {
        match self {
            Self::Allow(_) => None,
            Self::Deny(denied) => Some(denied),
        }
    }
}

/// An allowed request, with the receipts for the cells that it acquired.
#[must_use]
pub struct Allowed<'a> {
    pub(crate) policies: &'a [Policy],
    /// When the cells were acquired.
    pub(crate) at: Timestamp,
    pub(crate) receipts: Receipts,
}

impl Allowed<'_> {
    /// Returns how each policy that applied stands after the decision, in the limiter's order.
    #[must_use]
    pub fn standings(&self) -> impl ExactSizeIterator<Item = Standing<'_>> {
        self.receipts.iter().map(|receipt| receipt.outcome.standing(self.policies))
    }
}

impl fmt::Debug for Allowed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.standings()).finish()
    }
}
