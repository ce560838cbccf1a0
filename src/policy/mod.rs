//! Contains [`Policy`]: a name, a key, a limit, and which requests it applies to.
//!
//! A policy contains the user's closures, and evaluates a request to what it asks of the policy.
//! This folder must not know of buckets, of other policies, or of the decision.
//!
//! ```
//! use http::StatusCode;
//! use tower_quota::{Policy, Quota, key::Header, policy::Missing};
//!
//! #[derive(Clone)]
//! enum Plan { Free, Pro }
//!
//! const FREE: Quota = Quota::per_minute(60);
//!
//! // API keys with plans: an outer layer has looked the plan up. The bucket survives a change of plan.
//! let policy = Policy::per(Header::new("x-api-key"), FREE)
//!     .named("plan")
//!     .quota_by(|head| match head.extensions().get::<Plan>()? {
//!         Plan::Free => Some(FREE),
//!         Plan::Pro => Some(Quota::per_second(100)),
//!     })
//!     .cost_by(|head| if head.uri().path().starts_with("/export") { 10 } else { 1 })
//!     .when(|head| head.uri().path() != "/health")
//!     .on_missing(Missing::Reject(StatusCode::FORBIDDEN));
//! ```

mod advertise;
mod ban;
mod demand;
mod gate;
mod in_flight;
mod paths;
mod plans;
mod response_head;

use std::{any::Any, borrow::Cow, fmt, sync::Arc, time::Duration};

use http::{HeaderValue, Method, StatusCode};

pub(crate) use self::demand::{Basis, Demand};
pub use self::{advertise::Advertise, ban::Ban, paths::PathError, response_head::ResponseHead};
use self::{
    gate::{Applies, Gate, Requirement},
    paths::PathPatterns,
    plans::{Choice, Chooser, Plans},
};
pub use crate::{key::Missing, store::AtCap};
use crate::{
    key::{Key, KeyExtractor, NetworkError, Networks, PeerIp, RequestHead},
    limit::{IntoLimit, Limit},
    quota::Quota,
    store::Cap,
};

/// A name, a key, a limit, and which requests it applies to.
///
/// A policy has one limit at a time: a rate ([`Quota`]) or a number of cells in each hour, day or
/// month ([`Window`](crate::Window)). For several limits use several policies. This is the model of
/// the IETF `RateLimit` fields.
#[derive(Clone)]
#[must_use]
pub struct Policy {
    name: Arc<str>,
    /// Escaped for a quoted string in structured fields and in JSON.
    escaped_name: Arc<str>,
    counted_by: CountedBy,
    limit: Limit,
    chooser: Option<Arc<Chooser>>,
    plans: Option<Arc<Plans>>,
    cost_by: Option<Arc<CostBy>>,
    /// Escaped as the name.
    unit: Option<Arc<str>>,
    /// Whether the limit is a number of requests in flight.
    in_flight: bool,
    /// Boxed, so that a policy without one has a single thing to look at.
    gate: Option<Box<Gate>>,
    missing: Option<Missing>,
    cap: Cap,
    advertise: Advertise,
    enforce: Enforce,
    count_if: Option<Arc<CountIf>>,
    counts_denied: bool,
    ban: Option<Ban>,
}

/// What a policy counts by.
#[derive(Clone)]
enum CountedBy {
    /// The key that the caller names.
    CallersKey,
    Extracted(Arc<dyn KeyExtractor>),
    /// All requests are counted together.
    Nothing,
    /// What most policies count by. Not behind a pointer, so that a decision reads it in line.
    PeerIp,
}

impl CountedBy {
    fn key(extractor: impl KeyExtractor) -> Self {
        let is_peer = (&extractor as &dyn Any).is::<PeerIp>();
        if is_peer { Self::PeerIp } else { Self::Extracted(Arc::new(extractor)) }
    }

    #[inline(always)]
    fn extract(&self, head: RequestHead<'_>) -> Result<Key, Missing> {
        match self {
            Self::PeerIp => PeerIp.extract(head),
            Self::Extracted(extractor) => extractor.extract(head),
            Self::CallersKey | Self::Nothing => Ok(Key::GLOBAL),
        }
    }
}

#[derive(Clone, Copy)]
enum Enforce {
    Always,
    Never,
    /// For keys whose hash is below this number.
    Below(u64),
}

