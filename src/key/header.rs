//! Keys from header fields: [`Header`] and [`Bearer`].

use std::{borrow::Cow, fmt};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{Key, KeyExtractor, Missing, Or, RequestHead};

/// Counts by the bytes of one header field, an API key for instance. Of any length: only a keyed hash is kept.
///
/// A request without the field, or with an empty one, is answered 401. A request with several such fields names nobody
/// in particular (the service behind may read another one than we would): all of these share one bucket.
///
/// The field is what the client says, not what anyone has checked. Put the layer behind authentication, or have a policy
/// per address before this one, so that one client with many invented keys is limited as one client.
#[derive(Clone, Debug)]
pub struct Header {
    name: HeaderName,
}

impl Header {
    /// Counts by the field of this name, which may be written in any case.
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

    /// This key, or `other` where the request has none. See [`KeyExtractor::or`].
    #[must_use]
    pub fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K> {
        KeyExtractor::or(self, other)
    }
}

impl KeyExtractor for Header {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        match Field::of(head.headers(), &self.name) {
            Field::One(value) => Ok(head.key(value)),
            Field::Several => Ok(Key::AMBIGUOUS),
            Field::None => Err(UNAUTHORIZED),
        }
    }

    fn name(&self) -> Cow<'static, str> {
        self.name.as_str().to_owned().into()
    }

    fn challenge(&self, _head: RequestHead<'_>) -> Option<HeaderValue> {
        // No registered scheme describes a bare API key; a name of our own says where it goes.
        HeaderValue::try_from(format!("ApiKey header=\"{}\"", self.name)).ok()
    }
}

/// Counts by the token of `Authorization: Bearer TOKEN` (RFC 6750 §2.1), as [`Header`] does by a field.
///
/// What is no token by that section is none here: what stands behind a blank could be varied, and whoever checks the token
/// might not look at it.
#[derive(Clone, Copy, Debug)]
pub struct Bearer;

impl Bearer {
    /// This key, or `other` where the request has none. See [`KeyExtractor::or`].
    #[must_use]
    pub fn or<K: KeyExtractor>(self, other: K) -> Or<Self, K> {
        KeyExtractor::or(self, other)
    }
}

impl KeyExtractor for Bearer {
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        match Field::of(head.headers(), &header::AUTHORIZATION) {
            Field::One(value) => token(value).map(|token| head.key(token)).ok_or(UNAUTHORIZED),
            Field::Several => Ok(Key::AMBIGUOUS),
            Field::None => Err(UNAUTHORIZED),
        }
    }

    fn name(&self) -> Cow<'static, str> {
        "bearer".into()
    }

    fn challenge(&self, _head: RequestHead<'_>) -> Option<HeaderValue> {
        Some(HeaderValue::from_static("Bearer"))
    }
}

/// The scheme is compared without case (RFC 9110 §11.1), and one or more spaces follow it.
fn token(credentials: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = credentials.split_at_checked(b"bearer".len())?;
    let token = rest.strip_prefix(b" ")?.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"bearer") && is_b64token(token)).then_some(token)
}

/// Of RFC 6750 §2.1: letters, digits, six signs, and equals signs at the end.
fn is_b64token(token: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    let body = token.iter().take_while(|byte| allowed(byte)).count();
    body > 0 && token[body..].iter().all(|byte| *byte == b'=')
}

enum Field<'a> {
    None,
    One(&'a [u8]),
    Several,
}

impl<'a> Field<'a> {
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
