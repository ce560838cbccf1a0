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
/// such requests share one bucket. So do not count by a field that may come several times, such as
/// `Accept` or `X-Forwarded-For`.
///
/// Two fields have other shapes in HTTP/2:
///
/// - `host` is the authority of the request's target where it has one, as in HTTP/2 (RFC 9113
///   §8.3.1), and otherwise the field `Host`. The name counts in lower case and without the port,
///   because a client can vary both.
/// - `cookie` may come in several fields, which are one value (RFC 9113 §8.2.3).
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
            _ if self.name == header::HOST => host(head),
            FieldValue::One(value) => Ok(head.key(value)),
            FieldValue::Several if self.name == header::COOKIE => {
                let crumbs: Vec<_> = head.headers().get_all(&self.name).iter().map(HeaderValue::as_bytes).collect();
                Ok(head.key(crumbs.join(&b"; "[..])))
            }
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

/// The name of the host that a request is for.
fn host(head: RequestHead<'_>) -> Result<Key, Missing> {
    let name = match (head.uri().host(), FieldValue::of(head.headers(), &header::HOST)) {
        // It takes precedence over the field (RFC 9112 §3.2.2).
        (Some(host), _) => host.as_bytes(),
        (None, FieldValue::One(value)) => without_port(value),
        (None, FieldValue::Several) => return Ok(Key::AMBIGUOUS),
        (None, FieldValue::None) => return Err(UNAUTHORIZED),
    };
    if name.iter().any(u8::is_ascii_uppercase) { Ok(head.key(name.to_ascii_lowercase())) } else { Ok(head.key(name)) }
}

/// `host [ ":" port ]` (RFC 9110 §7.2), where an IPv6 address is in brackets.
fn without_port(value: &[u8]) -> &[u8] {
    match value.iter().rposition(|byte| *byte == b':') {
        Some(colon) if value[colon + 1..].iter().all(u8::is_ascii_digit) && !value[colon..].contains(&b']') => {
            &value[..colon]
        }
        _ => value,
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
