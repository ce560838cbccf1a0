//! A flood through the layer: ten million clients at full speed, twice as many as fit, with the sweeper on. Watches memory,
//! the slowest calls, a victim whose bucket is empty, and an innocent client.
//!
//! ```sh
//! cargo bench --bench soak -- run
//! ```

use std::{
    convert::Infallible,
    env, fs,
    future::{Ready, ready},
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer as _, Service};
use tower_quota::{
    Limiter, Policy, Quota, RateLimit, RateLimitLayer,
    key::{PeerAddr, PeerIp},
};

const CLIENTS: u32 = 10_000_000;
const CAP: usize = 5_000_000;
/// Of a key with its bucket, at most; the table behind the cap comes to 16 more for every sixteenth.
const BYTES_OF_A_KEY: usize = 60;
/// The flood owes for so long; the victim for an hour.
const STALE: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Inner(u64);

impl Service<Request<()>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        self.0 += request.headers().len() as u64;
        ready(Ok(Response::new(Full::default())))
    }
}

fn main() {
    // `cargo bench` without a name would run it among the others, and `cargo test --benches` too.
    if env::args().any(|argument| argument == "run") {
        run();
    }
}

#[expect(clippy::disallowed_methods, reason = "what is watched is time")]
fn now() -> Instant {
    Instant::now()
}

fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

fn call(service: &mut RateLimit<Inner>, address: Ipv4Addr) -> StatusCode {
    let mut request = Request::new(());
    request.extensions_mut().insert(PeerAddr(SocketAddr::from((address, 4_711))));
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) else { panic!("answers at once") };
    response.status()
}

fn flooder(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(n.wrapping_mul(2_654_435_761))
}

#[expect(clippy::disallowed_methods, reason = "the system's clock is soaked, too")]
fn run() {
    // The burst of the flood is back in 20 seconds; the victim is limited by the hour.
    let (victim, innocent) = (Ipv4Addr::new(203, 0, 113, 7), Ipv4Addr::new(198, 51, 100, 7));
    let policy = Policy::per(PeerIp, Quota::every(STALE)).max_keys(CAP).quota_by(move |head| {
        let peer = head.extensions().get::<SocketAddr>()?.ip();
        [victim, innocent].iter().any(|known| peer == *known).then_some(const { Quota::per_hour(3).burst(3) })
    });
    let limiter = Limiter::new(policy);
    let mut service = RateLimitLayer::new(&limiter).layer(Inner(0));
    let before = resident_bytes();

    let spent = (0..5).map(|_| call(&mut service, victim).as_u16()).collect::<Vec<_>>();
    assert_eq!(spent, [200, 200, 200, 429, 429], "the victim has three");

    assert_eq!(call(&mut service, innocent), StatusCode::OK);

    let start = now();
    let (mut slowest, mut admitted, mut most_keys, mut most_bytes) = (Duration::ZERO, 0, 0, 0);
    for n in 0..CLIENTS {
        let began = now();
        if call(&mut service, flooder(n)) == StatusCode::OK {
            admitted += 1;
        }
        slowest = slowest.max(now() - began);
        if n % 100_000 == 0 {
            most_keys = most_keys.max(limiter.len());
            most_bytes = most_bytes.max(resident_bytes());
            assert_eq!(call(&mut service, victim), StatusCode::TOO_MANY_REQUESTS, "the flood has refilled the victim");
        }
    }
    let took = now() - start;
    let bytes = most_bytes - before;
    println!("flood         {CLIENTS} clients in {:.1} s, {admitted} admitted", took.as_secs_f64());
    println!("slowest call  {} µs, {} ns on average", slowest.as_micros(), took.as_nanos() / u128::from(CLIENTS));
    println!("keys          {most_keys} at most, {CAP} allowed");
    println!("memory        {} MiB at most, {} MiB allowed", bytes >> 20, (CAP * BYTES_OF_A_KEY) >> 20);
    assert!(most_keys <= CAP);
    assert!(bytes <= CAP * BYTES_OF_A_KEY);

    assert_eq!(limiter.len(), CAP, "the flood has not filled the map");
    let rest = [(); 3].map(|()| call(&mut service, innocent).as_u16());
    assert_eq!(rest, [200, 200, 429], "a client that was there before has what it had left");

    let left = loop {
        thread::sleep(Duration::from_secs(1));
        if limiter.len() < 1_000 || now() - start > took + 6 * STALE {
            break limiter.len();
        }
    };
    let after = resident_bytes().saturating_sub(before);
    println!(
        "afterwards    {left} keys and {} MiB are left after {:.0} s",
        after >> 20,
        (now() - start - took).as_secs_f64()
    );
    assert!(left < 1_000, "the sweeper has not removed the flood");
    // The tables themselves are; glibc keeps what was freed while they grew, for the next flood.
    assert!(after <= bytes / 2, "memory was not given back");
    assert_eq!(call(&mut service, victim), StatusCode::TOO_MANY_REQUESTS, "the sweep has refilled the victim");
    assert_eq!(call(&mut service, Ipv4Addr::new(192, 0, 2, 1)), StatusCode::OK);
}
