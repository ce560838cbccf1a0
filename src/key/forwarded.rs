//! Contains the syntax of `X-Forwarded-For` and of `Forwarded` (RFC 7239): the addresses that
//! proxies have written, from the right.
//!
//! These are pure functions. They must not know which proxies are trusted.
//!
//! Every proxy appends the address that it saw on the right. A client may write anything on the
//! left. So the fields are read from the right, one entry at a time and no further than requested.
//! Nothing on the left changes how the right is read: not a quote that is never closed, not a line
//! break, not a million entries.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str,
};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{into_key, unmapped_ip::UnmappedIp};

/// The entries of all `X-Forwarded-For` lines, which are one list (RFC 9110 §5.3), from the right.
/// An entry that is not an address is `None`.
pub(super) fn x_forwarded_for(headers: &HeaderMap) -> impl Iterator<Item = Option<UnmappedIp>> {
    entries(headers, &X_FORWARDED_FOR, plain_entry)
}

/// The entries of all `Forwarded` lines, from the right. An entry that is not an address is `None`.
/// `whole` says whether more than the first 64 bits of an IPv6 address matter.
pub(super) fn forwarded(headers: &HeaderMap, whole: bool) -> impl Iterator<Item = Option<UnmappedIp>> {
    entries(headers, &header::FORWARDED, move |line| element(line, whole))
}

pub(super) static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The entry after the last comma of a line, and the rest of the line before it.
type Split<'a> = (Option<UnmappedIp>, Option<&'a [u8]>);

fn entries(
    headers: &HeaderMap,
    name: &HeaderName,
    split: impl Fn(&[u8]) -> Split<'_>,
) -> impl Iterator<Item = Option<UnmappedIp>> {
    let mut lines = headers.get_all(name).into_iter().rev().map(HeaderValue::as_bytes);
    let mut rest = None;
    std::iter::from_fn(move || {
        let (entry, before) = split(rest.take().or_else(|| lines.next())?);
        rest = before;
        Some(entry)
    })
    .take(MAX_ENTRIES)
}

fn plain_entry(line: &[u8]) -> Split<'_> {
    match ipv4_entry(line) {
        Some((bits, rest)) => (Some(UnmappedIp::V4(bits)), rest),
        None => any_entry(line),
    }
}

/// The same as [`any_entry`] of a line that ends with an IPv4 address, as most do. `None` of any
/// other line. Reads each byte once, from the right.
#[inline]
fn ipv4_entry(line: &[u8]) -> Option<(u32, Option<&[u8]>)> {
    let shortest = line.len().saturating_sub(MAX_ENTRY_BYTES);
    let byte_before = |at: usize| if at > shortest { Some(line[at - 1]) } else { None };
    let mut at = line.len();
    while matches!(byte_before(at), Some(b' ' | b'\t')) {
        at -= 1;
    }
    let mut bits = 0;
    for shift in [0, 8, 16, 24] {
        let (mut octet, mut place) = (0, 1);
        let last = at;
        while let Some(digit @ b'0'..=b'9') = byte_before(at) {
            if place > 100 {
                return None;
            }
            octet += u32::from(digit - b'0') * place;
            place *= 10;
            at -= 1;
        }
        // Some parsers read an octet with a leading zero as octal.
        let is_octet = at < last && octet <= 255 && (last - at == 1 || line[at] != b'0');
        let is_separated = shift == 24 || byte_before(at) == Some(b'.');
        if !is_octet || !is_separated {
            return None;
        }
        at -= usize::from(shift < 24);
        bits |= octet << shift;
    }
    while matches!(byte_before(at), Some(b' ' | b'\t')) {
        at -= 1;
    }
    match byte_before(at) {
        Some(b',') => Some((bits, Some(&line[..at - 1]))),
        None if at == 0 => Some((bits, None)),
        _ => None,
    }
}

