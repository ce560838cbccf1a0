//! Contains a denial as the status of a call of gRPC or gRPC-Web: the trailers-only form (the
//! protocol's *Responses*), the status and its details.
//!
//! A plain 429 would be read as `UNAVAILABLE`, which clients retry at once.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};

use super::template::MAX_FIELDS;
use crate::{
    decision::{Denied, LONGEST_ADVERTISED, Reason},
    key::RequestHead,
};
#[cfg(feature = "tonic")]
use crate::{limiter::AcquireError, observe::events};

/// The protocols of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    Web,
    /// gRPC-Web in Base64.
    WebText,
}

impl Protocol {
    /// The protocol of a message with this content-type: `application/grpc` and the like, which
    /// may be followed by `+` or `;`.
    fn of(content_type: &HeaderValue) -> Option<Self> {
        let rest = strip_prefix(content_type.as_bytes(), b"application/grpc")?;
        let (protocol, rest) = if let Some(rest) = strip_prefix(rest, b"-web-text") {
            (Self::WebText, rest)
        } else if let Some(rest) = strip_prefix(rest, b"-web") {
            (Self::Web, rest)
        } else {
            (Self::Grpc, rest)
        };
        matches!(rest.first(), None | Some(b'+' | b';' | b' ')).then_some(protocol)
    }

    /// The protocol of a call, which is a `POST`.
    ///
    /// A call of gRPC comes over HTTP/2 or later, or from a translator of gRPC-Web, which adds `te:
    /// trailers`: if the content-type sufficed, any client could have its denial answered with a
    /// 200. A call of gRPC-Web comes over any version, and only its content-type tells it.
    pub(super) fn of_call(head: RequestHead<'_>) -> Option<Self> {
        let protocol = Self::of(head.headers().get(header::CONTENT_TYPE)?)?;
        let is_call = head.method() == Method::POST
            && match protocol {
                Self::Grpc => {
                    head.version() >= Version::HTTP_2
                        || head.headers().get(header::TE).is_some_and(|te| te == "trailers")
                }
                Self::Web | Self::WebText => true,
            };
        is_call.then(|| protocol.of_response(head.headers().get(header::ACCEPT)))
    }

    /// gRPC-Web is answered in the encoding that the client accepts.
    fn of_response(self, accept: Option<&HeaderValue>) -> Self {
        match (self, accept.and_then(Self::of)) {
            (Self::Web | Self::WebText, Some(accepted @ (Self::Web | Self::WebText))) => accepted,
            _ => self,
        }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Grpc => "application/grpc",
            Self::Web => "application/grpc-web+proto",
            Self::WebText => "application/grpc-web-text+proto",
        })
    }
}

fn strip_prefix<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// Whether a response belongs to gRPC or gRPC-Web.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).and_then(Protocol::of).is_some()
}

