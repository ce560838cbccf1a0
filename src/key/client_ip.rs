//! Keys from the address of the client behind proxies: [`ClientIp`].

use std::{
    borrow::Cow,
    error, fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use http::{HeaderMap, HeaderName, StatusCode};
use ipnet::IpNet;

use super::{
    Key, KeyExtractor, Missing, Or, RequestHead,
    forwarded::{self, Entry, MOST_ENTRIES},
    ip::{self, ClientNetwork, Prefixes},
};
use crate::observe;

/// Counts by the address of the client behind proxies that you trust.
///
/// Which ones is spelled out; there is no default, and no way to trust everyone. One header field is read and all others
/// are ignored, for a client can send what a proxy does not overwrite.
///
/// | constructor | use it when | the client is |
/// |---|---|---|
/// | [`behind`](Self::behind) | you know your proxies' addresses | the first address from the right that is no proxy of yours |
/// | [`behind`](Self::behind)`.`[`header`](Self::header) | the edge overwrites a field of its own | what the field says, if the connection comes from the edge |
/// | [`hops`](Self::hops) | the addresses change, the number does not, and nobody else can connect | the `n`th entry from the right |
///
/// # What is believed
///
/// A list is read from the right, where proxies append, at most 32 entries and no further than needed. All lines of the
/// field are one list. The walk stops at the first address that is not trusted: what is left of it is the client's own
/// writing. It also stops at an entry that cannot be read (`unknown`, an obfuscated identifier, junk): then the key is the
/// address of the last proxy that could be believed, never something further left.
///
/// Addresses may have ports and zones, which are ignored. What counts of an address is as with
/// [`PeerIp`](super::PeerIp).
///
/// ```
/// use tower_quota::{Policy, Quota, key::ClientIp};
///
/// let nginx = Policy::per(ClientIp::behind(["10.0.0.0/8", "fd00::/8"])?, Quota::per_second(10));
/// let rfc7239 = Policy::per(ClientIp::behind(["10.0.0.0/8"])?.forwarded(), Quota::per_second(10));
/// let edge = Policy::per(ClientIp::behind(["203.0.113.0/24"])?.header("cf-connecting-ip"), Quota::per_second(10));
/// let one_proxy = Policy::per(ClientIp::hops(1), Quota::per_second(10));
/// # Ok::<(), tower_quota::key::TrustError>(())
/// ```
///
/// # Deployment caveat
///
/// A count of hops breaks in silence when the topology changes: a proxy more, and every client has a proxy's address; a
/// proxy less, or a way around it, and clients choose their own. Prefer addresses.
#[derive(Clone, Debug)]
pub struct ClientIp {
    trust: Trust,
    field: Field,
    prefixes: Prefixes,
}

#[derive(Clone, Debug)]
enum Trust {
    Hops(usize),
    Proxies(Arc<[Proxies]>),
}

#[derive(Clone, Debug)]
enum Field {
    Forwarded,
    Single(HeaderName),
    XForwardedFor,
}

impl ClientIp {
    /// Trusts the proxies in these networks, written as CIDR (`10.0.0.0/8`) or as single addresses, and reads
    /// `X-Forwarded-For` if the connection comes from one of them.
    ///
    /// # Errors
    ///
    /// When the list is empty; when an entry is no network, has bits behind its prefix, or covers every address. An
    /// IPv4-mapped network (`::ffff:10.0.0.0/104`) is taken as the IPv4 network that it is, and refused where it is wider
    /// than that: taken literally it would trust the world.
    pub fn behind<T: AsRef<str>>(proxies: impl IntoIterator<Item = T>) -> Result<Self, TrustError> {
        let proxies = proxies.into_iter().map(|text| Proxies::parse(text.as_ref())).collect::<Result<Arc<[_]>, _>>()?;
        if proxies.is_empty() {
            return Err(TrustError { network: String::new(), fault: Fault::Nobody });
        }
        Ok(Self { trust: Trust::Proxies(proxies), field: Field::XForwardedFor, prefixes: Prefixes::default() })
    }

    /// Trusts as many proxies as you say, counting the one that connects, and takes the `n`th entry of `X-Forwarded-For`
    /// from the right. A request with fewer entries, or with one there that is no address, is answered 400: it did not
    /// come through the proxies.
    ///
    /// # Panics
    ///
    /// If `n` is zero or above 32.
    #[must_use]
    pub fn hops(n: usize) -> Self {
        assert!((1..=MOST_ENTRIES).contains(&n), "a client is behind 1 to {MOST_ENTRIES} proxies, not {n}");
        Self { trust: Trust::Hops(n), field: Field::XForwardedFor, prefixes: Prefixes::default() }
    }

    /// Reads `Forwarded` (RFC 7239) instead of `X-Forwarded-For`.
    #[must_use]
    pub fn forwarded(self) -> Self {
        Self { field: Field::Forwarded, ..self }
    }

    /// Reads a field that holds one address and that the edge overwrites, whatever the client sent: `CF-Connecting-IP`,
    /// `X-Real-IP`, `Fly-Client-IP`. Make sure of that: some vendors pass their fields through.
    ///
    /// A request from a trusted proxy without the field, with several, or with something else in it is answered 400.
    ///
    /// # Panics
    ///
    /// If `name` is not a valid field name, or trust was given by [`hops`](Self::hops): anyone who connects could write
    /// such a field.
    #[must_use]
    pub fn header<N>(self, name: N) -> Self
    where
        N: TryInto<HeaderName>,
        N::Error: fmt::Display,
    {
        assert!(
            matches!(self.trust, Trust::Proxies(_)),
            "a field with one address is believed only from known proxies: use `ClientIp::behind`"
        );
        match name.try_into() {
            Ok(name) => Self { field: Field::Single(name), ..self },
            Err(error) => panic!("the field of the client's address has a valid name: {error}"),
        }
    }

    /// Counts IPv4 clients by this many bits of their address; 32 unless set.
    ///
    /// # Panics
    ///
    /// If `bits` is not between 8 and 32.
    #[must_use]
    pub fn v4_prefix(self, bits: u8) -> Self {
        Self { prefixes: self.prefixes.v4(bits), ..self }
    }

    /// Counts IPv6 clients by this many bits of their address; 64 unless set. See
    /// [`PeerIp::v6_prefix`](super::PeerIp::v6_prefix) for a second tier.
    ///
    /// # Panics
    ///
    /// If `bits` is not between 32 and 128.
    #[must_use]
    pub fn v6_prefix(self, bits: u8) -> Self {
        Self { prefixes: self.prefixes.v6(bits), ..self }
    }

    /// The client's address, for a connection from `peer` with these header fields: for logs that should agree with the
    /// limit. `None` where there is none to be believed.
    #[must_use]
    pub fn resolve(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        let peer = peer.to_canonical();
        let address = match (&self.trust, &self.field) {
            (Trust::Proxies(proxies), _) if !trusts(proxies, peer) => Some(peer),
            (Trust::Proxies(_) | Trust::Hops(_), Field::Single(name)) => single(headers, name),
            (Trust::Proxies(proxies), Field::XForwardedFor) => {
                Some(walk(proxies, peer, forwarded::x_forwarded_for(headers)))
            }
            (Trust::Proxies(proxies), Field::Forwarded) => Some(walk(proxies, peer, forwarded::forwarded(headers))),
            (Trust::Hops(n), Field::XForwardedFor) => forwarded::x_forwarded_for(headers).nth(n - 1)?,
            (Trust::Hops(n), Field::Forwarded) => forwarded::forwarded(headers).nth(n - 1)?,
        };
        address.map(|address| address.to_canonical())
    }

    /// What of `address` counts, for [`Limiter::key_of`](crate::Limiter::key_of).
    #[must_use]
    pub fn network(&self, address: IpAddr) -> ClientNetwork {
        self.prefixes.network(address)
    }

    /// This key, or `other` where the request has none. See [`KeyExtractor::or`].
    #[must_use]
    pub fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K> {
        KeyExtractor::or(self, other)
    }

    fn trusts(&self, peer: IpAddr) -> bool {
        match &self.trust {
            Trust::Hops(_) => true,
            Trust::Proxies(proxies) => trusts(proxies, peer),
        }
    }
}

impl KeyExtractor for ClientIp {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        let peer = ip::peer(head.extensions())?;
        // A proxy that was left out of the list looks like one client.
        observe::unread_address(|| ip::is_private(peer) && !self.trusts(peer), || ip::names_a_client(head.headers()));
        match self.resolve(peer, head.headers()) {
            Some(address) => Ok(head.key(self.network(address))),
            None => Err(Missing::Reject(StatusCode::BAD_REQUEST)),
        }
    }

    fn name(&self) -> Cow<'static, str> {
        "ip".into()
    }

    fn remedy(&self, head: RequestHead<'_>) -> &'static str {
        match ip::peer(head.extensions()) {
            Ok(_) => "let requests come through the trusted proxies, which say whom they speak for",
            Err(_) => ip::REMEDY,
        }
    }
}

