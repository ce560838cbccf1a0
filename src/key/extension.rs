//! Keys from the request's extensions: [`Extension`].

use std::{any::type_name, borrow::Cow, fmt, marker::PhantomData};

use http::StatusCode;

use super::{IntoKey, Key, KeyExtractor, Missing, Or, RequestHead};

/// Counts by a value of type `T` in the request's extensions, put there by an outer layer: a user that was
/// authenticated, a tenant.
///
/// A request without it is answered 500, for then the outer layer is missing or in the wrong place. For a type that does
/// not [make a key](IntoKey) itself, use [`key_fn`](super::key_fn).
///
/// ```
/// use tower_quota::{Policy, Quota, key::Extension};
///
/// let per_user = Policy::per(Extension::<u64>::new(), Quota::per_second(5)).named("per-user");
/// ```
pub struct Extension<T> {
    value: PhantomData<fn() -> T>,
}

impl<T> Extension<T> {
    /// Counts by the extension of type `T`.
    #[must_use]
    pub const fn new() -> Self {
        Self { value: PhantomData }
    }
}

impl<T: IntoKey + Clone + Send + Sync + 'static> Extension<T> {
    /// This key, or `other` where the request has none. See [`KeyExtractor::or`].
    #[must_use]
    pub fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K> {
        KeyExtractor::or(self, other)
    }
}

impl<T: IntoKey + Clone + Send + Sync + 'static> KeyExtractor for Extension<T> {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        match head.extensions().get::<T>() {
            Some(value) => Ok(head.key(value.clone())),
            None => Err(Missing::Reject(StatusCode::INTERNAL_SERVER_ERROR)),
        }
    }

    fn name(&self) -> Cow<'static, str> {
        "extension".into()
    }

    fn remedy(&self, _head: RequestHead<'_>) -> &'static str {
        "put the layer that inserts the extension outside of the rate limit"
    }
}

// By hand, because `T` need not have what the marker has.
impl<T> Clone for Extension<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Extension<T> {}

impl<T> Default for Extension<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Extension<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extension<{}>", type_name::<T>())
    }
}
