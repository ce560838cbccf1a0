//! Contains [`RequestHead`], what extractors and conditions see of a request.

use std::fmt;

use http::{Extensions, HeaderMap, Method, Request, Uri, Version};

use super::{hasher::KeyHasher, into_key::IntoKey, key::Key};

/// A borrowed request without its body, and the means to make a [`Key`] from its content.
///
/// It is `Copy`, and not generic over the body. So closures infer it, and policies need no type
/// parameter.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    // One pointer, because every call of a decision passes it on.
    parts: &'a HeadParts<'a>,
}

/// The target of a [`RequestHead`].
pub(crate) struct HeadParts<'a> {
    method: &'a Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
    hasher: &'a KeyHasher,
}

impl<'a> HeadParts<'a> {
    pub(crate) fn new<B>(request: &'a Request<B>, hasher: &'a KeyHasher) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            headers: request.headers(),
            extensions: request.extensions(),
            hasher,
        }
    }

    pub(crate) fn head(&'a self) -> RequestHead<'a> {
        RequestHead { parts: self }
    }
}

impl<'a> RequestHead<'a> {
    /// Returns the method.
    #[must_use]
    pub fn method(self) -> &'a Method {
        self.parts.method
    }

    /// Returns the target as the layer sees it: inside a nested router, its path lacks the prefix
    /// under which the router is nested. See `original_uri` (with the feature `axum`).
    #[must_use]
    pub fn uri(self) -> &'a Uri {
        self.parts.uri
    }

    /// Returns the target as the client sent it, also inside routers that are nested in others:
    /// axum keeps it in `OriginalUri`. The same as [`uri`](Self::uri) outside of axum's routers.
    #[cfg(feature = "axum")]
    #[must_use]
    pub fn original_uri(self) -> &'a Uri {
        self.parts.extensions.get::<axum::extract::OriginalUri>().map_or(self.parts.uri, |original| &original.0)
    }

    /// Returns the protocol's version.
    #[must_use]
    pub fn version(self) -> Version {
        self.parts.version
    }

    /// Returns the header fields. Clients write them: read values as bytes (`to_str().ok()` turns a
    /// byte above 0x7F into a missing key), and expect that a field occurs more than once.
    #[must_use]
    pub fn headers(self) -> &'a HeaderMap {
        self.parts.headers
    }

    /// Returns what the server and outer layers know of the request.
    #[must_use]
    pub fn extensions(self) -> &'a Extensions {
        self.parts.extensions
    }

    /// Returns a copy as a request without a body, for functions that take a `&Request<_>`. It
    /// copies all header fields and extensions, which takes longer than a decision: where you can,
    /// change the function to take a `RequestHead`, whose methods have the same names.
    ///
    /// ```
    /// use http::Request;
    /// use tower_quota::{Policy, Quota, key::key_fn};
    ///
    /// fn tenant<B>(request: &Request<B>) -> Option<String> {
    ///     Some(request.headers().get("x-tenant")?.to_str().ok()?.to_owned())
    /// }
    ///
    /// let policy = Policy::per(key_fn(|head| tenant(&head.to_request())), Quota::per_second(10));
    /// ```
    #[must_use]
    pub fn to_request(self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.method().clone();
        *request.uri_mut() = self.uri().clone();
        *request.version_mut() = self.version();
        *request.headers_mut() = self.headers().clone();
        *request.extensions_mut() = self.extensions().clone();
        request
    }

    /// Makes the key of a value, borrowed or owned, under this limiter's secret.
    #[must_use]
    #[inline(always)]
    pub fn key(self, value: impl IntoKey) -> Key {
        value.key(self.parts.hasher)
    }
}

/// Shows the method and the path. Header fields and queries may contain secrets.
impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", self.method())
            .field("path", &self.uri().path())
            .finish_non_exhaustive()
    }
}
