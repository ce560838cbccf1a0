//! Keys: what shares a bucket and what does not.

mod support;

use std::{
    borrow::Cow,
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::{Request, StatusCode};
use proptest::prelude::*;
use support::{admits, from_ip, limiter, with_header};
use tower_quota::{
    Key, Limiter, Policy, Quota,
    decision::Reason,
    key::{
        Bearer, FromExtension, Header, HttpMethod, IntoKey, KeyExtractor, KeyHasher, Missing, PeerAddr, PeerIp,
        RequestHead, fallback, key_fn, key_ref,
    },
};

const ONE: Quota = Quota::per_minute(1);

/// Whether the second request finds the bucket of the first exhausted.
fn share<A, B>(key: impl KeyExtractor, first: &Request<A>, second: &Request<B>) -> bool {
    let (limiter, _clock) = limiter([Policy::per(key, ONE)]);
    assert!(admits(&limiter, first));
    !admits(&limiter, second)
}

fn any_limiter() -> Limiter {
    limiter([Policy::global(ONE)]).0
}

/// Closures that return a part of the request, and functions that were written for requests.
#[test]
fn a_closure_may_borrow_from_the_request() {
    let [a, b, none] = [with_header("k", "a"), with_header("k", "b"), Request::new(())];
    let text = || key_ref(|head: RequestHead<'_>| head.headers().get("k")?.to_str().ok());
    let bytes = key_ref(|head| head.headers().get("k").map(http::HeaderValue::as_bytes));
    assert!(share(text(), &a, &a) && !share(text(), &a, &b));
    assert!(share(bytes, &a, &a));
    // The same key as every other way to make one of the value.
    let (limiter, _clock) = limiter([Policy::per(text(), ONE).named("p")]);
    assert!(admits(&limiter, &a));
    assert_eq!(limiter.peek("p", "a").unwrap().remaining(), 0);
    assert_eq!(limiter.decide(&none).denied().unwrap().status(), StatusCode::BAD_REQUEST);
    // A part of the extensions, one of several parts, and a fallback.
    let mut named = Request::new(());
    named.extensions_mut().insert("ann".to_owned());
    let user = || key_ref(|head| head.extensions().get::<String>());
    assert!(share(user(), &named, &named) && share((user(), HttpMethod), &named, &named));
    assert!(share(KeyExtractor::or(user(), text()), &a, &a));
}

#[test]
fn a_function_of_a_request_makes_a_key() {
    fn tenant<B>(request: &Request<B>) -> Option<String> {
        let user: u64 = *request.extensions().get()?;
        let key = request.headers().get("k")?.to_str().ok()?;
        Some(format!("{} {:?} {} {key} {user}", request.method(), request.version(), request.uri()))
    }
    let request = |path: &str, user: u64| {
        let mut request = with_header("k", "a");
        *request.uri_mut() = path.parse().unwrap();
        request.extensions_mut().insert(user);
        request
    };
    let key = || key_fn(|head| tenant(&head.to_request()));
    assert!(share(key(), &request("/a", 1), &request("/a", 1)));
    assert!(!share(key(), &request("/a", 1), &request("/b", 1)) && !share(key(), &request("/a", 1), &request("/a", 2)));
}

#[test]
fn a_key_takes_16_bytes() {
    assert_eq!(size_of::<Key>(), 16);
}

#[test]
fn id06_an_ipv6_client_is_its_first_64_bits() {
    let request = |ip: &str| from_ip(ip.parse::<Ipv6Addr>().unwrap());
    assert!(share(PeerIp, &request("2001:db8:1:2:aaaa::1"), &request("2001:db8:1:2:bbbb:ffff:0:9")));
    assert!(!share(PeerIp, &request("2001:db8:1:2::1"), &request("2001:db8:1:3::1")));
    assert!(share(PeerIp, &request("2001:db8:1234:5678::1.2.3.4"), &request("2001:db8:1234:5678::")));
}

#[test]
fn id05_a_mapped_address_is_the_ipv4_address_that_it_is() {
    let v4 = from_ip(Ipv4Addr::new(1, 2, 3, 4));
    for mapped in ["::ffff:1.2.3.4", "::ffff:102:304"] {
        assert!(share(PeerIp, &v4, &from_ip(mapped.parse::<Ipv6Addr>().unwrap())));
    }
    let other = from_ip("::ffff:1.2.3.5".parse::<Ipv6Addr>().unwrap());
    assert!(!share(PeerIp, &v4, &other), "two IPv4 clients of a dual-stack socket have two buckets");
}

#[test]
fn the_whole_loopback_address_counts() {
    let loopback = from_ip(Ipv6Addr::LOCALHOST);
    assert!(!share(PeerIp, &loopback, &from_ip("::2".parse::<Ipv6Addr>().unwrap())));
    assert!(share(PeerIp, &loopback, &loopback));
}

/// Their /64 is that of a whole link, or of all that a translator serves.
#[test]
fn networks_that_are_many_clients_are_not_one() {
    let peer = |ip: &str| from_ip(ip.parse::<IpAddr>().unwrap());
    // NAT64: the IPv4 address inside, which is one client however it comes.
    assert!(!share(PeerIp, &peer("64:ff9b::192.0.2.1"), &peer("64:ff9b::192.0.2.2")));
    assert!(share(PeerIp, &peer("64:ff9b::192.0.2.1"), &peer("192.0.2.1")));
    assert!(share(PeerIp.v4_prefix(24), &peer("64:ff9b::192.0.2.1"), &peer("192.0.2.2")));
    // Not the well-known prefix.
    assert!(share(PeerIp, &peer("64:ff9b:0:0:1::1"), &peer("64:ff9b:0:0:1::2")));
    assert!(share(PeerIp, &peer("64:ff9b:1::1"), &peer("64:ff9b:1::2")));
    // A link.
    assert!(!share(PeerIp, &peer("fe80::1"), &peer("fe80::2")));
    assert!(!share(PeerIp, &peer("febf::1"), &peer("febf::2")));
    assert!(share(PeerIp, &peer("fec0::1"), &peer("fec0::2")));
    assert!(share(PeerIp, &peer("fe80::1"), &peer("fe80::1")));
    // 6to4 and Teredo are networks like others.
    assert!(share(PeerIp, &peer("2002:c000:201::1"), &peer("2002:c000:201::2")));
    assert!(!share(PeerIp, &peer("2002:c000:201::1"), &peer("2002:c000:201:1::1")));
    assert!(share(PeerIp, &peer("2001:0:c000:201::1"), &peer("2001:0:c000:201::2")));
}

/// Wherever an address comes from, one client cannot choose among 2^64 buckets.
#[test]
fn an_address_from_anywhere_counts_as_the_peer_does() {
    let addresses: [(&str, &str, bool); 5] = [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", false),
        ("::ffff:192.0.2.1", "192.0.2.1", true),
        ("64:ff9b::192.0.2.1", "192.0.2.1", true),
        ("fe80::1", "fe80::2", false),
    ];
    let limiter = any_limiter();
    for (first, second, shared) in addresses {
        let [first, second] = [first, second].map(|text| text.parse::<IpAddr>().unwrap());
        let request = |address: IpAddr| {
            let mut request = Request::new(());
            request.extensions_mut().insert(address);
            request.extensions_mut().insert(SocketAddr::new(address, 1));
            request
        };
        let [a, b] = [first, second].map(request);
        assert_eq!(share(FromExtension::<IpAddr>::new(), &a, &b), shared);
        assert_eq!(share(FromExtension::<SocketAddr>::new(), &a, &b), shared);
        assert_eq!(share(key_fn(|head| head.extensions().get::<IpAddr>().copied()), &a, &b), shared);
        assert_eq!(share(key_fn(|head| head.extensions().get::<SocketAddr>().copied()), &a, &b), shared);
        assert_eq!(share(key_fn(|head| Some(("tenant", *head.extensions().get::<IpAddr>()?))), &a, &b), shared);
        for address in [first, second] {
            let by_peer = limiter.key(PeerIp.network(address));
            assert_eq!(limiter.key(address), by_peer);
            assert_eq!(limiter.key(SocketAddr::new(address, 7)), by_peer);
            match address {
                IpAddr::V4(v4) => assert_eq!(limiter.key(v4), by_peer),
                IpAddr::V6(v6) => assert_eq!(limiter.key(v6), by_peer),
            }
        }
        // The whole address, where it is written out.
        let whole = |address| limiter.key(PeerIp.v6_prefix(128).network(address));
        assert_eq!(whole(first) == whole(second), shared && first.to_canonical().is_ipv4() | second.is_ipv4());
    }
}

#[test]
fn the_host_is_found_wherever_the_version_of_http_puts_it() {
    let host = || Header::new("host");
    let field = |value: &str| with_header("host", value);
    let target = |uri: &str| Request::builder().uri(uri).body(()).unwrap();
    assert!(share(host(), &field("a.example"), &target("https://a.example/x")), "HTTP/2 has an authority");
    assert!(share(host(), &field("a.example"), &field("A.Example:8080")), "a client varies case and port");
    assert!(share(host(), &field("[2001:db8::1]:80"), &target("http://[2001:db8::1]/")));
    assert!(!share(host(), &field("a.example"), &field("b.example")));
    let mut both = target("https://a.example/");
    both.headers_mut().insert("host", "b.example".parse().unwrap());
    assert!(share(host(), &both, &field("a.example")), "the target takes precedence");
    let (limiter, _clock) = limiter([Policy::per(host(), ONE)]);
    assert_eq!(limiter.decide(&Request::new(())).denied().unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(limiter.decide(&field("")).denied().unwrap().status(), StatusCode::UNAUTHORIZED);
}

/// HTTP/2 may split it for compression.
#[test]
fn cookies_in_several_fields_are_one_value() {
    let cookies = |crumbs: &[&str]| {
        let mut request = Request::new(());
        for crumb in crumbs {
            request.headers_mut().append("cookie", crumb.parse().unwrap());
        }
        request
    };
    let cookie = || Header::new("cookie");
    assert!(share(cookie(), &cookies(&["a=1", "b=2"]), &cookies(&["a=1; b=2"])));
    assert!(!share(cookie(), &cookies(&["a=1", "b=2"]), &cookies(&["a=1", "b=3"])));
    assert!(!share(cookie(), &cookies(&["a=1", "b=2"]), &cookies(&["b=3", "c=4"])), "not one bucket for all");
}

#[test]
fn the_port_of_the_peer_does_not_matter() {
    let mut first = Request::new(());
    first.extensions_mut().insert(PeerAddr(([10, 0, 0, 1], 1).into()));
    let mut second = Request::new(());
    second.extensions_mut().insert(PeerAddr(([10, 0, 0, 1], 2).into()));
    assert!(share(PeerIp, &first, &second));
}

#[test]
fn id01_no_header_changes_the_peer() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_minute(5))]);
    let admitted = (0..1_000).filter(|n| {
        let mut request = from_ip(Ipv4Addr::new(192, 0, 2, 1));
        for name in ["x-forwarded-for", "forwarded", "x-real-ip", "cf-connecting-ip", "true-client-ip"] {
            request.headers_mut().insert(name, format!("10.0.{}.{}", n / 250, n % 250).parse().unwrap());
        }
        admits(&limiter, &request)
    });
    assert_eq!(admitted.count(), 5);
}

