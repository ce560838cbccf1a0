//! [`IntoKey`]: which values make a key, and how.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use bytes::Bytes;

use super::{ClientNetwork, Fallback, Key, KeyHasher, Kind};

/// A value that a policy can count by.
///
/// Integers of up to 64 bits and IPv4 addresses are kept exactly (also where they are written as IPv4-mapped IPv6
/// addresses); of whole IPv6 addresses the first 40 bits are, and the rest is hashed. Text, bytes and integers of 128 bits
/// are hashed under the limiter's secret, and equal bytes make equal keys whatever holds them.
/// Tuples combine: no two different tuples of one shape are confused.
///
/// The methods are the crate's own; a type of yours returns one of these from [`key_fn`](super::key_fn), or makes a
/// [`Key`] with [`RequestHead::key`](super::RequestHead::key).
#[diagnostic::on_unimplemented(
    message = "a `{Self}` does not make a key",
    note = "return an integer, an address, text, bytes, or a tuple of these; or make a key with `head.key(...)`"
)]
pub trait IntoKey: sealed::Sealed {
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "sealed: nobody outside calls or implements it")]
    fn into_key(self, hasher: &KeyHasher) -> Key;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! into_key {
    ($($type:ty: |$value:ident, $hasher:ident| $key:expr;)+) => {$(
        impl sealed::Sealed for $type {}

        impl IntoKey for $type {
            #[allow(private_interfaces, reason = "sealed: nobody outside calls or implements it")]
            #[inline]
            fn into_key(self, $hasher: &KeyHasher) -> Key {
                let $value = self;
                $key
            }
        }
    )+};
}

into_key! {
    Key: |key, _hasher| key;
    ClientNetwork: |network, hasher| network.key(hasher);

    u8: |value, hasher| u64::from(value).into_key(hasher);
    u16: |value, hasher| u64::from(value).into_key(hasher);
    u32: |value, hasher| u64::from(value).into_key(hasher);
    u64: |value, _hasher| Key::exact(Kind::Unsigned, u128::from(value));
    usize: |value, hasher| (value as u64).into_key(hasher);
    u128: |value, hasher| hasher.bytes(&value.to_be_bytes());
    i8: |value, hasher| i64::from(value).into_key(hasher);
    i16: |value, hasher| i64::from(value).into_key(hasher);
    i32: |value, hasher| i64::from(value).into_key(hasher);
    i64: |value, _hasher| Key::exact(Kind::Signed, u128::from(u64::from_ne_bytes(value.to_ne_bytes())));

    IpAddr: |address, hasher| match address {
        IpAddr::V4(address) => address.into_key(hasher),
        IpAddr::V6(address) => address.into_key(hasher),
    };
    Ipv4Addr: |address, _hasher| ipv4_prefix(address, 32);
    Ipv6Addr: |address, hasher| match address.to_ipv4_mapped() {
        Some(mapped) => mapped.into_key(hasher),
        None => hasher.ipv6(address),
    };

    &[u8]: |bytes, hasher| hasher.bytes(bytes);
    &str: |text, hasher| hasher.bytes(text.as_bytes());
    &String: |text, hasher| hasher.bytes(text.as_bytes());
    String: |text, hasher| hasher.bytes(text.as_bytes());
    Cow<'_, str>: |text, hasher| hasher.bytes(text.as_bytes());
    Arc<str>: |text, hasher| hasher.bytes(text.as_bytes());
    Vec<u8>: |bytes, hasher| hasher.bytes(&bytes);
    Bytes: |bytes, hasher| hasher.bytes(&bytes);
}

impl<const N: usize> sealed::Sealed for [u8; N] {}

impl<const N: usize> IntoKey for [u8; N] {
    #[allow(private_interfaces, reason = "sealed: nobody outside calls or implements it")]
    fn into_key(self, hasher: &KeyHasher) -> Key {
        hasher.bytes(&self)
    }
}

impl<V: IntoKey> sealed::Sealed for Fallback<V> {}

impl<V: IntoKey> IntoKey for Fallback<V> {
    #[allow(private_interfaces, reason = "sealed: nobody outside calls or implements it")]
    fn into_key(self, hasher: &KeyHasher) -> Key {
        hasher.composite(&[Key::fallback(self.nth), self.value.into_key(hasher)])
    }
}

macro_rules! tuple_into_key {
    ($($name:ident)+) => {
        impl<$($name: IntoKey),+> sealed::Sealed for ($($name,)+) {}

        impl<$($name: IntoKey),+> IntoKey for ($($name,)+) {
            #[allow(private_interfaces, reason = "sealed: nobody outside calls or implements it")]
            fn into_key(self, hasher: &KeyHasher) -> Key {
                #[allow(non_snake_case, reason = "the names of the types serve for the values")]
                let ($($name,)+) = self;
                hasher.composite(&[$($name.into_key(hasher)),+])
            }
        }
    };
}

tuple_into_key! { A B }
tuple_into_key! { A B C }
tuple_into_key! { A B C D }

/// An IPv4 prefix, exactly.
#[inline]
pub(super) fn ipv4_prefix(address: Ipv4Addr, length: u8) -> Key {
    let kept = address.to_bits() & u32::MAX << (32 - u32::from(length));
    Key::exact(Kind::Ipv4, u128::from(kept) << 8 | u128::from(length))
}

/// An IPv6 prefix, exactly if it is one of up to 112 bits.
pub(super) fn ipv6_prefix(address: Ipv6Addr, length: u8, hasher: &KeyHasher) -> Key {
    let kept = address.to_bits() & u128::MAX << (128 - u32::from(length));
    if length <= 112 {
        Key::exact(Kind::Ipv6, kept >> 16 << 8 | u128::from(length))
    } else {
        hasher.ipv6(Ipv6Addr::from_bits(kept))
    }
}
