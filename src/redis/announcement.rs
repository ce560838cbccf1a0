//! Contains [`Announcement`], what a process tells the others of its deployment, and the texts of
//! what an operator has set.
//!
//! An announcement is a hint: it makes a process forget, and ask Redis again. So a forged one costs
//! a call, and changes no limit. Only those who have reserved cells wait by what it says of a
//! pause.

use super::{names::Principal, protocol::PauseState};
use crate::{clock::Nanos, limit::Limit};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Announcement {
    /// What is known of a principal is true no more.
    Forget(Principal),
    /// A principal is paused under a policy.
    Pause { principal: Principal, pause: PauseState, policy: String },
    /// A principal is no longer paused under a policy, and nothing else that is known is true.
    Resume { principal: Principal, policy: String },
    /// Quotas were changed.
    Quotas,
}

/// The first word of every announcement: the version of their form.
const VERSION: &str = "1";

impl Announcement {
    /// `None` where the text is of another version, or is none.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (what, rest) = text.strip_prefix(VERSION)?.strip_prefix(' ')?.split_once(' ').unwrap_or_else(|| {
            let what = text.rsplit(' ').next().unwrap_or_default();
            (what, "")
        });
        let nanos = |digits: &str| digits.parse().ok().map(Nanos::new);
        // The name of a policy may contain spaces.
        let announcement = match what {
            "forget" => Self::Forget(Principal::parse(rest)?),
            "pause" => {
                let mut words = rest.splitn(4, ' ');
                let [principal, left, total, policy] = [(); 4].map(|()| words.next());
                let pause = PauseState { left: nanos(left?)?, total: nanos(total?)? };
                Self::Pause { principal: Principal::parse(principal?)?, pause, policy: policy?.to_owned() }
            }
            "quotas" if rest.is_empty() => Self::Quotas,
            "resume" => {
                let (principal, policy) = rest.split_once(' ')?;
                Self::Resume { principal: Principal::parse(principal)?, policy: policy.to_owned() }
            }
            _ => return None,
        };
        Some(announcement)
    }

    /// The announcement of a pause without what only the server knows: it adds how long, how long
    /// in all, and the policy.
    pub(super) fn pause_of(principal: Principal) -> String {
        format!("{VERSION} pause {principal}")
    }
}

impl std::fmt::Display for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Forget(principal) => write!(f, "{VERSION} forget {principal}"),
            Self::Pause { principal, pause, policy } => {
                let PauseState { left, total } = pause;
                write!(f, "{} {} {} {policy}", Self::pause_of(*principal), left.get(), total.get())
            }
            Self::Quotas => write!(f, "{VERSION} quotas"),
            Self::Resume { principal, policy } => write!(f, "{VERSION} resume {principal} {policy}"),
        }
    }
}

/// Who hears announcements: the limiter, as its connections see it.
pub(super) trait Listener: Send + Sync {
    /// What is known of a principal is true no more.
    fn forget(&self, principal: Principal);

    /// A principal is paused under a policy from now on, or no longer.
    fn pause(&self, principal: Principal, policy: &str, pause: Option<PauseState>);

    /// Announcements may have been missed: nothing that is known is true for sure.
    fn forget_all(&self);

    /// What an operator has set, as fields and values.
    fn apply(&self, settings: &[(String, String)]);
}

/// The field of a policy's quota.
pub(super) fn quota_field(policy: &str) -> String {
    format!("quota:{policy}")
}

/// The policy and the limit of a field and its value. `None` where it is none that this version
/// knows.
pub(super) fn read_setting((field, value): &(String, String)) -> Option<(&str, Limit)> {
    Some((field.strip_prefix("quota:")?, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_read_as_it_was_written() {
        let principal = Principal::parse("00000000000000000000000abc").unwrap();
        let (pause, policy) = (PauseState { left: Nanos::new(7), total: Nanos::new(8) }, "with a space".to_owned());
        for announcement in [
            Announcement::Forget(principal),
            Announcement::Pause { principal, pause, policy: policy.clone() },
            Announcement::Quotas,
            Announcement::Resume { principal, policy },
        ] {
            assert_eq!(Announcement::read(&announcement.to_string()), Some(announcement));
        }
        for garbage in [
            "",
            "1",
            "1 ",
            "2 quotas",
            "1 quotas 1",
            "1 forget",
            "1 forget x",
            "1 forget 7 8",
            "quotas",
            "\u{0}",
            "1 pause",
            "1 pause 00000000000000000000000abc 7 8",
            "1 pause 00000000000000000000000abc x 8 policy",
            "1 resume 00000000000000000000000abc",
        ] {
            assert_eq!(Announcement::read(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn a_setting_that_is_none_is_ignored() {
        let setting = |field: &str, value: &str| (field.to_owned(), value.to_owned());
        let quota = setting(&quota_field("per k"), "3/90s, burst 9");
        assert_eq!(
            read_setting(&quota).map(|(policy, quota)| (policy, quota.to_string())),
            Some(("per k", quota.1.clone()))
        );
        for garbage in [setting("quota:k", "0/s"), setting("quota:k", ""), setting("window:k", "3/s")] {
            assert_eq!(read_setting(&garbage), None);
        }
    }
}
