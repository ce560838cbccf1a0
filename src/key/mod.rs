//! What a policy counts by: [`Key`], and the [`KeyExtractor`]s that find it in a request.
//!
//! Owns the 16-byte key, the ways to make one, and the rule for a request that has none. Knows nothing of quotas,
//! buckets or policies.
//!
//! | extractor | counts by | a request without it is |
//! |---|---|---|
//! | [`PeerIp`] | the address of the connection's other end | answered 500: the server was not set up to tell |
//! | [`ClientIp`] | the address of the client behind proxies that you trust | answered 400 or 500, see there |
//! | [`Header`] | the bytes of one header field | answered 401 |
//! | [`Bearer`] | the token of `Authorization: Bearer` | answered 401 |
//! | [`Extension`] | a value that an outer layer put into the request's extensions | answered 500 |
//! | [`Method`] | the request's method | – |
//! | `MatchedPath` (feature `axum`) | the route's template | counted as one, "no route" |
//! | [`key_fn`] | what a closure returns | answered 400 |
//! | a pair or triple of these | every combination | as for the first one that is missing |
//! | [`a.or(b)`](KeyExtractor::or) | `a`, or `b` where there is no `a` | as for `b` |
//!
//! A missing key is never a silent bypass and never one bucket for the world: whoever wants either writes it down with
//! [`Policy::on_missing`](crate::Policy::on_missing).
//!
//! ```
//! use tower_quota::{Policy, Quota, key::{Header, KeyExtractor as _, Method, PeerIp, key_fn}};
//!
//! let per_user = Policy::per(Header::new("x-api-key").or(PeerIp), Quota::per_second(10));
//! let per_method = Policy::per((PeerIp, Method), Quota::per_second(5)).named("per-ip-method");
//! // A key made from borrowed data: hashed where it stands, nothing copied, nothing kept.
//! let per_tenant = Policy::per(
//!     key_fn(|head| Some(head.key(head.headers().get("x-tenant")?.as_bytes()))),
//!     Quota::per_minute(600),
//! );
//! ```

mod client_ip;
mod extension;
mod forwarded;
mod hasher;
mod head;
mod header;
mod into_key;
mod ip;
mod route;

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use http::{HeaderValue, StatusCode};

#[cfg(feature = "axum")]
pub use self::route::MatchedPath;
pub use self::{
    client_ip::{ClientIp, TrustError},
    extension::Extension,
    head::RequestHead,
    header::{Bearer, Header},
    into_key::IntoKey,
    ip::{ClientNetwork, PeerIp, PeerNetwork},
    route::Method,
};
pub(crate) use self::{
    hasher::{KeyHasher, entropy},
    head::Parts,
};

/// What a policy counts by, in 16 bytes.
///
/// IPv4 addresses, IPv6 prefixes and integers of up to 64 bits are kept exactly. Anything else (strings, header values,
/// combinations, whole IPv6 addresses) is kept as a SipHash under a key that is drawn at random for each limiter: a
/// flood of long header values cannot grow memory, no API key is stored, and nobody outside can compute which values
/// share a bucket. Values of different kinds never share one: user `5` is not address `::5`, and `("a:b", "c")` is not
/// `("a", "b:c")`.
///
/// A key means something only to the limiter that made it. `Debug` shows the kind and nothing of the value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    // Two words and not one of 128 bits, so that a key with its bucket takes 24 bytes. Whatever makes a key makes it in
    // registers: one that was put together byte by byte stalls the loads that follow.
    low: u64,
    high: u64,
}

impl Key {
    /// The one key of a policy that counts all requests together.
    pub const GLOBAL: Self = Self::exact(Kind::Global, 0);

    /// The one key of requests without a key, where their policy says [`Missing::Share`].
    pub(crate) const SHARED: Self = Self::exact(Kind::Shared, 0);

    /// The one key of requests that name several principals where one is expected (a header field sent twice).
    pub(crate) const AMBIGUOUS: Self = Self::exact(Kind::Ambiguous, 0);

