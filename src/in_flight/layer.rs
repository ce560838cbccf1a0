//! Contains [`InFlightLayer`], which limits the requests in flight of services.

use std::{sync::Arc, time::Duration};

use http::{Method, Response};
use tower_layer::Layer;

use super::{
    queue::InFlightQueueLayer,
    service::InFlight,
    state::{InFlightState, Options},
};
use crate::{
    decision::Denied,
    key::{IntoKey, KeyExtractor, Missing, NetworkError, RequestHead},
    policy::{Advertise, PathError, Policy},
    response::{AnyBody, BoxRespond, Respond, RespondFn, RespondTo, Standard},
};

/// Limits how many requests are in flight at once: of each key, or of all clients together.
///
/// A request is in flight until its response has been sent, and not only until the response's head
/// is there: until the [body](super::InFlightBody) has ended, has failed, or is dropped, as when a
/// client disconnects. A handler that takes the [`InFlightPermit`](super::InFlightPermit) extends
/// this.
///
/// The layer and its clones, and all their services, count together. What changes the policy
/// ([`named`](Self::named), [`when`](Self::when) and others) returns a layer that counts anew, so
/// set it before you clone the layer.
///
/// Requests are counted in this process. Where several processes serve, each has the whole limit.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_quota::{InFlightLayer, key::Header};
///
/// # #[cfg(feature = "axum")] {
/// // At most four downloads of each API key at once, and 200 in all.
/// let app: Router = Router::new()
///     .route("/download", get(|| async { "a large file" }))
///     .layer(InFlightLayer::global(200))
///     .layer(InFlightLayer::per(Header::new("x-api-key"), 4));
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct InFlightLayer<R = Standard> {
    /// The limit, around no service yet.
    limit: InFlight<(), R>,
}

impl InFlightLayer {
    /// At most `limit` requests of each key at once. To count by a closure, wrap it in
    /// [`key_fn`](crate::key::key_fn): `InFlightLayer::per(key_fn(|head| ...), 4)`. See
    /// [`key`](crate::key) for the extractors.
    ///
    /// The policy is named `in-flight-` and the extractor's name, unless set:
    /// `in-flight-x-api-key`. Further requests are denied with 429, and the denial names the policy
    /// and the limit, unless [`advertise`](Self::advertise) says otherwise.
    ///
    /// # Panics
    ///
    /// If `limit` is zero, or the name is longer than 64 bytes.
    pub fn per(key: impl KeyExtractor, limit: u32) -> Self {
        Self::of(Policy::in_flight_per(key, at_least_one(limit)))
    }

    /// At most `limit` requests at once, to protect the service itself.
    ///
    /// The policy is named `in-flight`, unless set. Further requests are denied with 503, because
    /// it is not their client that has sent too many, and the response says nothing of the limit.
    ///
    /// # Panics
    ///
    /// If `limit` is zero.
    pub fn global(limit: u32) -> Self {
        Self::of(Policy::in_flight_global(at_least_one(limit)))
    }

    fn of(policy: Policy) -> Self {
        let state = Arc::new(state_of(policy));
        Self { limit: InFlight { inner: (), state, options: Options::default(), respond: Standard::default() } }
    }

    /// Responds with one line of plain text instead of a problem in JSON.
    pub fn plain_text(self) -> Self {
        self.responder(Standard { plain: true })
    }

    /// Makes the default response work with any body of bytes, as
    /// [`RateLimitLayer::any_body`](crate::RateLimitLayer::any_body) does.
    pub fn any_body(self) -> InFlightLayer<AnyBody> {
        let standard = self.limit.respond;
        self.responder(AnyBody { standard })
    }
}

fn at_least_one(limit: u32) -> u32 {
    assert!(limit > 0, "a limit of requests in flight is at least 1: with 0 every request is denied");
    limit
}

fn state_of(policy: Policy) -> InFlightState {
    match InFlightState::new(policy) {
        Ok(state) => state,
        Err(error) => panic!("{error}"),
    }
}

/// What the policy says. All of these return a layer that counts anew.
impl<R> InFlightLayer<R> {
    /// Names the policy: see [`Policy::named`](crate::Policy::named).
    ///
    /// # Panics
    ///
    /// If the name is empty, longer than 64 bytes, or not printable ASCII.
    pub fn named(self, name: impl AsRef<str>) -> Self {
        self.with_policy(|policy| policy.named(name))
    }

