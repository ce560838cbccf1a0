//! What a policy counts by: the [`Key`], and the [`KeyExtractor`]s that find it in a request.
//!
//! This folder contains the 16-byte key, the ways to make one, and the rule for a request that has
//! none. It must not know of quotas, buckets or policies.
//!
//! | extractor | counts by | without it a request is |
//! |---|---|---|
//! | [`PeerIp`] | the address of the connection's other end | rejected with 500: the server does not provide it |
//! | [`ClientIp`] | the address of the client behind proxies that you trust | rejected with 400 or 500, see there |
//! | [`Header`] | the bytes of one header field | rejected with 401 |
//! | [`Bearer`] | the token of `Authorization: Bearer` | rejected with 401 |
//! | [`FromExtension`] | a value that an outer layer put into the request's extensions | rejected with 500 |
//! | [`HttpMethod`] | the request's method | – |
//! | `RouteTemplate` (feature `axum`) | the route's template | rejected with 404 |
//! | [`key_fn`], [`key_ref`] | what a closure returns, a value or a part of the request | rejected with 400 |
//! | a pair or triple of these | every combination | treated as by the first one that is missing |
//! | [`a.or(b)`](KeyExtractor::or) | `a`, or `b` where there is no `a` | treated as by `b` |
//!
//! A missing key is never a silent bypass, and never one bucket for all clients. Where you want
//! either, say so with [`Policy::on_missing`](crate::Policy::on_missing).
//!
//! Leave dates out of keys. A key with a date is a new key every day, and under a quota that takes
//! days to come back (`Quota::per(1_000, 30 days)`) the keys of all these days stay in the map,
//! until it is full and new clients share buckets. With the feature `tracing` an event reports it.
//!
//! ```
//! use tower_quota::{Policy, Quota, key::{Header, KeyExtractor as _, HttpMethod, PeerIp, key_ref}};
//!
//! let per_user = Policy::per(Header::new("x-api-key").or(PeerIp), Quota::per_second(10));
//! let per_method = Policy::per((PeerIp, HttpMethod), Quota::per_second(5)).named("per-ip-method");
//! // A key made from borrowed data: it is hashed in place, and nothing is copied or stored.
//! let per_tenant = Policy::per(
//!     key_ref(|head| head.headers().get("x-tenant").map(http::HeaderValue::as_bytes)),
//!     Quota::per_minute(600),
//! );
//! ```

// Above the modules that use it.
#[macro_use]
mod or_method;

mod client_ip;
mod closure;
#[cfg(feature = "tracing")]
mod dates;
mod extension;
mod extractor;
mod forwarded;
mod hasher;
mod head;
mod header;
mod into_key;
mod ip;
#[expect(clippy::module_inception, reason = "the file of the type that the folder is named after")]
mod key;
mod route;
mod unmapped_ip;

#[cfg(feature = "axum")]
pub use self::route::RouteTemplate;
pub(crate) use self::{client_ip::Networks, hasher::entropy, head::HeadParts, ip::peer};
pub use self::{
    client_ip::{ClientIp, NetworkError, TrustError, TrustErrorKind},
    closure::{KeyFn, KeyRef, key_fn, key_ref},
    extension::FromExtension,
    extractor::{ClientAddress, KeyExtractor, Missing, Or},
    hasher::KeyHasher,
    head::RequestHead,
    header::{Bearer, Header},
    into_key::{Fallback, IntoKey, fallback},
    ip::{ClientNetwork, PeerAddr, PeerIp, PeerNetwork},
    key::{Key, ParseKeyError},
    route::HttpMethod,
};
