//! Contains what a policy in a file counts by, and the extractor that is made of it.

use http::{HeaderName, header};
use serde::{Deserialize, Serialize};

use super::error::PolicyConfigErrorKind;
#[cfg(feature = "axum")]
use crate::key::RouteTemplate;
use crate::key::{Bearer, ClientIp, Header, HttpMethod, KeyExtractor, PeerIp};

/// What a policy counts by.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum KeyConfig {
    /// All requests together. `"global"`.
    Global,
    /// What callers name: [`Policy::by_key`](crate::Policy::by_key). `"by-key"`.
    ByKey,
    /// [`PeerIp`]. `"peer-ip"`.
    PeerIp,
    /// A wider or narrower part of the peer's address. `{ peer-network = { v6-prefix = 48 } }`. See
    /// [`PeerIp::v6_prefix`].
    PeerNetwork(PrefixConfig),
    /// [`Bearer`]. `"bearer"`.
    Bearer,
    /// [`HttpMethod`]. `"method"`.
    Method,
    /// `RouteTemplate`. `"route"`. Invalid without the feature `axum`.
    Route,
    /// [`Header`]. `{ header = "x-api-key" }`.
    Header(String),
    /// [`ClientIp`]. `{ client-ip = { behind = ["10.0.0.0/8"] } }`, `{ client-ip = { hops = 1 } }`.
    ClientIp(ClientIpConfig),
    /// Every combination of two or three of these. `{ each = ["peer-ip", "method"] }`.
    Each(Vec<KeyConfig>),
    /// The first of these that a request has: see [`KeyExtractor::or`].
    /// `{ first-of = [{ header = "x-api-key" }, "peer-ip"] }`.
    FirstOf(Vec<KeyConfig>),
}

/// How the address of a client is found.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ClientIpConfig {
    /// The networks of the trusted proxies. See [`ClientIp::behind`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<String>,
    /// Instead of networks the number of proxies. See [`ClientIp::hops`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hops: Option<usize>,
    /// `"x-forwarded-for"` (unless set), `"forwarded"`, or a field with one address that the proxy
    /// overwrites.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// See [`ClientIp::v4_prefix`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4_prefix: Option<u8>,
    /// See [`ClientIp::v6_prefix`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6_prefix: Option<u8>,
}

/// How many bits of an address count.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PrefixConfig {
    /// See [`PeerIp::v4_prefix`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4_prefix: Option<u8>,
    /// See [`PeerIp::v6_prefix`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6_prefix: Option<u8>,
}

type Extractor = Box<dyn KeyExtractor>;

impl KeyConfig {
    /// The extractor. `None` where nothing of a request is counted by.
    pub(super) fn extractor(&self) -> Result<Option<Extractor>, PolicyConfigErrorKind> {
        match self {
            Self::Global | Self::ByKey => Ok(None),
            other => other.part().map(Some),
        }
    }

    fn part(&self) -> Result<Extractor, PolicyConfigErrorKind> {
        match self {
            Self::Global | Self::ByKey => Err(PolicyConfigErrorKind::Key("`global` and `by-key` are no part of a key")),
            Self::PeerIp => Ok(Box::new(PeerIp)),
            Self::PeerNetwork(PrefixConfig { v4_prefix, v6_prefix }) => {
                let network = PeerIp.v4_prefix(v4_bits(*v4_prefix)?.unwrap_or(32));
                Ok(Box::new(v6_bits(*v6_prefix)?.map_or(network, |bits| network.v6_prefix(bits))))
            }
            Self::Bearer => Ok(Box::new(Bearer)),
            Self::Method => Ok(Box::new(HttpMethod)),
            #[cfg(feature = "axum")]
            Self::Route => Ok(Box::new(RouteTemplate)),
            #[cfg(not(feature = "axum"))]
            Self::Route => Err(PolicyConfigErrorKind::Key("`route` needs the feature `axum` of `tower-quota`")),
            Self::Header(name) => Ok(Box::new(Header::new(field(name)?))),
            Self::ClientIp(client) => Ok(Box::new(client.extractor()?)),
            Self::Each(parts) => match &parts[..] {
                [a, b] => Ok(Box::new((a.part()?, b.part()?))),
                [a, b, c] => Ok(Box::new((a.part()?, b.part()?, c.part()?))),
                _ => Err(PolicyConfigErrorKind::Key("`each` takes two or three keys")),
            },
            Self::FirstOf(choices) => match &choices[..] {
                [first, others @ ..] if !others.is_empty() => others
                    .iter()
                    .try_fold(first.part()?, |first, other| Ok(Box::new(first.or(other.part()?)) as Extractor)),
                _ => Err(PolicyConfigErrorKind::Key("`first-of` takes at least two keys")),
            },
        }
    }
}

impl ClientIpConfig {
    fn extractor(&self) -> Result<ClientIp, PolicyConfigErrorKind> {
        let Self { behind, hops, field: name, v4_prefix, v6_prefix } = self;
        let client = match (hops, &behind[..]) {
            (None, behind) => ClientIp::behind(behind).map_err(PolicyConfigErrorKind::Trust)?,
            (Some(hops @ 1..=32), []) => ClientIp::hops(*hops),
            (Some(_), []) => return Err(PolicyConfigErrorKind::Key("`hops` is from 1 to 32")),
            (Some(_), _) => return Err(PolicyConfigErrorKind::Key("`client-ip` takes either `behind` or `hops`")),
        };
        let client = match name.as_deref().map(field).transpose()? {
            None => client,
            Some(name) if name == "x-forwarded-for" => client,
            Some(header::FORWARDED) => client.forwarded(),
            Some(_) if hops.is_some() => {
                return Err(PolicyConfigErrorKind::Key(
                    "a field with one address is trusted only from known proxies: set `behind` instead of `hops`",
                ));
            }
            Some(name) => client.header(name),
        };
        let client = v4_bits(*v4_prefix)?.map_or(client.clone(), |bits| client.v4_prefix(bits));
        Ok(v6_bits(*v6_prefix)?.map_or(client.clone(), |bits| client.v6_prefix(bits)))
    }
}

fn field(name: &str) -> Result<HeaderName, PolicyConfigErrorKind> {
    HeaderName::try_from(name).map_err(|source| PolicyConfigErrorKind::Field { name: name.to_owned(), source })
}

// The extractors panic where these fail.
fn v4_bits(bits: Option<u8>) -> Result<Option<u8>, PolicyConfigErrorKind> {
    if bits.is_none_or(|bits| (8..=32).contains(&bits)) {
        return Ok(bits);
    }
    Err(PolicyConfigErrorKind::Key("`v4-prefix` is from 8 to 32 bits"))
}

fn v6_bits(bits: Option<u8>) -> Result<Option<u8>, PolicyConfigErrorKind> {
    if bits.is_none_or(|bits| (32..=128).contains(&bits)) {
        return Ok(bits);
    }
    Err(PolicyConfigErrorKind::Key("`v6-prefix` is from 32 to 128 bits"))
}
