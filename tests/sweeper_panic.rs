//! A listener of events that panics takes the sweeper's thread for a moment, and not for ever. A file of its own, because
//! it listens to the whole process.
#![cfg(feature = "tracing")]

mod support;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use http::Request;
use tower_quota::{Limiter, Policy, Quota, clock::ManualClock, key::PeerIp, limiter::Sweep};

/// Panics at every line, and counts them.
#[derive(Clone, Default)]
struct Panics(Arc<AtomicUsize>);

impl io::Write for Panics {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("planned: a listener that panics");
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn swp06_a_listener_that_panics_does_not_end_the_sweeping() {
    let panics = Panics::default();
    let writer = panics.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let clock = ManualClock::new();
    let policy = Policy::per(PeerIp, Quota::per_second(1_000)).max_keys(1);
    let limiter = Limiter::builder().policy(policy).clock(clock.clone()).sweep(Sweep::Background).build().unwrap();
    let mut request = Request::new(());
    request.extensions_mut().insert(SocketAddr::from(([10, 0, 0, 1], 1)));
    assert!(limiter.decide(&request).is_allowed());

    support::within(Duration::from_secs(30), move || {
        // The one key is 100 % of the cap: that is said, and panics.
        while panics.0.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        clock.advance(Duration::from_secs(1));
        while !limiter.is_empty() {
            thread::yield_now();
        }
    });
}
