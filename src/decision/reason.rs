//! Contains [`Reason`], why a request is denied.

/// Why a request is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The key is blocked, by [`Limiter::block`](crate::Limiter::block) or by a ban
    /// ([`Policy::ban`](crate::Policy::ban)).
    Blocked,
    /// The map of a policy is full and takes no new keys
    /// ([`AtCap::Deny`](crate::policy::AtCap::Deny)), or none at this cost.
    AtCapacity,
    /// The request costs more cells than a policy ever has at once. It can never succeed.
    CostAboveBurst,
    /// A policy has not enough cells now.
    Exceeded,
    /// As many requests of the key, or of all clients, are [in flight](crate::in_flight) as may be.
    InFlight,
    /// The request has no key for a policy that needs one.
    MissingKey,
    /// A policy cannot reach its buckets now, and fails closed.
    Unavailable,
}

impl Reason {
    /// Orders reasons by how little a wait helps.
    pub(super) fn severity(self) -> u8 {
        match self {
            Self::CostAboveBurst => 3,
            Self::AtCapacity => 2,
            Self::Blocked | Self::InFlight => 1,
            Self::Exceeded | Self::MissingKey | Self::Unavailable => 0,
        }
    }
}
