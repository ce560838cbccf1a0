//! Contains the extractors that are made of closures: [`key_fn`] for those that return a value, and
//! [`key_ref`] for those that return a part of the request.
//!
//! This file must not know of extractors that are types.

use std::fmt;

use http::StatusCode;

use super::{
    extractor::{KeyExtractor, Missing},
    head::RequestHead,
    into_key::IntoKey,
    key::Key,
};

/// Counts by what `extract` returns: any value that [makes a key](IntoKey), or a [`Key`] made with
/// [`RequestHead::key`]. A request for which it returns `None` is rejected with 400.
///
/// A closure that returns something borrowed from the request does not compile with this function
/// ("lifetime may not live long enough"): use [`key_ref`].
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

/// Counts by a part of the request: a text, or bytes, that `extract` borrows from it. Nothing is
/// copied. A request for which it returns `None` is rejected with 400.
///
/// ```
/// use http::HeaderValue;
/// use tower_quota::{Policy, Quota, key::key_ref};
///
/// let per_tenant = Policy::per(
///     key_ref(|head| head.headers().get("x-tenant").map(HeaderValue::as_bytes)),
///     Quota::per_minute(600),
/// );
/// ```
///
/// Where the key has several parts, or is a part of a value, make it with [`RequestHead::key`] in a
/// [`key_fn`]: `key_fn(|head| Some(head.key((tenant(head)?, head.uri().path()))))`.
pub fn key_ref<F, K>(extract: F) -> KeyRef<F>
where
    F: Fn(RequestHead<'_>) -> Option<&K> + Send + Sync + 'static,
    K: IntoKey + ?Sized,
{
    KeyRef { extract }
}

/// The extractor that [`key_ref`] makes of a closure.
#[derive(Clone, Copy)]
pub struct KeyRef<F> {
    extract: F,
}

impl<F, K> KeyExtractor for KeyRef<F>
where
    F: Fn(RequestHead<'_>) -> Option<&K> + Send + Sync + 'static,
    K: IntoKey + ?Sized,
{
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        (self.extract)(head).map(|part| head.key(part)).ok_or(Missing::Reject(StatusCode::BAD_REQUEST))
    }
}

impl<F> fmt::Debug for KeyRef<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRef").finish_non_exhaustive()
    }
}