fn any_entry(line: &[u8]) -> Split<'_> {
    let from = line.len().saturating_sub(MAX_ENTRY_BYTES);
    match line[from..].iter().rposition(|byte| *byte == b',') {
        Some(comma) => (address(&line[from + comma + 1..]).map(UnmappedIp::from), Some(&line[..from + comma])),
        None if from == 0 => (address(line).map(UnmappedIp::from), None),
        // Longer than any address. Its start does not matter.
        None => (None, None),
    }
}

/// An entry of `X-Forwarded-For`, which has no standard. Proxies write an IPv4 or IPv6 address, the
/// latter also in brackets, with a port, or with a zone.
pub(super) fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(trim(entry)).ok()?;
    if let Some(v4) = ipv4(text) {
        return Some(v4);
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, port) = rest.split_once(']')?;
        return if port.is_empty() || is_port(port.strip_prefix(':')?) { ipv6(inside) } else { None };
    }
    match text.split_once(':')? {
        (v4, port) if !port.contains(':') => is_port(port).then(|| ipv4(v4))?,
        _ => ipv6(text),
    }
}

/// A `forwarded-element` (RFC 7239 §4), read from its end.
fn element(line: &[u8], whole: bool) -> Split<'_> {
    let mut node = None;
    let mut named = false;
    let mut end = line.len();
    let shortest = line.len().saturating_sub(MAX_ELEMENT_BYTES);
    loop {
        // One pair: back to the semicolon or the comma before it, across quoted strings.
        let Some(begin) = pair_begin(line, end, shortest) else { return (None, None) };
        let pair = trim(&line[begin..end]);
        if let Some(value) = for_value(pair) {
            // Given twice, it is ambiguous (§4 forbids it).
            node = if named { None } else { node_address(value, whole) };
            named = true;
        }
        match begin.checked_sub(1).map(|at| line[at]) {
            Some(b';') => end = begin - 1,
            Some(_) => return (node.map(UnmappedIp::from), Some(&line[..begin - 1])),
            None => return (node.map(UnmappedIp::from), None),
        }
    }
}

/// The start of the pair that ends at `end`. `None` where a quoted string has no start, or is too
/// long.
fn pair_begin(line: &[u8], end: usize, shortest: usize) -> Option<usize> {
    let mut at = end;
    while at > 0 {
        if at <= shortest {
            return None;
        }
        match line[at - 1] {
            b',' | b';' => return Some(at),
            b'"' => at = string_begin(line, at - 1, shortest)?,
            _ => at -= 1,
        }
    }
    Some(0)
}

/// The start of the quoted string whose closing quote is at `closing`.
fn string_begin(line: &[u8], closing: usize, shortest: usize) -> Option<usize> {
    if is_escaped(line, closing, shortest) {
        return None;
    }
    let opening = (shortest..closing).rev().find(|at| line[*at] == b'"' && !is_escaped(line, *at, shortest))?;
    Some(opening)
}

