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

struct Inner {
    limiter: Limiter,
    at: u64,
    draws: Draws,
    /// For each draw, whether it has not been settled or put back.
    open: Box<[AtomicBool]>,
}

impl Admission {
    pub(crate) fn new(limiter: Limiter, at: u64, draws: Draws) -> Self {
        let open = draws.iter().map(|_| AtomicBool::new(true)).collect();
        Self { inner: Arc::new(Inner { limiter, at, draws, open }) }
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
    /// What it cost beyond the draw is charged whether or not it is there, and becomes debt of at most one burst. What it
    /// cost less is put back, but for what time has returned since. The first time only: later calls, and calls after
    /// [`put_back`](Self::put_back), change nothing. A policy in shadow mode that would have refused has drawn nothing.
    ///
    /// # Errors
    ///
    /// When no policy of this name applied to the request.
    pub fn settle(&self, policy: &str, cells: u32) -> Result<(), UnknownPolicy> {
        let Inner { limiter, at, .. } = &*self.inner;
        let (index, draw) = self.find(policy)?;
        if self.close(index) {
            let drawn = if draw.added == 0 { 0 } else { draw.cells };
            if let Some(more) = cells.checked_sub(drawn) {
                limiter.debit(draw, more);
            } else {
                let less = u64::from(drawn - cells) * draw.trial.quota.cell_nanos();
                limiter.restore(&Draw { added: less, ..*draw }, *at);
            }
        }
        Ok(())
    }

    /// Charges `cells` more under a policy, of the quota that the request was decided under, whether or not they are there.
    /// What is not becomes debt of at most one burst.
    ///
    /// # Errors
    ///
    /// When no policy of this name applied to the request.
    pub fn charge(&self, policy: &str, cells: u32) -> Result<(), UnknownPolicy> {
        let (_, draw) = self.find(policy)?;
        self.inner.limiter.debit(draw, cells);
        Ok(())
    }

    /// Returns what was drawn under every policy, but for what time has returned since, and for what was settled.
    pub fn put_back(&self) {
        let Inner { limiter, at, draws, .. } = &*self.inner;
        for (index, draw) in draws.iter().enumerate() {
            if self.close(index) {
                limiter.restore(draw, *at);
            }
        }
    }

    /// Returns what policies have drawn for which this response does not count.
    pub(crate) fn put_back_uncounted(&self, response: ResponseHead<'_>) {
        let Inner { limiter, at, draws, .. } = &*self.inner;
        for (index, draw) in draws.iter().enumerate() {
            if !limiter.policies()[draw.trial.policy].counts(response) && self.close(index) {
                limiter.restore(draw, *at);
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

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.standings()).finish()
    }
}
