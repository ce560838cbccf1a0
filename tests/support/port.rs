//! Ports for servers of the tests' own.

use std::{
    net::TcpListener,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// A port that no socket listens on, below those that the system gives to connections. A port of the system's choice
/// may go to a connection of another test before the server has it; and whoever dials it until the server answers may
/// be connected to itself.
pub(crate) fn free_port() -> u16 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    const FIRST: u16 = 10_000;
    const PORTS: u32 = 22_000;
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Processes start far from each other.
        let nth = process::id().wrapping_mul(7_919).wrapping_add(number) % PORTS;
        let port = FIRST + u16::try_from(nth).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
