//! Contains keys from the address of the connection ([`PeerIp`] and [`PeerNetwork`]), and how much
//! of an address counts as one client.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use http::{Extensions, HeaderMap, StatusCode, header};

use super::{
    extractor::{KeyExtractor, Missing},
    forwarded::X_FORWARDED_FOR,
    hasher::KeyHasher,
    head::RequestHead,
    into_key::{self, IntoKey},
    key::Key,
};
use crate::observe::events;

/// Counts by the address of the connection's other end, whatever the request's header fields say.
///
/// Use it where clients connect directly. Behind a proxy every client has the proxy's address: use
/// [`ClientIp`](super::ClientIp) there.
///
/// An IPv4 address counts as it is, also where a dual-stack socket shows it as an IPv4-mapped IPv6
/// address. Of an IPv6 address the first 64 bits count, because one client can usually choose among
/// all addresses of such a network. For wider or narrower networks see
/// [`v6_prefix`](Self::v6_prefix).
///
/// The address is read from the request's extensions: a [`SocketAddr`] that the server put there;
/// with the feature `axum`, what `into_make_service_with_connect_info::<SocketAddr>()` puts there;
/// with the feature `tonic`, what its server puts there for TCP, with and without TLS. A request
/// without any of these is rejected with 500 and reported as an error, because no client can be
/// identified.
#[derive(Clone, Copy, Debug)]
pub struct PeerIp;

impl PeerIp {
    /// Counts IPv4 clients by this many bits of their address.
    ///
    /// # Panics
    ///
    /// If `bits` is not between 8 and 32.
    #[must_use]
    pub fn v4_prefix(self, bits: u8) -> PeerNetwork {
        PeerNetwork { prefixes: Prefixes::default().v4(bits) }
    }

    /// Counts IPv6 clients by this many bits of their address.
    ///
    /// Providers assign anything from /64 to /48 to one customer. A second, wider tier is a second
    /// policy:
    ///
    /// ```
    /// use tower_quota::{Policy, Quota, RateLimitLayer, key::PeerIp};
    ///
    /// let layer = RateLimitLayer::new([
    ///     Policy::per(PeerIp, Quota::per_second(10)),
    ///     Policy::per(PeerIp.v6_prefix(48), Quota::per_second(160)).named("per-site"),
    /// ]);
    /// ```
    ///
    /// # Panics
    ///
    /// If `bits` is not between 32 and 128.
    #[must_use]
    pub fn v6_prefix(self, bits: u8) -> PeerNetwork {
        PeerNetwork { prefixes: Prefixes::default().v6(bits) }
    }

    /// Returns the part of `address` that counts, to name a client to a limiter.
    #[must_use]
    pub fn network(self, address: IpAddr) -> ClientNetwork {
        Prefixes::default().network(address)
    }
}

or_method!(PeerIp; PeerNetwork);

impl KeyExtractor for PeerIp {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        Prefixes::default().of_peer(head)
    }

    fn name(&self) -> Cow<'static, str> {
        "ip".into()
    }

    fn remedy(&self, _head: RequestHead<'_>) -> &'static str {
        REMEDY
    }
}

/// Counts by a network around the address of the connection's other end. Made by
/// [`PeerIp::v4_prefix`] and [`PeerIp::v6_prefix`].
#[derive(Clone, Copy, Debug)]
pub struct PeerNetwork {
    prefixes: Prefixes,
}

impl PeerNetwork {
    /// Counts IPv4 clients by this many bits. See [`PeerIp::v4_prefix`].
    ///
    /// # Panics
    ///
    /// If `bits` is not between 8 and 32.
    #[must_use]
    pub fn v4_prefix(self, bits: u8) -> Self {
        Self { prefixes: self.prefixes.v4(bits) }
    }

    /// Counts IPv6 clients by this many bits. See [`PeerIp::v6_prefix`].
    ///
    /// # Panics
    ///
    /// If `bits` is not between 32 and 128.
    #[must_use]
    pub fn v6_prefix(self, bits: u8) -> Self {
        Self { prefixes: self.prefixes.v6(bits) }
    }