#[cfg(feature = "axum")]
#[test]
fn the_peer_is_the_most_precise_of_what_is_known() {
    use axum::extract::connect_info::{ConnectInfo, MockConnectInfo};
    let address = |last| SocketAddr::from(([10, 0, 0, last], 1));
    // From the one that takes precedence.
    let with = |[told, served, mocked, bare]: [Option<u8>; 4]| {
        let mut request = Request::new(());
        told.map(|last| request.extensions_mut().insert(PeerAddr(address(last))));
        served.map(|last| request.extensions_mut().insert(ConnectInfo(address(last))));
        mocked.map(|last| request.extensions_mut().insert(MockConnectInfo(address(last))));
        bare.map(|last| request.extensions_mut().insert(address(last)));
        request
    };
    for first in 1..=4 {
        let kinds = [1, 2, 3, 4].map(|nth| (nth >= first).then_some(nth));
        assert!(share(PeerIp, &with(kinds), &from_ip(Ipv4Addr::new(10, 0, 0, first))));
    }
}

#[test]
fn id09_all_bytes_of_a_header_value_are_distinguished() {
    let (limiter, _clock) = limiter([Policy::per(Header::new("x-api-key"), ONE)]);
    let mut values = 0;
    for byte in 0..=255_u8 {
        let value = [b'k', byte, b'k'];
        if http::HeaderValue::from_bytes(&value).is_ok() {
            assert!(admits(&limiter, &with_header("x-api-key", value)), "byte {byte:#04x} shares a bucket");
            values += 1;
        }
    }
    assert_eq!(values, 256 - 31 - 1, "all but 31 control characters and DEL");
    assert_eq!(limiter.len(), values);
}

