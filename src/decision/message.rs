//! Contains the text of a denial: the line that a client reads.
//!
//! A text names the policy where clients may know it, and never contains anything of a key. This
//! file must not know the format that the text is written into.

use std::fmt;

use http::StatusCode;

use super::reason::Reason;
use crate::policy::Policy;

/// The text around the seconds to retry in.
pub(crate) const RETRY_IN: [&str; 2] = [" Retry in ", " s."];

/// The text of a denial, in parts.
pub(crate) struct Message<'a> {
    pub(crate) start: &'static str,
    /// The text before the policy's name, and the policy.
    pub(crate) named: Option<(&'static str, &'a Policy)>,
    pub(crate) end: &'static str,
    /// In seconds.
    pub(crate) retry_in: Option<u64>,
}

impl<'a> Message<'a> {
    /// The message without the time to retry in.
    pub(crate) fn of(reason: Reason, status: StatusCode, named: Option<&'a Policy>) -> Self {
        let (start, preposition, end) = match reason {
            Reason::MissingKey if status == StatusCode::INTERNAL_SERVER_ERROR => (
                "The server is not configured to identify clients",
                " for the policy ",
                ". Its log, or its standard error, says what is missing.",
            ),
            Reason::MissingKey => ("The request has no key", " for the policy ", "."),
            Reason::CostAboveBurst => {
                ("The request costs more than is ever allowed at once", " by the policy ", ". Waiting does not help.")
            }
            Reason::AtCapacity => ("No new clients are accepted now", " by the policy ", "."),
            Reason::Blocked => ("Requests are temporarily blocked", " by the policy ", "."),
            Reason::InFlight => ("Too many requests at once", " for the policy ", "."),
            Reason::Exceeded => ("Too many requests", " for the policy ", "."),
            Reason::Unavailable => ("The limit cannot be checked now", " for the policy ", "."),
        };
        Message { start, named: named.map(|policy| (preposition, policy)), end, retry_in: None }
    }
}

impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.start)?;
        if let Some((preposition, policy)) = self.named {
            write!(f, "{preposition}\"{}\"", policy.name())?;
        }
        f.write_str(self.end)?;
        let [before, after] = RETRY_IN;
        self.retry_in.map_or(Ok(()), |seconds| write!(f, "{before}{seconds}{after}"))
    }
}
