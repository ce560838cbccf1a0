//! Contains when a server has last done something for a thread. Only the comparison of both
//! limiters needs it.

use std::cell::Cell;

use super::protocol::{Element, read_outside};
use crate::clock::Timestamp;

thread_local! {
    static LAST: Cell<Timestamp> = const { Cell::new(Timestamp::ORIGIN) };
}

pub(super) fn last_time() -> Timestamp {
    LAST.get()
}

pub(super) fn note(at: Timestamp) {
    LAST.set(at);
}

/// The replies of the scripts begin with seconds and nanoseconds.
pub(super) fn note_reply(reply: &[Element]) {
    if let Some(at) = read_outside(reply) {
        note(at.timestamp());
    } else if let [seconds, nanos, ..] = reply {
        let [seconds, nanos] = [seconds, nanos].map(|part| part.number().unwrap());
        note(Timestamp::from_nanos(seconds * 1_000_000_000 + nanos));
    }
}
