//! Keys from the address of the connection: [`PeerIp`] and [`PeerNetwork`]; and what of an address counts as one client.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use http::{Extensions, HeaderMap, StatusCode, header};

use super::{Key, KeyExtractor, KeyHasher, Missing, Or, RequestHead, forwarded::X_FORWARDED_FOR, into_key};
use crate::observe;

/// Counts by the address of the connection's other end, whatever the request's header fields say.
///
/// The right choice where clients connect directly; behind a proxy every client has the proxy's address, and
/// [`ClientIp`](super::ClientIp) is.
///
/// An IPv4 address counts as it is, also where a dual-stack socket shows it as an IPv4-mapped IPv6 address. Of an IPv6
/// address the first 64 bits count, for a client is handed at least that many to choose from. For wider or narrower
/// networks see [`v6_prefix`](Self::v6_prefix).
///
/// The address is taken from the request's extensions: a [`SocketAddr`] that the server put there, or with the feature
/// `axum` what `into_make_service_with_connect_info::<SocketAddr>()` puts there, or with the feature `tonic` what its
/// server puts there for TCP, with TLS and without. A request without any is answered
/// 500 and reported as an error, because then nobody can be told from anybody.
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
    /// Providers hand out anything from /64 to /48. A second, wider tier is a second policy:
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

    /// What of `address` counts, for [`Limiter::key_of`](crate::Limiter::key_of).
    #[must_use]
    pub fn network(self, address: IpAddr) -> ClientNetwork {
        Prefixes::default().network(address)
    }

    /// This key, or `other` where the request has none. See [`KeyExtractor::or`].
    #[must_use]
    pub fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K> {
        KeyExtractor::or(self, other)
    }
}

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

/// Counts by a network around the address of the connection's other end. Made by [`PeerIp::v4_prefix`] and
/// [`PeerIp::v6_prefix`].
#[derive(Clone, Copy, Debug)]
pub struct PeerNetwork {
    prefixes: Prefixes,
}

impl PeerNetwork {
    /// See [`PeerIp::v4_prefix`].
    ///
    /// # Panics
    ///
    /// If `bits` is not between 8 and 32.
    #[must_use]
    pub fn v4_prefix(self, bits: u8) -> Self {
        Self { prefixes: self.prefixes.v4(bits) }
    }

    /// See [`PeerIp::v6_prefix`].
    ///
    /// # Panics
    ///
    /// If `bits` is not between 32 and 128.
    #[must_use]
    pub fn v6_prefix(self, bits: u8) -> Self {
        Self { prefixes: self.prefixes.v6(bits) }
    }

    /// What of `address` counts, for [`Limiter::key_of`](crate::Limiter::key_of).
    #[must_use]
    pub fn network(self, address: IpAddr) -> ClientNetwork {
        self.prefixes.network(address)
    }

    /// This key, or `other` where the request has none. See [`KeyExtractor::or`].
    #[must_use]
    pub fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K> {
        KeyExtractor::or(self, other)
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
/// When the server was not set up to tell.
#[inline]
pub(super) fn peer(extensions: &Extensions) -> Result<IpAddr, Missing> {
    let plain = extensions.get::<SocketAddr>().copied();
    // Consulted last: the feature may find an address where there was none, never another one.
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

/// Whether a proxy seems to have told whom it speaks for.
pub(super) fn names_a_client(headers: &HeaderMap) -> bool {
    headers.contains_key(&X_FORWARDED_FOR) || headers.contains_key(header::FORWARDED)
}

/// Whether an address is of the kind that proxies of one's own have.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            // And the shared addresses of RFC 6598, 100.64.0.0/10.
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
        assert!((8..=32).contains(&bits), "an IPv4 client is told by 8 to 32 bits of its address, not by {bits}");
        Self { v4: bits, ..self }
    }

    pub(super) fn v6(self, bits: u8) -> Self {
        assert!((32..=128).contains(&bits), "an IPv6 client is told by 32 to 128 bits of its address, not by {bits}");
        Self { v6: bits, ..self }
    }

    #[inline]
    pub(super) fn network(self, address: IpAddr) -> ClientNetwork {
        ClientNetwork { address, prefixes: self }
    }

    #[inline]
    fn of_peer(self, head: RequestHead<'_>) -> Result<Key, Missing> {
        let peer = peer(head.extensions())?;
        observe::unread_address(|| is_private(peer), || names_a_client(head.headers()));
        Ok(head.key(self.network(peer)))
    }
}

/// What of an address counts as one client: a key for [`Limiter::key_of`](crate::Limiter::key_of). Made by
/// [`PeerIp::network`] and [`ClientIp::network`](super::ClientIp::network).
#[derive(Clone, Copy, Debug)]
pub struct ClientNetwork {
    address: IpAddr,
    prefixes: Prefixes,
}

impl ClientNetwork {
    /// IPv4-mapped addresses are told by their bits and unmapped before anything is masked: masking first would put all
    /// of IPv4 into one bucket.
    #[inline]
    pub(super) fn key(self, hasher: &KeyHasher) -> Key {
        let Prefixes { v4, v6 } = self.prefixes;
        match self.address {
            IpAddr::V4(address) => into_key::ipv4_prefix(address, v4),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) => into_key::ipv4_prefix(mapped, v4),
                // Whole: its /64 holds addresses that are not the loopback.
                None if address.is_loopback() => hasher.ipv6(address),
                None => into_key::ipv6_prefix(address, v6, hasher),
            },
        }
    }
}
