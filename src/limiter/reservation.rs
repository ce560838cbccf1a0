//! Contains [`Reservation`]: cells that will be there, and the time until they are.
//!
//! This file must not know of timers, which callers have, nor where buckets are.

use std::{fmt, future::poll_fn, task::Poll, time::Duration};

use super::{
    Limiter,
    acquire::Grant,
    admission::Admission,
    into_limiter::{Handle, Settle},
};
use crate::{
    clock::{Nanos, Timestamp},
    decision::{Receipt, ReceiptOrigin, Receipts},
};

/// The longest time that a reservation waits: a day.
pub(crate) const MAX_PATIENCE: Nanos = Nanos::new(86_400 * Nanos::SECOND.get());

/// Cells that will be there. Made by [`Limiter::reserve`](crate::Limiter::reserve).
///
/// Await [`ready`](Self::ready), or sleep for [`wait`](Self::wait) as long as it says so, because
/// the time may have grown meanwhile:
///
/// ```
/// use std::{thread, time::Duration};
/// use tower_quota::{Limiter, Policy, Quota};
///
/// let limiter = Limiter::new(Policy::by_key(Quota::per_second(100)).named("jobs"));
/// let reservation = limiter.reserve("jobs", 7, Duration::from_secs(1))?;
/// while let Some(wait) = reservation.wait() {
///     thread::sleep(wait);
/// }
/// # Ok::<(), tower_quota::limiter::AcquireError>(())
/// ```
///
/// Dropped before its time, a reservation refunds its cells if it is the last in line, and nothing
/// otherwise: those behind it have their times already, and a later caller would be served at the
/// same time as the last of them. Dropped after its time, it leaves the cells acquired.
#[must_use = "dropped before its time, a reservation refunds its cells"]
pub struct Reservation<L: Handle = Limiter> {
    cells: ReservedCells<L>,
}

impl<L: Handle> Reservation<L> {
    pub(crate) fn new(cells: ReservedCells<L>) -> Self {
        Self { cells }
    }

    /// Returns the time until the cells are there, or `None` if they are. Ask again after a sleep,
    /// as long as it is a time.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.cells.remaining_wait()
    }

    /// Waits with `timer` until the cells are there, and returns their receipts. The timer makes a
    /// future that ends after a time: `tokio::time::sleep`, or
    /// [`ManualClock::sleep`](crate::clock::ManualClock::sleep) in a test.
    ///
    /// If the future is dropped before, the reservation is.
    pub async fn ready<F: Future<Output = ()>>(mut self, timer: impl Fn(Duration) -> F) -> Admission {
        let mut was_early = false;
        while let Some(wait) = self.wait() {
            if was_early {
                // The timer was early, perhaps at once: let other tasks run.
                yield_once().await;
            }
            timer(wait).await;
            was_early = true;
        }
        let (at, receipts, limiter) = self.cells.take();
        Admission::new(limiter, at, &receipts)
    }
}

async fn yield_once() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if has_yielded {
            return Poll::Ready(());
        }
        has_yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl<L: Handle> Drop for Reservation<L> {
    fn drop(&mut self) {
        if self.wait().is_none() {
            self.cells.take();
        }
    }
}

impl<L: Handle> fmt::Debug for Reservation<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("wait", &self.wait()).finish_non_exhaustive()
    }
}

/// The cells of a request that waits, or of a reservation. Dropped before they are taken, they are
/// refunded.
pub(crate) struct ReservedCells<L: Settle> {
    limiter: L,
    grant: Grant,
    /// When the cells are there.
    ready: Timestamp,
    receipts: Receipts,
}

impl<L: Settle> ReservedCells<L> {
    /// The wait counts from `from`.
    pub(crate) fn new(limiter: L, grant: Grant, receipts: Receipts, from: Timestamp) -> Self {
        let ready = from.saturating_add(grant.wait);
        Self { limiter, grant, ready, receipts }
    }

    /// The time until the cells are there: a timer may end early, and a key may be paused
    /// meanwhile.
    pub(crate) fn remaining_wait(&self) -> Option<Duration> {
        let now = self.limiter.policy_set().now();
        let left = self.ready_now(now).since(now);
        (!left.is_zero()).then(|| left.into())
    }

    /// When the cells are there, as it is known at `now`: later by the pauses since, and not in a
    /// pause.
    fn ready_now(&self, now: Timestamp) -> Timestamp {
        // Whatever costs nothing, or denies nothing, waits for no pause.
        let waits = |receipt: &&Receipt| receipt.cells > 0 && !receipt.outcome.shadow;
        let ready = self.receipts.iter().filter(waits).map(|receipt| {
            let pause = self.limiter.pause_of(receipt);
            let ready = self.ready.saturating_add(pause.since(receipt.paused));
            if pause.until > now { ready.max(pause.until) } else { ready }
        });
        ready.max().unwrap_or(self.ready)
    }

    /// The wait is over: the cells with the time of their receipts, and where these are settled.
    pub(crate) fn take(&mut self) -> (Timestamp, Receipts, L)
    where
        L: Clone,
    {
        let (at, mut receipts) = self.as_acquired();
        self.receipts = Receipts::None;
        for receipt in &mut *receipts {
            // The standings are those of now, and not of when the cells were reserved.
            receipt.outcome.pass(self.grant.wait);
        }
        (at, receipts, self.limiter.clone())
    }

    /// The receipts as if the cells were acquired when they are there. Of what is taken from those
    /// that will be there, time has returned nothing before. Under several policies, some may have
    /// had the cells at once.
    fn as_acquired(&self) -> (Timestamp, Receipts) {
        let [receipt] = &*self.receipts else { return (self.grant.at, Receipts::of(&self.receipts)) };
        let moved_by = if receipt.origin == ReceiptOrigin::Overflow {
            // A slot that keys share does not move with the pause of one.
            Nanos::ZERO
        } else {
            self.limiter.pause_of(receipt).since(receipt.paused)
        };
        let receipt = Receipt {
            // The bucket has moved with the pauses since.
            after: receipt.after.later(Timestamp::ORIGIN, moved_by),
            paused: receipt.paused.saturating_add(moved_by),
            ..receipt.later_by(self.grant.wait.saturating_add(moved_by))
        };
        (self.ready.saturating_add(moved_by), Receipts::One(receipt))
    }
}

impl<L: Settle> Drop for ReservedCells<L> {
    fn drop(&mut self) {
        let (at, receipts) = self.as_acquired();
        for receipt in &*receipts {
            self.limiter.refund_receipt(receipt, at);
        }
    }
}
