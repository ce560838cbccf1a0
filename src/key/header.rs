//! Contains keys from header fields: [`Header`] and [`Bearer`].

use std::{borrow::Cow, fmt};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{
    extractor::{KeyExtractor, Missing},
    head::RequestHead,
    key::Key,
};

/// Counts by the bytes of one header field, an API key for instance. Values may have any length:
/// only a keyed hash is stored.
///
/// A request without the field, or with an empty one, is rejected with 401. A request with several
/// such fields is ambiguous, because the inner service may read another one than the limiter. All
/// such requests share one bucket.
///
/// Nobody has verified the field. Apply the layer inside of authentication, or add a policy per
/// address before this one, so that one client with many invented keys is limited as one client.
#[derive(Clone, Debug)]
pub struct Header {
    name: HeaderName,
}

impl Header {
    /// Returns the extractor of the field of this name, in any case.
    ///
    /// # Panics
    ///
    /// If `name` is not a valid field name (RFC 9110 §5.1).
    #[must_use]
    pub fn new<N>(name: N) -> Self
    where
        N: TryInto<HeaderName>,
        N::Error: fmt::Display,
    {
        match name.try_into() {
            Ok(name) => Self { name },
            Err(error) => panic!("a key's header field has a valid name: {error}"),
        }
    }
}

or_method!(Header; Bearer);

impl KeyExtractor for Header {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        match FieldValue::of(head.headers(), &self.name) {
            FieldValue::One(value) => Ok(head.key(value)),
            FieldValue::Several => Ok(Key::AMBIGUOUS),
            FieldValue::None => Err(UNAUTHORIZED),
        }
    }

    fn name(&self) -> Cow<'static, str> {
        self.name.as_str().to_owned().into()
    }

    fn challenge(&self, _head: RequestHead<'_>) -> Option<HeaderValue> {
        // No registered scheme describes a bare API key. This name of our own says where it
        // belongs.
        HeaderValue::try_from(format!("ApiKey header=\"{}\"", self.name)).ok()
    }
}

/// Counts by the token of `Authorization: Bearer TOKEN` (RFC 6750 §2.1), as [`Header`] does by a
/// field.
///
/// Text that is no token by that section is a missing key. Otherwise a client could vary what
/// follows the token, which the service that verifies the token may ignore.
#[derive(Clone, Copy, Debug)]
pub struct Bearer;

impl KeyExtractor for Bearer {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        match FieldValue::of(head.headers(), &header::AUTHORIZATION) {
            FieldValue::One(value) => token(value).map(|token| head.key(token)).ok_or(UNAUTHORIZED),
            FieldValue::Several => Ok(Key::AMBIGUOUS),
            FieldValue::None => Err(UNAUTHORIZED),
        }
    }

    fn name(&self) -> Cow<'static, str> {
        "bearer".into()
    }

    fn challenge(&self, _head: RequestHead<'_>) -> Option<HeaderValue> {
        Some(HeaderValue::from_static("Bearer"))
    }
}

/// The scheme is compared without case (RFC 9110 §11.1). One or more spaces follow it.
fn token(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = credentials.split_at_checked(b"bearer".len())?;
    let token = rest.strip_prefix(b" ")?.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"bearer") && is_b64token(token)).then_some(token)
}

/// RFC 6750 §2.1: letters, digits, six signs, and equals signs at the end.
fn is_b64token(token: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    let body = token.iter().take_while(|byte| allowed(byte)).count();
    body > 0 && token[body..].iter().all(|byte| *byte == b'=')
}

enum FieldValue<'a> {
    None,
    One(&'a [u8]),
    Several,
}

impl<'a> FieldValue<'a> {
    fn of(headers: &'a HeaderMap, name: &HeaderName) -> Self {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Self::None,
            (Some(value), None) if value.as_bytes().trim_ascii().is_empty() => Self::None,
            (Some(value), None) => Self::One(value.as_bytes().trim_ascii()),
            (Some(_), Some(_)) => Self::Several,
        }
    }
}

const UNAUTHORIZED: Missing = Missing::Reject(StatusCode::UNAUTHORIZED);