#[test]
fn id10_an_oversized_value_is_a_key_like_any_other() {
    let (limiter, _clock) = limiter([Policy::per(Header::new("x-api-key"), ONE)]);
    for length in [8, 8 << 10, 64 << 10, 65_536 + 7] {
        let request = with_header("x-api-key", vec![b'a'; length]);
        assert!(admits(&limiter, &request), "{length} bytes");
        assert!(!admits(&limiter, &request), "{length} bytes pass unlimited");
    }
    assert_eq!(limiter.len(), 4);
}

#[test]
fn a_repeated_field_is_no_way_out() {
    let request = |first: &str, second: &str| {
        Request::builder().header("x-api-key", first).header("x-api-key", second).body(()).unwrap()
    };
    // Which of the two the service behind believes is not known: they all share one bucket.
    assert!(share(Header::new("x-api-key"), &request("a", "victim"), &request("b", "victim")));
    assert!(share(Header::new("x-api-key"), &request("victim", "a"), &request("other", "b")));
    assert!(!share(Header::new("x-api-key"), &request("victim", "a"), &with_header("x-api-key", "victim")));
}

#[test]
fn a_bearer_token_is_read_whatever_the_case_of_its_scheme() {
    let request = |value: &str| with_header("authorization", value);
    assert!(share(Bearer, &request("Bearer t1"), &request("bearer   t1")));
    assert!(!share(Bearer, &request("Bearer t1"), &request("Bearer t2")));
    assert!(!share(Bearer, &request("Bearer YWJj=="), &request("Bearer YWJj")));
    let (limiter, _clock) = limiter([Policy::per(Bearer, ONE)]);
    for value in [
        "Basic dDE=",
        "Bearer",
        "Bearer ",
        "Bearert1",
        "",
        "Bearer\u{9}",
        "Bearer\u{9}t1",
        "Bearer =",
        "Bearer t1 x",
        "Bearer t1,x",
        "Bearer t1\u{9}x",
        "Bearer \"t1\"",
        "Bearer t=1",
        "Bearer caf\u{e9}",
    ] {
        let denied = limiter.decide(&request(value)).denied().expect(value);
        assert_eq!((denied.reason(), denied.status()), (Reason::MissingKey, StatusCode::UNAUTHORIZED), "{value:?}");
    }
}