    /// What stands beside the keys of a fallback ([`KeyExtractor::or`]), to tell them from those of the first choice and of
    /// other fallbacks.
    const fn fallback(nth: u32) -> Self {
        Self::exact(Kind::Fallback, nth as u128)
    }

    /// `kind`, and a value of up to 120 bits exactly as given.
    #[allow(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
    const fn exact(kind: Kind, value: u128) -> Self {
        debug_assert!(value >> 120 == 0);
        let bits = value << 8 | kind as u128;
        Self { low: bits as u64, high: (bits >> 64) as u64 }
    }

    /// The key, spread evenly over 64 bits, alike in every process: for choosing a share of the keys, not for keeping
    /// anybody from choosing a key.
    pub(crate) fn spread(self) -> u64 {
        let mut hasher = siphasher::sip::SipHasher13::new();
        hasher.write_u128(self.bits());
        hasher.finish()
    }

    /// The IPv4 address, or the first address of the network, that this key is. `None` for a key that is no address, and
    /// for whole IPv6 addresses, which are kept as hashes.
    #[must_use]
    pub fn address(self) -> Option<IpAddr> {
        const V4: u8 = Kind::Ipv4 as u8;
        const V6: u8 = Kind::Ipv6 as u8;
        let value = self.bits() >> 16;
        match self.kind() {
            V4 => u32::try_from(value).ok().map(|bits| Ipv4Addr::from_bits(bits).into()),
            V6 => Some(Ipv6Addr::from_bits(value << 16).into()),
            _ => None,
        }
    }

    fn bits(self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }

    fn kind(self) -> u8 {
        self.low.to_le_bytes()[0]
    }

    /// The coarse network (IPv4 /16, IPv6 /40) of the address that this key is or contains.
    pub(crate) fn network(self) -> Option<Network> {
        const V4: u8 = Kind::Ipv4 as u8;
        const V6: u8 = Kind::Ipv6 as u8;
        const WITH_V4: u8 = Kind::WithIpv4 as u8;
        const WITH_V6: u8 = Kind::WithIpv6 as u8;
        let value = self.bits() >> 8;
        match self.kind() {
            // The length of the prefix stands below the address.
            V4 => Some(Network::V4(value >> (8 + 16))),
            WITH_V4 => Some(Network::V4(value >> 80)),
            // The first 40 bits of 120, in both.
            V6 | WITH_V6 => Some(Network::V6(value >> 80)),
            _ => None,
        }
    }
}

/// A coarse network: the 16 first bits of an IPv4 address, the 40 first bits of an IPv6 address.
#[derive(Clone, Copy, Hash)]
pub(crate) enum Network {
    V4(u128),
    V6(u128),
}

impl Hash for Key {
    /// One word, so that a map's hasher takes one step.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u128(self.bits());
    }
}

/// Writes 32 hexadecimal digits, for [`FromStr`] to read: to name a key to an operator, and back to the limiter that made
/// it. An address stands in them as it is; anything else is a hash.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.bits())
    }
}

/// Not a key: 32 hexadecimal digits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseKeyError;

impl fmt::Display for ParseKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key is written in 32 hexadecimal digits")
    }
}

impl std::error::Error for ParseKeyError {}

impl FromStr for Key {
    type Err = ParseKeyError;

    #[allow(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        // `from_str_radix` alone would also take a sign.
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseKeyError);
        }
        let bits = u128::from_str_radix(text, 16).map_err(|_| ParseKeyError)?;
        Ok(Self { low: bits as u64, high: (bits >> 64) as u64 })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match KINDS.into_iter().find(|kind| *kind as u8 == self.kind()) {
            Some(kind) => write!(f, "Key({kind:?})"),
            None => f.write_str("Key"),
        }
    }
}

