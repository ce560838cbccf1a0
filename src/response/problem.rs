//! A refusal as a problem (RFC 9457) or as plain text.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use smallvec::SmallVec;

use crate::{
    decision::{Denied, Reason, Sentence},
    policy::Policy,
};

/// A body and its content-type.
pub(super) struct Content {
    pub(super) kind: HeaderValue,
    pub(super) body: Bytes,
}

/// Put together at the end, in one allocation of the right size.
type Parts<'a> = SmallVec<[&'a str; 24]>;

/// The type of draft-ietf-httpapi-ratelimit-headers-11 §5 for a client that went over its quota.
const QUOTA_EXCEEDED: &str = "{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\
                              \"title\":\"Quota Exceeded";

/// The same for a client that is blocked for what it does.
const ABNORMAL_USAGE: &str = "{\"type\":\"https://iana.org/assignments/http-problem-types#abnormal-usage-detected\",\
                              \"title\":\"Abnormal Usage Detected";

pub(super) fn json(denied: &Denied) -> Content {
    let (status, sentence) = (denied.status(), denied.sentence());
    let mut seconds = itoa::Buffer::new();
    let [mut parts, after] = problem(denied.told_reason(), &status, &sentence, denied.told());
    if let Some(retry_in) = sentence.retry_in {
        parts.extend([RETRY_IN, seconds.format(retry_in), SECONDS]);
    }
    parts.extend(after);
    Content { kind: problem_json(), body: parts.concat().into() }
}

/// What stands before the time to come back at, and what stands after it.
fn problem<'a>(
    reason: Reason,
    status: &'a StatusCode,
    sentence: &Sentence<'a>,
    told: impl Iterator<Item = &'a Policy>,
) -> [Parts<'a>; 2] {
    let [mut parts, mut after] = [Parts::new(), Parts::new()];
    match reason {
        Reason::CostAboveBurst | Reason::Exceeded => parts.push(QUOTA_EXCEEDED),
        Reason::Blocked => parts.push(ABNORMAL_USAGE),
        // No type says more than the status does (RFC 9457 §4.2.1).
        Reason::AtCapacity | Reason::MissingKey | Reason::Unavailable => {
            parts.extend(["{\"title\":\"", status.canonical_reason().unwrap_or("Refused")]);
        }
    }
    parts.extend(["\",\"status\":", status.as_str(), ",\"detail\":\"", sentence.start]);
    if let Some((preposition, policy)) = sentence.named {
        parts.extend([preposition, "\\\"", policy.escaped_name(), "\\\""]);
    }
    parts.push(sentence.end);
    let mut before = "\",\"violated-policies\":[\"";
    for policy in told {
        after.extend([before, policy.escaped_name()]);
        before = "\",\"";
    }
    after.push(if before == "\",\"" { "\"]}\n" } else { "\"}\n" });
    [parts, after]
}

/// The problem of who is over the quota of one policy, which nearly every refusal is, but for the seconds.
#[derive(Debug)]
pub(super) struct Excess {
    before: Box<str>,
    after: Box<str>,
}

impl Excess {
    pub(super) fn of(policy: &Policy) -> Self {
        let (reason, status) = (Reason::Exceeded, StatusCode::TOO_MANY_REQUESTS);
        let named = policy.advertised().names_the_policy().then_some(policy);
        let sentence = Sentence::of(reason, status, named);
        let [mut before, mut after] = problem(reason, &status, &sentence, named.into_iter());
        before.push(RETRY_IN);
        after.insert(0, SECONDS);
        Self { before: before.concat().into(), after: after.concat().into() }
    }

    pub(super) fn json(&self, retry_in: u64) -> Content {
        let mut seconds = itoa::Buffer::new();
        Content { kind: problem_json(), body: [&self.before, seconds.format(retry_in), &self.after].concat().into() }
    }
}

pub(super) fn plain(denied: &Denied) -> Content {
    let Sentence { start, named, end, retry_in } = denied.sentence();
    let mut seconds = itoa::Buffer::new();
    let mut parts = Parts::from_slice(&[start]);
    if let Some((preposition, policy)) = named {
        parts.extend([preposition, "\"", policy.name(), "\""]);
    }
    parts.push(end);
    if let Some(retry_in) = retry_in {
        parts.extend([RETRY_IN, seconds.format(retry_in), SECONDS]);
    }
    parts.push("\n");
    Content { kind: const { HeaderValue::from_static("text/plain; charset=utf-8") }, body: parts.concat().into() }
}

fn problem_json() -> HeaderValue {
    const { HeaderValue::from_static("application/problem+json") }
}

const RETRY_IN: &str = " Retry in ";
const SECONDS: &str = " s.";
