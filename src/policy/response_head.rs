//! Contains [`ResponseHead`]: what a policy sees of a response.

use http::{Extensions, HeaderMap, Response, StatusCode};

/// A borrowed response without its body, for [`Policy::count_if`](super::Policy::count_if).
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    status: StatusCode,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> ResponseHead<'a> {
    pub(crate) fn of<B>(response: &'a Response<B>) -> Self {
        Self { status: response.status(), headers: response.headers(), extensions: response.extensions() }
    }

    /// Returns the status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.status
    }

    /// Returns the header fields.
    #[must_use]
    pub fn headers(self) -> &'a HeaderMap {
        self.headers
    }

    /// Returns what the service tells its layers.
    #[must_use]
    pub fn extensions(self) -> &'a Extensions {
        self.extensions
    }
}
