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
    unmapped_ip::UnmappedIp,
};
use crate::observe::suspicions::{self, Forwarding};

/// Counts by the address of the connection's other end, whatever the request's header fields say.
///
/// Use it where clients connect directly. Behind a proxy every client has the proxy's address: use
/// [`ClientIp`](super::ClientIp) there.
///
/// An IPv4 address counts as it is, also where a dual-stack socket shows it as an IPv4-mapped IPv6
/// address. Of an IPv6 address the first 64 bits count, because one client can usually choose among
/// all addresses of such a network. For wider or narrower networks see
/// [`v6_prefix`](Self::v6_prefix). Some networks are not one client's:
///
/// | IPv6 address | what counts |
/// |---|---|
/// | IPv4-mapped, `::ffff:0:0/96` | the IPv4 address inside |
/// | translated from IPv4 (NAT64), `64:ff9b::/96` (RFC 6052 §2.1) | the IPv4 address inside |
/// | link-local, `fe80::/10`, and the loopback | the whole address |
/// | 6to4, `2002::/16`, and Teredo, `2001::/32` | the first 64 bits, as of any other |
///
/// A site with 6to4 has a /48, as many others do: see the second tier at
/// [`v6_prefix`](Self::v6_prefix). All clients of one Teredo server share a /64; Teredo is no
/// longer in use.
///
/// # Where the address comes from
///
/// From the request's extensions. The first of these counts:
///
/// 1. [`PeerAddr`], which your own code puts there: a server without connect info, or one that
///    reads the PROXY protocol;
/// 2. with the feature `axum`, what `into_make_service_with_connect_info::<SocketAddr>()` puts
///    there, or `MockConnectInfo`;
/// 3. with the feature `tonic`, what its server puts there for TCP, with and without TLS;
/// 4. a bare [`SocketAddr`]. Prefer [`PeerAddr`]: a bare address may mean something else.
///
/// A request without any of these is rejected with 500 and reported as an error, because no client
/// can be identified. A connection over a Unix socket has no address: see
/// [`ClientIp::behind`](super::ClientIp::behind).
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
    /// With 128 the whole address counts.
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
        Prefixes::default().network(address.into())
    }
}

or_method!(PeerIp; PeerNetwork);

impl KeyExtractor for PeerIp {
    #[inline(always)]
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
        self.prefixes.network(address.into())
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

/// The address of the connection's other end, as an application tells it. Insert it into the
/// request's extensions where the server does not provide the address, or where another one is
/// accurate, for example that of the PROXY protocol. It takes precedence over what a server
/// provides.
///
/// It is a type of its own, because a bare [`SocketAddr`] in the extensions may be any address:
/// that of a database, or the server's own.
///
/// ```
/// use std::net::SocketAddr;
/// use tower_quota::key::PeerAddr;
///
/// # let (stream_peer, mut request): (SocketAddr, _) = (([203, 0, 113, 7], 4711).into(), http::Request::new(()));
/// request.extensions_mut().insert(PeerAddr(stream_peer));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

impl From<SocketAddr> for PeerAddr {
    fn from(address: SocketAddr) -> Self {
        Self(address)
    }
}

/// The address of the connection's other end, unmapped. `None` when the server does not provide it.
#[inline(always)]
pub(crate) fn peer(extensions: &Extensions) -> Option<UnmappedIp> {
    match extensions.get::<PeerAddr>() {
        Some(address) => Some(address.0.ip().into()),
        None => served_peer(extensions),
    }
}

/// What a server provides.
#[inline(always)]
fn served_peer(extensions: &Extensions) -> Option<UnmappedIp> {
    #[cfg(feature = "axum")]
    if let Some(info) = extensions.get::<axum::extract::ConnectInfo<SocketAddr>>() {
        return Some(info.0.ip().into());
    }
    rarely_served_peer(extensions)
}

#[inline(never)]
fn rarely_served_peer(extensions: &Extensions) -> Option<UnmappedIp> {
    #[cfg(feature = "axum")]
    {
        use axum::extract::connect_info::MockConnectInfo;
        if let Some(info) = extensions.get::<MockConnectInfo<SocketAddr>>() {
            return Some(info.0.ip().into());
        }
    }
    #[cfg(feature = "tonic")]
    {
        use tonic::transport::server::TcpConnectInfo;
        if let Some(address) = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr) {
            return Some(address.ip().into());
        }
    }
    // Last, because it may be another address than the peer's.
    extensions.get::<SocketAddr>().map(|address| address.ip().into())
}

/// A connection whose other end is unknown.
pub(super) const NO_PEER: Missing = Missing::Reject(StatusCode::INTERNAL_SERVER_ERROR);

#[cfg(feature = "axum")]
pub(super) const REMEDY: &str = "over TCP, serve with `into_make_service_with_connect_info::<SocketAddr>()` (axum), \
                                 or insert a `tower_quota::key::PeerAddr` into the request's extensions; \
                                 behind a proxy on a Unix socket, count by `ClientIp::behind([\"unix:\"])`";
#[cfg(not(feature = "axum"))]
pub(super) const REMEDY: &str = "with axum, enable the feature `axum` of `tower-quota`, and serve over TCP with \
                                 `into_make_service_with_connect_info::<SocketAddr>()`; otherwise insert a \
                                 `tower_quota::key::PeerAddr` into the request's extensions; behind a proxy on a Unix \
                                 socket, count by `ClientIp::behind([\"unix:\"])`";

/// What a request from `peer`, whose header fields are ignored, shows of proxies.
#[cold]
pub(super) fn examine_peer(peer: UnmappedIp, headers: &HeaderMap) -> Forwarding {
    let Some(field) = headers.get(&X_FORWARDED_FOR).or_else(|| headers.get(header::FORWARDED)) else {
        return Forwarding::Plain;
    };
    let peer = peer.into();
    if is_private(peer) {
        Forwarding::IgnoredPrivate
    } else {
        Forwarding::Ignored { address: peer, value: suspicions::value_of(field.as_bytes()) }
    }
}

/// Whether an address is one that a proxy in the same network has.
fn is_private(address: IpAddr) -> bool {
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
        Self { v4: into_key::V4_PREFIX, v6: into_key::V6_PREFIX }
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

    pub(super) fn v6_bits(self) -> u8 {
        self.v6
    }

    #[inline]
    pub(super) fn network(self, address: UnmappedIp) -> ClientNetwork {
        ClientNetwork { address, prefixes: self }
    }

    #[inline(always)]
    fn of_peer(self, head: RequestHead<'_>) -> Result<Key, Missing> {
        let peer = peer(head.extensions()).ok_or(NO_PEER)?;
        suspicions::forwarding(|| examine_peer(peer, head.headers()));
        Ok(head.key(self.network(peer)))
    }
}

/// The part of an address that counts as one client. Made by [`PeerIp::network`] and
/// [`ClientIp::network`](super::ClientIp::network).
#[derive(Clone, Copy, Debug)]
pub struct ClientNetwork {
    address: UnmappedIp,
    prefixes: Prefixes,
}

impl IntoKey for ClientNetwork {
    #[inline(always)]
    fn key(&self, hasher: &KeyHasher) -> Key {
        let Prefixes { v4, v6 } = self.prefixes;
        into_key::network(self.address, v4, v6, hasher)
    }
}
