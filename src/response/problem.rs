//! A refusal as a problem (RFC 9457) or as plain text.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use smallvec::SmallVec;

use crate::{
    decision::{Denied, Reason, Sentence},
    headers,
};

/// Put together at the end, in one allocation of the right size.
type Parts<'a> = SmallVec<[&'a str; 24]>;

/// The type of draft-ietf-httpapi-ratelimit-headers-11 §5 for a client that went over its quota.
const QUOTA_EXCEEDED: &str = "{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\
                              \"title\":\"Quota Exceeded";

/// The same for a client that is blocked for what it does.
const ABNORMAL_USAGE: &str = "{\"type\":\"https://iana.org/assignments/http-problem-types#abnormal-usage-detected\",\
                              \"title\":\"Abnormal Usage Detected";

pub(super) fn json(denied: &Denied) -> Response<Bytes> {
    let status = denied.status();
    let Sentence { start, named, end, retry_in } = denied.sentence();
    let (mut code, mut seconds) = (itoa::Buffer::new(), itoa::Buffer::new());
    let mut parts = Parts::new();
    match denied.told_reason() {
        Reason::CostAboveBurst | Reason::Exceeded => parts.push(QUOTA_EXCEEDED),
        Reason::Blocked => parts.push(ABNORMAL_USAGE),
        // No type says more than the status does (RFC 9457 §4.2.1).
        Reason::AtCapacity | Reason::MissingKey | Reason::Unavailable => {
            parts.extend(["{\"title\":\"", status.canonical_reason().unwrap_or("Refused")]);
        }
    }
    parts.extend(["\",\"status\":", code.format(status.as_u16()), ",\"detail\":\"", start]);
    if let Some((preposition, policy)) = named {
        parts.extend([preposition, "\\\"", policy.escaped_name(), "\\\""]);
    }
    parts.push(end);
    if let Some(retry_in) = retry_in {
        parts.extend([" Retry in ", seconds.format(retry_in), " s."]);
    }
    let mut before = "\",\"violated-policies\":[\"";
    for policy in denied.told() {
        parts.extend([before, policy.escaped_name()]);
        before = "\",\"";
    }
    parts.push(if before == "\",\"" { "\"]}\n" } else { "\"}\n" });
    respond(denied, const { HeaderValue::from_static("application/problem+json") }, parts.concat())
}

pub(super) fn plain(denied: &Denied) -> Response<Bytes> {
    let Sentence { start, named, end, retry_in } = denied.sentence();
    let mut seconds = itoa::Buffer::new();
    let mut parts = Parts::from_slice(&[start]);
    if let Some((preposition, policy)) = named {
        parts.extend([preposition, "\"", policy.name(), "\""]);
    }
    parts.push(end);
    if let Some(retry_in) = retry_in {
        parts.extend([" Retry in ", seconds.format(retry_in), " s."]);
    }
    parts.push("\n");
    respond(denied, const { HeaderValue::from_static("text/plain; charset=utf-8") }, parts.concat())
}

fn respond(denied: &Denied, content_type: HeaderValue, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = denied.status();
    let headers = response.headers_mut();
    headers.reserve(headers::MOST);
    headers.insert(header::CONTENT_TYPE, content_type);
    response
}
