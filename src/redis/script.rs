//! What is asked of the server: the script, its arguments, its reply.
//!
//! Owns the names of keys in Redis and the reading of replies. Knows nothing of connections.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::{
    key::{Key, KeyHasher},
    policy::Charge,
    quota::Quota,
};

/// Server time, whole nanoseconds, and one round trip for all limits of a request.
pub(super) const ACQUIRE: &str = include_str!("acquire.lua");

/// One bucket, and what a request takes of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Limit {
    pub(super) key: String,
    /// Nanoseconds of backlog that one request adds.
    pub(super) unit: u64,
    /// Nanoseconds of backlog that the burst comes to.
    pub(super) burst: u64,
    /// Whether it only watches.
    pub(super) shadow: bool,
}

/// The buckets of a request: what requests have in common that may be asked for together.
pub(super) type Limits = Arc<[Limit]>;

impl Limit {
    pub(super) fn new(names: &Names, policy: &str, charge: &Charge) -> Self {
        let Charge { key, quota, cells, shadow } = *charge;
        let unit = quota.cell_nanos().saturating_mul(u64::from(cells));
        Self { key: names.key(policy, key, quota), unit, burst: quota.burst_nanos(), shadow }
    }

    pub(super) fn probe(names: &Names) -> Self {
        Self { key: format!("{{{}:probe}}", names.prefix), unit: 1_000_000, burst: 2_000_000, shadow: true }
    }
}

/// How buckets are called in Redis: `{prefix:principal}:policy:quota`.
///
/// The principal is a keyed hash in hexadecimal, so that no address and no API key stands there and no client chooses a slot;
/// all policies that count one principal are in one slot. The quota is part of the name, for what a bucket owes means
/// nothing under another: a change of quota begins with a full burst.
pub(super) struct Names {
    pub(super) prefix: String,
    pub(super) hasher: KeyHasher,
}

impl Names {
    fn key(&self, policy: &str, key: Key, quota: Quota) -> String {
        let principal = self.hasher.opaque(key);
        format!("{{{}:{principal:032x}}}:{policy}:{:x}x{}", self.prefix, quota.cell_nanos(), quota.burst_size())
    }
}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// How many requests are granted; none, and nothing is charged.
    pub(super) granted: u32,
    /// Nanoseconds that each bucket owed before.
    pub(super) owed: Owed,
}

pub(super) type Owed = SmallVec<[u64; 4]>;

impl Reply {
    /// `None` where it is not the reply of the script.
    pub(super) fn read(numbers: &[i64], limits: usize) -> Option<Self> {
        let [granted, owed @ ..] = numbers else { return None };
        if owed.len() != limits {
            return None;
        }
        let owed = owed.iter().map(|nanos| u64::try_from(*nanos).ok()).collect::<Option<_>>()?;
        Some(Self { granted: u32::try_from(*granted).ok()?, owed })
    }

    /// What each bucket owed before the `index`th of the requests that were asked for together, the first being 0.
    pub(super) fn owed_before(&self, index: u32, limits: &[Limit]) -> Owed {
        let earlier = u64::from(index.min(self.granted));
        let owed = self.owed.iter().zip(limits).map(|(owed, limit)| {
            let fits = limit.burst.saturating_sub(*owed).checked_div(limit.unit).unwrap_or(0);
            owed + limit.unit.saturating_mul(earlier.min(fits))
        });
        owed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rds09_a_reply_that_is_not_the_scripts_is_none() {
        let read = |numbers: &[i64]| Reply::read(numbers, 2);
        assert_eq!(read(&[1, 5, 0]), Some(Reply { granted: 1, owed: Owed::from_slice(&[5, 0]) }));
        assert_eq!(read(&[0, 5, 0]), Some(Reply { granted: 0, owed: Owed::from_slice(&[5, 0]) }));
        for wrong in [&[][..], &[1], &[1, 5], &[1, 5, 0, 0], &[-1, 5, 0], &[1, -5, 0]] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn those_that_are_granted_together_stand_one_behind_the_other() {
        let limit = |unit, shadow| Limit { key: String::new(), unit, burst: 100, shadow };
        let limits = [limit(10, false), limit(0, false), limit(60, true)];
        let reply = Reply { granted: 3, owed: Owed::from_slice(&[20, 7, 30]) };
        let owed = |index| reply.owed_before(index, &limits).to_vec();
        assert_eq!(owed(0), [20, 7, 30]);
        // One that only watches had room for one of them.
        assert_eq!(owed(1), [30, 7, 90]);
        assert_eq!(owed(2), [40, 7, 90]);
        assert_eq!(owed(5), [50, 7, 90], "who is refused finds what the granted ones left");
    }
}