/// The first byte of a key: what keeps values of different kinds apart.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Kind {
    Global,
    Shared,
    Ambiguous,
    Fallback,
    /// 64 bits.
    Unsigned,
    /// 64 bits.
    Signed,
    /// The address, then 8 bits for the length of the prefix.
    Ipv4,
    /// The first 112 bits of the address, then 8 bits for the length of the prefix.
    Ipv6,
    /// 120 bits of hash.
    Bytes,
    /// 120 bits of hash.
    Composite,
    /// 40 bits for the network, of which 16 are used, then 80 bits of hash.
    WithIpv4,
    /// 40 bits of network, then 80 bits of hash.
    WithIpv6,
}

const KINDS: [Kind; 12] = [
    Kind::Global,
    Kind::Shared,
    Kind::Ambiguous,
    Kind::Fallback,
    Kind::Unsigned,
    Kind::Signed,
    Kind::Ipv4,
    Kind::Ipv6,
    Kind::Bytes,
    Kind::Composite,
    Kind::WithIpv4,
    Kind::WithIpv6,
];

/// What becomes of a request that has no key for a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// It is refused with this status, and no policy is charged.
    Reject(StatusCode),
    /// It is counted in one bucket together with every other request that has no key.
    Share,
    /// The policy does not apply to it. Whoever can leave the key out escapes this policy: have another one that cannot
    /// be escaped beside it.
    Skip,
}

/// Finds the key that a policy counts by.
///
/// Implemented by the extractors of this module, by pairs and triples of extractors, and by closures wrapped in
/// [`key_fn`]. Sees the request's head, never its body. Runs with no lock held, and may panic: the panic reaches the
/// caller and the limiter stays as it was.
///
/// ```
/// use http::StatusCode;
/// use tower_quota::key::{Key, KeyExtractor, Missing, RequestHead};
///
/// /// Counts by the tenant in `/tenants/{tenant}/...`.
/// struct Tenant;
///
/// impl KeyExtractor for Tenant {
///     fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
///         let tenant = head.uri().path().strip_prefix("/tenants/").and_then(|rest| rest.split('/').next());
///         let tenant = tenant.filter(|tenant| !tenant.is_empty());
///         Ok(head.key(tenant.ok_or(Missing::Reject(StatusCode::NOT_FOUND))?))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a key extractor",
    label = "does not say what a policy counts by",
    note = "wrap a closure: `key_fn(|head| ...)`, or implement `tower_quota::key::KeyExtractor`"
)]
pub trait KeyExtractor: Send + Sync + 'static {
    /// The request's key, or what its absence means here.
    ///
    /// # Errors
    ///
    /// When the request has no such key. [`Policy::on_missing`](crate::Policy::on_missing) overrides what is returned.
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing>;

    /// What this extractor counts by, in a word of printable ASCII: `ip`, `x-api-key`. The default name of a policy is
    /// `per-` and this.
    fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed("key")
    }

    /// What an operator does about requests like this one, which has no such key: for the event that reports it.
    fn remedy(&self, _head: RequestHead<'_>) -> &'static str {
        "send the key with the request, or say what its absence means with `Policy::on_missing`"
    }

    /// The value of `WWW-Authenticate` for a refusal with 401, which must carry one (RFC 9110 §15.5.2).
    fn challenge(&self, _head: RequestHead<'_>) -> Option<HeaderValue> {
        None
    }

    /// `self`, or `other` where the request has no key for `self`. The same value found by the one and by the other makes
    /// two keys: who invents a value for the second cannot spend what belongs to the first.
    ///
    /// A client that can leave out what `self` looks for chooses between the two; give the fallback no more than you
    /// would give such a client.
    ///
    /// What `other` finds is counted as a [`fallback`], which is also how to name it to a limiter.
    fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K>
    where
        Self: Sized,
    {
        Or { first: self, second: other }
    }

    /// How many extractors it tries one after another: one, unless it hands on to an extractor that was made by
    /// [`or`](Self::or), whose number it then returns. By it the fallbacks of [`or`](Self::or) are told apart.
    fn choices(&self) -> u32 {
        1
    }
}

