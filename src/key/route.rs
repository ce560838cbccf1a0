//! Contains keys from the target of a request: [`Method`] and, with axum, `MatchedPath`.

use std::borrow::Cow;

use super::{
    extractor::{KeyExtractor, Missing},
    head::RequestHead,
    key::Key,
};

/// Counts by the request's method. Use it in combinations: `(PeerIp, Method)`.
///
/// All methods that are not standard (RFC 9110 §9, RFC 5789) count as one. Otherwise a client could
/// invent methods to get fresh buckets.
#[derive(Clone, Copy, Debug)]
pub struct Method;

impl KeyExtractor for Method {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        use http::Method as M;
        let standard = matches!(
            *head.method(),
            M::GET | M::HEAD | M::POST | M::PUT | M::DELETE | M::OPTIONS | M::PATCH | M::TRACE | M::CONNECT
        );
        Ok(head.key(if standard { head.method().as_str() } else { "" }))
    }

    fn name(&self) -> Cow<'static, str> {
        "method".into()
    }
}

/// Counts by the template of the route that axum matched (`/users/{id}`), so that a client cannot
/// invent paths to get fresh buckets. Use it in combinations: `(PeerIp, MatchedPath)`.
///
/// Requests that match no route count as one route.
#[cfg(feature = "axum")]
#[derive(Clone, Copy, Debug)]
pub struct MatchedPath;

#[cfg(feature = "axum")]
impl KeyExtractor for MatchedPath {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        // A template begins with a slash, so no template equals the empty text.
        let template = head.extensions().get::<axum::extract::MatchedPath>().map_or("", |path| path.as_str());
        Ok(head.key(template))
    }

    fn name(&self) -> Cow<'static, str> {
        "path".into()
    }
}
