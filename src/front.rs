//! [`Front`]: what the services of one layer share, and what they do before and after the service behind.
//!
//! Owns the way from a decision to what it means for the request, the response and the receipts. Knows nothing of
//! futures, or of how long anybody waits.

use std::{mem, sync::Arc};

use http::{Request, Response};

use crate::{
    decision::{Denied, Draws},
    headers::{Fields, Style},
    key::RequestHead,
    limiter::{Admission, Grant, Limiter},
    policy::{Policy, ResponseHead},
    response::{Respond, Templates},
};

#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) limiter: Limiter,
    templates: Arc<Templates>,
    /// Whether handlers find an [`Admission`] in the request's extensions.
    admissions: bool,
    /// Whether a policy wants to see responses.
    asks_responses: bool,
}

impl Front {
    pub(crate) fn new(limiter: Limiter) -> Self {
        let templates = Arc::new(Templates::new(limiter.policies(), Style::default()));
        let asks_responses = limiter.policies().iter().any(Policy::asks_the_response);
        Self { limiter, templates, admissions: false, asks_responses }
    }

    pub(crate) fn styled(&self, change: impl FnOnce(Style) -> Style) -> Self {
        let templates = Templates::new(self.limiter.policies(), change(self.templates.writer.style()));
        Self { templates: Arc::new(templates), ..self.clone() }
    }

    pub(crate) fn with_admissions(&self) -> Self {
        Self { admissions: true, ..self.clone() }
    }

    /// Whether anybody may settle afterwards what was drawn.
    #[cfg(feature = "redis")]
    pub(crate) fn settles(&self) -> bool {
        self.admissions || self.asks_responses
    }

    /// Whether [`admitted`](Self::admitted) does anything with receipts.
    #[inline]
    pub(crate) fn wants_receipts(&self) -> bool {
        self.templates.writer.tells_always() || self.admissions || self.asks_responses
    }

    /// What remains to be done with the response, for a request that is admitted. Receipts are taken where they are kept.
    pub(crate) fn admitted<Q>(&self, request: &mut Request<Q>, grant: Grant, draws: &mut Draws) -> Option<After> {
        self.admitted_by(request, draws, |limiter, draws| Admission::new(limiter, grant.at, draws))
    }

    /// The same, for receipts of one's own.
    pub(crate) fn admitted_by<Q>(
        &self,
        request: &mut Request<Q>,
        draws: &mut Draws,
        receipt: impl FnOnce(Limiter, Draws) -> Admission,
    ) -> Option<After> {
        if draws.is_empty() && !self.admissions {
            return None;
        }
        let fields = self.templates.writer.admitted(draws);
        let admission =
            (self.admissions || self.asks_responses).then(|| receipt(self.limiter.clone(), mem::take(draws)));
        if let (true, Some(admission)) = (self.admissions, &admission) {
            request.extensions_mut().insert(admission.clone());
        }
        let admission = admission.filter(|_| self.asks_responses);
        (fields.is_some() || admission.is_some()).then_some(After { fields, admission })
    }

    /// The answer to a request that is refused.
    pub(crate) fn refused<B, R: Respond<B>>(
        &self,
        respond: &R,
        denied: &mut Denied,
        head: RequestHead<'_>,
    ) -> Response<R::Body> {
        denied.add_jitter(self.templates.writer.jitter());
        respond.complete(denied, head, &self.templates)
    }
}

/// What remains to be done with a response.
#[derive(Debug)]
pub(crate) struct After {
    fields: Option<Fields>,
    /// Where the response decides what counts.
    admission: Option<Admission>,
}

impl After {
    pub(crate) fn complete<B>(self, response: &mut Response<B>) {
        if let Some(admission) = self.admission {
            // Before the fields are added: the policies are shown what the service sent.
            admission.put_back_uncounted(ResponseHead::of(response));
        }
        if let Some(fields) = self.fields {
            fields.write(response.headers_mut());
        }
    }
}