/// What chooses limits of another kind than the policy's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitMisfit {
    LimitBy,
    Plan,
    QuotaBy,
}

type CostBy = dyn Fn(RequestHead<'_>) -> u32 + Send + Sync;
type CountIf = dyn Fn(ResponseHead<'_>) -> bool + Send + Sync;

impl Policy {
    /// Counts all requests together, to protect the service itself. The policy is named `global`,
    /// and [advertises](Self::advertise) [`Advertise::RetryAfter`], unless set.
    pub fn global(limit: impl IntoLimit) -> Self {
        Self::new("global".into(), CountedBy::Nothing, limit.into_limit()).advertise(Advertise::RetryAfter)
    }

    /// Counts what no request head has: an account name in a body, a message of a WebSocket, a job,
    /// an outgoing call. The caller names the key:
    /// [`Limiter::acquire`](crate::Limiter::acquire). Requests pass by such a policy.
    ///
    /// The policy is named `by-key`, unless set. What needs a request cannot be set on it:
    /// [`when`](Self::when), [`methods`](Self::methods), [`paths`](Self::paths),
    /// [`except`](Self::except), [`quota_by`](Self::quota_by), [`limit_by`](Self::limit_by),
    /// [`cost_by`](Self::cost_by), [`count_if`](Self::count_if), [`on_missing`](Self::on_missing)
    /// and [`require`](Self::require). Otherwise building the limiter fails.
    ///
    /// ```
    /// use tower_quota::{Limiter, Policy, Quota};
    ///
    /// let accounts = Limiter::new(Policy::by_key(Quota::per_hour(5)).named("account"));
    /// assert!(accounts.acquire("account", "alice@example.org").is_ok());
    /// ```
    pub fn by_key(limit: impl IntoLimit) -> Self {
        Self::new("by-key".into(), CountedBy::CallersKey, limit.into_limit())
    }

    /// Counts the requests of each key separately. To count by a closure, wrap it in
    /// [`key_fn`](crate::key::key_fn): `Policy::per(key_fn(|head| ...), quota)`. See
    /// [`key`](crate::key) for the extractors.
    ///
    /// The policy is named `per-` and the extractor's name, unless set: `per-ip`, `per-x-api-key`.
    ///
    /// The limit is a [`Quota`] or a [`Window`](crate::Window). Use both, in two policies, where a
    /// rate protects the machine and a window is on the invoice:
    ///
    /// ```
    /// use tower_quota::{Limiter, Policy, Quota, Window, key::Header};
    ///
    /// let limiter = Limiter::new([
    ///     Policy::per(Header::new("x-api-key"), Quota::per_second(10)).named("rate"),
    ///     Policy::per(Header::new("x-api-key"), Window::daily(10_000)).named("day"),
    /// ]);
    /// ```
    pub fn per(key: impl KeyExtractor, limit: impl IntoLimit) -> Self {
        let name = format!("per-{}", key.name()).into();
        Self::new(name, CountedBy::key(key), limit.into_limit())
    }

    fn new(name: Arc<str>, counted_by: CountedBy, limit: Limit) -> Self {
        Self {
            escaped_name: escaped(&name),
            name,
            counted_by,
            limit,
            chooser: None,
            plans: None,
            cost_by: None,
            unit: None,
            in_flight: false,
            gate: None,
            missing: None,
            cap: default_cap(),
            advertise: Advertise::default(),
            enforce: Enforce::Always,
            count_if: None,
            counts_denied: false,
            ban: None,
        }
    }

    /// Names the policy. Clients and operators see the name: choose one that says what is counted
    /// and does not change with the numbers.
    ///
    /// Names are printable ASCII of at most 64 bytes, and unique within a limiter. With any other
    /// name, building the limiter fails.
    pub fn named(mut self, name: impl AsRef<str>) -> Self {
        self.name = name.as_ref().into();
        self.escaped_name = escaped(&self.name);
        self
    }

    /// Applies the policy only to requests for which `applies` returns true. For others the policy
    /// does not exist.
    ///
    /// Decide by what a client cannot choose freely. Otherwise it chooses to be exempt: compare
    /// whole paths, and do not trust header fields.
    ///
    /// `head.uri()` is the target that the layer sees. In a router that is nested under `/api`, the
    /// path of `/api/uploads` is `/uploads`. With the feature `axum`, `head.original_uri()` is what
    /// the client sent.
    pub fn when(mut self, applies: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.gate.get_or_insert_default().when = Some(Arc::new(applies));
        self
    }

    /// Applies the policy only to requests with one of these methods, and to none if there are
    /// none. Where GET stands, list HEAD, too: routers serve it by the same handler.
    ///
    /// ```
    /// use http::Method;
    /// use tower_quota::{Policy, Quota, key::PeerIp};
    ///
    /// let writes = Policy::per(PeerIp, Quota::per_minute(30)).methods([Method::POST, Method::PUT]).named("writes");
    /// ```
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.gate.get_or_insert_default().methods = Some(methods.into_iter().collect());
        self
    }

    /// Applies the policy only to requests whose path matches one of these patterns, and to none if
    /// there are none: `/login` is that path, in `/users/*` the star stands for one segment, and
    /// `/api/**` is that path and all below it.
    ///
    /// The path is compared as the client has written it, as axum's router does. In a router that
    /// is nested under `/api`, `/uploads` matches, which the layer sees, and with the feature
    /// `axum` also `/api/uploads`, which the client sent.
    ///
    /// A service behind the layer that decodes or normalizes paths, such as another server behind a
    /// proxy, may serve `/%6Cogin` or `//login` as `/login`, and this policy does not count them.
    /// Normalize the path before the layer, or limit such requests by a policy without `paths`.
    ///
    /// # Errors
    ///
    /// When a pattern does not begin with `/`, or a star in it is not a whole segment.
    pub fn paths<T: AsRef<str>>(mut self, patterns: impl IntoIterator<Item = T>) -> Result<Self, PathError> {
        self.gate.get_or_insert_default().paths = Some(PathPatterns::parse(patterns)?);
        Ok(self)
    }

    /// Excepts the clients in these networks, written as CIDR (`10.0.0.0/8`) or as single
    /// addresses: health checks, and offices. For their requests the policy does not exist. The
    /// word `unix:` excepts connections without an address.
    ///
    /// The address is the one that the policy's key finds ([`ClientIp`](crate::key::ClientIp)
    /// behind proxies), and otherwise that of the connection. Do not list the proxies themselves.
    /// So behind a proxy, a policy that counts by something else excepts all clients or none.
    ///
    /// ```
    /// use tower_quota::{Policy, Quota, key::PeerIp};
    ///
    /// let policy = Policy::per(PeerIp, Quota::per_second(10)).except(["10.1.0.0/16", "192.0.2.7"])?;
    /// # Ok::<(), tower_quota::key::NetworkError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When an entry is not a network, has bits after its prefix, or contains every address.
    pub fn except<T: AsRef<str>>(mut self, networks: impl IntoIterator<Item = T>) -> Result<Self, NetworkError> {
        self.gate.get_or_insert_default().except = Some(Networks::parse(networks)?);
        Ok(self)
    }

    /// Sets what happens to a request without a key, instead of what the extractor says.
    pub fn on_missing(mut self, missing: Missing) -> Self {
        self.missing = Some(missing);
        self
    }

    /// Chooses the quota of each request. `None` says nothing: the quota is then the one that was
    /// last chosen for the key, as long as something of it is used, and otherwise the policy's own.
    ///
    /// A change of quota keeps the count: of 100 cells that were used of 1,000, 100 are used of
    /// 100,000. So nobody who has cells left is denied for a change of plan, and nobody gets a
    /// fresh burst by it. A client that has used more than the burst of a smaller plan is denied
    /// until enough has come back, at the rate of the larger one.
    ///
    /// So `None` does not end a plan while its key is busy: choose the smaller quota instead.
    ///
    /// The choice must not depend on anything that a client can vary from request to request. That
    /// belongs into the key.
    ///
    /// This is for a policy with a rate. For one with a window there is
    /// [`limit_by`](Self::limit_by).
    pub fn quota_by(mut self, choose: impl Fn(RequestHead<'_>) -> Option<Quota> + Send + Sync + 'static) -> Self {
        self.chooser = Some(Arc::new(Chooser::Quota(Box::new(choose))));
        self
    }

    /// Chooses how many cells each request's key has in the policy's window. `None` says nothing,
    /// as in [`quota_by`](Self::quota_by). Zero denies, without `Retry-After`.
    ///
    /// A change keeps the count: who has used 500 of 1,000 and gets 10,000 has 9,500 left. A
    /// smaller limit than what is used denies until the window ends.
    ///
    /// ```
    /// use tower_quota::{Policy, Window, key::Header};
    ///
    /// #[derive(Clone)]
    /// struct Plan { daily: u32 }
    ///
    /// let policy = Policy::per(Header::new("x-api-key"), Window::daily(1_000))
    ///     .limit_by(|head| Some(head.extensions().get::<Plan>()?.daily));
    /// ```
    pub fn limit_by(mut self, choose: impl Fn(RequestHead<'_>) -> Option<u32> + Send + Sync + 'static) -> Self {
        self.chooser = Some(Arc::new(Chooser::Limit(Box::new(choose))));
        self
    }

    /// Sets the limits of plans, by their names, from configuration for instance: quotas for a
    /// policy with a rate, and windows of the same period for one with a window.
    /// [`plan_by`](Self::plan_by) says which plan a request has. Where nothing says it, building
    /// the limiter fails, unless the policy is [by key](Self::by_key): there a caller passes
    /// [`plan`](Self::plan) to [`Limiter::acquire_as`](crate::Limiter::acquire_as).
    pub fn plans<N: AsRef<str>, L: IntoLimit>(mut self, plans: impl IntoIterator<Item = (N, L)>) -> Self {
        self.plans = Some(Arc::new(Plans::new(plans)));
        self
    }

    /// Chooses the limit of each request by the name of its plan, among [`plans`](Self::plans).
    /// `None` is as in [`quota_by`](Self::quota_by), which this replaces.
    ///
    /// A plan that is not among them has the policy's own limit. That is an error of configuration,
    /// and reported by an event. Without `tracing` the first one is written to the standard error.
    ///
    /// ```
    /// use tower_quota::{Policy, Quota, key::Header};
    ///
    /// #[derive(Clone)]
    /// struct Plan(String);
    ///
    /// let policy = Policy::per(Header::new("x-api-key"), Quota::per_minute(60))
    ///     .plans([("pro", Quota::per_second(100)), ("team", Quota::per_second(1_000))])
    ///     .plan_by(|head| head.extensions().get::<Plan>().map(|plan| plan.0.as_str()));
    /// ```
    pub fn plan_by(mut self, plan: impl Fn(RequestHead<'_>) -> Option<&str> + Send + Sync + 'static) -> Self {
        self.chooser = Some(Arc::new(Chooser::Plan(Box::new(plan))));
        self.plans.get_or_insert_default();
        self
    }

    /// Rejects requests for which no outer layer has put a `T` into the extensions, with 500, and
    /// an event that names the type. Without `tracing`, the reason is written to the standard error
    /// once.
    ///
    /// Use it with [`quota_by`](Self::quota_by): where the layer that looks up the plan is inside
    /// of the limit instead of outside, everybody would have the base quota, in silence.
    ///
    /// ```
    /// use tower_quota::{Policy, Quota, key::key_fn};
    ///
    /// #[derive(Clone)]
    /// struct Customer { account: u64, plan: Quota }
    ///
    /// let policy = Policy::per(key_fn(|head| Some(head.extensions().get::<Customer>()?.account)), Quota::per_minute(60))
    ///     .require::<Customer>()
    ///     .quota_by(|head| Some(head.extensions().get::<Customer>()?.plan));
    /// ```
    pub fn require<T: Send + Sync + 'static>(mut self) -> Self {
        self.gate.get_or_insert_default().requirements.push(Requirement::of::<T>());
        self
    }

    /// Sets how many cells a request costs; one unless set.
    ///
    /// A request that costs zero cells is always granted: where a client can influence the cost,
    /// make it at least one. A cost above the burst can never be granted: the request is denied
    /// without `Retry-After`.
    pub fn cost_by(mut self, cost: impl Fn(RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.cost_by = Some(Arc::new(cost));
        self
    }

    /// Names what a cell is, where it is not a request: `tokens`, `content-bytes`. It is the `qu`
    /// of the `RateLimit-Policy` field (draft-ietf-httpapi-ratelimit-headers-11 §3.1.2). Clients
    /// that find none take a cell for a request. Unless set, it is omitted, and it is `cells` where
    /// requests [have costs](Self::cost_by).
    ///
    /// The draft registers `requests`, `content-bytes` and `concurrent-requests`. Any other unit is
    /// for clients that know it.
    ///
    /// A unit is printable ASCII of at most 64 bytes. With any other, building the limiter fails.
    ///
    /// ```
    /// use tower_quota::{Policy, Quota, key::Header};
    ///
    /// // RateLimit-Policy: "per-x-api-key";q=10000;qu="tokens";w=60
    /// let policy = Policy::per(Header::new("x-api-key"), Quota::per_minute(10_000)).cost_by(|_| 500).unit("tokens");
    /// ```
    pub fn unit(mut self, unit: impl AsRef<str>) -> Self {
        self.unit = Some(escaped(&unit.as_ref().into()));
        self
    }

    /// Counts a request only if `counts` returns true for its response: only failed logins, for
    /// example. The cells are acquired when the request comes, and refunded if the response does
    /// not count.
    ///
    /// The longer the response takes, the less is refunded, because time has returned the rest
    /// already. Where a response takes longer than its cells take to come back, charge afterwards
    /// instead, with [`Admission::charge`](crate::limiter::Admission::charge). A request that ends
    /// without a response is not refunded: the client disconnected, or the service failed.
    ///
    /// This takes effect in a service, where there are responses, and not on
    /// [`Limiter::decide`](crate::Limiter::decide) or
    /// [`Limiter::acquire`](crate::Limiter::acquire).
    pub fn count_if(mut self, counts: impl Fn(ResponseHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.count_if = Some(Arc::new(counts));
        self
    }

    /// Counts requests that other policies of the limiter deny, too.
    ///
    /// Unless set, a denied request takes nothing from any policy. That is right for quotas, which
    /// customers pay for. It is not always right for defence: whoever goes on guessing passwords of
    /// an account that is locked would cost its address nothing. Set it on the policy by address
    /// then, and not on a quota.
    ///
    /// A request that this policy denies itself takes nothing from it. One that lacks a key for
    /// another policy is rejected before anything is counted. [`count_if`](Self::count_if) is not
    /// asked about requests that are denied.
    ///
    /// A limiter over Redis does not have this: building it fails.
    ///
    /// ```
    /// use tower_quota::{Limiter, Policy, Quota};
    ///
    /// let limiter = Limiter::new([
    ///     Policy::by_key(Quota::per_hour(3)).named("account"),
    ///     Policy::by_key(Quota::per_hour(20)).named("address").count_denied(),
    /// ]);
    /// for _guess in 0..10 {
    ///     let _ = limiter.acquire_all(&[("account", &"ann", 1), ("address", &"203.0.113.7", 1)]);
    /// }
    /// assert_eq!(limiter.peek("address", "203.0.113.7").unwrap().remaining(), 10);
    /// ```
    pub fn count_denied(mut self) -> Self {
        self.counts_denied = true;
        self
    }

    /// Enables shadow mode: the policy decides, counts and reports as usual, and denies nothing.
    /// Use it to see the effect of a limit in advance. A request without a key passes. Clients
    /// learn nothing of the policy. The handler sees its result in the
    /// [`Admission`](crate::limiter::Admission).
    pub fn shadow(mut self) -> Self {
        self.enforce = Enforce::Never;
        self
    }

    /// Enforces the policy for a share of the keys, from 0.0 to 1.0. For the others it is in
    /// [shadow mode](Self::shadow). As the share grows, keys are added and none is removed. (For
    /// hashed keys this is true until the process ends.) A global policy has one key. A request
    /// without a key is treated as if the policy were enforced. A share of 0.0 is shadow mode.
    ///
    /// # Panics
    ///
    /// If `share` is not between 0.0 and 1.0.
    pub fn enforce_for(mut self, share: f64) -> Self {
        assert!((0.0..=1.0).contains(&share), "the share of the keys is from 0.0 to 1.0, not {share}");
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a share of 2^64, which need not be exact; the cast saturates"
        )]
        let below = (share * u64::MAX as f64) as u64;
        self.enforce = match share {
            1.0.. => Enforce::Always,
            0.0 => Enforce::Never,
            _ => Enforce::Below(below),
        };
        self
    }

    /// Blocks keys that are denied repeatedly. See [`Ban`].
    pub fn ban(mut self, ban: Ban) -> Self {
        self.ban = Some(ban);
        self
    }

    /// Sets how many keys may have a bucket at once; 1,000,000 unless set. A key and its bucket
    /// take 24 bytes and their share of a hash table. Counting networks takes up to 64 KiB, and the
    /// overflow table up to `max_keys` bytes once it is needed. A global policy ignores it.
    ///
    /// A part of them may belong to one network: see
    /// [`max_keys_per_network`](Self::max_keys_per_network). [`at_cap`](Self::at_cap) says what
    /// happens to further keys.
    ///
    /// Only the memory of Redis bounds how many keys are there, so `RedisBuilder::build` refuses a
    /// policy with a cap of its own.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.cap.max_keys = max_keys;
        self
    }

    /// Sets how many keys of one network (IPv4 /16, IPv6 /40) may have a bucket at once; a 64th of
    /// [`max_keys`](Self::max_keys) unless set, or 4,096 if that is more, but at most three
    /// quarters. So one network cannot fill the map for all others.
    ///
    /// Raise it where many clients come from one network: inside of a company all of 10.1.0.0/16
    /// is one. With `usize::MAX` a network may fill the map. A global policy ignores it, and so do
    /// keys without an address.
    pub fn max_keys_per_network(mut self, max_keys: usize) -> Self {
        self.cap.per_network = Some(max_keys);
        self
    }

    /// Sets what happens to new keys when the map is full. Keys with a backlog are never evicted
    /// for others.
    ///
    /// Over Redis the map has no cap: see [`max_keys`](Self::max_keys).
    pub fn at_cap(mut self, at_cap: AtCap) -> Self {
        self.cap.beyond = at_cap;
        self
    }

    /// Sets what clients learn about the policy; [`Advertise::Everything`] for a policy with keys
    /// and [`Advertise::RetryAfter`] for a global one, unless set.
    pub fn advertise(mut self, advertise: Advertise) -> Self {
        self.advertise = advertise;
        self
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the limit that the policy was made with. Requests use it unless another one is
    /// chosen for them, or [`Limiter::set_limit`](crate::Limiter::set_limit) has replaced it: see
    /// [`Limiter::limit`](crate::Limiter::limit).
    #[must_use]
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// What buckets are decided by, unless another limit is chosen.
    pub(crate) fn basis(&self) -> Quota {
        self.limit.basis()
    }

    /// How long it takes until nothing is used of a whole limit.
    pub(crate) fn time_to_fill(&self) -> Duration {
        match &self.limit {
            Limit::Quota(quota) => quota.time_to_fill(),
            Limit::Window(window) => window.longest().into(),
        }
    }

    /// Returns the limit of the plan of this name, if there is one: see [`plans`](Self::plans).
    #[must_use]
    pub fn plan(&self, name: &str) -> Option<&Limit> {
        self.plans.as_ref().and_then(|plans| plans.get(name))
    }

    /// Whether the policy counts all requests together.
    #[must_use]
    pub fn is_global(&self) -> bool {
        matches!(self.counted_by, CountedBy::Nothing)
    }

    /// Whether only callers that name a key are counted: see [`by_key`](Self::by_key).
    #[must_use]
    pub fn is_by_key(&self) -> bool {
        matches!(self.counted_by, CountedBy::CallersKey)
    }

    /// Whether something is set that only requests have.
    pub(crate) fn needs_requests(&self) -> bool {
        let Self { gate, chooser, cost_by, count_if, missing, .. } = self;
        gate.is_some() || chooser.is_some() || cost_by.is_some() || count_if.is_some() || missing.is_some()
    }

    /// The key by which the policy counts a caller that names `key`. A global policy has one.
    pub(crate) fn key(&self, key: Key) -> Key {
        if self.is_global() { Key::GLOBAL } else { key }
    }

    fn extractor(&self) -> Option<&dyn KeyExtractor> {
        match &self.counted_by {
            CountedBy::Extracted(extractor) => Some(&**extractor),
            CountedBy::PeerIp => Some(&PeerIp),
            CountedBy::CallersKey | CountedBy::Nothing => None,
        }
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(crate) fn escaped_name(&self) -> &str {
        &self.escaped_name
    }

    /// What a cell is, if it is not a request.
    pub(crate) fn cell_unit(&self) -> Option<&str> {
        self.unit.as_deref().or(self.cost_by.as_ref().map(|_| "cells"))
    }

    pub(crate) fn missing(&self) -> Option<Missing> {
        self.missing
    }

    pub(crate) fn ban_rule(&self) -> Option<Ban> {
        self.ban
    }

    /// Whether requests count that other policies deny.
    pub(crate) fn counts_denied(&self) -> bool {
        self.counts_denied
    }

    /// Whether the response decides what counts.
    pub(crate) fn counts_by_response(&self) -> bool {
        self.count_if.is_some()
    }

    pub(crate) fn counts(&self, head: ResponseHead<'_>) -> bool {
        self.count_if.as_ref().is_none_or(|counts| counts(head))
    }

    /// Whether requests may have quotas of their own.
    pub(crate) fn has_plans(&self) -> bool {
        self.chooser.is_some()
    }

    /// Whether a quota that was chosen under the policy before this one still is one of its plans,
    /// for requests and callers that name none.
    pub(crate) fn keeps_plan(&self, former: &Self, quota: Quota) -> bool {
        // Callers have named it.
        (self.chooser.is_some() || former.chooser.is_none()) && self.restores_plan(quota)
    }

    /// Whether a key may still have a quota that was chosen for it before a restart.
    pub(crate) fn restores_plan(&self, quota: Quota) -> bool {
        match self.chooser.as_deref() {
            Some(Chooser::Plan(_)) => self.plans.as_ref().is_some_and(|plans| plans.contain(quota)),
            Some(Chooser::Limit(_) | Chooser::Quota(_)) | None => true,
        }
    }

    /// What chooses limits of the other kind than the policy's own, if something does.
    pub(crate) fn misfit(&self) -> Option<LimitMisfit> {
        let window = self.limit.window();
        let chooser = match self.chooser.as_deref() {
            Some(Chooser::Quota(_)) if window.is_some() => Some(LimitMisfit::QuotaBy),
            Some(Chooser::Limit(_)) if window.is_none() && !self.in_flight => Some(LimitMisfit::LimitBy),
            _ => None,
        };
        let plans = self.plans.as_ref().filter(|plans| plans.all().any(|plan| !self.fits(plan)));
        chooser.or(plans.map(|_| LimitMisfit::Plan))
    }

    /// Whether a limit can be that of a plan of this policy: a rate, or a window with the same
    /// starts and ends.
    fn fits(&self, limit: &Limit) -> bool {
        match (&self.limit, limit) {
            (Limit::Quota(_), Limit::Quota(_)) => true,
            (Limit::Window(window), Limit::Window(other)) => window.has_bounds_of(other),
            _ => false,
        }
    }

    /// Whether there are plans for requests, and nothing says which one a request has.
    pub(crate) fn lacks_plan_by(&self) -> bool {
        self.plans.as_ref().is_some_and(|plans| !plans.is_empty())
            && !matches!(self.chooser.as_deref(), Some(Chooser::Plan(_)))
            && !self.is_by_key()
    }

    pub(crate) fn cap(&self) -> Cap {
        self.cap
    }

    /// Whether the cap is one that was set.
    #[cfg(feature = "redis")]
    pub(crate) fn is_capped(&self) -> bool {
        self.cap != default_cap()
    }

    pub(crate) fn advertised(&self) -> Advertise {
        self.advertise
    }

    /// What to do where a request is rejected for a missing key, or a missing extension.
    pub(crate) fn remedy(&self, head: RequestHead<'_>) -> Cow<'static, str> {
        if let Some(Requirement { type_name, .. }) = self.gate.as_deref().and_then(|gate| gate.unmet(head)) {
            return format!(
                "there is no `{type_name}` in the request's extensions: apply the layer that puts it there outside of \
                 the rate limit, and let it do so for every request, or answer itself"
            )
            .into();
        }
        self.extractor().map_or("", |key| key.remedy(head)).into()
    }

    pub(crate) fn challenge(&self, head: RequestHead<'_>) -> Option<HeaderValue> {
        self.extractor().and_then(|key| key.challenge(head))
    }

    /// Evaluates what a request asks of this policy, by the quota `base` unless another one is
    /// chosen for it. Returns `None` where the policy does not apply. All user code of a decision
    /// runs in here, while nothing is locked.
    ///
    /// # Errors
    ///
    /// When the key is missing: the status to reject the request with.
    #[inline(always)]
    pub(crate) fn evaluate(
        &self,
        head: RequestHead<'_>,
        base: impl FnOnce() -> Quota,
    ) -> Result<Option<Demand>, StatusCode> {
        if let Some(gate) = &self.gate {
            match gate.applies(head, self.extractor()) {
                Applies::Yes => {}
                // Shadow mode rejects nothing.
                Applies::LacksSomething if !matches!(self.enforce, Enforce::Never) => {
                    return Err(StatusCode::INTERNAL_SERVER_ERROR);
                }
                Applies::LacksSomething | Applies::No => return Ok(None),
            }
        }
        if self.is_by_key() {
            return Ok(None);
        }
        let Some(key) = self.key_of(head)? else { return Ok(None) };
        let mut choice = Choice::None;
        if let Some(chooser) = &self.chooser {
            choice = chooser.choose(&self.name, self.plans.as_deref(), head);
        }
        let (quota, planned) = match choice {
            Choice::None => (base(), false),
            Choice::Own => (base(), true),
            Choice::Quota(plan) => (plan, true),
        };
        let cells = self.cost_by.as_ref().map_or(1, |cost| cost(head));
        Ok(Some(Demand { key, quota, cells, planned, shadow: self.is_shadow(key) }))
    }

    /// What a request asks of a policy that is [plain](Self::is_plain): the same as
    /// [`evaluate`](Self::evaluate), without looking for what such a policy has not.
    ///
    /// # Errors
    ///
    /// When the key is missing: the status to reject the request with.
    #[inline(always)]
    pub(crate) fn evaluate_plain(
        &self,
        head: RequestHead<'_>,
        base: impl FnOnce() -> Quota,
    ) -> Result<Option<Demand>, StatusCode> {
        let Some(key) = self.key_of(head)? else { return Ok(None) };
        Ok(Some(Demand { key, quota: base(), cells: 1, planned: false, shadow: false }))
    }

    /// Whether each request asks for one cell, by the policy's own quota.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        let Self { counted_by, chooser, cost_by, gate, enforce, .. } = self;
        gate.is_none()
            && chooser.is_none()
            && cost_by.is_none()
            && matches!(enforce, Enforce::Always)
            && !matches!(counted_by, CountedBy::CallersKey)
    }

    /// The key of a request, if it is counted.
    ///
    /// # Errors
    ///
    /// When the key is missing: the status to reject the request with.
    #[inline(always)]
    fn key_of(&self, head: RequestHead<'_>) -> Result<Option<Key>, StatusCode> {
        match self.counted_by.extract(head) {
            Ok(key) => Ok(Some(key)),
            Err(absence) => self.key_of_missing(absence),
        }
    }

    #[cold]
    fn key_of_missing(&self, absence: Missing) -> Result<Option<Key>, StatusCode> {
        match self.missing.unwrap_or(absence) {
            // Shadow mode rejects nothing.
            Missing::Reject(_) if matches!(self.enforce, Enforce::Never) => Ok(None),
            Missing::Reject(status) => Err(status),
            Missing::Share => Ok(Some(Key::SHARED)),
            Missing::Skip => Ok(None),
        }
    }

    /// What a caller asks of this policy that names a key, by the quota `plan` if there is one.
    #[inline]
    pub(crate) fn demand_by_key(
        &self,
        key: Key,
        cells: u32,
        plan: Option<Quota>,
        base: impl FnOnce() -> Quota,
    ) -> Demand {
        let key = self.key(key);
        let (quota, planned) = (plan.unwrap_or_else(base), plan.is_some());
        Demand { key, quota, cells, planned, shadow: self.is_shadow(key) }
    }

    #[inline(always)]
    fn is_shadow(&self, key: Key) -> bool {
        match self.enforce {
            Enforce::Always => false,
            Enforce::Never => true,
            Enforce::Below(share) => key.spread() >= share,
        }
    }
}

/// Whether a text can be the name of a policy, or a unit: header fields contain it.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// The longest name in bytes. The length of header fields is limited.
pub(crate) const MAX_NAME: usize = 64;

/// Strings of structured fields (RFC 9651 §4.1.6) and of JSON (RFC 8259 §7) escape the same two
/// characters of printable ASCII, which names consist of.
fn escaped(name: &Arc<str>) -> Arc<str> {
    if name.contains(['"', '\\']) { name.replace('\\', r"\\").replace('"', "\\\"").into() } else { Arc::clone(name) }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("limit", &format_args!("{}", self.limit))
            .field("global", &self.is_global())
            .finish_non_exhaustive()
    }
}

fn default_cap() -> Cap {
    Cap::new(1_000_000, AtCap::default())
}
