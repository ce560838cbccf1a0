//! Waits for a condition of another process.

use std::time::{Duration, Instant};

#[expect(clippy::disallowed_methods, reason = "a condition of another process is polled")]
pub(crate) fn within_a_minute(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}
