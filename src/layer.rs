//! [`RateLimitLayer`]: puts a limiter in front of services.

use http::Response;
use tower_layer::Layer;

use crate::{
    decision::Denied,
    key::PeerIp,
    limiter::Limiter,
    policy::Policy,
    quota::Quota,
    response::{AnyBody, RespondFn, Standard},
    service::RateLimit,
};

/// Puts a [`Limiter`] in front of services. All of them, and all their clones, share it.
///
/// See the [crate's documentation](crate) for uses.
#[derive(Clone, Debug)]
#[must_use]
pub struct RateLimitLayer<R = Standard> {
    limiter: Limiter,
    respond: R,
}

impl RateLimitLayer {
    /// Limits by a limiter of your own, or by one made on the spot of a policy or several.
    ///
    /// # Panics
    ///
    /// On policies that [`Builder::build`](crate::limiter::Builder::build) refuses, with the same message.
    pub fn new(limiter: impl Into<Limiter>) -> Self {
        Self { limiter: limiter.into(), respond: Standard }
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
    /// [`Denied`] offers the status, the seconds of `Retry-After` and a sentence; nothing of them is set for you.
    pub fn respond_with<F, B>(self, respond: F) -> RateLimitLayer<RespondFn<F>>
    where
        F: Fn(&Denied) -> Response<B>,
    {
        RateLimitLayer { limiter: self.limiter, respond: RespondFn::new(respond) }
    }

    /// Answers refusals by default in front of services with any body of bytes, by a wrapper around it. Not needed where
    /// the body is a [`RefusalBody`](crate::response::RefusalBody).
    pub fn any_body(self) -> RateLimitLayer<AnyBody> {
        RateLimitLayer { limiter: self.limiter, respond: AnyBody }
    }
}

impl<R> RateLimitLayer<R> {
    /// The limiter, to share it with other layers or to control it.
    #[must_use]
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }
}

impl<S, R: Clone> Layer<S> for RateLimitLayer<R> {
    type Service = RateLimit<S, R>;

    /// Clones the handle and makes no state: axum calls this for each route, and for some for each request.
    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.limiter.clone(), self.respond.clone())
    }
}
