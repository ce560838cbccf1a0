//! Contains [`ClientIp`], a key from the address of the client behind proxies.

use std::{
    borrow::Cow,
    error, fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use http::{HeaderMap, HeaderName, StatusCode, header};
use ipnet::IpNet;

use super::{
    extractor::{ClientAddress, KeyExtractor, Missing},
    forwarded::{self, MAX_ENTRIES, X_FORWARDED_FOR},
    head::RequestHead,
    ip::{self, ClientNetwork, Prefixes},
    key::Key,
    unmapped_ip::UnmappedIp,
};
use crate::observe::suspicions::{self, Forwarding};

/// Counts by the address of the client behind proxies that you trust.
///
/// The trusted proxies are listed explicitly. There is no default, and no way to trust everyone.
/// One header field is read and all others are ignored, because a client can send any field that
/// the proxy does not overwrite.
///
/// | constructor | use it when | the client is |
/// |---|---|---|
/// | [`behind`](Self::behind) | you know your proxies' addresses | the first address from the right that is not your proxy |
/// | [`behind`](Self::behind)`.`[`header`](Self::header) | the edge overwrites a field of its own | the address in the field, if the connection comes from the edge |
/// | [`hops`](Self::hops) | the addresses change, the number does not, and only the proxies can connect | the `n`th entry from the right |
///
/// # What is trusted
///
/// A list is read from the right, where proxies append: at most 32 entries, and no further than
/// needed. All lines of the field are one list. The walk stops at the first address that is not
/// trusted, because the client may have written what is left of it. It also stops at an entry that
/// is not an address (`unknown`, an obfuscated identifier, junk): then the key is the address of
/// the last trusted proxy, and never an entry further left.
///
/// Addresses may have ports and zones, which are ignored. The same part of an address counts as
/// with [`PeerIp`](super::PeerIp).
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
/// # What providers send
///
/// Each has its own shape. This table repeats what their documentation says. Verify it by looking
/// at a request, because providers and their options change.
///
/// | provider | the end of `X-Forwarded-For` | use |
/// |---|---|---|
/// | nginx with `$proxy_add_x_forwarded_for` | the client | `behind` its address, or `unix:` |
/// | [AWS Application Load Balancer](https://docs.aws.amazon.com/elasticloadbalancing/latest/application/x-forwarded-headers.html), in its mode `append` | the client, with its port if so configured | `behind` the balancer's subnets |
/// | AWS CloudFront before such a balancer | the client, then CloudFront's edge | `behind` the subnets and CloudFront's published networks |
/// | [Google Cloud external Application Load Balancer](https://cloud.google.com/load-balancing/docs/https) (global) | the client, then **the balancer's own address** | `behind` 35.191.0.0/16, 130.211.0.0/22 and the balancer's address; or `hops(2)` |
/// | Google Cloud regional balancers, which connect from your proxy-only subnet | the same | `behind` that subnet and the balancer's address; or `hops(2)` |
/// | [Azure Application Gateway](https://learn.microsoft.com/azure/application-gateway/how-application-gateway-works) | the client, with its port | `behind` its subnet |
/// | [Azure Front Door](https://learn.microsoft.com/azure/frontdoor/front-door-http-headers-protocol) | what connected to it; also in `X-Azure-SocketIP`. A client can write `X-Azure-ClientIP` | `behind` its published networks |
/// | [Cloudflare](https://developers.cloudflare.com/fundamentals/reference/http-headers/) | what connected to it; also in `CF-Connecting-IP` | `behind` its published networks |
/// | [Fastly](https://www.fastly.com/documentation/reference/http/http-headers/X-Forwarded-For/) | over TLS the client, and with shielding then an edge | `behind` its published networks. A client can write `Fastly-Client-IP`, unless your VCL sets it |
/// | [Fly.io](https://fly.io/docs/networking/request-headers/) | …, then **an address of your own app** | `behind` what connects, and `.header("fly-client-ip")` |
///
/// Where a balancer appends its own address, and that address is not in the list, the walk ends at
/// the balancer, and all clients are one. With the feature `tracing`, this is reported once.
///
/// # Deployment caveat
///
/// A count of hops becomes wrong silently when the topology changes. With one more proxy, every
/// client has a proxy's address. With one proxy less, or a route around it, clients choose their
/// own address. Prefer addresses.
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
    /// Trusts the proxies in these networks, written as CIDR (`10.0.0.0/8`) or as single addresses,
    /// and reads `X-Forwarded-For` if the connection comes from one of them.
    ///
    /// The word `unix:` trusts connections without an address, as nginx's `set_real_ip_from` does:
    /// those of a proxy on a Unix socket. Such a request without the field is rejected with 500,
    /// and with 400 if there is no address in the field, because there is nothing to count it by.
    /// Write `unix:` only where each
    /// TCP connection has an address (see [`PeerIp`](super::PeerIp)): a server that does not
    /// provide it would trust everyone.
    ///
    /// # Errors
    ///
    /// When the list is empty, or when an entry is not a network, has bits after its prefix, or
    /// contains every address. An IPv4-mapped network (`::ffff:10.0.0.0/104`) is read as the IPv4
    /// network that it is. A wider one is an error: taken literally it would trust every IPv4
    /// address.
    pub fn behind<T: AsRef<str>>(proxies: impl IntoIterator<Item = T>) -> Result<Self, TrustError> {
        let proxies = proxies.into_iter().map(|text| Proxies::parse(text.as_ref())).collect::<Result<Arc<[_]>, _>>()?;
        if proxies.is_empty() {
            return Err(TrustError { network: String::new(), kind: TrustErrorKind::Nobody });
        }
        Ok(Self { trust: Trust::Proxies(proxies), field: Field::XForwardedFor, prefixes: Prefixes::default() })
    }

    /// Trusts `n` proxies, including the one that connects, and reads the `n`th entry of
    /// `X-Forwarded-For` from the right. A request with fewer entries, or whose entry is not an
    /// address, is rejected with 400: it did not come through the proxies. The connection needs no
    /// address, so it may come over a Unix socket. (With neither an address nor the field, the
    /// status is 500.)
    ///
    /// A proxy that appends its own address beside the client's counts twice: see
    /// [the shapes of providers](Self#what-providers-send).
    ///
    /// # Panics
    ///
    /// If `n` is zero or above 32.
    #[must_use]
    pub fn hops(n: usize) -> Self {
        assert!((1..=MAX_ENTRIES).contains(&n), "a client is behind 1 to {MAX_ENTRIES} proxies, not {n}");
        Self { trust: Trust::Hops(n), field: Field::XForwardedFor, prefixes: Prefixes::default() }
    }

    /// Reads `Forwarded` (RFC 7239) instead of `X-Forwarded-For`.
    #[must_use]
    pub fn forwarded(self) -> Self {
        Self { field: Field::Forwarded, ..self }
    }

    /// Reads a field with one address that the edge overwrites, whatever the client sent:
    /// `CF-Connecting-IP`, `X-Real-IP`, `Fly-Client-IP`. Verify that it does: some vendors pass
    /// such fields through.
    ///
    /// A request from a trusted proxy without the field, with several, or with anything else in it
    /// is rejected with 400.
    ///
    /// # Panics
    ///
    /// If `name` is not a valid field name, or after [`hops`](Self::hops): anyone who connects
    /// could write such a field.
    #[must_use]
    pub fn header<N>(self, name: N) -> Self
    where
        N: TryInto<HeaderName>,
        N::Error: fmt::Display,
    {
        assert!(
            matches!(self.trust, Trust::Proxies(_)),
            "a field with one address is trusted only from known proxies: use `ClientIp::behind` instead of `hops`"
        );
        match name.try_into() {
            Ok(name) => Self { field: Field::Single(name), ..self },
            Err(error) => panic!("invalid name of the field with the client's address: {error}"),
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

    /// Returns the client's address for a connection from `peer` with these header fields, for logs
    /// that agree with the limit. Returns `None` where no trusted address is found.
    ///
    /// `peer` is an address, or `None` for a connection that has none.
    #[must_use]
    pub fn resolve(&self, peer: impl Into<Option<IpAddr>>, headers: &HeaderMap) -> Option<IpAddr> {
        self.resolve_address(peer.into().map(UnmappedIp::from), headers).map(IpAddr::from)
    }

    fn resolve_address(&self, peer: Option<UnmappedIp>, headers: &HeaderMap) -> Option<UnmappedIp> {
        match (&self.trust, &self.field) {
            (Trust::Proxies(proxies), _) if !trusts(proxies, peer) => peer,
            (Trust::Proxies(_) | Trust::Hops(_), Field::Single(name)) => single(headers, name),
            (Trust::Proxies(proxies), Field::XForwardedFor) => walk(proxies, peer, forwarded::x_forwarded_for(headers)),
            (Trust::Proxies(proxies), Field::Forwarded) => {
                walk(proxies, peer, forwarded::forwarded(headers, self.counts_more_than_64_bits()))
            }
            (Trust::Hops(n), Field::XForwardedFor) => forwarded::x_forwarded_for(headers).nth(n - 1)?,
            (Trust::Hops(n), Field::Forwarded) => {
                forwarded::forwarded(headers, self.counts_more_than_64_bits()).nth(n - 1)?
            }
        }
    }

    fn counts_more_than_64_bits(&self) -> bool {
        self.prefixes.v6_bits() > 64
    }

    fn field_name(&self) -> &HeaderName {
        match &self.field {
            Field::Single(name) => name,
            Field::XForwardedFor => &X_FORWARDED_FOR,
            Field::Forwarded => &header::FORWARDED,
        }
    }

    /// Whether a connection without an address can be a proxy's.
    fn works_without_peer(&self) -> bool {
        match &self.trust {
            Trust::Hops(_) => true,
            Trust::Proxies(proxies) => trusts(proxies, None),
        }
    }

    /// Returns the part of `address` that counts, to name a client to a limiter.
    #[must_use]
    pub fn network(&self, address: IpAddr) -> ClientNetwork {
        self.prefixes.network(address.into())
    }

    /// What the request shows of proxies that are missing in the list, or that send nothing.
    #[cold]
    fn examine(&self, peer: UnmappedIp, address: Option<UnmappedIp>, headers: &HeaderMap) -> Forwarding {
        let trusted = |address| matches!(&self.trust, Trust::Proxies(proxies) if trusts(proxies, Some(address)));
        if matches!(self.trust, Trust::Proxies(_)) && !trusted(peer) {
            return ip::examine_peer(peer, headers);
        }
        if !headers.contains_key(self.field_name()) {
            return Forwarding::Absent;
        }
        let before = match &self.field {
            Field::Single(_) => None,
            Field::XForwardedFor => entry_before(address, forwarded::x_forwarded_for(headers)),
            Field::Forwarded => entry_before(address, forwarded::forwarded(headers, self.counts_more_than_64_bits())),
        };
        match (address.filter(|address| !trusted(*address)), before) {
            (Some(address), Some(client)) => {
                Forwarding::BeforeLast { address: address.into(), value: suspicions::value_of(IpAddr::from(client)) }
            }
            _ => Forwarding::Sent,
        }
    }
}

or_method!(ClientIp);

impl KeyExtractor for ClientIp {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        let peer = ip::peer(head.extensions());
        if peer.is_none() && !self.works_without_peer() {
            return Err(ip::NO_PEER);
        }
        let address = self.resolve_address(peer, head.headers());
        if let Some(peer) = peer {
            // A proxy that is missing in the list looks like one client.
            suspicions::forwarding(|| self.examine(peer, address, head.headers()));
        }
        match address {
            Some(address) => Ok(head.key(self.prefixes.network(address))),
            // Without both, it is the server that cannot tell its clients apart.
            None if peer.is_none() && !head.headers().contains_key(self.field_name()) => Err(ip::NO_PEER),
            None => Err(Missing::Reject(StatusCode::BAD_REQUEST)),
        }
    }

    fn name(&self) -> Cow<'static, str> {
        "ip".into()
    }

    fn client_address(&self, head: RequestHead<'_>) -> ClientAddress {
        let peer = ip::peer(head.extensions());
        let is_known = peer.is_some() || self.works_without_peer();
        let address = if is_known { self.resolve_address(peer, head.headers()) } else { None };
        address.map_or(ClientAddress::Unknown, |address| ClientAddress::Known(address.into()))
    }

    fn remedy(&self, head: RequestHead<'_>) -> &'static str {
        match ip::peer(head.extensions()) {
            None if !self.works_without_peer() => ip::REMEDY,
            None => {
                "configure the proxy on the Unix socket to send the field with the client's address (in nginx: `proxy_set_header \
                     X-Forwarded-For $proxy_add_x_forwarded_for;`)"
            }
            Some(_) => "route requests through the trusted proxies, which add the client's address",
        }
    }
}

/// Walks from the connecting proxy towards the client, to the first address that is not trusted, or
/// the last trusted one. `None` where no address is found: neither the connection has one, nor the
/// list.
fn walk(
    proxies: &[Proxies],
    peer: Option<UnmappedIp>,
    mut entries: impl Iterator<Item = Option<UnmappedIp>>,
) -> Option<UnmappedIp> {
    let mut last = peer;
    // An entry that is not an address ends the walk. Skipping it would trust what the client wrote
    // left of it.
    while let Some(Some(entry)) = entries.next() {
        last = Some(entry);
        if !trusts(proxies, last) {
            break;
        }
    }
    last
}

/// The entry left of the first one with this address. A balancer that appends its own address is
/// the first entry that is not trusted, and its client is the entry before it.
fn entry_before(
    address: Option<UnmappedIp>,
    mut entries: impl Iterator<Item = Option<UnmappedIp>>,
) -> Option<UnmappedIp> {
    entries.find(|entry| *entry == address)?;
    entries.next()?
}

fn single(headers: &HeaderMap, name: &HeaderName) -> Option<UnmappedIp> {
    let mut values = headers.get_all(name).into_iter();
    let value = values.next()?;
    // It is not known which one the edge wrote.
    if values.next().is_some() { None } else { forwarded::address(value.as_bytes()).map(UnmappedIp::from) }
}

/// `None` is the other end of a connection without an address.
fn trusts(proxies: &[Proxies], address: Option<UnmappedIp>) -> bool {
    proxies.iter().any(|network| network.contains(address))
}

/// A network of trusted proxies.
#[derive(Clone, Copy, Debug)]
enum Proxies {
    /// Connections without an address.
    Unix,
    V4 {
        network: u32,
        mask: u32,
    },
    V6 {
        network: u128,
        mask: u128,
    },
}

impl Proxies {
    fn parse(text: &str) -> Result<Self, TrustError> {
        let invalid = |kind| Err(TrustError { network: text.to_owned(), kind });
        let trimmed = text.trim();
        if trimmed == "unix:" {
            return Ok(Self::Unix);
        }
        let Ok(network) = trimmed.parse::<IpNet>().or_else(|_| trimmed.parse::<IpAddr>().map(IpNet::from)) else {
            return invalid(TrustErrorKind::NotANetwork);
        };
        if network.addr() != network.network() {
            return invalid(TrustErrorKind::HostBits);
        }
        let (v4, length) = match network {
            IpNet::V4(v4) => (v4.network(), v4.prefix_len()),
            IpNet::V6(v6) => match (v6.network().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
                (Some(v4), Some(length)) => (v4, length),
                // It contains the mapped addresses, and so all of IPv4, which is never intended.
                _ if v6.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()) => return invalid(TrustErrorKind::Everyone),
                _ => return Ok(Self::V6 { network: v6.network().to_bits(), mask: v6.netmask().to_bits() }),
            },
        };
        match u32::MAX.checked_shl(32 - u32::from(length)) {
            Some(mask) => Ok(Self::V4 { network: v4.to_bits(), mask }),
            None => invalid(TrustErrorKind::Everyone),
        }
    }

    fn contains(self, address: Option<UnmappedIp>) -> bool {
        match (self, address) {
            (Self::Unix, None) => true,
            (Self::V4 { network, mask }, Some(UnmappedIp::V4(bits))) => bits & mask == network,
            (Self::V6 { network, mask }, Some(UnmappedIp::V6(bits))) => bits & mask == network,
            _ => false,
        }
    }
}

