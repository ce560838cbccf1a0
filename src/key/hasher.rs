//! Contains [`KeyHasher`], the keyed hash that makes keys of values of any length.
//!
//! This file contains the secret of a limiter's keys. It must not know of requests.

use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    net::Ipv6Addr,
};

use siphasher::sip128::{Hasher128, SipHasher13, SipHasher24};

#[cfg(feature = "tracing")]
use super::dates::DateWatch;
use super::key::{Key, Kind, Network};
#[cfg(feature = "redis")]
use crate::quota::Quota;

/// The secret of a limiter's keys: SipHash-1-3 with 128 bits.
///
/// Without the secret it is not possible to compute a key, or to find two values that share one. A
/// type that implements [`IntoKey`](super::IntoKey) passes the hasher on to its parts.
#[derive(Clone)]
pub struct KeyHasher {
    keyed: SipHasher13,
    /// Where keys stay for long.
    #[cfg(feature = "tracing")]
    dates: Option<DateWatch>,
}

/// Shows nothing, because the content is a secret.
impl fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyHasher").finish_non_exhaustive()
    }
}

impl KeyHasher {
    pub(crate) fn random() -> Self {
        Self::of(SipHasher13::new_with_keys(entropy(), entropy()))
    }

    fn of(keyed: SipHasher13) -> Self {
        Self {
            keyed,
            #[cfg(feature = "tracing")]
            dates: None,
        }
    }

    /// Reports texts with dates, for the policies of these names.
    #[cfg(feature = "tracing")]
    pub(crate) fn watching_dates(self, policies: Option<String>) -> Self {
        Self { dates: policies.map(DateWatch::new), ..self }
    }

    /// A hasher under the secret of a deployment, of any length.
    pub(crate) fn with_secret(secret: &[u8]) -> Self {
        let hash = SipHasher24::new().hash(secret);
        Self::of(SipHasher13::new_with_keys(hash.h1, hash.h2))
    }

    /// The digest of a file. Only a holder of the secret can make it.
    pub(crate) fn checksum(&self, content: &[u8]) -> [u8; 16] {
        let mut hasher = self.keyed;
        hasher.write(&[FILE]);
        hasher.write(content);
        hasher.finish128().as_u128().to_le_bytes()
    }

    /// Spreads the keys without a place of their own over 64 bits: those of one network together,
    /// in the same way wherever the secret is the same.
    pub(crate) fn spread(&self, key: Key) -> u64 {
        let (kind, value) = match key.network() {
            None => (SPREAD, key.bits()),
            Some(Network::V4(network)) => (SPREAD_V4, network),
            Some(Network::V6(network)) => (SPREAD_V6, network),
        };
        let mut hasher = self.keyed;
        hasher.write(&[kind]);
        hasher.write(&value.to_le_bytes());
        hasher.finish()
    }

    /// The key of what is known of `key` under one quota.
    #[cfg(feature = "redis")]
    pub(crate) fn under_quota(&self, key: Key, quota: Quota) -> Key {
        let digest = self.digest(Kind::Composite, |hasher| {
            hasher.write_u128(key.bits());
            hasher.write_u64(quota.cell_nanos().get());
            hasher.write_u32(quota.burst_size());
        });
        match key.network() {
            Some(network) => within(network, digest),
            None => Key::exact(Kind::Composite, digest),
        }
    }

    /// The key in 104 bits, which do not reveal its value.
    #[cfg_attr(not(any(feature = "redis", feature = "tracing")), allow(dead_code, reason = "events may be off"))]
    pub(crate) fn opaque(&self, key: Key) -> u128 {
        key.principal().unwrap_or_else(|| self.digest(Kind::Principal, |hasher| hasher.write_u128(key.bits())))
    }

    pub(super) fn bytes(&self, bytes: &[u8]) -> Key {
        #[cfg(feature = "tracing")]
        if self.dates.is_some() {
            self.examine(bytes);
        }
        Key::exact(Kind::Bytes, self.digest(Kind::Bytes, |hasher| hasher.write(bytes)))
    }

    // Out of the way of keys that are gone soon.
    #[cfg(feature = "tracing")]
    #[cold]
    #[inline(never)]
    fn examine(&self, text: &[u8]) {
        if let Some(dates) = &self.dates {
            dates.examine(text);
        }
    }

    /// Contains the coarse network of the first part that has one, so that combinations with an
    /// address stay subject to the share of memory that one network may use.
    pub(super) fn composite(&self, parts: &[Key]) -> Key {
        // Parts have one length, so two lists of parts are never written alike.
        let digest =
            self.digest(Kind::Composite, |hasher| parts.iter().for_each(|part| hasher.write_u128(part.bits())));
        match parts.iter().find_map(|part| part.network()) {
            Some(network) => within(network, digest),
            None => Key::exact(Kind::Composite, digest),
        }
    }

    /// A whole address. Its 128 bits do not fit beside the kind, so the network stays exact and the
    /// whole address is hashed.
    pub(super) fn ipv6(&self, address: Ipv6Addr) -> Key {
        let digest = self.digest(Kind::WithIpv6, |hasher| hasher.write_u128(address.to_bits()));
        within(Network::V6(address.to_bits() >> (128 - 40)), digest)
    }

    /// 104 bits.
    fn digest(&self, kind: Kind, write: impl FnOnce(&mut SipHasher13)) -> u128 {
        let mut hasher = self.keyed;
        hasher.write_u8(kind as u8);
        write(&mut hasher);
        hasher.finish128().as_u128() >> 24
    }
}

/// What is hashed that is no key: the kinds of keys are smaller numbers.
const FILE: u8 = 255;
const SPREAD: u8 = 254;
const SPREAD_V4: u8 = 253;
const SPREAD_V6: u8 = 252;

fn within(network: Network, digest: u128) -> Key {
    let (kind, network) = match network {
        Network::V4(network) => (Kind::WithIpv4, network),
        Network::V6(network) => (Kind::WithIpv6, network),
    };
    Key::exact(kind, network << 64 | digest >> 40)
}

/// 64 bits that an outsider cannot know: the output of the standard library's randomly keyed
/// SipHash. Rejected: a crate for random numbers, whose tree would be the largest of this crate's.
pub(crate) fn entropy() -> u64 {
    RandomState::new().hash_one(0_u8)
}