    /// Returns the part of `address` that counts, to name a client to a limiter.
    #[must_use]
    pub fn network(self, address: IpAddr) -> ClientNetwork {
        self.prefixes.network(address)
    }
}

impl KeyExtractor for PeerNetwork {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        self.prefixes.of_peer(head)
    }

    fn name(&self) -> Cow<'static, str> {
        "network".into()
    }

    fn remedy(&self, _head: RequestHead<'_>) -> &'static str {
        REMEDY
    }
}

/// The address of the connection's other end, unmapped.
///
/// # Errors
///
/// When the server does not provide it.
#[inline(always)]
pub(super) fn peer(extensions: &Extensions) -> Result<IpAddr, Missing> {
    let plain = extensions.get::<SocketAddr>().copied();
    // Read last: a feature may find an address where there was none, and never another one.
    #[cfg(feature = "axum")]
    let plain = plain.or_else(|| {
        use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
        let served = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        served.or_else(|| extensions.get::<MockConnectInfo<SocketAddr>>().map(|info| info.0))
    });
    #[cfg(feature = "tonic")]
    let plain = plain.or_else(|| extensions.get::<tonic::transport::server::TcpConnectInfo>()?.remote_addr());
    plain.map(|address| address.ip().to_canonical()).ok_or(Missing::Reject(StatusCode::INTERNAL_SERVER_ERROR))
}

pub(super) const REMEDY: &str = "serve with `into_make_service_with_connect_info::<SocketAddr>()` (axum), \
                                 or insert the peer's `SocketAddr` into the request's extensions";

/// Whether a proxy seems to have added its client's address.
pub(super) fn names_a_client(headers: &HeaderMap) -> bool {
    headers.contains_key(&X_FORWARDED_FOR) || headers.contains_key(header::FORWARDED)
}

/// Whether an address is one that a proxy in the same network has.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            // The shared addresses of RFC 6598, 100.64.0.0/10.
            let shared = address.to_bits() >> 22 == Ipv4Addr::new(100, 64, 0, 0).to_bits() >> 22;
            address.is_private() || address.is_loopback() || address.is_link_local() || shared
        }
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

/// How much of an address counts as one client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefixes {
    v4: u8,
    v6: u8,
}

impl Default for Prefixes {
    #[inline]
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

impl Prefixes {
    pub(super) fn v4(self, bits: u8) -> Self {
        assert!((8..=32).contains(&bits), "an IPv4 client is counted by 8 to 32 bits of its address, not by {bits}");
        Self { v4: bits, ..self }
    }

    pub(super) fn v6(self, bits: u8) -> Self {
        assert!(
            (32..=128).contains(&bits),
            "an IPv6 client is counted by 32 to 128 bits of its address, not by {bits}"
        );
        Self { v6: bits, ..self }
    }

    #[inline]
    pub(super) fn network(self, address: IpAddr) -> ClientNetwork {
        ClientNetwork { address, prefixes: self }
    }

    #[inline(always)]
    fn of_peer(self, head: RequestHead<'_>) -> Result<Key, Missing> {
        let peer = peer(head.extensions())?;
        events::ignored_forwarding(|| is_private(peer), || names_a_client(head.headers()));
        Ok(head.key(self.network(peer)))
    }
}

/// The part of an address that counts as one client. Made by [`PeerIp::network`] and
/// [`ClientIp::network`](super::ClientIp::network).
#[derive(Clone, Copy, Debug)]
pub struct ClientNetwork {
    address: IpAddr,
    prefixes: Prefixes,
}

impl IntoKey for ClientNetwork {
    /// IPv4-mapped addresses are recognized by their bits and unmapped before they are masked:
    /// masking first would put all of IPv4 into one bucket.
    #[inline(always)]
    fn key(&self, hasher: &KeyHasher) -> Key {
        let Prefixes { v4, v6 } = self.prefixes;
        match self.address {
            IpAddr::V4(address) => into_key::ipv4_prefix(address, v4),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) => into_key::ipv4_prefix(mapped, v4),
                // The whole address, because its /64 contains addresses that are not the loopback.
                None if address.is_loopback() => hasher.ipv6(address),
                None => into_key::ipv6_prefix(address, v6, hasher),
            },
        }
    }
}