#[test]
fn values_from_extensions_and_closures_are_distinguished() {
    let user = |id: u64| {
        let mut request = Request::new(());
        request.extensions_mut().insert(id);
        request
    };
    assert!(share(FromExtension::<u64>::new(), &user(5), &user(5)));
    assert!(!share(FromExtension::<u64>::new(), &user(5), &user(6)));
    let by_path = || key_fn(|head| Some(head.uri().path().to_owned()));
    let path = |path: &str| Request::builder().uri(path).body(()).unwrap();
    assert!(share(by_path(), &path("/a?x=1"), &path("/a?x=2")));
    assert!(!share(by_path(), &path("/a"), &path("/b")));
}

#[test]
fn a_pair_counts_every_combination() {
    let request = |last: u8, method: &str| {
        let mut request = from_ip(Ipv4Addr::new(10, 0, 0, last));
        *request.method_mut() = method.parse().unwrap();
        request
    };
    assert!(share((PeerIp, HttpMethod), &request(1, "GET"), &request(1, "GET")));
    assert!(!share((PeerIp, HttpMethod), &request(1, "GET"), &request(1, "POST")));
    assert!(!share((PeerIp, HttpMethod), &request(1, "GET"), &request(2, "GET")));
}

#[test]
fn invented_methods_are_one_method() {
    let (limiter, _clock) = limiter([Policy::per((PeerIp, HttpMethod), ONE).named("pairs")]);
    let admitted = (0..100).filter(|n| {
        let mut request = from_ip(Ipv4Addr::LOCALHOST);
        *request.method_mut() = format!("X{n}").parse().unwrap();
        admits(&limiter, &request)
    });
    assert_eq!(admitted.count(), 1);
}

#[test]
fn an_empty_field_is_no_key() {
    let (limiter, _clock) = limiter([Policy::per(Header::new("x-api-key"), ONE)]);
    for value in ["", " ", "\t"] {
        assert_eq!(limiter.decide(&with_header("x-api-key", value)).denied().unwrap().reason(), Reason::MissingKey);
    }
}