    /// Chooses the limit of each request, by its client's plan for instance. `None` is the limit
    /// that the layer was made with, and zero denies. The limit of a request is compared with all
    /// requests in flight of its key, whatever theirs were.
    ///
    /// ```
    /// use tower_quota::{InFlightLayer, key::Header};
    ///
    /// #[derive(Clone)]
    /// struct Plan { downloads: u32 }
    ///
    /// let layer = InFlightLayer::per(Header::new("x-api-key"), 2)
    ///     .limit_by(|head| Some(head.extensions().get::<Plan>()?.downloads));
    /// ```
    pub fn limit_by(self, choose: impl Fn(RequestHead<'_>) -> Option<u32> + Send + Sync + 'static) -> Self {
        self.with_policy(|policy| policy.limit_by(choose))
    }

    /// Limits only requests for which `applies` returns true: see
    /// [`Policy::when`](crate::Policy::when).
    pub fn when(self, applies: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.with_policy(|policy| policy.when(applies))
    }

    /// Limits only requests with one of these methods: see
    /// [`Policy::methods`](crate::Policy::methods).
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.with_policy(|policy| policy.methods(methods))
    }

    /// Limits only requests whose path matches one of these patterns: see
    /// [`Policy::paths`](crate::Policy::paths).
    ///
    /// # Errors
    ///
    /// When a pattern is not valid.
    pub fn paths<T: AsRef<str>>(self, patterns: impl IntoIterator<Item = T>) -> Result<Self, PathError> {
        let policy = self.policy().clone().paths(patterns)?;
        Ok(self.with_policy(|_| policy))
    }

    /// Excepts the clients in these networks: see [`Policy::except`](crate::Policy::except).
    ///
    /// # Errors
    ///
    /// When an entry is not a network, has bits after its prefix, or contains every address.
    pub fn except<T: AsRef<str>>(self, networks: impl IntoIterator<Item = T>) -> Result<Self, NetworkError> {
        let policy = self.policy().clone().except(networks)?;
        Ok(self.with_policy(|_| policy))
    }

    /// Rejects requests for which no outer layer has put a `T` into the extensions: see
    /// [`Policy::require`](crate::Policy::require).
    pub fn require<T: Send + Sync + 'static>(self) -> Self {
        self.with_policy(Policy::require::<T>)
    }

    /// Sets what happens to a request without a key, instead of what the extractor says.
    ///
    /// # Panics
    ///
    /// If the status of [`Missing::Reject`] is not an error (400 to 599).
    pub fn on_missing(self, missing: Missing) -> Self {
        self.with_policy(|policy| policy.on_missing(missing))
    }

    /// Enables shadow mode: requests are counted and reported as usual, and none is denied, or
    /// waits. See [`Policy::shadow`](crate::Policy::shadow).
    pub fn shadow(self) -> Self {
        self.with_policy(Policy::shadow)
    }

    /// Enforces the limit for a share of the keys, from 0.0 to 1.0: see
    /// [`Policy::enforce_for`](crate::Policy::enforce_for).
    ///
    /// # Panics
    ///
    /// If `share` is not between 0.0 and 1.0.
    pub fn enforce_for(self, share: f64) -> Self {
        self.with_policy(|policy| policy.enforce_for(share))
    }

    /// Sets what clients learn about the policy: [`Advertise::OnDenial`] for a limit of each key
    /// and [`Advertise::RetryAfter`] for one of all requests, unless set.
    ///
    /// The fields are those of the [draft's latest version](crate::headers). Their unit is
    /// `concurrent-requests`. They have no time, because the server does not know when a request
    /// ends:
    ///
    /// ```text
    /// RateLimit-Policy: "in-flight-x-api-key";q=4;qu="concurrent-requests"
    /// RateLimit: "in-flight-x-api-key";r=0
    /// ```
    ///
    /// With [`Advertise::Everything`] every response has them. What is left is then true when the
    /// request begins, and not when the client reads it.
    pub fn advertise(self, advertise: Advertise) -> Self {
        self.with_policy(|policy| policy.advertise(advertise))
    }

    fn policy(&self) -> &Policy {
        self.limit.state.policy()
    }

    fn with_policy(self, change: impl FnOnce(Policy) -> Policy) -> Self {
        let state = Arc::new(state_of(change(self.policy().clone())));
        Self { limit: InFlight { state, ..self.limit } }
    }
}

