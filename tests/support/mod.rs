//! What the tests share: a limiter on a clock that the test moves, requests from addresses, and a deadline.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::mpsc,
    thread,
    time::Duration,
};

use http::Request;
use tower_quota::{Limiter, Policy, clock::ManualClock, key::PeerAddr, limiter::Sweep};

/// A limiter that neither time nor the sweeper touches unless the test says so.
pub(crate) fn limiter(policies: impl IntoIterator<Item = Policy>) -> (Limiter, ManualClock) {
    let clock = ManualClock::new();
    let limiter = Limiter::builder().policies(policies).clock(clock.clone()).sweep(Sweep::Manual).build();
    (limiter.unwrap(), clock)
}

/// A request whose connection comes from `ip`.
pub(crate) fn from_ip(ip: impl Into<IpAddr>) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(PeerAddr(SocketAddr::new(ip.into(), 4_711)));
    request
}

/// A request with this field.
pub(crate) fn with_header(name: &str, value: impl AsRef<[u8]>) -> Request<()> {
    Request::builder().header(name, value.as_ref()).body(()).unwrap()
}

pub(crate) fn admits<B>(limiter: &Limiter, request: &Request<B>) -> bool {
    limiter.decide(request).is_allowed()
}

/// How many of `tries` equal requests are admitted.
pub(crate) fn admitted<B>(limiter: &Limiter, request: &Request<B>, tries: usize) -> usize {
    (0..tries).filter(|_| admits(limiter, request)).count()
}

/// Nanoseconds until the request is admitted, for a request that is not.
pub(crate) fn wait<B>(limiter: &Limiter, request: &Request<B>) -> Option<Duration> {
    limiter.decide(request).denied().expect("the request is denied").wait()
}

/// Runs `work`, and fails if it has not ended in time: a deadlock does not hang the suite.
pub(crate) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, finished) = mpsc::channel();
    let worker = thread::spawn(move || done.send(work()));
    match finished.recv_timeout(limit) {
        Ok(result) => {
            worker.join().unwrap().unwrap();
            result
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("not finished within {limit:?}: a deadlock?"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(worker.join().expect_err("the worker has panicked"))
        }
    }
}
