//! [`Admission`]: what was drawn for a request, in the hands of its handler.
//!
//! Owns the receipt of one request, of which each part is used once. Knows nothing of services.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Limiter, UnknownPolicy};
use crate::{
    decision::{Draw, Draws, Standing},
    policy::ResponseHead,
};

/// The receipt for what was drawn when a request was admitted: for costs that are known only after the work.
///
/// In the request's extensions, where the layer was told to put it there with
/// [`RateLimitLayer::admissions`](crate::RateLimitLayer::admissions). Clones share one receipt. It may outlive the request,
/// be used from another task, and is worth nothing after a panic but what it was worth before; dropped unused, it leaves
/// everything as it is.
///
/// ```
/// use axum::Extension;
/// use tower_quota::limiter::Admission;
///
/// async fn complete(Extension(admission): Extension<Admission>) -> String {
///     // 500 tokens were reserved by the policy's `cost_by`.
///     let (answer, tokens) = ("...".to_owned(), 730);
///     let _ = admission.settle("tokens", tokens);
///     answer
/// }
/// ```
#[derive(Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

/// Where draws were made in buckets that are elsewhere: what becomes of them afterwards. False where a policy was not among
/// them.
#[cfg(feature = "redis")]
pub(crate) trait Settle: Send + Sync {
    /// Returns nanoseconds of a draw, but for what time has returned since.
    fn put_back(&self, policy: usize, nanos: u64) -> bool;
    fn charge(&self, policy: usize, nanos: u64) -> bool;
}

struct Inner {
    limiter: Limiter,
    at: u64,
    draws: Draws,
    #[cfg(feature = "redis")]
    elsewhere: Option<Box<dyn Settle>>,
    /// For each draw, whether it has not been settled or put back.
    open: Box<[AtomicBool]>,
}

impl Admission {
    pub(crate) fn new(limiter: Limiter, at: u64, draws: Draws) -> Self {
        let open = draws.iter().map(|_| AtomicBool::new(true)).collect();
        let inner = Inner {
            limiter,
            at,
            draws,
            #[cfg(feature = "redis")]
            elsewhere: None,
            open,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Of draws some of which were made elsewhere.
    #[cfg(feature = "redis")]
    pub(crate) fn elsewhere(limiter: Limiter, at: u64, draws: Draws, elsewhere: Box<dyn Settle>) -> Self {
        let open = draws.iter().map(|_| AtomicBool::new(true)).collect();
        Self { inner: Arc::new(Inner { limiter, at, draws, elsewhere: Some(elsewhere), open }) }
    }

    /// How each policy that applied stood after the draw, in the limiter's order.
    #[must_use]
    pub fn standings(&self) -> impl ExactSizeIterator<Item = Standing<'_>> {
        self.inner.draws.iter().map(|draw| draw.standing(self.inner.limiter.policies()))
    }

    /// The policies in [shadow mode](crate::Policy::shadow) that would have refused the request.
    pub fn would_deny(&self) -> impl Iterator<Item = Standing<'_>> {
        self.standings().filter(Standing::is_violated)
    }

    /// Says what the request has cost under a policy: `cells` in all, in place of what was drawn.
    ///
    /// What it cost beyond the draw is charged whether or not it is there, and becomes debt of at most one burst, or of the
    /// longest wait where [requests wait](crate::RateLimitLayer::max_delay). What it cost less is put back, but for what time
    /// has returned since. The first time only: later calls, and calls after [`put_back`](Self::put_back), change nothing. A
    /// policy in shadow mode that would have refused has drawn nothing.
    ///
    /// # Errors
    ///
    /// When no policy of this name applied to the request.
    pub fn settle(&self, policy: &str, cells: u32) -> Result<(), UnknownPolicy> {
        let (index, draw) = self.find(policy)?;
        if self.close(index) {
            let drawn = if draw.added == 0 { 0 } else { draw.cells };
            if let Some(more) = cells.checked_sub(drawn) {
                self.inner.debit(draw, more);
            } else {
                let less = u64::from(drawn - cells) * draw.trial.quota.cell_nanos();
                self.inner.restore(&Draw { added: less, ..*draw });
            }
        }
        Ok(())
    }

    /// Charges `cells` more under a policy, of the quota that the request was decided under, whether or not they are there.
    /// What is not becomes debt, as with [`settle`](Self::settle).
    ///
    /// # Errors
    ///
    /// When no policy of this name applied to the request.
    pub fn charge(&self, policy: &str, cells: u32) -> Result<(), UnknownPolicy> {
        let (_, draw) = self.find(policy)?;
        self.inner.debit(draw, cells);
        Ok(())
    }

    /// Returns what was drawn under every policy, but for what time has returned since, and for what was settled.
    pub fn put_back(&self) {
        for (index, draw) in self.inner.draws.iter().enumerate() {
            if self.close(index) {
                self.inner.restore(draw);
            }
        }
    }

    /// Returns what policies have drawn for which this response does not count.
    pub(crate) fn put_back_uncounted(&self, response: ResponseHead<'_>) {
        let Inner { limiter, draws, .. } = &*self.inner;
        for (index, draw) in draws.iter().enumerate() {
            if !limiter.policies()[draw.trial.policy].counts(response) && self.close(index) {
                self.inner.restore(draw);
            }
        }
    }

    /// True for the first who asks.
    fn close(&self, index: usize) -> bool {
        self.inner.open[index].swap(false, Ordering::AcqRel)
    }

    fn find(&self, name: &str) -> Result<(usize, &Draw), UnknownPolicy> {
        let policies = self.inner.limiter.policies();
        let mut draws = self.inner.draws.iter().enumerate();
        let found = draws.find(|(_, draw)| policies[draw.trial.policy].name() == name);
        found.ok_or_else(|| {
            let applied = self.inner.draws.iter().map(|draw| policies[draw.trial.policy].name());
            UnknownPolicy::new(name, applied)
        })
    }
}

impl Inner {
    fn restore(&self, draw: &Draw) {
        #[cfg(feature = "redis")]
        if self.elsewhere.as_ref().is_some_and(|there| there.put_back(draw.trial.policy, draw.added)) {
            return;
        }
        self.limiter.restore(draw, self.at);
    }

    fn debit(&self, draw: &Draw, cells: u32) {
        #[cfg(feature = "redis")]
        {
            let nanos = draw.trial.quota.cell_nanos().saturating_mul(u64::from(cells));
            if self.elsewhere.as_ref().is_some_and(|there| there.charge(draw.trial.policy, nanos)) {
                return;
            }
        }
        self.limiter.debit(draw, cells);
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.standings()).finish()
    }
}