/// What an extractor of several finds with its `nth` fallback, to make the key of it: in `a.or(b).or(c)`, `b` is fallback 1
/// and `c` is fallback 2.
///
/// ```
/// use std::{net::Ipv4Addr, time::Duration};
/// use tower_quota::{Limiter, Policy, Quota, key::{Header, PeerIp, fallback}};
///
/// let per_client = Policy::per(Header::new("x-api-key").or(PeerIp), Quota::per_second(10)).named("per-client");
/// let limiter = Limiter::new(per_client);
/// // The client that comes without an API key from this address.
/// let key = limiter.key_of(fallback(1, PeerIp.network(Ipv4Addr::new(203, 0, 113, 7).into())));
/// limiter.block("per-client", key, Duration::from_secs(60)).unwrap();
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

/// Counts by what `extract` returns: a [`Key`] made with [`RequestHead::key`], or any value that
/// [makes one](IntoKey). `None` is answered 400.
///
/// ```
/// use tower_quota::{Policy, Quota, key::key_fn};
///
/// #[derive(Clone)]
/// struct UserId(u64);
///
/// let policy = Policy::per(
///     key_fn(|head| head.extensions().get::<UserId>().map(|user| user.0)),
///     Quota::per_second(5),
/// );
/// ```
pub fn key_fn<F, K>(extract: F) -> KeyFn<F>
where
    F: Fn(RequestHead<'_>) -> Option<K> + Send + Sync + 'static,
    K: IntoKey,
{
    KeyFn { extract }
}

/// The extractor that [`key_fn`] makes of a closure.
#[derive(Clone, Copy)]
pub struct KeyFn<F> {
    extract: F,
}

impl<F, K> KeyExtractor for KeyFn<F>
where
    F: Fn(RequestHead<'_>) -> Option<K> + Send + Sync + 'static,
    K: IntoKey,
{
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        match (self.extract)(head) {
            Some(value) => Ok(head.key(value)),
            None => Err(Missing::Reject(StatusCode::BAD_REQUEST)),
        }
    }
}

impl<F> fmt::Debug for KeyFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFn").finish_non_exhaustive()
    }
}

/// The first of two extractors that finds a key. Made by [`KeyExtractor::or`].
#[derive(Clone, Copy, Debug)]
pub struct Or<A, B> {
    first: A,
    second: B,
}

impl<A: KeyExtractor, B: KeyExtractor> Or<A, B> {
    /// This key, or `other` where the request has none. See [`KeyExtractor::or`].
    #[must_use]
    pub fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K> {
        KeyExtractor::or(self, other)
    }
}

impl<A: KeyExtractor, B: KeyExtractor> KeyExtractor for Or<A, B> {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        self.first.extract(head).or_else(|_| Ok(head.key(fallback(self.first.choices(), self.second.extract(head)?))))
    }

    fn choices(&self) -> u32 {
        self.first.choices().saturating_add(self.second.choices())
    }

    fn name(&self) -> Cow<'static, str> {
        self.first.name()
    }

    fn remedy(&self, head: RequestHead<'_>) -> &'static str {
        self.second.remedy(head)
    }

    fn challenge(&self, head: RequestHead<'_>) -> Option<HeaderValue> {
        self.second.challenge(head)
    }
}

macro_rules! every_combination {
    ($($part:ident $at:tt),+) => {
        impl<$($part: KeyExtractor),+> KeyExtractor for ($($part,)+) {
            fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
                Ok(head.key(($(self.$at.extract(head)?,)+)))
            }

            fn name(&self) -> Cow<'static, str> {
                [$(self.$at.name()),+].join("-").into()
            }

            fn remedy(&self, head: RequestHead<'_>) -> &'static str {
                $(if self.$at.extract(head).is_err() {
                    return self.$at.remedy(head);
                })+
                ""
            }

            fn challenge(&self, head: RequestHead<'_>) -> Option<HeaderValue> {
                $(if self.$at.extract(head).is_err() {
                    return self.$at.challenge(head);
                })+
                None
            }
        }
    };
}

every_combination!(A 0, B 1);
every_combination!(A 0, B 1, C 2);
