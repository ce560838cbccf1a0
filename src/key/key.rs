//! Contains [`Key`], what a policy counts by, in 14 bytes of content.
//!
//! This file must not know where a key comes from.

use std::{
    error, fmt,
    hash::{Hash, Hasher as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// What a policy counts by, in 16 bytes.
///
/// IPv4 addresses, IPv6 prefixes of up to 96 bits and integers of up to 64 bits are stored exactly.
/// Anything else (strings, header values, combinations, whole IPv6 addresses) is stored as a
/// SipHash under a secret that is random for each limiter. So a flood of long header values cannot
/// grow memory, no API key is stored, and an outsider cannot compute which values share a bucket.
///
/// Values of different kinds never share a bucket: user `5` is not address `::5`, and
/// `("a:b", "c")` is not `("a", "b:c")`.
///
/// A key is valid only for the limiter that made it. `Debug` shows the kind and nothing of the
/// value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    // Two words, because a key must be computed in registers: loads of a key that was written byte
    // by byte stall. The upper 16 bits are zero. A map leaves them out, so that a key with its
    // bucket and the number of a quota takes 24 bytes there.
    low: u64,
    high: u64,
}

impl Key {
    /// The only key of a policy that counts all requests together.
    pub const GLOBAL: Self = Self::exact(Kind::Global, 0);

    /// The only key of requests without a key, where their policy uses
    /// [`Missing::Share`](super::Missing::Share).
    pub(crate) const SHARED: Self = Self::exact(Kind::Shared, 0);

    /// The only key of requests that name several principals where one is expected (a header field
    /// sent twice).
    pub(crate) const AMBIGUOUS: Self = Self::exact(Kind::Ambiguous, 0);

    /// The key of which only the opaque form is known.
    #[cfg(feature = "redis")]
    pub(crate) fn of_principal(opaque: u128) -> Self {
        Self::exact(Kind::Principal, opaque)
    }

    /// The opaque form, if the key is known by nothing else.
    #[cfg_attr(not(any(feature = "redis", feature = "tracing")), allow(dead_code, reason = "events may be off"))]
    pub(super) fn principal(self) -> Option<u128> {
        (self.kind() == Kind::Principal as u8).then_some(self.bits() >> 8)
    }

    /// Distinguishes the keys of a fallback ([`KeyExtractor::or`](super::KeyExtractor::or)) from
    /// those of the first choice and of other fallbacks.
    pub(super) const fn fallback(nth: u32) -> Self {
        Self::exact(Kind::Fallback, nth as u128)
    }

    /// `kind`, and a value of up to 104 bits exactly as given.
    #[allow(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
    pub(super) const fn exact(kind: Kind, value: u128) -> Self {
        debug_assert!(value >> 104 == 0);
        let bits = value << 8 | kind as u128;
        Self { low: bits as u64, high: (bits >> 64) as u64 }
    }

    /// Spreads the key evenly over 64 bits, in the same way in every process. This selects a share
    /// of the keys. It does not stop anybody from choosing a key.
    pub(crate) fn spread(self) -> u64 {
        let mut hasher = siphasher::sip::SipHasher13::new();
        hasher.write_u128(self.bits());
        hasher.finish()
    }

    /// Returns the IPv4 address, or the first address of the network, that this key is. Returns
    /// `None` for a key that is no address, and for whole IPv6 addresses, which are hashed.
    #[must_use]
    pub fn address(self) -> Option<IpAddr> {
        const V4: u8 = Kind::Ipv4 as u8;
        const V6: u8 = Kind::Ipv6 as u8;
        let value = self.bits() >> 16;
        match self.kind() {
            V4 => u32::try_from(value).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
            V6 => Some(Ipv6Addr::from_bits(value << 32).into()),
            _ => None,
        }
    }

    pub(super) fn bits(self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }

    /// Selects one of `len` things, evenly over the keys. `len` is a power of two up to 256.
    #[inline(always)]
    pub(crate) fn select(self, len: usize) -> usize {
        let mixed = (self.low ^ self.high).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        usize::from(mixed.to_be_bytes()[0]) & (len - 1)
    }

    /// The key in two words. The upper 16 bits of the second are zero.
    #[inline(always)]
    pub(crate) fn to_words(self) -> [u64; 2] {
        [self.low, self.high]
    }

    /// The key that [`to_words`](Self::to_words) took apart.
    #[inline(always)]
    pub(crate) fn from_words([low, high]: [u64; 2]) -> Self {
        Self { low, high }
    }

    fn kind(self) -> u8 {
        self.low.to_le_bytes()[0]
    }

    /// The coarse network (IPv4 /16, IPv6 /40) of the address that this key is or contains.
    pub(crate) fn network(self) -> Option<Network> {
        const V4: u8 = Kind::Ipv4 as u8;
        const V6: u8 = Kind::Ipv6 as u8;
        const WITH_V4: u8 = Kind::WithIpv4 as u8;
        const WITH_V6: u8 = Kind::WithIpv6 as u8;
        let value = self.bits() >> 8;
        match self.kind() {
            // The length of the prefix is below the address.
            V4 => Some(Network::V4(value >> (8 + 16))),
            WITH_V4 => Some(Network::V4(value >> 64)),
            // The first 40 bits of 104, in both.
            V6 | WITH_V6 => Some(Network::V6(value >> 64)),
            _ => None,
        }
    }
}

/// A coarse network: the first 16 bits of an IPv4 address, or the first 40 bits of an IPv6 address.
#[derive(Clone, Copy, Hash)]
pub(crate) enum Network {
    V4(u128),
    V6(u128),
}

impl Hash for Key {
    /// Writes one word, so that a map's hasher takes one step.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u128(self.bits());
    }
}