/// The codes of gRPC that a denial can have.
#[derive(Clone, Copy)]
enum Code {
    InvalidArgument = 3,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Code {
    fn of(denied: &Denied) -> Self {
        match (denied.reason(), denied.status()) {
            (Reason::MissingKey, StatusCode::UNAUTHORIZED) => Self::Unauthenticated,
            (Reason::MissingKey, StatusCode::FORBIDDEN) => Self::PermissionDenied,
            (Reason::MissingKey, StatusCode::NOT_FOUND) => Self::Unimplemented,
            (Reason::MissingKey, StatusCode::TOO_MANY_REQUESTS)
            | (Reason::AtCapacity | Reason::Blocked | Reason::CostAboveBurst | Reason::Exceeded, _) => {
                Self::ResourceExhausted
            }
            (Reason::MissingKey | Reason::InFlight, StatusCode::SERVICE_UNAVAILABLE) | (Reason::Unavailable, _) => {
                Self::Unavailable
            }
            (Reason::InFlight, _) => Self::ResourceExhausted,
            (Reason::MissingKey, status) if status.is_server_error() => Self::Internal,
            (Reason::MissingKey, _) => Self::InvalidArgument,
        }
    }
}

/// A denial as the status of a call.
struct CallStatus {
    code: Code,
    message: String,
    /// A `google.rpc.Status`, where a wait helps.
    details: Option<Vec<u8>>,
    /// In milliseconds (gRFC A6). Negative: do not retry.
    pushback: Option<i32>,
}

impl CallStatus {
    fn of(denied: &Denied) -> Self {
        let (code, message) = (Code::of(denied), denied.to_string());
        let (details, pushback) = match (denied.advertised_wait(), denied.advertised_reason()) {
            (Some(wait), _) => {
                // A signed integer of 32 bits. A client that cannot parse it does not retry at all.
                let millis = i32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
                (Some(status(code as u8, &message, wait.min(LONGEST_ADVERTISED))), Some(millis))
            }
            (None, Reason::CostAboveBurst) => (None, Some(-1)),
            (None, _) => (None, None),
        };
        Self { code, message, details, pushback }
    }
}

/// The status in the header fields of a 200 with an empty body, whose stream ends with its head.
pub(super) fn trailers_only(protocol: Protocol, denied: &Denied) -> Response<Bytes> {
    let CallStatus { code, message, details, pushback } = CallStatus::of(denied);
    let mut response = Response::new(Bytes::new());
    let fields = response.headers_mut();
    fields.reserve(MAX_FIELDS);
    fields.insert(header::CONTENT_TYPE, protocol.content_type());
    fields.insert(&GRPC_STATUS, (code as u16).into());
    // In printable ASCII only the percent sign has to be encoded.
    let encoded = message.replace('%', "%25");
    if let Ok(encoded) = HeaderValue::try_from(encoded) {
        fields.insert(&GRPC_MESSAGE, encoded);
    }
    if let Some(details) = details.and_then(|details| HeaderValue::try_from(base64(&details)).ok()) {
        fields.insert(&GRPC_STATUS_DETAILS, details);
    }
    if let Some(pushback) = pushback {
        fields.insert(&GRPC_PUSHBACK, pushback.into());
    }
    response
}

/// The status that the layer answers a call with, for a handler that calls
/// [`acquire`](crate::Limiter::acquire).
#[cfg(feature = "tonic")]
impl From<Denied> for tonic::Status {
    fn from(denied: Denied) -> Self {
        let CallStatus { code, message, details, pushback } = CallStatus::of(&denied);
        let mut metadata = tonic::metadata::MetadataMap::new();
        if let Some(pushback) = pushback {
            metadata.insert(GRPC_PUSHBACK.as_str(), pushback.into());
        }
        let (code, details) = (tonic::Code::from_i32(code as i32), details.unwrap_or_default().into());
        Self::with_details_and_metadata(code, message, details, metadata)
    }
}

/// A denial is the status that the layer answers a call with. Any other error is the server's own
/// fault: `INTERNAL`, and an event with the reason, which clients do not learn.
#[cfg(feature = "tonic")]
impl From<AcquireError> for tonic::Status {
    fn from(error: AcquireError) -> Self {
        match error {
            AcquireError::Denied(denied) => (*denied).into(),
            error => {
                events::not_asked(&error);
                Self::internal("the request could not be limited")
            }
        }
    }
}

static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// A `google.rpc.Status` with a `google.rpc.RetryInfo`.
fn status(code: u8, message: &str, delay: Duration) -> Vec<u8> {
    let mut duration = Vec::new();
    varint_field(&mut duration, 1, delay.as_secs());
    varint_field(&mut duration, 2, delay.subsec_nanos().into());
    let mut retry_info = Vec::new();
    bytes_field(&mut retry_info, 1, &duration);
    let mut any = Vec::new();
    bytes_field(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
    bytes_field(&mut any, 2, &retry_info);
    let mut status = Vec::new();
    varint_field(&mut status, 1, code.into());
    bytes_field(&mut status, 2, message.as_bytes());
    bytes_field(&mut status, 3, &any);
    status
}

/// Zero is the default and is not written.
fn varint_field(message: &mut Vec<u8>, number: u8, value: u64) {
    if value > 0 {
        message.push(number << 3);
        varint(message, value);
    }
}

fn bytes_field(message: &mut Vec<u8>, number: u8, value: &[u8]) {
    message.push(number << 3 | 2);
    varint(message, value.len() as u64);
    message.extend_from_slice(value);
}

#[allow(clippy::cast_possible_truncation, reason = "seven bits at a time")]
fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// Base64 without padding, as gRPC requires. Rejected: a crate for it, because the small tree of
/// dependencies is a promise to users.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_with_its_retry_info_is_encoded_as_other_implementations_do() {
        let encoded = base64(&status(8, "rate limited", Duration::from_millis(1_500)));
        let vector = "CAgSDHJhdGUgbGltaXRlZBo2Cih0eXBlLmdvb2dsZWFwaXMuY29tL2dvb2dsZS5ycGMuUmV0cnlJbmZvEgoKCAgBEIDKte4B";
        assert_eq!(encoded, vector);
    }

    #[test]
    fn base64_has_no_padding() {
        // RFC 4648 §10, without the padding.
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
