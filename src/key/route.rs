//! Contains keys from the target of a request: [`HttpMethod`] and, with axum, `RouteTemplate`.

use std::borrow::Cow;

use super::{
    extractor::{KeyExtractor, Missing},
    head::RequestHead,
    key::Key,
};
#[cfg(feature = "axum")]
use crate::observe::suspicions::{self, ROUTE_REMEDY};

/// Counts by the request's method. Use it in combinations: `(PeerIp, HttpMethod)`.
///
/// All methods that are not standard (RFC 9110 §9, RFC 5789) count as one. Otherwise a client could
/// invent methods to get fresh buckets.
#[derive(Clone, Copy, Debug)]
pub struct HttpMethod;

impl KeyExtractor for HttpMethod {
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
/// invent paths to get fresh buckets. Use it in combinations: `(PeerIp, RouteTemplate)`.
///
/// The route has to be known where the layer is: apply it with `Router::layer`,
/// `Router::route_layer` or on a route. Around a whole router, outside of `nest_service`, and in
/// tonic no route is known.
///
/// A request whose route is not known is rejected with 404, as a request that matches no route is.
/// Where the router has a fallback that serves such requests, choose with
/// [`Policy::on_missing`](crate::Policy::on_missing): [`Missing::Share`] counts them all together.
#[cfg(feature = "axum")]
#[derive(Clone, Copy, Debug)]
pub struct RouteTemplate;

#[cfg(feature = "axum")]
or_method!(RouteTemplate);

#[cfg(feature = "axum")]
impl KeyExtractor for RouteTemplate {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        let path = head.extensions().get::<axum::extract::MatchedPath>();
        suspicions::route(path.is_some());
        path.map(|path| head.key(path.as_str())).ok_or(Missing::Reject(http::StatusCode::NOT_FOUND))
    }

    fn name(&self) -> Cow<'static, str> {
        "path".into()
    }

    fn remedy(&self, _head: RequestHead<'_>) -> &'static str {
        ROUTE_REMEDY
    }
}
