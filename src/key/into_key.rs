//! Contains [`IntoKey`]: which values make a key, and how.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    hasher::KeyHasher,
    key::{Key, Kind},
    unmapped_ip::UnmappedIp,
};

/// A value that a policy can count by.
///
/// Integers of up to 64 bits are stored exactly. Equal integers make equal keys, whatever their
/// types. Text, bytes and integers of 128 bits are hashed under the limiter's secret, and equal
/// bytes make equal keys, whatever their types. Tuples combine: two different tuples of one shape
/// never make one key.
///
/// An address counts as [`PeerIp`](super::PeerIp) counts it, wherever it comes from: an IPv6
/// address by its /64, because one client can choose among all addresses of such a network. The
/// port of a socket address does not count. To count whole addresses, say so:
/// `PeerIp.v6_prefix(128).network(address)`.
///
/// Implement the trait for a type of your own by the keys of its parts:
///
/// ```
/// use tower_quota::key::{IntoKey, Key, KeyHasher};
///
/// struct Account { tenant: u32, id: [u8; 16] }
///
/// impl IntoKey for Account {
///     fn key(&self, hasher: &KeyHasher) -> Key {
///         (self.tenant, self.id).key(hasher)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a `{Self}` does not make a key",
    note = "use an integer, an address, text, bytes, or a tuple of these; or implement `tower_quota::key::IntoKey`"
)]
pub trait IntoKey {
    /// Returns the key of this value, under a limiter's secret.
    fn key(&self, hasher: &KeyHasher) -> Key;
}

macro_rules! into_key {
    ($($type:ty: |$value:ident, $hasher:ident| $key:expr;)+) => {$(
        impl IntoKey for $type {
            #[inline]
            fn key(&self, $hasher: &KeyHasher) -> Key {
                let $value = self;
                $key
            }
        }
    )+};
}

into_key! {
    Key: |key, _hasher| *key;

    u8: |value, _hasher| unsigned(u64::from(*value));
    u16: |value, _hasher| unsigned(u64::from(*value));
    u32: |value, _hasher| unsigned(u64::from(*value));
    u64: |value, _hasher| unsigned(*value);
    usize: |value, _hasher| unsigned(*value as u64);
    u128: |value, hasher| hasher.bytes(&value.to_be_bytes());
    i8: |value, _hasher| signed(i64::from(*value));
    i16: |value, _hasher| signed(i64::from(*value));
    i32: |value, _hasher| signed(i64::from(*value));
    i64: |value, _hasher| signed(*value);
    isize: |value, _hasher| signed(*value as i64);

    IpAddr: |address, hasher| network((*address).into(), V4_PREFIX, V6_PREFIX, hasher);
    Ipv4Addr: |address, hasher| IpAddr::V4(*address).key(hasher);
    Ipv6Addr: |address, hasher| IpAddr::V6(*address).key(hasher);
    SocketAddr: |address, hasher| address.ip().key(hasher);
    SocketAddrV4: |address, hasher| address.ip().key(hasher);
    SocketAddrV6: |address, hasher| address.ip().key(hasher);

    [u8]: |bytes, hasher| hasher.bytes(bytes);
    str: |text, hasher| hasher.bytes(text.as_bytes());
    String: |text, hasher| hasher.bytes(text.as_bytes());
    Vec<u8>: |bytes, hasher| hasher.bytes(bytes);
    Bytes: |bytes, hasher| hasher.bytes(bytes);
}

impl<const N: usize> IntoKey for [u8; N] {
    #[inline]
    fn key(&self, hasher: &KeyHasher) -> Key {
        hasher.bytes(self)
    }
}

macro_rules! delegate_to_target {
    ($($pointer:ty),+) => {$(
        impl<T: IntoKey + ?Sized> IntoKey for $pointer {
            #[inline]
            fn key(&self, hasher: &KeyHasher) -> Key {
                (**self).key(hasher)
            }
        }
    )+};
}

delegate_to_target!(&T, Box<T>, Arc<T>);

impl<T: IntoKey + ToOwned + ?Sized> IntoKey for Cow<'_, T> {
    #[inline]
    fn key(&self, hasher: &KeyHasher) -> Key {
        (**self).key(hasher)
    }
}

/// Makes the key of a value that an extractor with fallbacks finds by its `nth` one: in
/// `a.or(b).or(c)`, `b` is fallback 1 and `c` is fallback 2.
///
/// ```
/// use std::{net::Ipv4Addr, time::Duration};
/// use tower_quota::{Limiter, Policy, Quota, key::{Header, PeerIp, fallback}};
///
/// let key = Header::new("x-api-key").or(PeerIp);
/// let limiter = Limiter::new(Policy::per(key, Quota::per_second(10)).named("per-client"));
/// // The client that comes without an API key from this address.
/// let client = fallback(1, PeerIp.network(Ipv4Addr::new(203, 0, 113, 7).into()));
/// limiter.block("per-client", client, Duration::from_secs(60)).unwrap();
/// ```
pub fn fallback<V: IntoKey>(nth: u32, value: V) -> Fallback<V> {
    Fallback { nth, value }
}

