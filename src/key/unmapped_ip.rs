//! Contains [`UnmappedIp`], an IP address in words.
//!
//! This file must not know where an address comes from, nor how much of it counts.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IP address, unmapped: IPv4 also where it came as an IPv4-mapped IPv6 address.
///
/// An [`IpAddr`] is a tag and bytes without alignment. Where it is passed on, it is written in
/// pieces and read as a whole, which stalls a processor. Words stay in registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnmappedIp {
    V4(u32),
    V6(u128),
}

impl From<IpAddr> for UnmappedIp {
    #[inline(always)]
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) => Self::V4(mapped.to_bits()),
                None => Self::V6(address.to_bits()),
            },
        }
    }
}

impl From<UnmappedIp> for IpAddr {
    #[inline(always)]
    fn from(address: UnmappedIp) -> Self {
        match address {
            UnmappedIp::V4(bits) => Ipv4Addr::from_bits(bits).into(),
            UnmappedIp::V6(bits) => Ipv6Addr::from_bits(bits).into(),
        }
    }
}

impl fmt::Debug for UnmappedIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}