/// Whether an odd number of backslashes precedes `at`.
fn is_escaped(line: &[u8], at: usize, shortest: usize) -> bool {
    line[shortest..at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The value of a pair whose name is `for`, in any case (§4).
fn for_value(pair: &[u8]) -> Option<&[u8]> {
    let (name, value) = pair.split_at_checked(4)?;
    name.eq_ignore_ascii_case(b"for=").then_some(value)
}

/// The address of a node (§6). `unknown`, obfuscated identifiers and anything else are no address.
/// Text that the grammar wants in quotes is also read without them, because it is unambiguous, and
/// so is IPv6 without brackets, as several gateways send it.
fn node_address(value: &[u8], whole: bool) -> Option<IpAddr> {
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    let text = str::from_utf8(value).ok()?;
    if !text.starts_with('[') && text.bytes().filter(|byte| *byte == b':').count() > 1 {
        return bare_ipv6(text, whole);
    }
    let (inside, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(inside, port)| (ipv6(inside), port))?,
        None => text.find(':').map_or((ipv4(text), ""), |colon| (ipv4(&text[..colon]), &text[colon..])),
    };
    if port.is_empty() { inside } else { is_node_port(port.strip_prefix(':')?).then_some(inside)? }
}

/// An IPv6 address without brackets. A port may follow where the text shows that it is one: after
/// eight groups, or with five digits. Where the last group may be a port, and what counts of the
/// address depends on it, the text is no address: a client chooses its port and the end of its
/// address, and must not choose its key with them.
fn bare_ipv6(text: &str, whole_counts: bool) -> Option<IpAddr> {
    let before_port =
        text.rsplit_once(':').filter(|(_, port)| is_node_port(port)).and_then(|(address, _)| ipv6(address));
    match (ipv6(text), before_port) {
        (Some(IpAddr::V6(whole)), Some(IpAddr::V6(short))) => {
            let same = whole.segments()[..4] == short.segments()[..4];
            (same && !whole_counts && !into_key::counts_whole(whole)).then_some(IpAddr::V6(whole))
        }
        (whole, short) => whole.or(short),
    }
}

fn ipv4(text: &str) -> Option<IpAddr> {
    text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
}

/// Ignores the zone, which has a meaning on one machine only (RFC 4007 §6).
fn ipv6(text: &str) -> Option<IpAddr> {
    let address = match text.split_once('%') {
        Some((_, "")) => return None,
        Some((address, _zone)) => address,
        None => text,
    };
    address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

fn is_port(text: &str) -> bool {
    (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// A port, or an obfuscated one (§6.2).
fn is_node_port(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    is_port(text) || text.strip_prefix('_').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(allowed))
}

/// Removes the spaces and tabs around it (OWS, RFC 9110 §5.6.3).
fn trim(bytes: &[u8]) -> &[u8] {
    let begin = bytes.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !matches!(byte, b' ' | b'\t')).map_or(begin, |last| last + 1);
    &bytes[begin..end]
}

/// The number of entries that are read. No chain of proxies is longer.
pub(super) const MAX_ENTRIES: usize = 32;

/// The longest address with brackets, a zone and a port is shorter.
const MAX_ENTRY_BYTES: usize = 128;

/// Elements may also contain `by`, `host`, `proto` and extensions.
const MAX_ELEMENT_BYTES: usize = 1_024;

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Nearly addresses: what is between, before and behind the octets, and octets at their limits.
    fn nearly_ipv4() -> impl Strategy<Value = String> {
        let space = prop::sample::select(vec!["", "", "", " ", "\t", "  ", ",", ", ", "x", "\u{a0}"]);
        let octet = prop_oneof![(0..=299_u32).prop_map(|octet| octet.to_string()), "[0-9]{0,4}", Just("00".to_owned())];
        let dot = prop::sample::select(vec![".", ".", ".", ".", ".", ".", "..", "", ":", " ."]);
        (space.clone(), prop::collection::vec((octet, dot), 3..=5), space).prop_map(|(before, octets, behind)| {
            let text: String = octets.iter().map(|(octet, dot)| format!("{octet}{dot}")).collect();
            format!("{before}{}{behind}", text.trim_end_matches('.'))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn a_line_that_ends_with_an_ipv4_address_is_read_as_any_other(
            entries in prop::collection::vec(prop_oneof![nearly_ipv4(), "[ -~]{0,12}"], 1..4),
            padding in prop_oneof![Just(0), 100..140_usize],
            behind in any::<bool>(),
        ) {
            let (line, padding) = (entries.join(","), " ".repeat(padding));
            let line = if behind { format!("{line}{padding}") } else { format!("{padding}{line}") };
            if let Some((bits, rest)) = ipv4_entry(line.as_bytes()) {
                prop_assert_eq!((Some(UnmappedIp::V4(bits)), rest), any_entry(line.as_bytes()), "{:?}", line);
            }
        }

        #[test]
        fn every_ipv4_address_is_read_at_once(bits in any::<u32>(), before in "([ -~]{0,9},)?[ \t]{0,2}", behind in "[ \t]{0,2}") {
            let address = Ipv4Addr::from_bits(bits);
            let line = format!("{before}{address}{behind}");
            prop_assert_eq!(ipv4_entry(line.as_bytes()).map(|(bits, _)| bits), Some(bits));
        }
    }
}
