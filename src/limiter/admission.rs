//! Contains [`Admission`]: the receipts of an allowed request, or of cells that were acquired by
//! key, in the hands of a handler.
//!
//! Each receipt is used once. This file must not know of services, nor where buckets are: that is
//! behind [`Settle`].

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use smallvec::SmallVec;

use super::{error::UnknownPolicy, into_limiter::Settle};
use crate::{
    clock::Timestamp,
    decision::{Receipt, Receipts, Standing},
    policy::{Policy, ResponseHead},
};

/// The receipts of an allowed request, for costs that are known only after the work.
///
/// It is in the request's extensions, where the layer puts it with
/// [`RateLimitLayer::admissions`](crate::RateLimitLayer::admissions). With the feature `axum` it is
/// an extractor, too. [`Limiter::acquire`](crate::Limiter::acquire) returns it where there is no
/// request. Clones share the receipts. It may outlive the request, and be used from another task.
/// Dropped unused, it changes nothing.
///
/// ```
/// use axum::Extension;
/// use tower_quota::limiter::Admission;
///
/// async fn complete(Extension(admission): Extension<Admission>) -> String {
///     // The policy's `cost_by` has acquired 500 tokens.
///     let (answer, tokens) = ("...".to_owned(), 730);
///     let _ = admission.settle("tokens", tokens);
///     answer
/// }
/// ```
#[derive(Clone)]
pub struct Admission {
    inner: Arc<OpenReceipts<dyn Settle>>,
}

struct OpenReceipts<S: ?Sized> {
    at: Timestamp,
    receipts: SmallVec<[OpenReceipt; 1]>,
    settle: S,
}

struct OpenReceipt {
    receipt: Receipt,
    /// Whether it is neither settled nor refunded yet.
    open: AtomicBool,
}

impl OpenReceipt {
    fn new(receipt: Receipt) -> Self {
        Self { receipt, open: AtomicBool::new(true) }
    }

    /// True for the first caller.
    fn close(&self) -> bool {
        self.open.swap(false, Ordering::AcqRel)
    }
}

impl Admission {
    pub(crate) fn new(settle: impl Settle, at: Timestamp, receipts: &Receipts) -> Self {
        let receipts = receipts.iter().copied().map(OpenReceipt::new).collect();
        Self { inner: Arc::new(OpenReceipts { at, receipts, settle }) }
    }

    /// Returns the admission with a single receipt. Separate, because a collection of receipts is
    /// large, and moving it costs as much as a decision.
    #[inline(always)]
    pub(super) fn of_one(settle: impl Settle, at: Timestamp, receipt: Receipt) -> Self {
        let mut receipts = SmallVec::new();
        receipts.push(OpenReceipt::new(receipt));
        Self { inner: Arc::new(OpenReceipts { at, receipts, settle }) }
    }

    /// Returns how each policy that applied stood after the decision, in the limiter's order.
    #[must_use]
    pub fn standings(&self) -> impl ExactSizeIterator<Item = Standing<'_>> {
        self.inner.receipts.iter().map(|open| open.receipt.outcome.standing(self.policies()))
    }

    /// Returns the policies in [shadow mode](crate::Policy::shadow) that would have denied the
    /// request.
    pub fn would_deny(&self) -> impl Iterator<Item = Standing<'_>> {
        self.standings().filter(Standing::is_violated)
    }

    /// Sets what the request has cost under a policy: `cells` in all, instead of what was acquired.
    ///
    /// Cells beyond the receipt are charged whether or not they are there, and become debt of at
    /// most one burst, or of the longest wait where [requests
    /// wait](crate::RateLimitLayer::max_delay). Unused cells are refunded, less what time has
    /// returned since. Only the first call takes effect: later calls, and calls after
    /// [`refund`](Self::refund), change nothing. A policy in shadow mode that would have denied has
    /// acquired nothing.
    ///
    /// # Errors
    ///
    /// When no policy of this name applied to the request.
    pub fn settle(&self, policy: &str, cells: u32) -> Result<(), UnknownPolicy> {
        let open = self.find(policy)?;
        if open.close() {
            let receipt = &open.receipt;
            let acquired = if receipt.added.is_zero() { 0 } else { receipt.cells };
            if let Some(more) = cells.checked_sub(acquired) {
                self.inner.settle.charge_receipt(receipt, more);
            } else {
                let unused = receipt.outcome.quota().cost(acquired - cells);
                self.inner.settle.refund_receipt(&Receipt { added: unused, ..*receipt }, self.inner.at);
            }
        }
        Ok(())
    }

    /// Charges `cells` more under a policy, by the quota that the request was decided by, whether
    /// or not they are there. Missing cells become debt, as with [`settle`](Self::settle).
    ///
    /// # Errors
    ///
    /// When no policy of this name applied to the request.
    pub fn charge(&self, policy: &str, cells: u32) -> Result<(), UnknownPolicy> {
        let OpenReceipt { receipt, .. } = self.find(policy)?;
        self.inner.settle.charge_receipt(receipt, cells);
        Ok(())
    }

    /// Refunds what was acquired under every policy, less what time has returned since, and without
    /// what was settled.
    pub fn refund(&self) {
        self.refund_where(|_| true);
    }

    /// Refunds the policies for which this response does not count.
    pub(crate) fn refund_uncounted(&self, response: ResponseHead<'_>) {
        self.refund_where(|policy| !policy.counts(response));
    }

    fn refund_where(&self, applies: impl Fn(&Policy) -> bool) {
        for open in &self.inner.receipts {
            if applies(&self.policies()[open.receipt.outcome.policy]) && open.close() {
                self.inner.settle.refund_receipt(&open.receipt, self.inner.at);
            }
        }
    }

    fn policies(&self) -> &[Policy] {
        self.inner.settle.policy_set().policies()
    }

    fn find(&self, name: &str) -> Result<&OpenReceipt, UnknownPolicy> {
        let policy = |open: &OpenReceipt| self.policies()[open.receipt.outcome.policy].name();
        let found = self.inner.receipts.iter().find(|open| policy(open) == name);
        found.ok_or_else(|| UnknownPolicy::new(name, self.inner.receipts.iter().map(policy)))
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.standings()).finish()
    }
}
