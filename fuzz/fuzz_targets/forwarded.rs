//! The walk over `Forwarded`: no input makes it panic, invents an address, or changes what proxies wrote to the right of
//! it.
//!
//! Lines of the field are separated by line feeds in the input.
#![no_main]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::LazyLock,
};

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tower_quota::key::ClientIp;

static BEHIND: LazyLock<ClientIp> = LazyLock::new(|| ClientIp::behind(["10.0.0.0/8"]).unwrap().forwarded());
static HOPS: LazyLock<[ClientIp; 2]> = LazyLock::new(|| [1, 2].map(|n| ClientIp::hops(n).forwarded()));
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

fuzz_target!(|bytes: &[u8]| {
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let Some(headers) = headers(lines.iter().copied()) else { return };

    // What is answered stands in the field, or is the peer's.
    for resolver in HOPS.iter().chain([&*BEHIND]) {
        let Some(answer) = resolver.resolve(PEER, &headers) else { continue };
        assert!(answer == PEER || stands_in(&lines, answer), "{answer} of {headers:?}");
    }

    // Two proxies append, as elements of the last line or as lines of their own.
    for proxies in [
        &[&b"for=203.0.113.7;proto=https"[..], b"by=_me;for=\"10.0.0.2:4711\""],
        &[b"host=\"a,b;\\\"c\";for=\"203.0.113.7:_x\"", b"For=10.0.0.2"],
    ] {
        let (last, before) = lines.split_last().unwrap();
        let appended = [&[*last], &proxies[..]].concat().join(&b", "[..]);
        let appended = self::headers(before.iter().copied().chain([&appended[..]])).unwrap();
        let separate = self::headers(lines.iter().copied().chain(proxies.iter().copied())).unwrap();
        for headers in [appended, separate] {
            assert_eq!(BEHIND.resolve(PEER, &headers), Some(CLIENT), "{headers:?}");
            assert_eq!(HOPS[1].resolve(PEER, &headers), Some(CLIENT), "{headers:?}");
        }
    }
});

fn headers<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<HeaderMap> {
    lines.map(|line| Some((http::header::FORWARDED, HeaderValue::from_bytes(line).ok()?))).collect()
}

/// Whether some piece of the field reads as this address.
fn stands_in(lines: &[&[u8]], answer: IpAddr) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':');
    lines.iter().any(|line| {
        line.split(|byte| !is_part(byte)).filter_map(|piece| std::str::from_utf8(piece).ok()).any(|piece| {
            let candidates = [Some(piece), piece.rsplit_once(':').map(|(address, _port)| address)];
            let addresses = candidates.into_iter().flatten().filter_map(|text| text.parse::<IpAddr>().ok());
            addresses.map(|address| address.to_canonical()).any(|address| address == answer)
        })
    })
}