#[test]
fn a_second_choice_cannot_spend_what_belongs_to_the_first() {
    let mut alice = Request::new(());
    alice.extensions_mut().insert("alice".to_owned());
    let somebody = with_header("x-session", "alice");
    assert!(!share(FromExtension::<String>::new().or(Header::new("x-session")), &somebody, &alice));
    let chained = || Header::new("a").or(Bearer).or(PeerIp);
    assert!(share(chained(), &from_ip(Ipv4Addr::LOCALHOST), &from_ip(Ipv4Addr::LOCALHOST)));
    assert!(!share(chained(), &with_header("a", "t"), &with_header("authorization", "Bearer t")));
    let fields = || Header::new("a").or(Header::new("b")).or(Header::new("c").or(Header::new("d")));
    for (n, first) in ["a", "b", "c", "d"].into_iter().enumerate() {
        for second in &["a", "b", "c", "d"][n + 1..] {
            assert!(!share(fields(), &with_header(first, "v"), &with_header(second, "v")), "{first} {second}");
        }
    }
}

#[test]
fn an_extractor_that_hands_on_to_several_says_so_and_its_fallbacks_stay_apart() {
    struct HandsOn<K>(K);

    impl<K: KeyExtractor> KeyExtractor for HandsOn<K> {
        fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
            self.0.extract(head)
        }

        fn choices(&self) -> u32 {
            self.0.choices()
        }
    }

    let fields = || HandsOn(Header::new("a").or(Header::new("b"))).or(Header::new("c"));
    assert!(share(fields(), &with_header("b", "v"), &with_header("b", "v")));
    assert!(!share(fields(), &with_header("b", "v"), &with_header("c", "v")));
}

#[test]
fn what_a_fallback_finds_can_be_named() {
    let by = |field: &'static str| Header::new(field);
    let (limiter, _clock) = limiter([Policy::per(by("a").or(PeerIp).or(by("c")), ONE).named("p")]);
    let peer = Ipv4Addr::new(203, 0, 113, 7);
    let requests = [with_header("a", "v"), from_ip(peer)];
    let keys = [limiter.key("v"), limiter.key(fallback(1, PeerIp.network(peer.into())))];
    for (request, key) in requests.iter().zip(keys) {
        assert!(admits(&limiter, request));
        assert_eq!(limiter.peek("p", key).unwrap().remaining(), 0);
        assert!(limiter.reset("p", key).unwrap());
    }
    let (alone, _clock) = support::limiter([Policy::per(by("a").or(by("b")).or(by("c")), ONE).named("p")]);
    assert!(admits(&alone, &with_header("c", "v")));
    assert_eq!(alone.peek("p", alone.key(fallback(2, "v"))).unwrap().remaining(), 0);
}

#[test]
fn or_falls_back_only_where_there_is_no_key() {
    let mut keyed = from_ip(Ipv4Addr::new(10, 0, 0, 1));
    keyed.headers_mut().insert("x-api-key", "k".parse().unwrap());
    let plain = from_ip(Ipv4Addr::new(10, 0, 0, 1));
    let either = || Header::new("x-api-key").or(PeerIp);
    assert!(share(either(), &plain, &plain));
    assert!(!share(either(), &keyed, &plain));
    let mut elsewhere = from_ip(Ipv4Addr::new(10, 0, 0, 2));
    elsewhere.headers_mut().insert("x-api-key", "k".parse().unwrap());
    assert!(share(either(), &keyed, &elsewhere));
}

/// A type of the user's, which is counted by its parts and never cloned.
struct Account {
    tenant: u32,
    name: String,
}

impl IntoKey for Account {
    fn key(&self, hasher: &KeyHasher) -> Key {
        (self.tenant, &self.name).key(hasher)
    }
}

#[test]
fn a_type_of_ones_own_makes_a_key_by_reference() {
    let limiter = any_limiter();
    let account = Account { tenant: 7, name: "a".to_owned() };
    let key = limiter.key(&account);
    assert_eq!(key, limiter.key((7_u64, "a")));
    assert_eq!(key, limiter.key(Arc::new(account)));
    for same in [limiter.key(b"a"), limiter.key(Box::<str>::from("a")), limiter.key(Cow::Borrowed("a"))] {
        assert_eq!(same, limiter.key("a"));
    }
}

