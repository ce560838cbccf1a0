//! Contains [`Admission`]: the receipts of an allowed request, in the hands of its handler.
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

use super::{error::UnknownPolicy, into_limiter::Settle};
use crate::{
    clock::Timestamp,
    decision::{Receipt, Receipts, Standing},
    policy::{Policy, ResponseHead},
};

/// The receipts of an allowed request, for costs that are known only after the work.
///
/// It is in the request's extensions, where the layer puts it with
/// [`RateLimitLayer::admissions`](crate::RateLimitLayer::admissions). Clones share the receipts. It
/// may outlive the request, and be used from another task. Dropped unused, it changes nothing.
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
    receipts: Receipts,
    /// For each receipt, whether it is neither settled nor refunded yet.
    open: Box<[AtomicBool]>,
    settle: S,
}

impl Admission {
    pub(crate) fn new(settle: impl Settle, at: Timestamp, receipts: Receipts) -> Self {
        let open = receipts.iter().map(|_| AtomicBool::new(true)).collect();
        Self { inner: Arc::new(OpenReceipts { at, receipts, open, settle }) }
    }

    /// Returns how each policy that applied stood after the decision, in the limiter's order.
    #[must_use]
    pub fn standings(&self) -> impl ExactSizeIterator<Item = Standing<'_>> {
        self.inner.receipts.iter().map(|receipt| receipt.outcome.standing(self.policies()))
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
        let (index, receipt) = self.find(policy)?;
        if self.close(index) {
            let acquired = if receipt.added.is_zero() { 0 } else { receipt.cells };
            if let Some(more) = cells.checked_sub(acquired) {
                self.inner.settle.charge_receipt(receipt, more);
            } else {
                let unused = receipt.outcome.quota.cost(acquired - cells);
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
        let (_, receipt) = self.find(policy)?;
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
        for (index, receipt) in self.inner.receipts.iter().enumerate() {
            if applies(&self.policies()[receipt.outcome.policy]) && self.close(index) {
                self.inner.settle.refund_receipt(receipt, self.inner.at);
            }
        }
    }

    fn policies(&self) -> &[Policy] {
        self.inner.settle.policy_set().policies()
    }

    /// True for the first caller.
    fn close(&self, index: usize) -> bool {
        self.inner.open[index].swap(false, Ordering::AcqRel)
    }

    fn find(&self, name: &str) -> Result<(usize, &Receipt), UnknownPolicy> {
        let policy = |receipt: &Receipt| self.policies()[receipt.outcome.policy].name();
        let found = self.inner.receipts.iter().enumerate().find(|(_, receipt)| policy(receipt) == name);
        found.ok_or_else(|| UnknownPolicy::new(name, self.inner.receipts.iter().map(policy)))
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.standings()).finish()
    }
}