/// From the proxy that connects towards the client: the first address that is not trusted, or the last one that could be
/// believed.
fn walk(proxies: &[Proxies], peer: IpAddr, mut entries: impl Iterator<Item = Entry>) -> IpAddr {
    let mut last = peer;
    // An entry that cannot be read ends the walk. To skip it would believe what the client wrote left of it.
    while let Some(Some(entry)) = entries.next() {
        last = entry.to_canonical();
        if !trusts(proxies, last) {
            break;
        }
    }
    last
}

fn single(headers: &HeaderMap, name: &HeaderName) -> Entry {
    let mut values = headers.get_all(name).into_iter();
    let value = values.next()?;
    // Which one the edge wrote is not known.
    if values.next().is_some() { None } else { forwarded::address(value.as_bytes()) }
}

fn trusts(proxies: &[Proxies], address: IpAddr) -> bool {
    proxies.iter().any(|network| network.contains(address))
}

/// A network of trusted proxies, ready to be compared with.
#[derive(Clone, Copy, Debug)]
enum Proxies {
    V4 { network: u32, mask: u32 },
    V6 { network: u128, mask: u128 },
}

impl Proxies {
    fn parse(text: &str) -> Result<Self, TrustError> {
        let refuse = |fault| Err(TrustError { network: text.to_owned(), fault });
        let trimmed = text.trim();
        let Ok(network) = trimmed.parse::<IpNet>().or_else(|_| trimmed.parse::<IpAddr>().map(IpNet::from)) else {
            return refuse(Fault::NoNetwork);
        };
        if network.addr() != network.network() {
            return refuse(Fault::HostBits);
        }
        let (v4, length) = match network {
            IpNet::V4(v4) => (v4.network(), v4.prefix_len()),
            IpNet::V6(v6) => match (v6.network().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
                (Some(v4), Some(length)) => (v4, length),
                // Covers the mapped addresses, and so all of IPv4, which nobody means who writes it.
                _ if v6.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()) => return refuse(Fault::Everyone),
                _ => return Ok(Self::V6 { network: v6.network().to_bits(), mask: v6.netmask().to_bits() }),
            },
        };
        match u32::MAX.checked_shl(32 - u32::from(length)) {
            Some(mask) => Ok(Self::V4 { network: v4.to_bits(), mask }),
            None => refuse(Fault::Everyone),
        }
    }

    fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4 { network, mask }, IpAddr::V4(address)) => address.to_bits() & mask == network,
            (Self::V6 { network, mask }, IpAddr::V6(address)) => address.to_bits() & mask == network,
            (Self::V4 { .. }, IpAddr::V6(_)) | (Self::V6 { .. }, IpAddr::V4(_)) => false,
        }
    }
}

/// Why a list of trusted proxies was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustError {
    network: String,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Everyone,
    HostBits,
    Nobody,
    NoNetwork,
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = &self.network;
        match self.fault {
            Fault::Everyone => {
                write!(f, "to trust {network:?} is to trust everyone: any client could choose its address")
            }
            Fault::HostBits => write!(f, "{network:?} has bits behind its prefix: write the network's own address"),
            Fault::Nobody => f.write_str("no proxy is trusted: list one, or count by `PeerIp`"),
            Fault::NoNetwork => write!(f, "{network:?} is neither a network like `10.0.0.0/8` nor an address"),
        }
    }
}

impl error::Error for TrustError {}