/// Writes 32 hexadecimal digits, which [`FromStr`] reads: to show a key to an operator, and to give
/// it back to the limiter that made it. An address is readable in them; anything else is a hash.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.bits())
    }
}

/// Error returned when parsing a [`Key`] fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseKeyError;

impl fmt::Display for ParseKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid key: expected 32 hexadecimal digits, as `Key` displays itself")
    }
}

impl error::Error for ParseKeyError {}

impl FromStr for Key {
    type Err = ParseKeyError;

    #[allow(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        // `from_str_radix` would also accept a sign.
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseKeyError);
        }
        let bits = u128::from_str_radix(text, 16).map_err(|_| ParseKeyError)?;
        if bits >> 112 != 0 {
            return Err(ParseKeyError);
        }
        Ok(Self { low: bits as u64, high: (bits >> 64) as u64 })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KINDS.into_iter().find(|kind| *kind as u8 == self.kind()) {
            Some(kind) => write!(f, "Key({kind:?})"),
            None => f.write_str("Key"),
        }
    }
}

/// The first byte of a key, which separates values of different kinds.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Global,
    Shared,
    Ambiguous,
    Fallback,
    /// 64 bits.
    Unsigned,
    /// 64 bits: the negative integers.
    Negative,
    /// The address, then 8 bits for the length of the prefix.
    Ipv4,
    /// The first 96 bits of the address, then 8 bits for the length of the prefix.
    Ipv6,
    /// 104 bits of hash.
    Bytes,
    /// 104 bits of hash.
    Composite,
    /// 40 bits for the network, of which 16 are used, then 64 bits of hash.
    WithIpv4,
    /// 40 bits of network, then 64 bits of hash.
    WithIpv6,
    /// 104 bits of hash of another key.
    Principal,
}

const KINDS: [Kind; 13] = [
    Kind::Global,
    Kind::Shared,
    Kind::Ambiguous,
    Kind::Fallback,
    Kind::Unsigned,
    Kind::Negative,
    Kind::Ipv4,
    Kind::Ipv6,
    Kind::Bytes,
    Kind::Composite,
    Kind::WithIpv4,
    Kind::WithIpv6,
    Kind::Principal,
];
