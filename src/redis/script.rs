//! What is asked of the server: the scripts, their arguments, the reply.
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
pub(super) const ACQUIRE: &str = concat!(include_str!("bucket.lua"), include_str!("acquire.lua"));
/// For what a request turns out to have cost after it was admitted.
pub(super) const SETTLE: &str = concat!(include_str!("bucket.lua"), include_str!("settle.lua"));

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

    /// Of no request: to see whether the script runs. A node of a cluster has one in a slot of its own, which is looked for by
    /// trying numbers.
    pub(super) fn probe(prefix: &str, is_there: impl Fn(u16) -> bool) -> Self {
        let keys = (0_u32..).map(|number| format!("{{{prefix}:probe{number}}}"));
        let key = keys.take(1 << 20).find(|key| is_there(slot(key))).unwrap_or_default();
        Self { key, unit: 1_000_000, burst: 2_000_000, shadow: true }
    }

    pub(super) fn slot(&self) -> u16 {
        slot(&self.key)
    }

    /// The nanoseconds that one request has drawn that was granted while so much was owed.
    fn drew(&self, owed: u64) -> u64 {
        // One that only watches may have had less than the others.
        if owed.saturating_add(self.unit) <= self.burst { self.unit } else { 0 }
    }
}

/// Of a cluster's 16,384 slots, the one of a key: of what stands in its first braces, as all of ours have.
fn slot(key: &str) -> u16 {
    const SLOTS: u16 = 16_384;
    let tag = key.trim_start_matches('{').split('}').next().unwrap_or_default();
    crc::Crc::<u16>::new(&crc::CRC_16_XMODEM).checksum(tag.as_bytes()) % SLOTS
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
    /// When, on the server's clock.
    pub(super) at: Moment,
    /// Nanoseconds that each bucket owed before.
    pub(super) owed: Owed,
}

pub(super) type Owed = SmallVec<[u64; 4]>;

/// Seconds since 1970, and nanoseconds.
pub(super) type Moment = (i64, i64);

/// What is to be returned of a draw, or charged beyond it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settlement {
    /// When it was drawn: time has returned some of it since.
    pub(super) at: Moment,
    pub(super) parts: SmallVec<[Part; 1]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) key: String,
    /// Nanoseconds, as all of these.
    pub(super) returned: u64,
    pub(super) charged: u64,
    /// Those of the whole burst.
    pub(super) burst: u64,
}

impl Settlement {
    /// Returns all that a request drew of these limits while so much was owed. `None` where that is nothing.
    pub(super) fn all_of<'a>(limits: impl IntoIterator<Item = (&'a Limit, u64)>, at: Moment) -> Option<Self> {
        let parts = limits.into_iter().map(|(limit, owed)| Part {
            key: limit.key.clone(),
            returned: limit.drew(owed),
            charged: 0,
            burst: limit.burst,
        });
        let parts: SmallVec<_> = parts.filter(|part| part.returned > 0).collect();
        (!parts.is_empty()).then_some(Self { at, parts })
    }
}

impl Reply {
    /// `None` where it is not the reply of the script.
    pub(super) fn read(numbers: &[i64], limits: usize) -> Option<Self> {
        let [granted, seconds, nanos, owed @ ..] = numbers else { return None };
        if owed.len() != limits {
            return None;
        }
        let owed = owed.iter().map(|nanos| u64::try_from(*nanos).ok()).collect::<Option<_>>()?;
        Some(Self { granted: u32::try_from(*granted).ok()?, at: (*seconds, *nanos), owed })
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
        let reply = |granted| Some(Reply { granted, at: (7, 8), owed: Owed::from_slice(&[5, 0]) });
        assert_eq!(read(&[1, 7, 8, 5, 0]), reply(1));
        assert_eq!(read(&[0, 7, 8, 5, 0]), reply(0));
        for wrong in [&[][..], &[1], &[1, 7, 8, 5], &[1, 7, 8, 5, 0, 0], &[-1, 7, 8, 5, 0], &[1, 7, 8, -5, 0]] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn those_that_are_granted_together_stand_one_behind_the_other() {
        let limit = |unit, shadow| Limit { key: String::new(), unit, burst: 100, shadow };
        let limits = [limit(10, false), limit(0, false), limit(60, true)];
        let reply = Reply { granted: 3, at: (7, 8), owed: Owed::from_slice(&[20, 7, 30]) };
        let owed = |index| reply.owed_before(index, &limits).to_vec();
        assert_eq!(owed(0), [20, 7, 30]);
        // One that only watches had room for one of them.
        assert_eq!(owed(1), [30, 7, 90]);
        assert_eq!(owed(2), [40, 7, 90]);
        assert_eq!(owed(5), [50, 7, 90], "who is refused finds what the granted ones left");
    }

    #[test]
    fn slots_are_those_of_redis() {
        // By `CLUSTER KEYSLOT`.
        for (key, expected) in [("{tower-quota:probe0}", 1_954), ("{a}:policy:1x1", 15_495), ("{123456789}", 12_739)] {
            assert_eq!(slot(key), expected, "{key}");
        }
    }

    #[test]
    fn a_probe_is_where_it_is_to_be() {
        let probe = Limit::probe("limits", |slot| slot == 9_999);
        assert_eq!(probe.slot(), 9_999);
        assert!(probe.key.starts_with("{limits:probe"));
    }

    #[test]
    fn what_was_not_drawn_is_not_put_back() {
        let limit = |key: &str, unit| Limit { key: key.to_owned(), unit, burst: 100, shadow: true };
        let limits = [limit("a", 10), limit("free", 0), limit("short", 60)];
        let settlement = Settlement::all_of(limits.iter().zip([20, 7, 50]), (7, 8)).unwrap();
        assert_eq!(settlement.parts[..], [Part { key: "a".to_owned(), returned: 10, charged: 0, burst: 100 }]);
        assert_eq!(Settlement::all_of(limits[1..].iter().zip([7, 50]), (7, 8)), None);
    }
}
