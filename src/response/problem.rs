//! A refusal as a problem (RFC 9457) or as plain text.

use std::fmt::{self, Write as _};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use smallvec::SmallVec;

use crate::{
    decision::{Denied, Reason},
    headers::Escaped,
};

/// The type of draft-ietf-httpapi-ratelimit-headers-11 §5 for a client that went over its quota.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// Written here first, so that the body takes one allocation of its own size.
#[derive(Default)]
struct Text(SmallVec<[u8; 512]>);

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

pub(super) fn json(denied: &Denied) -> Response<Bytes> {
    respond(denied, "application/problem+json", |text| {
        let status = denied.status();
        match denied.reason() {
            Reason::CostAboveBurst | Reason::Exceeded => {
                write!(text, "{{\"type\":\"{QUOTA_EXCEEDED}\",\"title\":\"Quota Exceeded\"")?;
            }
            // No type says more than the status does (RFC 9457 §4.2.1).
            Reason::AtCapacity | Reason::MissingKey => {
                write!(text, "{{\"title\":\"{}\"", status.canonical_reason().unwrap_or("Refused"))?;
            }
        }
        write!(text, ",\"status\":{},\"detail\":\"", status.as_u16())?;
        write!(Escaped(text), "{denied}")?;
        text.write_char('"')?;
        let mut before = ",\"violated-policies\":[\"";
        for name in denied.told_names() {
            text.write_str(before)?;
            Escaped(text).write_str(name)?;
            before = "\",\"";
        }
        text.write_str(if before.starts_with('"') { "\"]}\n" } else { "}\n" })
    })
}

pub(super) fn plain(denied: &Denied) -> Response<Bytes> {
    respond(denied, "text/plain; charset=utf-8", |text| writeln!(text, "{denied}"))
}

fn respond(
    denied: &Denied,
    content_type: &'static str,
    write: impl FnOnce(&mut Text) -> fmt::Result,
) -> Response<Bytes> {
    let mut text = Text::default();
    // Writing into memory does not fail.
    let _ = write(&mut text);
    let mut response = Response::new(Bytes::copy_from_slice(&text.0));
    *response.status_mut() = denied.status();
    // Room for what follows, at once.
    response.headers_mut().reserve(8);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
