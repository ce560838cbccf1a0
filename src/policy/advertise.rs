//! Contains [`Advertise`]: what clients learn about a policy.

/// What clients learn about a policy, beside the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Advertise {
    /// Its quota and what is left of it, on every response. On a denial its name, in the body as
    /// well, and `Retry-After`.
    #[default]
    Everything,
    /// The same, on denials only.
    OnDenial,
    /// How long to wait, without the policy's name and quota, which would tell an outsider the
    /// capacity of the service.
    RetryAfter,
    /// Nothing but the denial. Use it for a limit on logins, which must not count down for an
    /// attacker. A denial by such a policy has no `Retry-After`, even if another policy denies too,
    /// because it would not be accurate.
    Nothing,
}

impl Advertise {
    pub(crate) fn names_the_policy(self) -> bool {
        matches!(self, Self::Everything | Self::OnDenial)
    }

    pub(crate) fn names_the_wait(self) -> bool {
        !matches!(self, Self::Nothing)
    }
}
