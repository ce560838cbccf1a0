//! Keys from addresses: [`PeerIp`], and what of an address counts as one client.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use http::{Extensions, StatusCode};

use super::{Key, KeyExtractor, Missing, Or, RequestHead, into_key::ipv6_prefix};

/// Counts by the address of the connection's other end, whatever the request's header fields say.
///
/// The right choice where clients connect directly; behind a proxy every client has the proxy's address.
///
/// An IPv4 address counts as it is, also where a dual-stack socket shows it as an IPv4-mapped IPv6 address. Of an IPv6
/// address the first 64 bits count, for a client is handed at least that many to choose from.
///
/// The address is taken from the request's extensions: a [`SocketAddr`] that the server put there, or with the feature
/// `axum` what `into_make_service_with_connect_info::<SocketAddr>()` puts there. A request without either is answered
/// 500 and reported as an error, because then nobody can be told from anybody.
#[derive(Clone, Copy, Debug)]
pub struct PeerIp;

impl PeerIp {
    /// This key, or `other` where the request has none. See [`KeyExtractor::or`].
    #[must_use]
    pub fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K> {
        KeyExtractor::or(self, other)
    }
}

impl KeyExtractor for PeerIp {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        match peer(head.extensions()) {
            Some(address) => Ok(client(head, address.ip())),
            None => Err(Missing::Reject(StatusCode::INTERNAL_SERVER_ERROR)),
        }
    }

    fn name(&self) -> Cow<'static, str> {
        "ip".into()
    }

    fn remedy(&self) -> &'static str {
        "serve with `into_make_service_with_connect_info::<SocketAddr>()`, \
         or insert the peer's `SocketAddr` into the request's extensions"
    }
}

fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    let plain = extensions.get::<SocketAddr>().copied();
    // Consulted last: the feature may find an address where there was none, never another one.
    #[cfg(feature = "axum")]
    let plain = plain.or_else(|| {
        use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
        let served = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        served.or_else(|| extensions.get::<MockConnectInfo<SocketAddr>>().map(|info| info.0))
    });
    plain
}

/// What of an address counts as one client. IPv4-mapped addresses are told by their bits and unmapped before anything is
/// masked: masking first would put all of IPv4 into one bucket.
fn client(head: RequestHead<'_>, address: IpAddr) -> Key {
    match address.to_canonical() {
        // Whole: `::/64` holds addresses that are not the loopback.
        IpAddr::V6(Ipv6Addr::LOCALHOST) => head.key(Ipv6Addr::LOCALHOST),
        IpAddr::V4(address) => head.key(address),
        IpAddr::V6(address) => ipv6_prefix(address, 64),
    }
}
