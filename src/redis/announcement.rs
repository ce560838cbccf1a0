//! Contains [`Announcement`], what a process tells the others of its deployment, and the texts of
//! what an operator has set.
//!
//! An announcement is a hint: it makes a process forget, and ask Redis again. So a forged one costs
//! a call, and changes no limit.

use super::names::Principal;
use crate::quota::Quota;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announcement {
    /// What is known of a principal is true no more.
    Forget(Principal),
    /// Quotas were changed.
    Quotas,
}

/// The first word of every announcement: the version of their form.
const VERSION: &str = "1";

impl Announcement {
    /// `None` where the text is of another version, or is none.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let announcement = match [(); 4].map(|()| words.next()) {
            [Some(VERSION), Some("forget"), Some(principal), None] => Self::Forget(Principal::parse(principal)?),
            [Some(VERSION), Some("quotas"), None, None] => Self::Quotas,
            _ => return None,
        };
        Some(announcement)
    }
}

impl std::fmt::Display for Announcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Forget(principal) => write!(f, "{VERSION} forget {principal}"),
            Self::Quotas => write!(f, "{VERSION} quotas"),
        }
    }
}

/// Who hears announcements: the limiter, as its connections see it.
pub(super) trait Listener: Send + Sync {
    /// What is known of a principal is true no more.
    fn forget(&self, principal: Principal);

    /// Announcements may have been missed: nothing that is known is true for sure.
    fn forget_all(&self);

    /// What an operator has set, as fields and values.
    fn apply(&self, settings: &[(String, String)]);
}

/// The field of a policy's quota.
pub(super) fn quota_field(policy: &str) -> String {
    format!("quota:{policy}")
}

/// The policy and the quota of a field and its value. `None` where it is none that this version
/// knows.
pub(super) fn read_setting((field, value): &(String, String)) -> Option<(&str, Quota)> {
    Some((field.strip_prefix("quota:")?, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_read_as_it_was_written() {
        let principal = Principal::parse("00000000000000000000000abc").unwrap();
        for announcement in [Announcement::Forget(principal), Announcement::Quotas] {
            assert_eq!(Announcement::read(&announcement.to_string()), Some(announcement));
        }
        for garbage in ["", "1", "2 quotas", "1 quotas 1", "1 forget", "1 forget x", "1 forget 7 8", "quotas", "\u{0}"]
        {
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
