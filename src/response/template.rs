//! Contains [`HeaderTemplate`]: header maps that are made once and cloned for each response.

use std::mem;

use http::{HeaderMap, HeaderValue, header};

// A constant where it is used: cloning a static name calls through a table of functions.
macro_rules! name {
    ($name:literal) => {
        const { http::HeaderName::from_static($name) }
    };
}
pub(super) use name;

/// The number of fields of a denial, including content-type. Space for all is allocated at once.
/// Space for more would need a larger class of allocation, which costs more than writing all
/// fields.
pub(super) const MAX_FIELDS: usize = 6;

/// Fields that are the same in many responses, except for some values. Cloned, because inserting
/// would hash each name again.
#[derive(Debug, Default)]
pub(super) struct HeaderTemplate {
    fields: HeaderMap,
}

impl HeaderTemplate {
    pub(super) fn of_denial(policies: Option<HeaderValue>) -> Self {
        let mut fields = HeaderMap::with_capacity(MAX_FIELDS);
        fields.insert(header::CONTENT_TYPE, blank());
        fields.insert(header::CACHE_CONTROL, no_store());
        fields.insert(header::RETRY_AFTER, blank());
        if let Some(policies) = policies {
            fields.insert(name!("ratelimit-policy"), policies);
            fields.insert(name!("ratelimit"), blank());
        }
        Self { fields }
    }

    /// Returns the fields with these values, as far as the template has the fields.
    pub(super) fn fill(
        &self,
        mut content_type: HeaderValue,
        mut retry_after: HeaderValue,
        mut limits: HeaderValue,
    ) -> HeaderMap {
        let mut fields = self.fields.clone();
        for (name, value) in fields.iter_mut().filter(|(_, value)| value.is_empty()) {
            // Compared instead of looked up, which would hash each name. There are few.
            if *name == header::CONTENT_TYPE {
                mem::swap(value, &mut content_type);
            } else if *name == header::RETRY_AFTER {
                mem::swap(value, &mut retry_after);
            } else if *name == name!("ratelimit") {
                mem::swap(value, &mut limits);
            }
        }
        fields
    }
}

/// A value to be filled in.
pub(super) fn blank() -> HeaderValue {
    const { HeaderValue::from_static("") }
}

/// RFC 6585 §4 forbids caches to store a 429. Not every cache complies, and gRPC's status is a 200.
pub(super) fn no_store() -> HeaderValue {
    const { HeaderValue::from_static("no-store") }
}