/// A value that was found by a fallback. Made by [`fallback`].
#[derive(Clone, Copy, Debug)]
pub struct Fallback<V> {
    nth: u32,
    value: V,
}

impl<V: IntoKey> IntoKey for Fallback<V> {
    fn key(&self, hasher: &KeyHasher) -> Key {
        hasher.composite(&[Key::fallback(self.nth), self.value.key(hasher)])
    }
}

macro_rules! tuple_into_key {
    ($($name:ident)+) => {
        impl<$($name: IntoKey),+> IntoKey for ($($name,)+) {
            fn key(&self, hasher: &KeyHasher) -> Key {
                #[allow(non_snake_case, reason = "the names of the types serve for the values")]
                let ($($name,)+) = self;
                hasher.composite(&[$($name.key(hasher)),+])
            }
        }
    };
}

tuple_into_key! { A B }
tuple_into_key! { A B C }
tuple_into_key! { A B C D }

#[inline]
fn unsigned(value: u64) -> Key {
    Key::exact(Kind::Unsigned, u128::from(value))
}

#[inline]
fn signed(value: i64) -> Key {
    match u64::try_from(value) {
        Ok(value) => unsigned(value),
        Err(_) => Key::exact(Kind::Negative, u128::from(value.unsigned_abs())),
    }
}

/// How many bits of an address count unless something else is said.
pub(super) const V4_PREFIX: u8 = 32;
pub(super) const V6_PREFIX: u8 = 64;

/// The network of `v4` or `v6` bits around an address.
///
/// IPv6 addresses that contain an IPv4 address are recognized by their bits, and that address is
/// taken out of them before anything is masked: masking first would put all of IPv4 into one
/// bucket.
#[inline(always)]
pub(super) fn network(address: UnmappedIp, v4: u8, v6: u8, hasher: &KeyHasher) -> Key {
    match address {
        UnmappedIp::V4(bits) => ipv4_prefix(Ipv4Addr::from_bits(bits), v4),
        UnmappedIp::V6(bits) => ipv6_network(Ipv6Addr::from_bits(bits), v4, v6, hasher),
    }
}

fn ipv6_network(address: Ipv6Addr, v4: u8, v6: u8, hasher: &KeyHasher) -> Key {
    match embedded_ipv4(address) {
        Some(embedded) => ipv4_prefix(embedded, v4),
        None if is_of_many_clients(address) => hasher.ipv6(address),
        None => ipv6_prefix(address, v6, hasher),
    }
}

/// Whether the /64 around the address is that of many: all hosts of a link, or, around the
/// loopback, other addresses.
#[inline(always)]
fn is_of_many_clients(address: Ipv6Addr) -> bool {
    address.is_unicast_link_local() || address.is_loopback()
}

/// Whether more counts of this address than its first 64 bits, whatever the prefix.
pub(super) fn counts_whole(address: Ipv6Addr) -> bool {
    is_of_many_clients(address) || embedded_ipv4(address).is_some()
}

/// The IPv4 address in a mapped one (`::ffff:0:0/96`), or in one that a translator has made of it
/// (NAT64, `64:ff9b::/96`, RFC 6052 §2.1).
#[inline(always)]
fn embedded_ipv4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    const MAPPED: u128 = 0xFFFF;
    const TRANSLATED: u128 = 0x0064_FF9B << 64;
    let bits = address.to_bits();
    #[allow(clippy::cast_possible_truncation, reason = "the last 32 bits")]
    matches!(bits >> 32, MAPPED | TRANSLATED).then(|| Ipv4Addr::from_bits(bits as u32))
}

/// An IPv4 prefix, exactly.
#[inline]
pub(super) fn ipv4_prefix(address: Ipv4Addr, length: u8) -> Key {
    let prefix = address.to_bits() & u32::MAX << (32 - u32::from(length));
    Key::exact(Kind::Ipv4, u128::from(prefix) << 8 | u128::from(length))
}

/// An IPv6 prefix, exactly if it has up to 96 bits.
pub(super) fn ipv6_prefix(address: Ipv6Addr, length: u8, hasher: &KeyHasher) -> Key {
    let prefix = address.to_bits() & u128::MAX << (128 - u32::from(length));
    if length <= 96 {
        Key::exact(Kind::Ipv6, prefix >> 32 << 8 | u128::from(length))
    } else {
        hasher.ipv6(Ipv6Addr::from_bits(prefix))
    }
}
