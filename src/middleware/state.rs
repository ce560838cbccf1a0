//! Contains [`LayerState`], what the services of one layer share, and the [`ResponseHook`] of an
//! allowed request.
//!
//! This file translates a decision for the request, the response and the receipts. It must not know
//! of futures, nor of waiting.

use std::sync::Arc;

use http::{Request, Response};

use crate::{
    clock::Timestamp,
    decision::{Denied, Receipts},
    key::RequestHead,
    limiter::{Admission, Handle, Settle},
    observe::suspicions,
    policy::{Policy, ResponseHead},
    response::{
        DenialFields, Respond,
        headers::{AllowedFields, FieldStyle},
    },
};

/// What has the state of a layer: layers and their services.
pub(crate) trait Stateful<L> {
    fn state_mut(&mut self) -> &mut Arc<LayerState<L>>;

    /// Prepares a limiter for what the layer needs of it.
    fn prepare(&self, _limiter: &L) {}
}

/// Aligned so that what every request reads is not on the cache line with the count of references,
/// which every clone of a service writes: axum clones services for each request.
#[derive(Clone, Debug)]
#[repr(align(128))]
pub(crate) struct LayerState<L> {
    pub(crate) limiter: L,
    fields: Arc<DenialFields>,
    /// Whether the layer puts an [`Admission`] into the request's extensions.
    admissions: bool,
    /// Whether a policy counts by the response.
    counts_by_response: bool,
    /// Whether responses to denied requests have the [`Denied`] in their extensions.
    attaches_denied: bool,
    /// Whether [`allowed`](LayerState::allowed) uses receipts. Follows from the rest, and is read
    /// for every request.
    wants_receipts: bool,
}

impl<L: Handle> LayerState<L> {
    pub(crate) fn new(limiter: L) -> Self {
        let policies = limiter.policy_set().policies();
        let fields = Arc::new(DenialFields::new(policies, FieldStyle::default()));
        let counts_by_response = policies.iter().any(Policy::counts_by_response);
        let (admissions, attaches_denied, wants_receipts) = (false, false, false);
        Self { limiter, fields, admissions, counts_by_response, attaches_denied, wants_receipts }.finished()
    }

    fn finished(self) -> Self {
        let wants_receipts = self.fields.writer().writes_always() || self.settles();
        Self { wants_receipts, ..self }
    }

    /// The same options over another limiter.
    pub(crate) fn with_limiter(&self, limiter: L) -> Self {
        let Self { fields, admissions, attaches_denied, .. } = self;
        let (admissions, attaches_denied) = (*admissions, *attaches_denied);
        let style = fields.writer().style();
        Self { admissions, attaches_denied, ..Self::new(limiter).with_style(|_| style) }.finished()
    }

    pub(crate) fn with_style(&self, change: impl FnOnce(FieldStyle) -> FieldStyle) -> Self {
        let style = change(self.fields.writer().style());
        let fields = Arc::new(DenialFields::new(self.limiter.policy_set().policies(), style));
        Self { fields, ..self.clone() }.finished()
    }

    pub(crate) fn with_admissions(&self) -> Self {
        Self { admissions: true, ..self.clone() }.finished()
    }

    pub(crate) fn with_denied(&self) -> Self {
        Self { attaches_denied: true, ..self.clone() }
    }

    /// Notes that a request passes this layer.
    #[inline]
    pub(crate) fn passed_by<Q>(&self, request: &mut Request<Q>) {
        suspicions::passes(request, self.limiter.policy_set().identity());
    }

    /// Whether receipts may be settled after the decision.
    #[inline]
    pub(crate) fn settles(&self) -> bool {
        self.admissions || self.counts_by_response
    }

    /// Whether [`allowed`](Self::allowed) uses receipts.
    #[inline]
    pub(crate) fn wants_receipts(&self) -> bool {
        self.wants_receipts
    }

    /// Returns what remains to be done with the response to an allowed request. Where receipts may
    /// be settled later, settles them with `settle`.
    pub(crate) fn allowed<Q, S: Settle>(
        &self,
        request: &mut Request<Q>,
        at: Timestamp,
        receipts: &Receipts,
        settle: impl FnOnce() -> S,
    ) -> Option<ResponseHook> {
        if !self.settles() {
            return self.advertise(receipts);
        }
        if receipts.is_empty() && !self.admissions {
            return None;
        }
        let fields = self.fields.writer().allowed(receipts);
        let admission = Admission::new(settle(), at, receipts);
        if self.admissions {
            request.extensions_mut().insert(admission.clone());
        }
        let admission = self.counts_by_response.then_some(admission);
        (fields.is_some() || admission.is_some()).then_some(ResponseHook { fields, admission })
    }

    /// Returns the hook that only adds fields to the response.
    #[inline]
    pub(crate) fn advertise(&self, receipts: &Receipts) -> Option<ResponseHook> {
        let fields = if receipts.is_empty() { None } else { self.fields.writer().allowed(receipts) };
        fields.map(|fields| ResponseHook { fields: Some(fields), admission: None })
    }

    /// Makes the response to a denied request.
    pub(crate) fn denied<B, R: Respond<B>>(
        &self,
        respond: &R,
        denied: &mut Denied,
        head: RequestHead<'_>,
    ) -> Response<R::Body> {
        denied.add_jitter(self.fields.writer().jitter());
        let mut response = respond.respond_complete(denied, head, &self.fields);
        if self.attaches_denied {
            response.extensions_mut().insert(denied.clone());
        }
        response
    }
}

/// What remains to be done with the response to an allowed request.
#[derive(Debug)]
pub(crate) struct ResponseHook {
    fields: Option<AllowedFields>,
    /// Where a policy counts by the response.
    admission: Option<Admission>,
}

impl ResponseHook {
    pub(crate) fn run<B>(self, response: &mut Response<B>) {
        if let Some(admission) = self.admission {
            // Before fields are added: the policies see what the service sent.
            admission.refund_uncounted(ResponseHead::of(response));
        }
        if let Some(fields) = self.fields {
            fields.write(response.headers_mut());
        }
    }
}
