//! The walk over `X-Forwarded-For` against a naive one that reads everything first, from the left.
//!
//! Lines of the field are separated by line feeds in the input.
#![no_main]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tower_quota::key::ClientIp;

static BEHIND: LazyLock<ClientIp> = LazyLock::new(|| ClientIp::behind(["10.0.0.0/8", "fd00::/8"]).unwrap());
static HOPS: LazyLock<[ClientIp; 3]> = LazyLock::new(|| [1, 2, 32].map(ClientIp::hops));
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fuzz_target!(|bytes: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(value) = HeaderValue::from_bytes(line) else { return };
        headers.append("x-forwarded-for", value);
    }
    let entries = naive_entries(&headers);
    assert_eq!(BEHIND.resolve(PEER, &headers), Some(naive_walk(&entries)), "{headers:?}");
    for (hops, n) in HOPS.iter().zip([1, 2, 32]) {
        // Behind an entry that is too long nothing is counted on.
        if entries.iter().rev().take(n).all(|entry| *entry != Entry::TooLong) {
            let expected = entries.len().checked_sub(n).and_then(|at| entries[at].address());
            assert_eq!(hops.resolve(PEER, &headers), expected, "{n} hops, {headers:?}");
        }
    }
    // A stranger is believed nothing.
    let stranger = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9));
    assert_eq!(BEHIND.resolve(stranger, &headers), Some(stranger));
});

#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    Address(IpAddr),
    Junk,
    TooLong,
}

impl Entry {
    fn address(self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(address),
            Self::Junk | Self::TooLong => None,
        }
    }
}

fn naive_entries(headers: &HeaderMap) -> Vec<Entry> {
    let lines = headers.get_all("x-forwarded-for").into_iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b',').enumerate())
        .map(|(n, entry)| {
            // 128 bytes are looked at, of which one is the comma, unless the entry begins the line.
            if entry.len() > 128 - usize::from(n > 0) { Entry::TooLong } else { naive_entry(entry) }
        })
        .collect()
}

fn naive_entry(entry: &[u8]) -> Entry {
    let Ok(text) = std::str::from_utf8(entry) else { return Entry::Junk };
    let text = text.trim_matches([' ', '\t']);
    let with_port = |address: &str, port: &str| {
        let valid = !port.is_empty() && port.len() <= 5 && port.chars().all(|c| c.is_ascii_digit());
        (valid && port.parse::<u32>().unwrap() <= 65_535).then(|| address.to_owned())
    };
    let bracketed = text.starts_with('[');
    let v6 = |text: &str| -> Option<IpAddr> {
        let (address, zone) = text.split_once('%').unwrap_or((text, "none"));
        // A bracket within brackets belongs to no zone.
        if zone.is_empty() || bracketed && zone.contains(']') {
            None
        } else {
            address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        }
    };
    let address = if let Some(inside) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        v6(inside)
    } else if bracketed {
        text.rsplit_once("]:").and_then(|(address, port)| with_port(&address[1..], port)).and_then(|text| v6(&text))
    } else if text.matches(':').count() == 1 {
        let (address, port) = text.split_once(':').unwrap();
        with_port(address, port).and_then(|text| text.parse::<Ipv4Addr>().ok()).map(IpAddr::V4)
    } else if text.contains(':') {
        v6(text)
    } else {
        text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    };
    address.map_or(Entry::Junk, |address| Entry::Address(address.to_canonical()))
}

fn naive_walk(entries: &[Entry]) -> IpAddr {
    let mut last = PEER;
    for entry in entries.iter().rev().take(32) {
        let Some(address) = entry.address() else { break };
        last = address;
        let trusted = match address {
            IpAddr::V4(address) => address.octets()[0] == 10,
            IpAddr::V6(address) => address.octets()[0] == 0xfd,
        };
        if !trusted {
            break;
        }
    }
    last
}
