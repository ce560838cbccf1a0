//! Contains [`FromExtension`], a key from the request's extensions.

use std::{any::type_name, borrow::Cow, fmt, marker::PhantomData};

use http::StatusCode;

use super::{
    extractor::{KeyExtractor, Missing},
    head::RequestHead,
    into_key::IntoKey,
    key::Key,
};

/// Counts by a value of type `T` that an outer layer put into the request's extensions: an
/// authenticated user, a tenant.
///
/// A request without the value is rejected with 500, because then the outer layer is missing or in
/// the wrong place. For a type that does not [make a key](IntoKey) itself, use
/// [`key_fn`](super::key_fn).
///
/// ```
/// use tower_quota::{Policy, Quota, key::FromExtension};
///
/// let per_user = Policy::per(FromExtension::<u64>::new(), Quota::per_second(5)).named("per-user");
/// ```
pub struct FromExtension<T> {
    value: PhantomData<fn() -> T>,
}

impl<T> FromExtension<T> {
    /// Returns the extractor of the extension of type `T`.
    #[must_use]
    pub const fn new() -> Self {
        Self { value: PhantomData }
    }
}

or_method!(FromExtension<T>, T: IntoKey + Send + Sync + 'static);

impl<T: IntoKey + Send + Sync + 'static> KeyExtractor for FromExtension<T> {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        match head.extensions().get::<T>() {
            Some(value) => Ok(head.key(value)),
            None => Err(Missing::Reject(StatusCode::INTERNAL_SERVER_ERROR)),
        }
    }

    fn name(&self) -> Cow<'static, str> {
        "extension".into()
    }

    fn remedy(&self, _head: RequestHead<'_>) -> &'static str {
        "apply the layer that inserts the extension outside of the rate limit"
    }
}

// Not derived, because the derived impls would need `T: Clone`.
impl<T> Clone for FromExtension<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for FromExtension<T> {}

impl<T> Default for FromExtension<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for FromExtension<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FromExtension<{}>", type_name::<T>())
    }
}