#[test]
fn an_extractor_that_is_chosen_at_run_time_counts_as_itself() {
    let chosen: Box<dyn KeyExtractor> = Box::new(Header::new("x-api-key").or(Bearer));
    assert_eq!((chosen.name(), chosen.choices()), ("x-api-key".into(), 2));
    let shared: Arc<dyn KeyExtractor> = Arc::from(chosen);
    let (limiter, _clock) = limiter([Policy::per(shared, ONE)]);
    assert!(admits(&limiter, &with_header("x-api-key", "a")));
    assert!(!admits(&limiter, &with_header("x-api-key", "a")));
    let challenged = limiter.decide(&Request::new(())).denied().unwrap();
    assert_eq!(challenged.status(), StatusCode::UNAUTHORIZED);
}

#[test]
fn id11_kinds_never_collide() {
    let limiter = any_limiter();
    let keys = [
        limiter.key(5_u64),
        limiter.key(-5_i64),
        limiter.key(5_u128),
        limiter.key("5"),
        limiter.key("::5".parse::<IpAddr>().unwrap()),
        limiter.key("0.0.0.5".parse::<IpAddr>().unwrap()),
        limiter.key("0.0.0.5"),
        limiter.key((5_u64, 5_u64)),
        limiter.key((5_u64, 5_u64, 5_u64)),
        limiter.key(((5_u64, 5_u64), 5_u64)),
        limiter.key((5_u64, (5_u64, 5_u64))),
        limiter.key(""),
        Key::GLOBAL,
    ];
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
    assert_eq!(limiter.key(5_u8), limiter.key(5_u64));
    assert_eq!(limiter.key(5_i32), limiter.key(5_u64), "equal numbers are one key, whatever their types");
    assert_eq!(limiter.key(-5_i8), limiter.key(-5_i64));
    assert_ne!(limiter.key(i64::MIN), limiter.key(i64::MIN.unsigned_abs()));
    assert_eq!(limiter.key("a"), limiter.key(b"a".as_slice()));
    assert_eq!(limiter.key("a"), limiter.key("a".to_owned()));
}

#[test]
fn keys_of_two_limiters_are_under_two_secrets() {
    assert_ne!(any_limiter().key("k1"), any_limiter().key("k1"));
}

#[test]
fn id13_no_debug_output_shows_a_secret() {
    const SECRET: &str = "S3CR3T-canary";
    let layer = tower_quota::RateLimitLayer::new(Policy::per(Header::new("x-api-key"), ONE));
    let limiter = layer.limiter();
    let request = with_header("x-api-key", SECRET);
    let allowed = format!("{:?}", limiter.decide(&request));
    let denied = limiter.decide(&request).denied().unwrap();
    let outputs = [
        allowed,
        format!("{denied:?} {denied}"),
        format!("{:?}", limiter.key(SECRET)),
        format!("{limiter:?} {layer:?}"),
        format!("{:?}", limiter.peek("per-x-api-key", limiter.key(SECRET))),
    ];
    for output in outputs {
        assert!(!output.contains("S3CR3T"), "{output}");
    }
    assert_eq!(format!("{:?}", limiter.key("203.0.113.7".parse::<IpAddr>().unwrap())), "Key(Ipv4)");
    assert!(format!("{limiter:?}").contains("per-x-api-key"), "what is limited is no secret");
}

proptest! {
    #[test]
    fn id11_composites_are_injective(a: (String, String), b: (String, String)) {
        let limiter = any_limiter();
        prop_assert_eq!(limiter.key(a.clone()) == limiter.key(b.clone()), a == b);
    }

    #[test]
    fn id11_separators_are_no_way_to_move_a_border(text in "[a:{}\0]{0,6}", cut in 0_usize..6, other in 0_usize..6) {
        let limiter = any_limiter();
        let split = |at: usize| {
            let at = at.min(text.len());
            (text[..at].to_owned(), text[at..].to_owned())
        };
        let (a, b) = (split(cut), split(other));
        prop_assert_eq!(limiter.key(a.clone()) == limiter.key(b.clone()), a == b);
    }

    #[test]
    fn whole_addresses_are_stored_exactly(a: [u8; 16], bit in 0_usize..128) {
        let limiter = any_limiter();
        let mut b = a;
        b[bit / 8] ^= 1 << (bit % 8);
        let whole = |address: [u8; 16]| limiter.key(PeerIp.v6_prefix(128).network(address.into()));
        prop_assert_ne!(whole(a), whole(b));
        prop_assert_eq!(whole(a), whole(a));
    }
}
