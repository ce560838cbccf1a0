//! Contains what is sent to the server, and its replies: the scripts, their arguments, and the
//! names of keys.
//!
//! This file must not know of connections.

use std::sync::{Arc, LazyLock};

use smallvec::SmallVec;

use crate::{
    bucket,
    clock::Nanos,
    key::{Key, KeyHasher},
    limiter::Demands,
    policy::Demand,
    quota::Quota,
};

/// Acquires the cells of requests: on the server's clock, in whole nanoseconds, in one round trip
/// for all buckets.
pub(super) static ACQUIRE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("bucket.lua"), include_str!("acquire.lua"))));
/// Refunds and charges after a request was allowed.
pub(super) static SETTLE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("bucket.lua"), include_str!("settle.lua"))));

/// A script of the server's.
pub(super) struct Script {
    pub(super) text: &'static str,
    /// By which the server knows it once it has run: its SHA-1.
    pub(super) name: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, name: sha1_smol::Sha1::from(text).digest().to_string() }
    }
}

/// What a request asks of one bucket in Redis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RedisDemand {
    pub(super) key: String,
    /// The backlog that one request adds.
    pub(super) cost: Nanos,
    /// The backlog of an exhausted bucket.
    pub(super) burst: Nanos,
    /// Whether the bucket denies nothing.
    pub(super) shadow: bool,
}

/// What a request asks of its buckets. Requests that ask the same can be asked for together.
pub(super) type RedisDemands = Arc<[RedisDemand]>;

/// What is asked for in one call: by the policies, and by the server.
#[derive(Clone)]
pub(super) struct CallGroup {
    pub(super) demands: Demands,
    pub(super) redis_demands: RedisDemands,
}

impl RedisDemand {
    pub(super) fn new(names: &KeyNames, hasher: &KeyHasher, policy: &str, demand: &Demand) -> Self {
        let Demand { key, quota, cells, shadow, .. } = *demand;
        Self { key: names.key(hasher, policy, key, quota), cost: quota.cost(cells), burst: quota.burst_nanos(), shadow }
    }

    /// A demand of no request, which tests whether the script runs. Each node of a cluster has one
    /// in a slot of its own, which is found by trying numbers.
    pub(super) fn probe(prefix: &str, has_slot: impl Fn(u16) -> bool) -> Self {
        let keys = (0_u32..).map(|number| format!("{{{prefix}:probe{number}}}"));
        let key = keys.take(1 << 20).find(|key| has_slot(slot(key))).unwrap_or_default();
        Self { key, cost: Nanos::new(1_000_000), burst: Nanos::new(2_000_000), shadow: true }
    }

    pub(super) fn slot(&self) -> u16 {
        slot(&self.key)
    }

    /// How many requests are left at this backlog. `None` where they cost nothing.
    pub(super) fn requests_left(&self, backlog: Nanos) -> Option<u64> {
        bucket::requests_left(self.burst, backlog, self.cost)
    }

    /// What a granted request has added to this backlog. A bucket in shadow mode may have had less
    /// left than the others, and then nothing was acquired from it.
    fn added(&self, backlog: Nanos) -> Nanos {
        if self.requests_left(backlog).is_some_and(|left| left > 0) { self.cost } else { Nanos::ZERO }
    }
}

/// The slot of a key, of a cluster's 16,384: that of the text in its first braces, which all our
/// keys have.
fn slot(key: &str) -> u16 {
    const CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);
    let tag = key.trim_start_matches('{').split('}').next().unwrap_or_default();
    CRC.checksum(tag.as_bytes()) % SLOTS
}

/// The number of a cluster's slots.
pub(super) const SLOTS: u16 = 16_384;

/// The names of buckets in Redis: `{prefix:principal}:policy:quota`.
///
/// The principal is a keyed hash in hexadecimal, so that no address and no API key is in a name,
/// and no client chooses a slot. All policies that count one principal are in one slot. The quota
/// is part of the name, because a backlog has no meaning under another quota: a change of quota
/// starts with a full burst.
pub(super) struct KeyNames {
    pub(super) prefix: String,
}

impl KeyNames {
    fn key(&self, hasher: &KeyHasher, policy: &str, key: Key, quota: Quota) -> String {
        let (principal, prefix) = (hasher.opaque(key), &self.prefix);
        let (cell, burst) = (quota.cell_nanos().get(), quota.burst_size());
        format!("{{{prefix}:{principal:032x}}}:{policy}:{cell:x}x{burst}")
    }
}

/// A time on the server's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerTime {
    /// Since 1970.
    pub(super) seconds: i64,
    pub(super) nanos: i64,
}

/// The backlog of each bucket of a call.
pub(super) type Backlogs = SmallVec<[Nanos; 4]>;

/// The reply of the acquiring script, for all requests of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// How many requests are granted. If none is, nothing was acquired.
    pub(super) granted: u32,
    pub(super) at: ServerTime,
    /// Before the call.
    pub(super) backlogs: Backlogs,
}

/// The server's answer to one request.
pub(super) struct Decided {
    pub(super) granted: bool,
    pub(super) at: ServerTime,
    /// Before the request.
    pub(super) backlogs: Backlogs,
}

