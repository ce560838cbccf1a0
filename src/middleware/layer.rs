//! Contains [`RateLimitLayer`], which applies a limiter to services.

use std::{sync::Arc, time::Duration};

use http::Response;
use tower_layer::Layer;

use super::{
    delay::DelayLayer,
    reload::ReloadableLayer,
    service::RateLimit,
    state::{LayerState, Stateful},
};
use crate::{
    decision::Denied,
    key::{PeerIp, RequestHead},
    limit::IntoLimit,
    limiter::{ConfigError, Handle, IntoLimiter, Limiter},
    policy::Policy,
    response::{
        AnyBody, BoxRespond, Respond, RespondFn, RespondTo, Standard,
        headers::{Draft, FieldStyle, Reset},
    },
};

/// Applies a limiter to services. All of them, and all their clones, share the limiter.
///
/// `L` is the limiter: a [`Limiter`] in memory, or a `RedisLimiter`. `R` makes the responses to
/// denied requests. See the [crate's documentation](crate) for examples.
#[derive(Clone, Debug)]
#[must_use]
pub struct RateLimitLayer<L = Limiter, R = Standard> {
    state: Arc<LayerState<L>>,
    respond: R,
}

impl RateLimitLayer {
    /// Limits each client by the address of its connection, whatever its header fields are. See
    /// [`PeerIp`].
    pub fn per_ip(limit: impl IntoLimit) -> Self {
        Self::new(Policy::per(PeerIp, limit))
    }

    /// Limits all requests together.
    pub fn global(limit: impl IntoLimit) -> Self {
        Self::new(Policy::global(limit))
    }
}

