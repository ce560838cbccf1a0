//! P6: bytes that stay allocated for each key.

use std::{net::IpAddr, num::NonZeroU32};

use allocation_counter::measure as counted;
use governor::RateLimiter;
use http::Request;
use tower_quota::{
    Limiter, Policy, Quota,
    key::{Header, PeerAddr, PeerIp},
    limiter::Sweep,
};

use crate::{
    decisions::address,
    table::{Bound, Row},
};

const HOUR: Quota = Quota::per_hour(10);

pub fn measure() -> Vec<Row> {
    let theirs = governor::Quota::per_hour(NonZeroU32::new(10).unwrap());
    let limiter = |policy: Policy, keys: usize| {
        Limiter::builder().policy(policy.max_keys(keys)).sweep(Sweep::Manual).build().unwrap()
    };

    const ADDRESSES: u64 = 4_000_000;
    let ours = per_key(ADDRESSES, || {
        let limiter = limiter(Policy::per(PeerIp, HOUR), ADDRESSES as usize);
        let mut request = Request::new(());
        for n in 0..ADDRESSES {
            request.extensions_mut().insert(PeerAddr(std::net::SocketAddr::from((address(n), 1))));
            assert!(limiter.decide(&request).is_allowed());
        }
        assert_eq!(limiter.len(), ADDRESSES as usize);
        limiter
    });
    let governor = per_key(ADDRESSES, || {
        let limiter = RateLimiter::<IpAddr, _, _, _>::dashmap(theirs);
        for n in 0..ADDRESSES {
            assert!(limiter.check_key(&IpAddr::V4(address(n))).is_ok());
        }
        limiter
    });

    const API_KEYS: u64 = 1_000_000;
    let api_key = |n: u64| format!("key-{n:036}");
    let ours_by_text = per_key(API_KEYS, || {
        let limiter = limiter(Policy::per(Header::new("x-api-key"), HOUR), API_KEYS as usize);
        let mut request = Request::new(());
        for n in 0..API_KEYS {
            request.headers_mut().insert("x-api-key", api_key(n).try_into().unwrap());
            assert!(limiter.decide(&request).is_allowed());
        }
        assert_eq!(limiter.len(), API_KEYS as usize);
        limiter
    });
    let governor_by_text = per_key(API_KEYS, || {
        let limiter = RateLimiter::<String, _, _, _>::dashmap(theirs);
        for n in 0..API_KEYS {
            assert!(limiter.check_key(&api_key(n)).is_ok());
        }
        limiter
    });

    let row = |what, most, ours, theirs| Row::single("P6", what, "governor keyed", Bound::AtMost(most), ours, theirs);
    vec![
        row("a key, 4,000,000 IPv4 addresses, bytes", 0.76, ours, governor),
        row("a key, 1,000,000 API keys of 40 characters, bytes", 0.48, ours_by_text, governor_by_text),
    ]
}

/// Of what `make` returns, for each of its keys.
fn per_key<T>(keys: u64, make: impl FnOnce() -> T) -> f64 {
    let mut made = None;
    let counted = counted(|| made = Some(make()));
    drop(made);
    counted.bytes_current as f64 / keys as f64
}
