//! Contains the body of a denial: a problem (RFC 9457) in JSON, or plain text.
//!
//! The text is that of [`Message`]. This file adds the titles of the problem types, and the format.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use smallvec::SmallVec;

use crate::{
    decision::{Denied, Message, RETRY_IN, Reason},
    policy::Policy,
};

/// A body and its content-type.
pub(super) struct Content {
    pub(super) content_type: HeaderValue,
    pub(super) body: Bytes,
}

/// Concatenated at the end, in one allocation of the right size.
type Fragments<'a> = SmallVec<[&'a str; 24]>;

/// The type in draft-ietf-httpapi-ratelimit-headers-11 §5 for a client that exceeded its quota.
const QUOTA_EXCEEDED: &str = "{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\
                              \"title\":\"Quota Exceeded";

/// The type in the same section for a client that is blocked for its behaviour.
const ABNORMAL_USAGE: &str = "{\"type\":\"https://iana.org/assignments/http-problem-types#abnormal-usage-detected\",\
                              \"title\":\"Abnormal Usage Detected";

pub(super) fn json(denied: &Denied) -> Content {
    let (status, message) = (denied.status(), denied.message());
    let mut seconds = itoa::Buffer::new();
    let [mut fragments, after] = problem(denied.advertised_reason(), &status, &message, denied.advertised());
    if let Some(retry_in) = message.retry_in {
        fragments.extend([RETRY_IN[0], seconds.format(retry_in), RETRY_IN[1]]);
    }
    fragments.extend(after);
    Content { content_type: problem_json(), body: fragments.concat().into() }
}

/// The problem of a response that is no denial, about which the status says all.
#[cfg(feature = "axum")]
pub(super) fn of_status(status: StatusCode) -> Content {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = ["{\"title\":\"", title, "\",\"status\":", status.as_str(), "}\n"].concat();
    Content { content_type: problem_json(), body: body.into() }
}

/// The fragments before the time to retry in, and those after it.
fn problem<'a>(
    reason: Reason,
    status: &'a StatusCode,
    message: &Message<'a>,
    violated: impl Iterator<Item = &'a Policy>,
) -> [Fragments<'a>; 2] {
    let [mut fragments, mut after] = [Fragments::new(), Fragments::new()];
    match reason {
        Reason::CostAboveBurst | Reason::Exceeded | Reason::InFlight if *status == StatusCode::TOO_MANY_REQUESTS => {
            fragments.push(QUOTA_EXCEEDED);
        }
        Reason::Blocked => fragments.push(ABNORMAL_USAGE),
        // No type says more than the status does (RFC 9457 §4.2.1).
        _ => {
            fragments.extend(["{\"title\":\"", status.canonical_reason().unwrap_or("Denied")]);
        }
    }
    fragments.extend(["\",\"status\":", status.as_str(), ",\"detail\":\"", message.start]);
    if let Some((preposition, policy)) = message.named {
        fragments.extend([preposition, "\\\"", policy.escaped_name(), "\\\""]);
    }
    fragments.push(message.end);
    let mut before = "\",\"violated-policies\":[\"";
    for policy in violated {
        after.extend([before, policy.escaped_name()]);
        before = "\",\"";
    }
    after.push(if before == "\",\"" { "\"]}\n" } else { "\"}\n" });
    [fragments, after]
}

/// The problem of a request that exceeds the quota of one policy, as nearly every denial is,
/// without the seconds.
#[derive(Debug)]
pub(super) struct ProblemTemplate {
    before: Box<str>,
    after: Box<str>,
}

impl ProblemTemplate {
    pub(super) fn of(policy: &Policy) -> Self {
        let (reason, status) = (Reason::Exceeded, StatusCode::TOO_MANY_REQUESTS);
        let named = policy.advertised().names_the_policy().then_some(policy);
        let message = Message::of(reason, status, named);
        let [mut before, mut after] = problem(reason, &status, &message, named.into_iter());
        before.push(RETRY_IN[0]);
        after.insert(0, RETRY_IN[1]);
        Self { before: before.concat().into(), after: after.concat().into() }
    }

    pub(super) fn json(&self, retry_in: u64) -> Content {
        let mut seconds = itoa::Buffer::new();
        Content {
            content_type: problem_json(),
            body: [&self.before, seconds.format(retry_in), &self.after].concat().into(),
        }
    }
}

pub(super) fn plain(denied: &Denied) -> Content {
    let Message { start, named, end, retry_in } = denied.message();
    let mut seconds = itoa::Buffer::new();
    let mut fragments = Fragments::from_slice(&[start]);
    if let Some((preposition, policy)) = named {
        fragments.extend([preposition, "\"", policy.name(), "\""]);
    }
    fragments.push(end);
    if let Some(retry_in) = retry_in {
        fragments.extend([RETRY_IN[0], seconds.format(retry_in), RETRY_IN[1]]);
    }
    fragments.push("\n");
    let content_type = const { HeaderValue::from_static("text/plain; charset=utf-8") };
    Content { content_type, body: fragments.concat().into() }
}

fn problem_json() -> HeaderValue {
    const { HeaderValue::from_static("application/problem+json") }
}