impl<L: Handle> RateLimitLayer<L> {
    /// Limits by a limiter, or by one that is built from a policy or several.
    ///
    /// # Panics
    ///
    /// When [`try_new`](Self::try_new) fails, with the message of the [`ConfigError`].
    pub fn new(limiter: impl IntoLimiter<Limiter = L>) -> Self {
        match Self::try_new(limiter) {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// Limits by a limiter, or by one that is built from a policy or several, such as those of a
    /// configuration.
    ///
    /// # Errors
    ///
    /// When the limiter cannot be built from the policies, see
    /// [`Builder::build`](crate::limiter::Builder::build); or when all its policies are
    /// [by key](Policy::by_key), so that the layer would limit nothing.
    pub fn try_new(limiter: impl IntoLimiter<Limiter = L>) -> Result<Self, ConfigError> {
        let limiter = limiter.into_limiter()?;
        limiter.policy_set().check_for_requests()?;
        let state = Arc::new(LayerState::new(limiter));
        Ok(Self { state, respond: Standard::default() })
    }

    /// Responds with one line of plain text instead of a problem in JSON.
    pub fn plain_text(self) -> Self {
        Self { respond: Standard { plain: true }, ..self }
    }

    /// Makes the default response work with any body of bytes, by a wrapper around the body. It is
    /// not needed where the body is a [`DenialBody`](crate::response::DenialBody), as those of
    /// axum, tonic, hyper and tower-http are.
    pub fn any_body(self) -> RateLimitLayer<L, AnyBody> {
        RateLimitLayer { state: self.state, respond: AnyBody { standard: self.respond } }
    }
}

impl<L: Handle, R> RateLimitLayer<L, R> {
    /// Responds to denied requests with what `respond` returns, in the body type of the inner
    /// service.
    ///
    /// [`Denied`] has the status and a text. It is also called for a request that lacks a key, or
    /// that the server has not made ready: [`Denied::reason`] says why, and `Denied::status` is not
    /// always 429. `Retry-After`, `Cache-Control: no-store` and the [fields of the
    /// policies](crate::headers) are added to the response, except where you have set them. The
    /// response to a `HEAD` must have no body, which some servers do not ensure:
    /// [`respond_to`](Self::respond_to) also gets the method.
    pub fn respond_with<F, B>(self, respond: F) -> RateLimitLayer<L, RespondFn<F>>
    where
        F: Fn(&Denied) -> Response<B>,
    {
        self.responder(RespondFn::new(respond))
    }

    /// Responds like [`respond_with`](Self::respond_with), by a closure that also gets the request:
    /// for responses that depend on what the client accepts, for instance.
    pub fn respond_to<F, B>(self, respond: F) -> RateLimitLayer<L, RespondTo<F>>
    where
        F: Fn(RequestHead<'_>, &Denied) -> Response<B>,
    {
        self.responder(RespondTo::new(respond))
    }

    /// Responds to denied requests by an implementation of [`Respond`].
    pub fn responder<T>(self, respond: T) -> RateLimitLayer<L, T> {
        RateLimitLayer { state: self.state, respond }
    }

    /// Erases the type of the responder, so that the layer's type can be named in a struct.
    ///
    /// ```
    /// use axum::{body::Body, response::IntoResponse as _};
    /// use tower_quota::{Limiter, Quota, RateLimitLayer, response::BoxRespond};
    ///
    /// struct Limits {
    ///     login: RateLimitLayer<Limiter, BoxRespond<Body>>,
    /// }
    ///
    /// # #[cfg(feature = "axum")]
    /// let limits = Limits {
    ///     login: RateLimitLayer::per_ip(Quota::per_minute(5))
    ///         .respond_with(|denied| (denied.status(), "slow down").into_response())
    ///         .boxed(),
    /// };
    /// ```
    pub fn boxed<B>(self) -> RateLimitLayer<L, BoxRespond<B, R::Body>>
    where
        R: Respond<B> + Send + Sync + 'static,
    {
        RateLimitLayer { state: self.state, respond: BoxRespond::new(self.respond) }
    }

    /// Writes the `RateLimit` fields in the syntax of another draft than [the latest](Draft::V11).
    pub fn draft(self, draft: Draft) -> Self {
        self.with_style(|style| FieldStyle { draft, ..style })
    }

    /// Also sends `X-RateLimit-Limit`, `-Remaining` and `-Reset`, of the policy with the least
    /// left, for clients that support nothing else.
    pub fn legacy(self, reset: Reset) -> Self {
        self.with_style(|style| FieldStyle { legacy: Some(reset), ..style })
    }

    /// Adds a random time to `Retry-After`, of at most `max` rounded down to whole seconds, so that
    /// clients that were denied together do not return together. The time is never shorter than the
    /// accurate one. At most a day.
    pub fn jitter(self, max: Duration) -> Self {
        self.with_style(|style| FieldStyle { jitter: max.as_secs().min(86_400), ..style })
    }

    /// Puts an [`Admission`](crate::limiter::Admission) into the extensions of each allowed
    /// request, for handlers that know the cost of a request only after the work. Where several
    /// layers do, the handler finds that of the innermost.
    pub fn admissions(self) -> Self {
        Self { state: Arc::new(self.state.with_admissions()), ..self }
    }

    /// Puts the [`Denied`] into the extensions of each response to a denied request: for outer
    /// layers, and for clients, which can tell a denial of their own limit from one of the server
    /// that they call. It stays in the process. A layer that
    /// [delays requests](Self::max_delay) does so anyway.
    pub fn attach_denied(self) -> Self {
        Self { state: Arc::new(self.state.with_denied()), ..self }
    }

    /// Returns the limiter that decides, to share it with other layers or to control it.
    #[must_use]
    pub fn limiter(&self) -> &L {
        &self.state.limiter
    }

    /// Returns a layer whose limiter can be replaced while it serves: for a configuration that is
    /// read again. Set the other options before.
    pub fn reloadable(self) -> ReloadableLayer<Self, L> {
        ReloadableLayer::new(Arc::clone(&self.state), self)
    }

    fn with_style(self, change: impl FnOnce(FieldStyle) -> FieldStyle) -> Self {
        Self { state: Arc::new(self.state.with_style(change)), ..self }
    }
}

impl<L: Handle, R> RateLimitLayer<L, R> {
    /// Queues requests for at most `max`, in FIFO order, instead of denying them at once. See
    /// [`delay`](super::delay).
    ///
    /// From then on the limiter's buckets may be ahead by one burst and `max`, if that is more than
    /// two bursts. So a change to a larger quota may take that long to have an effect.
    ///
    /// `timer` makes the future that ends after a time: `tokio::time::sleep`, or that of another
    /// runtime.
    pub fn max_delay<T, F>(self, max: Duration, timer: T) -> DelayLayer<L, R, T>
    where
        T: Fn(Duration) -> F,
        F: Future<Output = ()>,
    {
        DelayLayer::new(&self.state, self.respond, max, timer)
    }
}

impl<L, R> Stateful<L> for RateLimitLayer<L, R> {
    fn state_mut(&mut self) -> &mut Arc<LayerState<L>> {
        &mut self.state
    }
}

impl<S, L, R: Clone> Layer<S> for RateLimitLayer<L, R> {
    type Service = RateLimit<S, L, R>;

    /// Clones the handle and creates no state: axum calls this method for each route, and for some
    /// routes for each request.
    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, Arc::clone(&self.state), self.respond.clone())
    }
}
