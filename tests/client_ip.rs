//! Who the client is, behind proxies: the tables, and what an attacker may write without becoming somebody else.

mod support;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use proptest::prelude::*;
use support::{admits, admitted, from_ip, limiter};
use tower_quota::{
    Policy, Quota,
    key::{ClientIp, KeyExtractor, PeerIp},
};

const XFF: &str = "x-forwarded-for";
const FORWARDED: &str = "forwarded";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

fn lines(name: &str, values: &[&str]) -> HeaderMap {
    let name: HeaderName = name.parse().unwrap();
    values.iter().map(|value| (name.clone(), HeaderValue::from_bytes(value.as_bytes()).unwrap())).collect()
}

fn behind_ten() -> ClientIp {
    ClientIp::behind(["10.0.0.0/8"]).unwrap()
}

/// Peer, lines of the field; with trust in 10.0.0.0/8, with one hop, with two.
type Row = (&'static str, &'static [&'static str], &'static str, Option<&'static str>, Option<&'static str>);

#[test]
fn c_fwd_every_row_of_the_table_of_cases() {
    const NONE: Option<&str> = None;
    let rows: [Row; 20] = [
        ("198.51.100.9", &["1.1.1.1"], "198.51.100.9", Some("1.1.1.1"), NONE),
        ("10.0.0.1", &[], "10.0.0.1", NONE, NONE),
        ("10.0.0.1", &["6.6.6.6, 203.0.113.7"], "203.0.113.7", Some("203.0.113.7"), Some("6.6.6.6")),
        ("10.0.0.1", &["6.6.6.6", "203.0.113.7, 10.0.0.2"], "203.0.113.7", Some("10.0.0.2"), Some("203.0.113.7")),
        ("10.0.0.1", &["203.0.113.7, garbage"], "10.0.0.1", NONE, Some("203.0.113.7")),
        ("10.0.0.1", &["203.0.113.7:51034"], "203.0.113.7", Some("203.0.113.7"), NONE),
        ("::ffff:10.0.0.1", &["203.0.113.7"], "203.0.113.7", Some("203.0.113.7"), NONE),
        ("10.0.0.1", &["::ffff:10.0.0.9"], "10.0.0.9", Some("10.0.0.9"), NONE),
        ("10.0.0.1", &["fe80::1%eth0"], "fe80::1", Some("fe80::1"), NONE),
        // Beyond the table: what stops the walk, and what the last trusted hop is then.
        ("10.0.0.1", &["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2", Some("10.0.0.2"), NONE),
        ("10.0.0.1", &["6.6.6.6, _hidden"], "10.0.0.1", NONE, Some("6.6.6.6")),
        ("10.0.0.1", &["6.6.6.6,"], "10.0.0.1", NONE, Some("6.6.6.6")),
        ("10.0.0.1", &["6.6.6.6", ""], "10.0.0.1", NONE, Some("6.6.6.6")),
        ("10.0.0.1", &["6.6.6.6,, 10.0.0.3"], "10.0.0.3", Some("10.0.0.3"), NONE),
        ("10.0.0.1", &["10.0.0.4, 10.0.0.3"], "10.0.0.4", Some("10.0.0.3"), Some("10.0.0.4")),
        ("10.0.0.1", &["[2001:db8::17]:4711"], "2001:db8::17", Some("2001:db8::17"), NONE),
        ("10.0.0.1", &["\t 203.0.113.7 \t"], "203.0.113.7", Some("203.0.113.7"), NONE),
        ("10.0.0.1", &["::ffff:102:304"], "1.2.3.4", Some("1.2.3.4"), NONE),
        ("2001:db8::1", &["203.0.113.7"], "2001:db8::1", Some("203.0.113.7"), NONE),
        ("10.0.0.1", &["203.0.113.7, 10.0.0.2", "10.0.0.3"], "203.0.113.7", Some("10.0.0.3"), Some("10.0.0.2")),
    ];
    for (peer, values, behind, one, two) in rows {
        let headers = lines(XFF, values);
        let peer = ip(peer);
        assert_eq!(behind_ten().resolve(peer, &headers), Some(ip(behind)), "{values:?} from {peer}");
        assert_eq!(ClientIp::hops(1).resolve(peer, &headers), one.map(ip), "{values:?}, one hop");
        assert_eq!(ClientIp::hops(2).resolve(peer, &headers), two.map(ip), "{values:?}, two hops");
    }
}

/// Over a Unix socket there is no peer. Only what says so trusts it.
#[test]
fn a_connection_without_an_address_is_trusted_where_that_is_written() {
    let unix = || ClientIp::behind(["unix:", "10.0.0.0/8"]).unwrap();
    let rows: [(&[&str], Option<&str>); 6] = [
        (&["203.0.113.7"], Some("203.0.113.7")),
        (&["6.6.6.6, 203.0.113.7, 10.0.0.2"], Some("203.0.113.7")),
        (&["10.0.0.2"], Some("10.0.0.2")),
        (&["6.6.6.6, unknown"], None),
        (&[], None),
        (&[""], None),
    ];
    for (values, client) in rows {
        assert_eq!(unix().resolve(None, &lines(XFF, values)), client.map(ip), "{values:?}");
    }
    assert_eq!(unix().forwarded().resolve(None, &lines(FORWARDED, &["for=203.0.113.7"])), Some(ip("203.0.113.7")));
    assert_eq!(
        unix().header("x-real-ip").resolve(None, &lines("x-real-ip", &["203.0.113.7"])),
        Some(ip("203.0.113.7"))
    );
    assert_eq!(ClientIp::hops(1).resolve(None, &lines(XFF, &["203.0.113.7"])), Some(ip("203.0.113.7")));
    assert_eq!(behind_ten().resolve(None, &lines(XFF, &["203.0.113.7"])), None);
    // A peer with an address is trusted by its address alone.
    let only_unix = ClientIp::behind(["unix:"]).unwrap();
    assert_eq!(only_unix.resolve(ip("198.51.100.9"), &lines(XFF, &["203.0.113.7"])), Some(ip("198.51.100.9")));

    let status = |client: ClientIp, field: Option<&str>| {
        let (limiter, _clock) = limiter([Policy::per(client, Quota::per_hour(1))]);
        let mut request = Request::new(());
        field.map(|value| request.headers_mut().insert(XFF, value.parse().unwrap()));
        limiter.decide(&request).denied().map(|denied| denied.status())
    };
    assert_eq!(status(unix(), Some("203.0.113.7")), None);
    assert_eq!(status(unix(), Some("unknown")), Some(StatusCode::BAD_REQUEST));
    assert_eq!(status(unix(), None), Some(StatusCode::INTERNAL_SERVER_ERROR));
    assert_eq!(status(ClientIp::hops(1), Some("203.0.113.7")), None);
    assert_eq!(status(ClientIp::hops(2), Some("203.0.113.7")), Some(StatusCode::BAD_REQUEST));
    assert_eq!(status(ClientIp::hops(1), None), Some(StatusCode::INTERNAL_SERVER_ERROR));
    assert_eq!(status(behind_ten(), Some("203.0.113.7")), Some(StatusCode::INTERNAL_SERVER_ERROR));
    for wrong in ["unix", "unix:/run/app.sock", "UNIX:"] {
        let message = ClientIp::behind([wrong]).unwrap_err().to_string();
        assert!(message.contains("`unix:`"), "{message}");
    }
}

#[test]
fn id03_addresses_as_proxies_write_them() {
    let read = |entry: &str| behind_ten().resolve(ip("10.0.0.1"), &lines(XFF, &[entry]));
    for (entry, address) in [
        ("192.0.2.43", "192.0.2.43"),
        ("192.0.2.43:1", "192.0.2.43"),
        ("192.0.2.43:65535", "192.0.2.43"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("2001:db8:0:0:0:0:0:1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[fe80::1%25eth0]:443", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("2001:db8:1234:5678::1.2.3.4", "2001:db8:1234:5678::102:304"),
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
    ] {
        assert_eq!(read(entry), Some(ip(address)), "{entry}");
    }
    for junk in [
        "unknown",
        "_hidden",
        "",
        " ",
        "garbage",
        "1.2.3",
        "1.2.3.4.5",
        "01.2.3.4",
        "0x7f.1",
        "127.1",
        "256.1.1.1",
        "1.2.3.4:",
        "1.2.3.4:65536",
        "1.2.3.4:x",
        "1.2.3.4:-1",
        "1.2.3.4:123456",
        "1.2.3.4 5",
        "\"1.2.3.4\"",
        "1.2.3.4/32",
        "[1.2.3.4]",
        "[2001:db8::1",
        "2001:db8::1]",
        "[2001:db8::1]443",
        "[2001:db8::1]:",
        "[2001:db8::1]:99999",
        "[]",
        "[]:1",
        ":::",
        "::g",
        "2001:db8::1%",
        "%eth0",
        "1.2.3.4%eth0",
        "for=1.2.3.4",
        "localhost",
        "http://1.2.3.4",
        "1.2.3.4;",
        "caf\u{e9}",
        "-",
        "*",
    ] {
        assert_eq!(read(junk), Some(ip("10.0.0.1")), "{junk:?} is no address: the key is the last trusted hop");
        let further_left = format!("6.6.6.6, {junk}");
        assert_eq!(read(&further_left), Some(ip("10.0.0.1")), "{junk:?} is skipped");
    }
}

#[test]
fn c_fwd_the_forwarded_field_is_read_as_rfc_7239_says() {
    let read = |values: &[&str]| behind_ten().forwarded().resolve(ip("10.0.0.1"), &lines(FORWARDED, values)).unwrap();
    for (element, address) in [
        ("for=192.0.2.43", "192.0.2.43"),
        ("FOR=192.0.2.43", "192.0.2.43"),
        ("for=\"192.0.2.43:47011\"", "192.0.2.43"),
        ("for=192.0.2.43:47011", "192.0.2.43"),
        ("for=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17"),
        ("For=\"[2001:db8:cafe::17]\"", "2001:db8:cafe::17"),
        ("for=\"192.0.2.43:_port\"", "192.0.2.43"),
        // Without brackets, as gateways send it.
        ("by=10.0.0.7;for=2001:db8:1::a;host=api.example;proto=https", "2001:db8:1::a"),
        ("for=\"2001:db8:1::a:8080\"", "2001:db8:1::a:8080"),
        ("for=2001:db8:1::a:47011", "2001:db8:1::a"),
        ("for=\"2001:db8:1:2:3:4:5:6:4711\"", "2001:db8:1:2:3:4:5:6"),
        ("for=\"2001:db8:1:2:3:4:5:6:_port\"", "2001:db8:1:2:3:4:5:6"),
        ("for=::ffff:192.0.2.1", "192.0.2.1"),
        ("for=fe80::1%eth0", "fe80::1"),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
        ("proto=http; by=203.0.113.43 ;for=192.0.2.60", "192.0.2.60"),
        ("host=\"a,b;for=6.6.6.6\";for=192.0.2.60", "192.0.2.60"),
        ("host=\"a\\\"b,\\\\\";for=192.0.2.60;", "192.0.2.60"),
        ("for=\"[::ffff:192.0.2.1]\"", "192.0.2.1"),
        ("for=6.6.6.6, for=192.0.2.60", "192.0.2.60"),
        ("for=192.0.2.60, for=10.0.0.2;proto=\"x, for=7.7.7.7\"", "192.0.2.60"),
        ("for=\"never closed, for=192.0.2.60", "192.0.2.60"),
        ("host=\"\\\", for=192.0.2.60", "192.0.2.60"),
    ] {
        assert_eq!(read(&[element]), ip(address), "{element}");
    }
    for unreadable in [
        "for=unknown",
        "for=_gazonk",
        "for=\"_SEVKISEK\"",
        "proto=http",
        "",
        "for=",
        "for",
        "for =1.2.3.4",
        "for= 1.2.3.4",
        "for=1.2.3.4;for=5.6.7.8",
        // The last group may be a port, and the network depends on it.
        "for=\"2001:db8::aaaa:bbbb:cccc:dddd:8080\"",
        "for=2001:db8::1::2",
        "for=2001:db8:1:2:3:4:5:6:7:8",
        "for=2001:db8:1:2:3:4:5:6:99999",
        "for=2001:db8::1:",
        "for=1.2.3.4:5:6",
        "for=\"2001:db8::1]\"",
        "for=\"1.2.3.4",
        "for=1.2.3.4\"",
        "for=\"1.2.3.4\\\"",
        "for='1.2.3.4'",
        "for=\"1.2.3.4:\"",
        "for=\"1.2.3.4:_\"",
        "fork=1.2.3.4",
        "1.2.3.4",
        "for=\"\\1.2.3.4\"",
    ] {
        assert_eq!(read(&[unreadable]), ip("10.0.0.1"), "{unreadable}");
        assert_eq!(read(&["for=6.6.6.6", unreadable]), ip("10.0.0.1"), "{unreadable} is skipped");
    }
    assert_eq!(read(&["for=6.6.6.6, for=192.0.2.60", "for=10.0.0.2", "for=10.0.0.3"]), ip("192.0.2.60"));
    let hops = |n: usize| {
        ClientIp::hops(n).forwarded().resolve(ip("10.0.0.1"), &lines(FORWARDED, &["for=1.1.1.1, for=unknown"]))
    };
    assert_eq!((hops(1), hops(2), hops(3)), (None, Some(ip("1.1.1.1")), None));
}

#[test]
fn id02_only_the_configured_field_is_read() {
    let mut headers = lines(XFF, &["1.1.1.1"]);
    headers.extend(lines(FORWARDED, &["for=2.2.2.2"]));
    headers.extend(lines("x-real-ip", &["3.3.3.3"]));
    headers.extend(lines("cf-connecting-ip", &["4.4.4.4"]));
    let resolve = |client_ip: ClientIp| client_ip.resolve(ip("10.0.0.1"), &headers);
    assert_eq!(resolve(behind_ten()), Some(ip("1.1.1.1")));
    assert_eq!(resolve(behind_ten().forwarded()), Some(ip("2.2.2.2")));
    assert_eq!(resolve(behind_ten().header("X-Real-IP")), Some(ip("3.3.3.3")));
    assert_eq!(resolve(behind_ten().header("CF-Connecting-IP")), Some(ip("4.4.4.4")));
    assert_eq!(resolve(behind_ten().header("fly-client-ip")), None);
}

#[test]
fn a_field_with_one_address_is_trusted_only_from_a_trusted_peer_and_only_once() {
    let edge = behind_ten().header("cf-connecting-ip");
    let resolve = |peer: &str, values: &[&str]| edge.resolve(ip(peer), &lines("cf-connecting-ip", values));
    assert_eq!(resolve("10.0.0.1", &["203.0.113.7"]), Some(ip("203.0.113.7")));
    assert_eq!(resolve("198.51.100.9", &["203.0.113.7"]), Some(ip("198.51.100.9")));
    for values in [&[][..], &["1.1.1.1", "2.2.2.2"], &["1.1.1.1, 2.2.2.2"], &["x"], &[""]] {
        assert_eq!(resolve("10.0.0.1", values), None, "{values:?}");
    }
    // I9: then it is denied, and never counted by the proxy's address.
    let (limiter, _clock) = limiter([Policy::per(edge, Quota::per_second(1))]);
    assert_eq!(limiter.decide(&from_ip(ip("10.0.0.1"))).denied().unwrap().status(), StatusCode::BAD_REQUEST);
}

#[test]
fn id08_a_request_that_skipped_the_hops_is_answered_400_and_one_without_a_peer_500() {
    let (limiter, _clock) = limiter([Policy::per(ClientIp::hops(2), Quota::per_second(1))]);
    let status = |request: &Request<()>| limiter.decide(request).denied().unwrap().status();
    assert_eq!(status(&from_ip(ip("10.0.0.1"))), StatusCode::BAD_REQUEST);
    assert_eq!(status(&Request::new(())), StatusCode::INTERNAL_SERVER_ERROR);
}

#[test]
fn i3_lists_that_would_trust_the_world_are_denied() {
    let denied = |list: &[&str]| ClientIp::behind(list).expect_err("denied").to_string();
    for everyone in ["0.0.0.0/0", "::/0", "::ffff:0:0/96", "::ffff:0.0.0.0/96", "::/8", "::/80"] {
        assert!(denied(&[everyone]).contains("trusts every client"), "{everyone}: {}", denied(&[everyone]));
    }
    for bits in ["10.0.0.1/8", "::ffff:10.0.0.0/8", "fd00::1/8", "::ffff:10.1.0.0/104"] {
        assert!(denied(&[bits]).contains("bits after its prefix"), "{bits}: {}", denied(&[bits]));
    }
    for junk in ["", "10.0.0.0/33", "10.0.0/8", "nginx", "10.0.0.0/-1", "fd00::/129", "10.0.0.0/8,10.0.0.0/8"] {
        assert!(denied(&[junk]).contains("is not a proxy's network"), "{junk}: {}", denied(&[junk]));
    }
    assert_eq!(denied(&[]), "no proxy is trusted: list at least one, or count by `PeerIp`");
    assert!(ClientIp::behind(["10.0.0.0/8", "x"]).is_err(), "one wrong entry is enough");
}

#[test]
fn i3_a_mapped_network_is_the_ipv4_network_that_it_is() {
    let plain = ClientIp::behind(["10.0.0.0/8"]).unwrap();
    let mapped = ClientIp::behind(["::ffff:10.0.0.0/104"]).unwrap();
    let headers = lines(XFF, &["203.0.113.7"]);
    for peer in ["10.0.0.1", "::ffff:10.9.9.9", "11.0.0.1", "9.255.255.255", "::10.0.0.1", "2001:db8::1", "127.0.0.1"] {
        assert_eq!(plain.resolve(ip(peer), &headers), mapped.resolve(ip(peer), &headers), "{peer}");
    }
    let single = ClientIp::behind([" 192.0.2.1 ", "::1"]).unwrap();
    assert_eq!(single.resolve(ip("192.0.2.1"), &headers), Some(ip("203.0.113.7")));
    assert_eq!(single.resolve(ip("192.0.2.2"), &headers), Some(ip("192.0.2.2")));
    assert_eq!(single.resolve(ip("::1"), &headers), Some(ip("203.0.113.7")));
}

#[test]
#[should_panic(expected = "behind 1 to 32 proxies, not 0")]
fn zero_hops_are_denied() {
    let _ = ClientIp::hops(0);
}

#[test]
#[should_panic(expected = "trusted only from known proxies")]
fn a_field_with_one_address_is_not_trusted_after_a_count_of_hops() {
    let _ = ClientIp::hops(1).header("x-real-ip");
}

#[test]
#[should_panic(expected = "32 to 128 bits of its address, not by 16")]
fn a_prefix_that_would_join_providers_is_denied() {
    let _ = PeerIp.v6_prefix(16);
}

/// Whether two addresses share a bucket.
fn share(key: impl KeyExtractor, first: &str, second: &str) -> bool {
    let (limiter, _clock) = limiter([Policy::per(key, Quota::per_minute(1))]);
    assert!(admits(&limiter, &from_ip(ip(first))));
    !admits(&limiter, &from_ip(ip(second)))
}

#[test]
fn c_ip_what_of_an_address_counts() {
    assert!(share(PeerIp, "2001:db8:1:2:aaaa::1", "2001:db8:1:2::"));
    assert!(share(PeerIp, "::ffff:192.0.2.1", "192.0.2.1"));
    assert!(share(PeerIp, "::ffff:c000:201", "192.0.2.1"));
    assert!(!share(PeerIp, "::1", "::2"));
    assert!(share(PeerIp.v6_prefix(48), "2001:db8:1:2::1", "2001:db8:1:3::1"));
    assert!(!share(PeerIp.v6_prefix(48), "2001:db8:1::1", "2001:db8:2::1"));
    assert!(!share(PeerIp.v6_prefix(128), "2001:db8::1", "2001:db8::2"));
    assert!(share(PeerIp.v6_prefix(127), "2001:db8::2", "2001:db8::3"));
    assert!(!share(PeerIp.v6_prefix(127), "2001:db8::1", "2001:db8::2"));
    assert!(share(PeerIp.v4_prefix(24), "192.0.2.1", "192.0.2.200"));
    assert!(!share(PeerIp.v4_prefix(24), "192.0.2.1", "192.0.3.1"));
    assert!(!share(PeerIp.v6_prefix(32), "192.0.2.1", "192.0.2.2"), "unmapped before masking");
    assert!(!share(PeerIp.v6_prefix(32), "::ffff:192.0.2.1", "::ffff:192.0.2.2"), "unmapped before masking");
}

#[test]
fn a_second_tier_limits_the_site_behind_the_networks() {
    let (limiter, clock) = limiter([
        Policy::per(PeerIp, Quota::per_second(2)),
        Policy::per(PeerIp.v6_prefix(48), Quota::per_second(5)).named("per-site"),
    ]);
    let networks = (0..10_u16).map(|subnet| from_ip(Ipv6Addr::new(0x2001, 0xdb8, 1, subnet, 0, 0, 0, 1)));
    assert_eq!(networks.map(|request| admitted(&limiter, &request, 3)).collect::<Vec<_>>()[..4], [2, 2, 1, 0]);
    clock.advance(Duration::from_secs(1));
    assert_eq!(admitted(&limiter, &from_ip(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1)), 3), 2);
}

#[test]
fn i1_a_thousand_forged_fields_are_one_client() {
    let (limiter, _clock) = limiter([Policy::per(behind_ten(), Quota::per_minute(5))]);
    let admitted = (0..1_000).filter(|n| {
        // What the client wrote, and what the proxy appended.
        let mut request = from_ip(Ipv4Addr::new(10, 0, 0, 1));
        *request.headers_mut() = lines(XFF, &[&format!("9.9.{}.{}", n / 250, n % 250), "203.0.113.7"]);
        admits(&limiter, &request)
    });
    assert_eq!(admitted.count(), 5);
    let mut other = from_ip(Ipv4Addr::new(10, 0, 0, 1));
    *other.headers_mut() = lines(XFF, &["203.0.113.8"]);
    assert!(admits(&limiter, &other), "another client has another bucket");
}

#[test]
fn id04_no_more_than_32_entries_are_looked_at() {
    let long = |proxies: usize| {
        let list = [&["203.0.113.7"], vec!["10.0.0.2"; proxies].as_slice()].concat().join(",");
        behind_ten().resolve(ip("10.0.0.1"), &lines(XFF, &[&list])).unwrap()
    };
    assert_eq!(long(31), ip("203.0.113.7"));
    assert_eq!(long(32), ip("10.0.0.2"), "the last one that was looked at");
    assert_eq!(long(10_000), ip("10.0.0.2"));
    let blank = format!("203.0.113.7,{}", " ".repeat(60_000));
    assert_eq!(behind_ten().resolve(ip("10.0.0.1"), &lines(XFF, &[&blank])), Some(ip("10.0.0.1")));
    let far = format!("{}203.0.113.7", " ".repeat(200));
    assert_eq!(
        behind_ten().resolve(ip("10.0.0.1"), &lines(XFF, &[&far])),
        Some(ip("10.0.0.1")),
        "longer than any entry"
    );
    let quoted = format!("for=203.0.113.7;x=\"{}\"", "\\".repeat(60_000));
    assert_eq!(behind_ten().forwarded().resolve(ip("10.0.0.1"), &lines(FORWARDED, &[&quoted])), Some(ip("10.0.0.1")));
}

/// Values that a client may send: any bytes that a field may hold.
fn client_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        Just(b','),
        Just(b'"'),
        Just(b'\\'),
        Just(b';'),
        Just(b'='),
        Just(b' '),
        Just(b'['),
        Just(b':'),
        b'0'..=b'9',
        0x20_u8..0x7f,
        0x80_u8..=0xff,
    ];
    prop::collection::vec(byte, 0..60)
}

fn with_lines(name: &str, values: &[Vec<u8>]) -> HeaderMap {
    let name: HeaderName = name.parse().unwrap();
    values.iter().map(|value| (name.clone(), HeaderValue::from_bytes(value).unwrap())).collect()
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(&b", "[..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// ID01: the client writes on the left, and nothing there changes what the proxies wrote on the right.
    #[test]
    fn id01_prepended_bytes_never_change_the_client(
        forged in prop::collection::vec(client_bytes(), 0..4),
        client: [u8; 4],
        proxies in 0_u8..3,
        cut in any::<bool>(),
        quoted in any::<bool>(),
    ) {
        prop_assume!(client[0] != 10);
        let client = Ipv4Addr::from(client);
        for (name, resolver) in [(XFF, behind_ten()), (FORWARDED, behind_ten().forwarded())] {
            let entry = |address: Ipv4Addr| match (name, quoted) {
                (XFF, false) => address.to_string(),
                (XFF, true) => format!("{address}:4711"),
                (_, false) => format!("for={address};proto=https"),
                (_, true) => format!("by=\"[::1]:80\";for=\"{address}:4711\""),
            };
            let mut honest = vec![entry(client)];
            honest.extend((2..2 + proxies).map(|last| entry(Ipv4Addr::new(10, 0, 0, last))));
            let honest: Vec<&[u8]> = honest.iter().map(String::as_bytes).collect();
            let mut all = forged.clone();
            if cut || all.is_empty() {
                // The proxies append lines of their own, ...
                all.extend(honest.iter().map(|entry| entry.to_vec()));
            } else {
                // ... or to the last one of the client's.
                let last = all.pop().unwrap();
                all.push(join(&[&[&last[..]], &honest[..]].concat()));
            }
            let headers = with_lines(name, &all);
            prop_assert_eq!(resolver.resolve(ip("10.0.0.1"), &headers), Some(IpAddr::V4(client)));
            let hops = if name == XFF { ClientIp::hops(usize::from(proxies) + 1) } else { ClientIp::hops(usize::from(proxies) + 1).forwarded() };
            prop_assert_eq!(hops.resolve(ip("198.51.100.1"), &headers), Some(IpAddr::V4(client)));
        }
    }

    /// ID02: cutting a list into lines, and fields that are not configured, change nothing.
    #[test]
    fn id02_lines_and_other_fields_do_not_matter(
        entries in prop::collection::vec(prop_oneof![
            Just("203.0.113.7"), Just("10.0.0.2"), Just("junk"), Just("2001:db8::1"), Just("")
        ], 1..8),
        cuts in prop::collection::vec(any::<bool>(), 8),
        other in client_bytes(),
    ) {
        let joined = entries.join(",");
        let mut cut: Vec<String> = Vec::new();
        for (entry, fresh) in entries.iter().zip(cuts) {
            match cut.last_mut() {
                Some(line) if !fresh => { line.push(','); line.push_str(entry); }
                _ => cut.push((*entry).to_owned()),
            }
        }
        let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
        let whole = behind_ten().resolve(ip("10.0.0.1"), &lines(XFF, &[&joined]));
        let mut pieces = lines(XFF, &cut);
        pieces.extend(with_lines(FORWARDED, &[other]));
        prop_assert_eq!(behind_ten().resolve(ip("10.0.0.1"), &pieces), whole);
    }

    /// Whatever is sent, the answer is the peer or an address that stands in the field.
    #[test]
    fn id03_the_answer_is_never_invented(values in prop::collection::vec(client_bytes(), 0..4)) {
        let headers = with_lines(XFF, &values);
        let answer = behind_ten().resolve(ip("10.0.0.1"), &headers).unwrap();
        let text = values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>().join(",");
        let stands_there = text.split(',').any(|entry| {
            let entry = entry.trim_matches([' ', '\t', '[']).to_owned();
            let ends = (0..=entry.len()).filter(|end| entry.is_char_boundary(*end));
            ends.filter_map(|end| entry[..end].parse::<IpAddr>().ok()).any(|address| address.to_canonical() == answer)
        });
        prop_assert!(answer == ip("10.0.0.1") || stands_there, "{} of {:?}", answer, text);
    }

    /// Port rotation and the spelling of an address never give a second bucket.
    #[test]
    fn spelling_does_not_matter(address: [u8; 16], v4: [u8; 4], port: u16) {
        let v6 = Ipv6Addr::from(address);
        let v4 = Ipv4Addr::from(v4);
        let [a, b, c, d] = v4.octets();
        let resolve = |entry: String| behind_ten().resolve(ip("10.0.0.1"), &lines(XFF, &[&entry]));
        let six = Some(IpAddr::V6(v6).to_canonical());
        for spelling in [
            v6.to_string(), v6.to_string().to_uppercase(), format!("[{v6}]"), format!("[{v6}]:{port}"), format!("{v6}%eth{port}"),
            SocketAddr::new(IpAddr::V6(v6), port).to_string(),
            v6.segments().map(|segment| format!("{segment:04x}")).join(":"),
        ] {
            prop_assert_eq!(resolve(spelling.clone()), six, "{}", spelling);
        }
        for spelling in [
            v4.to_string(), format!("{v4}:{port}"), format!("::ffff:{v4}"), format!("[::FFFF:{v4}]:{port}"),
            format!("::ffff:{a:x}{b:02x}:{c:x}{d:02x}"),
        ] {
            prop_assert_eq!(resolve(spelling.clone()), Some(IpAddr::V4(v4)), "{}", spelling);
        }
    }
}

/// Bare IPv6 in `Forwarded`: a client chooses its port, and must not choose its key with it.
#[test]
fn a_port_makes_no_key_where_more_than_the_network_counts() {
    for (client, addresses) in [
        (behind_ten(), ["fe80::5", "64:ff9b::c000"]),
        (behind_ten().v6_prefix(128), ["2001:db8::5", "2001:db8::6"]),
        (behind_ten().v6_prefix(96), ["2001:db8::5", "2001:db8::6"]),
    ] {
        for address in addresses {
            let (limiter, _clock) = limiter([Policy::per(client.clone().forwarded(), Quota::per_hour(1))]);
            let with_port = (1_000..2_000).filter(|port| {
                let mut request = from_ip(ip("10.0.0.1"));
                request.headers_mut().insert(FORWARDED, format!("for=\"{address}:{port}\"").parse().unwrap());
                admits(&limiter, &request)
            });
            assert_eq!(with_port.count(), 1, "{address}");
        }
    }
}