impl Reply {
    /// `None` where these numbers are not the reply of the script.
    pub(super) fn read(numbers: &[i64], buckets: usize) -> Option<Self> {
        let [granted, seconds, nanos, backlogs @ ..] = numbers else { return None };
        if backlogs.len() != buckets {
            return None;
        }
        let backlogs =
            backlogs.iter().map(|nanos| u64::try_from(*nanos).ok().map(Nanos::new)).collect::<Option<_>>()?;
        let at = ServerTime { seconds: *seconds, nanos: *nanos };
        Some(Self { granted: u32::try_from(*granted).ok()?, at, backlogs })
    }

    /// The backlogs before the request at this index, of those that were asked for together.
    pub(super) fn backlogs_before(&self, index: u32, demands: &[RedisDemand]) -> Backlogs {
        let earlier = u64::from(index.min(self.granted));
        let backlogs = self.backlogs.iter().zip(demands).map(|(backlog, demand)| {
            let granted = demand.requests_left(*backlog).unwrap_or(0).min(earlier);
            backlog.saturating_add(demand.cost.saturating_mul(granted))
        });
        backlogs.collect()
    }

    /// The answer to the request at this index.
    pub(super) fn decided(&self, index: u32, demands: &[RedisDemand]) -> Decided {
        let backlogs = self.backlogs_before(index, demands);
        Decided { granted: index < self.granted, at: self.at, backlogs }
    }
}

/// What is to be refunded of acquired cells, or charged beyond them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settlement {
    /// When the cells were acquired: time has returned a part since.
    pub(super) at: ServerTime,
    pub(super) parts: SmallVec<[SettlementPart; 1]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SettlementPart {
    pub(super) key: String,
    pub(super) refund: Nanos,
    pub(super) charge: Nanos,
    /// The backlog of an exhausted bucket.
    pub(super) burst: Nanos,
}

impl Settlement {
    /// All its keys are in one.
    pub(super) fn slot(&self) -> u16 {
        self.parts.first().map_or(0, |part| slot(&part.key))
    }

    /// Refunds a granted request before which the backlogs were these. `None` where it has acquired
    /// nothing.
    pub(super) fn refund_all<'a>(
        demands: impl IntoIterator<Item = (&'a RedisDemand, Nanos)>,
        at: ServerTime,
    ) -> Option<Self> {
        let parts = demands.into_iter().map(|(demand, backlog)| SettlementPart {
            key: demand.key.clone(),
            refund: demand.added(backlog),
            charge: Nanos::ZERO,
            burst: demand.burst,
        });
        let parts: SmallVec<_> = parts.filter(|part| !part.refund.is_zero()).collect();
        (!parts.is_empty()).then_some(Self { at, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: ServerTime = ServerTime { seconds: 7, nanos: 8 };

    fn demand(key: &str, cost: u64, shadow: bool) -> RedisDemand {
        RedisDemand { key: key.to_owned(), cost: Nanos::new(cost), burst: Nanos::new(100), shadow }
    }

    fn nanos(backlogs: &[u64]) -> Backlogs {
        backlogs.iter().copied().map(Nanos::new).collect()
    }

    #[test]
    fn rds09_numbers_that_are_not_a_reply_of_the_script_are_none() {
        let read = |numbers: &[i64]| Reply::read(numbers, 2);
        let reply = |granted| Some(Reply { granted, at: AT, backlogs: nanos(&[5, 0]) });
        assert_eq!(read(&[1, 7, 8, 5, 0]), reply(1));
        assert_eq!(read(&[0, 7, 8, 5, 0]), reply(0));
        for wrong in [&[][..], &[1], &[1, 7, 8, 5], &[1, 7, 8, 5, 0, 0], &[-1, 7, 8, 5, 0], &[1, 7, 8, -5, 0]] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn requests_that_are_granted_together_follow_one_another() {
        let demands = [demand("a", 10, false), demand("b", 0, false), demand("c", 60, true)];
        let reply = Reply { granted: 3, at: AT, backlogs: nanos(&[20, 7, 30]) };
        let before = |index| reply.backlogs_before(index, &demands);
        assert_eq!(before(0), nanos(&[20, 7, 30]));
        // The bucket in shadow mode grants only one of them.
        assert_eq!(before(1), nanos(&[30, 7, 90]));
        assert_eq!(before(2), nanos(&[40, 7, 90]));
        assert_eq!(before(5), nanos(&[50, 7, 90]), "a denied request finds what the granted ones left");
    }

    #[test]
    fn slots_are_those_of_redis() {
        // By `CLUSTER KEYSLOT`.
        for (key, expected) in [("{tower-quota:probe0}", 1_954), ("{a}:policy:1x1", 15_495), ("{123456789}", 12_739)] {
            assert_eq!(slot(key), expected, "{key}");
        }
    }

    #[test]
    fn a_probe_is_in_a_slot_of_its_node() {
        let probe = RedisDemand::probe("limits", |slot| slot == 9_999);
        assert_eq!(probe.slot(), 9_999);
        assert!(probe.key.starts_with("{limits:probe"));
    }

    #[test]
    fn a_refund_returns_only_what_was_acquired() {
        let demands = [demand("a", 10, true), demand("free", 0, true), demand("short", 60, true)];
        let settlement = Settlement::refund_all(demands.iter().zip(nanos(&[20, 7, 50])), AT).unwrap();
        let refund = |key: &str, refund| SettlementPart {
            key: key.to_owned(),
            refund: Nanos::new(refund),
            charge: Nanos::ZERO,
            burst: Nanos::new(100),
        };
        assert_eq!(settlement.parts[..], [refund("a", 10)]);
        assert_eq!(Settlement::refund_all(demands[1..].iter().zip(nanos(&[7, 50])), AT), None);
    }
}
