//! [`RateLimitLayer`]: puts a limiter in front of services.

use std::{sync::Arc, time::Duration};

use http::Response;
use tower_layer::Layer;

use crate::{
    decision::Denied,
    delay::DelayLayer,
    front::Front,
    headers::{Draft, Reset, Style},
    key::{PeerIp, RequestHead},
    limiter::Limiter,
    policy::Policy,
    quota::Quota,
    response::{AnyBody, RespondFn, RespondTo, Standard},
    service::RateLimit,
};

/// Puts a [`Limiter`] in front of services. All of them, and all their clones, share it.
///
/// See the [crate's documentation](crate) for uses.
#[derive(Clone, Debug)]
#[must_use]
pub struct RateLimitLayer<R = Standard> {
    front: Arc<Front>,
    respond: R,
}

impl RateLimitLayer {
    /// Limits by a limiter of your own, or by one made on the spot of a policy or several.
    ///
    /// # Panics
    ///
    /// On policies that [`Builder::build`](crate::limiter::Builder::build) refuses, with the same message.
    pub fn new(limiter: impl Into<Limiter>) -> Self {
        Self { front: Arc::new(Front::new(limiter.into())), respond: Standard::default() }
    }

    /// Limits each client by the address of its connection, whatever its header fields say. See [`PeerIp`].
    pub fn per_ip(quota: Quota) -> Self {
        Self::new(Policy::per(PeerIp, quota))
    }

    /// Limits all requests together.
    pub fn global(quota: Quota) -> Self {
        Self::new(Policy::global(quota))
    }

    /// Answers refusals with what `respond` makes of them, in the body type of the service behind.
    ///
    /// [`Denied`] offers the status and a sentence. `Retry-After`, `Cache-Control: no-store` and the
    /// [fields of the policies](crate::headers) are added to what you return, except where you have set them. The answer to
    /// a `HEAD` must have no body, which some servers do not see to: [`respond_to`](Self::respond_to) shows the method.
    pub fn respond_with<F, B>(self, respond: F) -> RateLimitLayer<RespondFn<F>>
    where
        F: Fn(&Denied) -> Response<B>,
    {
        RateLimitLayer { front: self.front, respond: RespondFn::new(respond) }
    }

    /// The same as [`respond_with`](Self::respond_with), for answers that depend on the request: on what it accepts, for
    /// instance.
    pub fn respond_to<F, B>(self, respond: F) -> RateLimitLayer<RespondTo<F>>
    where
        F: Fn(RequestHead<'_>, &Denied) -> Response<B>,
    {
        RateLimitLayer { front: self.front, respond: RespondTo::new(respond) }
    }

    /// Answers refusals with what an implementation of [`Respond`](crate::response::Respond) makes of them.
    pub fn responder<R>(self, respond: R) -> RateLimitLayer<R> {
        RateLimitLayer { front: self.front, respond }
    }

    /// Answers refusals with one sentence of plain text instead of a problem in JSON.
    pub fn plain_text(self) -> Self {
        Self { respond: Standard { plain: true }, ..self }
    }

    /// Answers refusals by default in front of services with any body of bytes, by a wrapper around it. Not needed where
    /// the body is a [`RefusalBody`](crate::response::RefusalBody).
    pub fn any_body(self) -> RateLimitLayer<AnyBody> {
        RateLimitLayer { front: self.front, respond: AnyBody { standard: self.respond } }
    }
}

impl<R> RateLimitLayer<R> {
    /// Writes the `RateLimit` fields in the syntax of another draft than [the latest](Draft::V11).
    pub fn draft(self, draft: Draft) -> Self {
        self.styled(|style| Style { draft, ..style })
    }

    /// Sends `X-RateLimit-Limit`, `-Remaining` and `-Reset` too, of the one policy that is nearest to its end, for clients
    /// that know nothing else.
    pub fn legacy(self, reset: Reset) -> Self {
        self.styled(|style| Style { legacy: Some(reset), ..style })
    }

    /// Adds a random time to `Retry-After`, up to `most` rounded down to whole seconds, so that clients that were refused
    /// together do not return together. Nobody is told to come back too early for it. A day at most.
    pub fn jitter(self, most: Duration) -> Self {
        self.styled(|style| Style { jitter: most.as_secs().min(86_400), ..style })
    }

    /// Puts an [`Admission`](crate::limiter::Admission) into the extensions of each admitted request, for handlers that know
    /// what a request cost only after the work. Where several layers do, the handler finds that of the innermost.
    pub fn admissions(self) -> Self {
        Self { front: Arc::new(self.front.with_admissions()), ..self }
    }

    /// Lets requests wait for their turn, up to `most`, instead of refusing them at once. See [`Delay`](crate::delay).
    ///
    /// From then on the limiter's buckets may be ahead by one burst and `most`, if that is more than two bursts: so far may a
    /// change to a larger quota be from taking effect.
    ///
    /// `timer` makes the future that ends after a time: `tokio::time::sleep`, or that of another runtime.
    pub fn max_delay<T, F>(self, most: Duration, timer: T) -> DelayLayer<R, T>
    where
        T: Fn(Duration) -> F,
        F: Future<Output = ()>,
    {
        DelayLayer::new(self.front, self.respond, most, timer)
    }

    /// The limiter, to share it with other layers or to control it.
    #[must_use]
    pub fn limiter(&self) -> &Limiter {
        &self.front.limiter
    }

    #[cfg(feature = "redis")]
    pub(crate) fn into_parts(self) -> (Arc<Front>, R) {
        (self.front, self.respond)
    }

    fn styled(self, change: impl FnOnce(Style) -> Style) -> Self {
        Self { front: Arc::new(self.front.styled(change)), ..self }
    }
}

impl<S, R: Clone> Layer<S> for RateLimitLayer<R> {
    type Service = RateLimit<S, R>;

    /// Clones the handle and makes no state: axum calls this for each route, and for some for each request.
    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, Arc::clone(&self.front), self.respond.clone())
    }
}