/// A list of networks that is not one of trusted proxies.
#[derive(Clone, Debug)]
pub(crate) struct Networks(Arc<[Proxies]>);

impl Networks {
    pub(crate) fn parse<T: AsRef<str>>(networks: impl IntoIterator<Item = T>) -> Result<Self, NetworkError> {
        let invalid = |error: TrustError| NetworkError { network: error.network };
        let networks = networks.into_iter().map(|text| Proxies::parse(text.as_ref()).map_err(invalid));
        Ok(Self(networks.collect::<Result<_, _>>()?))
    }

    pub(crate) fn contain(&self, address: Option<UnmappedIp>) -> bool {
        trusts(&self.0, address)
    }
}

/// Why a list of networks is invalid: an entry is neither a network (`10.0.0.0/8`), nor an address,
/// nor `unix:`; or it has bits after its prefix, or contains every address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkError {
    network: String,
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a network: expected CIDR such as `10.0.0.0/8` without bits after its prefix, an address, or \
             `unix:`, and not every address",
            self.network
        )
    }
}

impl error::Error for NetworkError {}

/// Why a list of trusted proxies is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustError {
    network: String,
    kind: TrustErrorKind,
}

impl TrustError {
    /// Returns what is wrong with the list.
    #[must_use]
    pub fn kind(&self) -> TrustErrorKind {
        self.kind
    }
}

/// What is wrong with a list of trusted proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrustErrorKind {
    /// An entry contains every address.
    Everyone,
    /// An entry has bits after its prefix.
    HostBits,
    /// The list is empty.
    Nobody,
    /// An entry is neither a network nor an address, nor `unix:`.
    NotANetwork,
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = &self.network;
        match self.kind {
            TrustErrorKind::Everyone => {
                write!(f, "trusting {network:?} trusts every client to choose its own address: list the proxies only")
            }
            TrustErrorKind::HostBits => {
                write!(f, "{network:?} has bits after its prefix: write the network's own address")
            }
            TrustErrorKind::Nobody => f.write_str("no proxy is trusted: list at least one, or count by `PeerIp`"),
            TrustErrorKind::NotANetwork => {
                write!(
                    f,
                    "{network:?} is not a proxy's network: expected CIDR such as `10.0.0.0/8`, an address, or `unix:`"
                )
            }
        }
    }
}

impl error::Error for TrustError {}