impl<R> InFlightLayer<R> {
    /// Adds `Retry-After` to denials, with this time rounded up to whole seconds. Unless set, and
    /// with zero, there is none: the server does not know when a request ends.
    pub fn retry_after(self, after: Duration) -> Self {
        self.with_options(|options| Options { retry_after: after.into(), ..options })
    }

    /// Puts an [`InFlightPermit`](super::InFlightPermit) into the extensions of every request, and
    /// not only of those that ask for an upgrade of the connection: for handlers that go on working
    /// after the response. From then on a request is in flight until its extensions are dropped,
    /// too.
    pub fn permits(self) -> Self {
        self.with_options(|options| Options { permits: true, ..options })
    }

    /// Puts the [`Denied`] into the extensions of each response to a denied request, for outer
    /// layers. It stays in the process.
    pub fn attach_denied(self) -> Self {
        self.with_options(|options| Options { attaches_denied: true, ..options })
    }

    /// Responds to denied requests with what `respond` returns, as
    /// [`RateLimitLayer::respond_with`](crate::RateLimitLayer::respond_with) does.
    pub fn respond_with<F, B>(self, respond: F) -> InFlightLayer<RespondFn<F>>
    where
        F: Fn(&Denied) -> Response<B>,
    {
        self.responder(RespondFn::new(respond))
    }

    /// Responds like [`respond_with`](Self::respond_with), by a closure that also gets the request.
    pub fn respond_to<F, B>(self, respond: F) -> InFlightLayer<RespondTo<F>>
    where
        F: Fn(RequestHead<'_>, &Denied) -> Response<B>,
    {
        self.responder(RespondTo::new(respond))
    }

    /// Responds to denied requests by an implementation of [`Respond`].
    pub fn responder<T>(self, respond: T) -> InFlightLayer<T> {
        InFlightLayer { limit: self.limit.responding(|_| respond) }
    }

    /// Erases the type of the responder, as
    /// [`RateLimitLayer::boxed`](crate::RateLimitLayer::boxed) does.
    pub fn boxed<B>(self) -> InFlightLayer<BoxRespond<B, R::Body>>
    where
        R: Respond<B> + Send + Sync + 'static,
    {
        InFlightLayer { limit: self.limit.responding(BoxRespond::new) }
    }

    /// Lets requests wait for a permit, for at most `max_wait`, instead of denying them at once.
    /// [`InFlightQueueLayer`] says in which order they get one.
    ///
    /// `timer` makes the future that ends after a time: `tokio::time::sleep`, or that of another
    /// runtime. Limit the number of waiters by
    /// [`max_waiters`](InFlightQueueLayer::max_waiters).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_quota::{InFlightLayer, key::PeerIp};
    ///
    /// // Two reports of each client at once. Further ones wait for at most five seconds.
    /// let reports = InFlightLayer::per(PeerIp, 2).queue(Duration::from_secs(5), tokio::time::sleep);
    /// ```
    pub fn queue<T, F>(self, max_wait: Duration, timer: T) -> InFlightQueueLayer<R, T>
    where
        T: Fn(Duration) -> F,
        F: Future<Output = ()>,
    {
        InFlightQueueLayer::new(self.limit, max_wait, timer)
    }

    /// Returns how many requests of this key are in flight. Where all requests are counted
    /// together, every key is one.
    #[must_use]
    pub fn in_flight(&self, key: impl IntoKey) -> u32 {
        self.limit.state.in_flight(key)
    }

    /// Returns how many requests are in flight, of all keys. It counts them, which takes longer
    /// than a request does.
    #[must_use]
    pub fn total_in_flight(&self) -> usize {
        self.limit.state.registry().in_use_of_all()
    }

    fn with_options(self, change: impl FnOnce(Options) -> Options) -> Self {
        let options = change(self.limit.options);
        Self { limit: InFlight { options, ..self.limit } }
    }
}

impl<S, R: Clone> Layer<S> for InFlightLayer<R> {
    type Service = InFlight<S, R>;

    /// Clones the handle and creates no state.
    fn layer(&self, inner: S) -> Self::Service {
        self.limit.clone().around(inner)
    }
}
