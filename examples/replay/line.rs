//! A line of an access log, and the request that it was.

use std::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
};

use http::{HeaderName, HeaderValue, Method, Request, Uri, header};
use jiff::{Timestamp, fmt::strtime};
use serde_json::Value;

pub(crate) struct Entry {
    /// Nanoseconds since 1970.
    pub(crate) at: i64,
    pub(crate) client: IpAddr,
    pub(crate) request: Request<()>,
}

impl Entry {
    /// `None` for an empty line.
    pub(crate) fn read(line: &[u8]) -> Result<Option<Self>, &'static str> {
        let text = std::str::from_utf8(line).map_err(|_| "not UTF-8")?.trim();
        match text.bytes().next() {
            None => Ok(None),
            Some(b'{') => Self::json(text).map(Some),
            Some(_) => Self::common(text).map(Some),
        }
    }

    /// `host ident user [time] "request" status bytes "referer" "user agent"`, the last two in the combined format.
    fn common(text: &str) -> Result<Self, &'static str> {
        let (host, rest) = text.split_once(' ').ok_or("one word is no line of a log")?;
        // Before the request: the name of a user may be anything.
        let end = rest.find("] \"").ok_or("no time in brackets")?;
        let (_, time) = rest[..end].rsplit_once('[').ok_or("no time in brackets")?;
        let mut quoted = Quoted(&rest[end..]);
        let asked = quoted.next().ok_or("no request in quotes")?;
        let mut entry = Self::new(common_time(time)?, host, asked)?;
        for name in [header::REFERER, header::USER_AGENT] {
            if let Some(value) = quoted.next().filter(|value| *value != "-") {
                entry.field(name, value);
            }
        }
        Ok(entry)
    }

    /// The names that nginx, Caddy and others give.
    fn json(text: &str) -> Result<Self, &'static str> {
        let value: Value = serde_json::from_str(text).map_err(|_| "not JSON")?;
        // Caddy has what belongs to the request in an object of its own.
        let within = value.get("request").filter(|within| within.is_object());
        let find = |names: &[&str]| {
            let mut all = names.iter().flat_map(|name| [value.get(name), within.and_then(|within| within.get(name))]);
            all.find_map(|found| found.filter(|found| !found.is_object()))
        };
        let seconds = |seconds: f64| {
            #[allow(clippy::cast_possible_truncation, reason = "looked at before")]
            let nanos = (seconds * 1e6).round() as i64 * 1_000;
            if (0.0..7.2e9).contains(&seconds) { Ok(nanos) } else { Err(NO_TIME) }
        };
        let at = match find(&["time", "timestamp", "ts", "@timestamp", "time_iso8601"]) {
            Some(Value::String(text)) => match text.parse() {
                Ok(number) => seconds(number)?,
                Err(_) => nanos(text.parse().map_err(|_| "a time that is none of RFC 3339")?)?,
            },
            Some(Value::Number(number)) => seconds(number.as_f64().unwrap_or(f64::NAN))?,
            _ => return Err("no `time`"),
        };
        let text = |names: &[&str]| find(names).and_then(Value::as_str);
        let host = text(&["remote_addr", "remote_ip", "client_ip", "ip"]).ok_or("no `remote_addr`")?;
        let asked = if let Some(line) = text(&["request"]) {
            line.to_owned()
        } else {
            let method = text(&["method", "request_method"]).unwrap_or("GET");
            let path = text(&["path", "uri", "request_uri", "url"]).ok_or("no `path`")?;
            format!("{method} {path}")
        };
        let mut entry = Self::new(at, host, &asked)?;
        let headers = [Some(&value), within].into_iter().flatten().filter_map(|part| part.get("headers")?.as_object());
        for (name, values) in headers.flatten() {
            let Ok(name) = HeaderName::try_from(name) else { continue };
            let values = values.as_array().map_or(std::slice::from_ref(values), Vec::as_slice);
            values.iter().filter_map(Value::as_str).for_each(|value| entry.field(name.clone(), value));
        }
        Ok(entry)
    }

    fn new(at: i64, host: &str, asked: &str) -> Result<Self, &'static str> {
        let client: IpAddr = host.parse().map_err(|_| "the client is no address")?;
        let mut words = asked.split(' ');
        let mut request = Request::new(());
        // What is no request (a probe in another protocol) was answered all the same.
        if let Some(method) = words.next().and_then(|word| Method::try_from(word).ok()) {
            *request.method_mut() = method;
        }
        if let Some(uri) = words.next().and_then(|word| Uri::try_from(word).ok()) {
            *request.uri_mut() = uri;
        }
        request.extensions_mut().insert(SocketAddr::new(client, 0));
        Ok(Self { at, client, request })
    }

    fn field(&mut self, name: HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.request.headers_mut().append(name, value);
        }
    }
}

const NO_TIME: &str = "a time before 1970 or after 2198";

/// So that differences never overflow.
fn nanos(time: Timestamp) -> Result<i64, &'static str> {
    i64::try_from(time.as_nanosecond()).ok().filter(|at| (0..7_200_000_000_000_000_000).contains(at)).ok_or(NO_TIME)
}

/// `10/Oct/2000:13:55:36 -0700`.
fn common_time(text: &str) -> Result<i64, &'static str> {
    thread_local! {
        /// Most lines are of the same second as the one before.
        static LAST: RefCell<(String, i64)> = const { RefCell::new((String::new(), 0)) };
    }
    LAST.with_borrow_mut(|(last, at)| {
        if last != text {
            let time = strtime::parse("%d/%b/%Y:%H:%M:%S %z", text).and_then(|parts| parts.to_timestamp());
            *at = nanos(time.map_err(|_| "the time is not like 10/Oct/2000:13:55:36 -0700")?)?;
            last.clear();
            last.push_str(text);
        }
        Ok(*at)
    })
}

/// What stands between quotes, in which a backslash escapes one.
struct Quoted<'a>(&'a str);

impl<'a> Iterator for Quoted<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (_, rest) = self.0.split_once('"')?;
        let mut escaped = false;
        let end = rest.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        self.0 = &rest[end + 1..];
        Some(&rest[..end])
    }
}
