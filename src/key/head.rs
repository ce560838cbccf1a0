//! [`RequestHead`]: what extractors and conditions see of a request.

use std::fmt;

use http::{Extensions, HeaderMap, Method, Request, Uri, Version};

use super::{IntoKey, Key, KeyHasher};

/// A request without its body, borrowed; and the means to make a [`Key`] from what it holds.
///
/// `Copy`, and not generic over the body: closures infer it, and policies need no type parameter.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    // One pointer, for it is handed through every call of a decision.
    parts: &'a Parts<'a>,
}

/// What a [`RequestHead`] points to.
pub(crate) struct Parts<'a> {
    method: &'a Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
    hasher: &'a KeyHasher,
}

impl<'a> Parts<'a> {
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
    /// The method.
    #[must_use]
    pub fn method(self) -> &'a Method {
        self.parts.method
    }

    /// The target. Behind a router that nests services, what the router left of it.
    #[must_use]
    pub fn uri(self) -> &'a Uri {
        self.parts.uri
    }

    /// The protocol's version.
    #[must_use]
    pub fn version(self) -> Version {
        self.parts.version
    }

    /// The header fields. Clients write them: read values as bytes (`to_str().ok()` would turn a byte above 0x7F into a
    /// missing key), and mind that a field may occur more than once.
    #[must_use]
    pub fn headers(self) -> &'a HeaderMap {
        self.parts.headers
    }

    /// What the server and outer layers know of the request.
    #[must_use]
    pub fn extensions(self) -> &'a Extensions {
        self.parts.extensions
    }

    /// The key of a value, borrowed or owned, under this limiter's secret.
    #[must_use]
    pub fn key(self, value: impl IntoKey) -> Key {
        value.into_key(self.parts.hasher)
    }
}

/// Shows the method and the path. Header fields and queries carry secrets.
impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestHead")
            .field("method", self.method())
            .field("path", &self.uri().path())
            .finish_non_exhaustive()
    }
}
