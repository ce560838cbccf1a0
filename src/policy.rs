//! [`Policy`]: a name, a key, a quota, and which requests they apply to.
//!
//! Owns the user's closures and turns a request into a charge. Knows nothing of buckets, of other policies, or of what
//! becomes of the charge.
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
//! // API keys with plans: an outer layer has looked the plan up; the bucket survives a change of plan.
//! let policy = Policy::per(Header::new("x-api-key"), FREE)
//!     .named("plan")
//!     .quota_by(|head| match head.extensions().get::<Plan>()? {
//!         Plan::Free => None,
//!         Plan::Pro => Some(Quota::per_second(100)),
//!     })
//!     .cost_by(|head| if head.uri().path().starts_with("/export") { 10 } else { 1 })
//!     .when(|head| head.uri().path() != "/health")
//!     .on_missing(Missing::Reject(StatusCode::FORBIDDEN));
//! ```

use std::{fmt, sync::Arc, time::Duration};

use http::{Extensions, HeaderMap, HeaderValue, Response, StatusCode};

pub use crate::{key::Missing, store::AtCap};
use crate::{
    key::{Key, KeyExtractor, RequestHead},
    quota::Quota,
};

/// A name, a key, a quota, and which requests they apply to.
///
/// A policy has one quota at a time: several windows are several policies. This is the model of the IETF `RateLimit`
/// fields.
#[derive(Clone)]
#[must_use]
pub struct Policy {
    name: Arc<str>,
    /// Within quotes, in structured fields and in JSON.
    escaped_name: Arc<str>,
    /// `None` counts all requests together.
    key: Option<Arc<dyn KeyExtractor>>,
    quota: Quota,
    quota_by: Option<Arc<QuotaBy>>,
    cost_by: Option<Arc<CostBy>>,
    when: Option<Arc<When>>,
    missing: Option<Missing>,
    max_keys: usize,
    at_cap: AtCap,
    advertise: Advertise,
    enforce: Enforce,
    count_if: Option<Arc<CountIf>>,
    ban: Option<Ban>,
}

#[derive(Clone, Copy)]
enum Enforce {
    Always,
    Never,
    /// For keys whose hash is below.
    Below(u64),
}

/// What becomes of a key that goes on being refused: it is blocked, longer each time. Whoever shares the key is blocked
/// with it: the clients behind one address, the requests without a key under
/// [`Missing::Share`].
///
/// ```
/// use std::time::Duration;
/// use tower_quota::{Policy, Quota, key::PeerIp, policy::Ban};
///
/// // 20 refusals at once: blocked for a minute, then for two, four, and so on up to a day.
/// let ban = Ban::after(20, Duration::from_secs(60)).starting_at(Duration::from_secs(60)).up_to(Duration::from_secs(86_400));
/// let policy = Policy::per(PeerIp, Quota::per_second(10)).ban(ban);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ban {
    pub(crate) strikes: Quota,
    pub(crate) shortest: Duration,
    pub(crate) longest: Duration,
}

impl Ban {
    /// Blocks a key with its refusal number `refusals`, if they come at once. They are counted by a bucket of their own, which
    /// forgets one in each `window / refusals`: of refusals that come slower it takes more, and those that come no faster
    /// than they are forgotten block nobody. For a minute at first, and for an hour at most, unless set.
    ///
    /// As many as 65,536 keys are watched for each policy, and 1,024 of one network (IPv4 /16, IPv6 /40). Further ones are
    /// limited, and not blocked: count by address before you count by what a client can invent.
    ///
    /// # Panics
    ///
    /// If `refusals` is zero, or [`Quota::new`] refuses the two as a quota.
    pub const fn after(refusals: u32, window: Duration) -> Self {
        let (shortest, longest) = (Duration::from_secs(60), Duration::from_secs(3_600));
        Self { strikes: Quota::per(refusals, window), shortest, longest }
    }

    /// How long the first block lasts. Each further one lasts twice as long as the one before it if it comes at once, and
    /// less the longer the key was quiet: after twice the length of a block without another, all is forgotten.
    pub const fn starting_at(self, shortest: Duration) -> Self {
        Self { shortest, ..self }
    }

    /// How long a block lasts at most.
    pub const fn up_to(self, longest: Duration) -> Self {
        Self { longest, ..self }
    }
}

/// What of a policy clients are told, beside the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Advertise {
    /// Its quota and what is left of it, on every response; on a refusal its name, in the body as well, and
    /// `Retry-After`.
    #[default]
    Everything,
    /// The same, on refusals alone.
    OnRefusal,
    /// How long to wait. Not which policy it was, nor what its quota is: that tells an outsider how much the service can
    /// bear.
    RetryAfter,
    /// That the request was refused. For a limit on logins, which must not count down for an attacker. A refusal by such
    /// a policy has no `Retry-After`, whatever other policies would say: it would not be true.
    Nothing,
}

impl Advertise {
    pub(crate) fn names_the_policy(self) -> bool {
        matches!(self, Self::Everything | Self::OnRefusal)
    }

    pub(crate) fn tells_the_wait(self) -> bool {
        !matches!(self, Self::Nothing)
    }
}

type QuotaBy = dyn Fn(RequestHead<'_>) -> Option<Quota> + Send + Sync;
type CostBy = dyn Fn(RequestHead<'_>) -> u32 + Send + Sync;
type CountIf = dyn Fn(ResponseHead<'_>) -> bool + Send + Sync;
type When = dyn Fn(RequestHead<'_>) -> bool + Send + Sync;

impl Policy {
    /// Counts all requests together: what protects the service itself. Named `global`; what clients are told of it is
    /// [`Advertise::RetryAfter`] unless you say otherwise.
    pub fn global(quota: Quota) -> Self {
        Self::new("global".into(), None, quota).advertise(Advertise::RetryAfter)
    }

    /// Counts the requests of each key apart. Named `per-` and what the extractor calls itself: `per-ip`,
    /// `per-x-api-key`.
    ///
    /// A closure is wrapped: `Policy::per(key_fn(|head| ...), quota)`. See [`key`](crate::key) for the extractors.
    pub fn per(key: impl KeyExtractor, quota: Quota) -> Self {
        Self::new(format!("per-{}", key.name()).into(), Some(Arc::new(key)), quota)
    }

    fn new(name: Arc<str>, key: Option<Arc<dyn KeyExtractor>>, quota: Quota) -> Self {
        Self {
            escaped_name: escaped(&name),
            name,
            key,
            quota,
            quota_by: None,
            cost_by: None,
            when: None,
            missing: None,
            max_keys: 1_000_000,
            at_cap: AtCap::default(),
            advertise: Advertise::default(),
            enforce: Enforce::Always,
            count_if: None,
            ban: None,
        }
    }

    /// Names the policy. Clients and operators see the name: choose one that says what is counted and does not change
    /// with the numbers.
    ///
    /// Names are printable ASCII, of 64 bytes at most, and unique within a limiter; the limiter refuses others when it is
    /// built.
    pub fn named(mut self, name: impl AsRef<str>) -> Self {
        self.name = name.as_ref().into();
        self.escaped_name = escaped(&self.name);
        self
    }

    /// Applies the policy only to requests for which `applies` holds. To the others it is as if it did not exist.
    ///
    /// Decide by what a client cannot choose at will, or it chooses to be exempt: compare whole paths, and do not trust
    /// header fields.
    pub fn when(mut self, applies: impl Fn(RequestHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.when = Some(Arc::new(applies));
        self
    }

    /// Says what becomes of a request without a key, whatever the extractor says.
    pub fn on_missing(mut self, missing: Missing) -> Self {
        self.missing = Some(missing);
        self
    }

    /// Chooses the quota for each request; `None` means the policy's own.
    ///
    /// The bucket stays the same: what was drawn under one quota is owed, as time, under the next, and never more than
    /// two bursts of it. So a change of plan neither locks a client out nor hands it a fresh burst.
    ///
    /// The choice must not depend on anything that a client can vary from request to request; what does belongs into
    /// the key.
    pub fn quota_by(mut self, choose: impl Fn(RequestHead<'_>) -> Option<Quota> + Send + Sync + 'static) -> Self {
        self.quota_by = Some(Arc::new(choose));
        self
    }

    /// Says how many cells a request costs; one, unless this is set.
    ///
    /// A cost of zero draws nothing, and this policy grants it whatever its bucket holds: where a client has a say in the
    /// cost, see that it is at least one. A cost above the burst can never be granted: it is refused without a time to come
    /// back at.
    pub fn cost_by(mut self, cost: impl Fn(RequestHead<'_>) -> u32 + Send + Sync + 'static) -> Self {
        self.cost_by = Some(Arc::new(cost));
        self
    }

    /// Counts a request only if `counts` holds for its response: failed logins, say, and not the others. The request is
    /// charged as ever when it comes; when the response does not count, the charge is put back.
    ///
    /// What comes back shrinks with the time that the response took, for time has returned the rest already. A request
    /// whose response takes longer than its cells take to come back is better charged afterwards, with
    /// [`Admission::charge`](crate::limiter::Admission::charge). A request that ends without a response, because the client
    /// went away or the service failed, keeps its charge.
    ///
    /// Has an effect in a service, where there are responses, and none on [`Limiter::decide`](crate::Limiter::decide).
    pub fn count_if(mut self, counts: impl Fn(ResponseHead<'_>) -> bool + Send + Sync + 'static) -> Self {
        self.count_if = Some(Arc::new(counts));
        self
    }

    /// Shadow mode: the policy decides, draws and reports as ever, and refuses nothing. To see what a limit would do before
    /// it does it. A request without a key passes. Clients are told nothing of it; the handler sees it in the
    /// [`Admission`](crate::limiter::Admission).
    pub fn shadow(mut self) -> Self {
        self.enforce = Enforce::Never;
        self
    }

    /// Enforces the policy for a share of the keys, from 0.0 to 1.0; for the others it is in [shadow mode](Self::shadow).
    /// Which keys these are does not change as the share grows: a key that is enforced stays so. (For keys that are kept as
    /// hashes this holds until the process ends.) A global policy has one key. A request without a key is treated as the
    /// policy says, as if it were enforced. A share of nothing is shadow mode.
    ///
    /// # Panics
    ///
    /// If `share` is not between 0.0 and 1.0.
    pub fn enforce_for(mut self, share: f64) -> Self {
        assert!((0.0..=1.0).contains(&share), "a share of the keys is between 0.0 and 1.0, not {share}");
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

    /// Blocks keys that go on being refused. See [`Ban`].
    pub fn ban(mut self, ban: Ban) -> Self {
        self.ban = Some(ban);
        self
    }

    /// How many keys may hold a bucket at once; 1,000,000 unless set. A key and its bucket take 24 bytes and their share
    /// of a hash table; counting networks takes up to 64 KiB, and the overflow up to `max_keys` bytes once it is needed.
    /// Has no meaning for a global policy.
    ///
    /// A 64th of them, or 64 if that is more, may belong to one network (IPv4 /16, IPv6 /40).
    /// [`at_cap`](Self::at_cap) says what becomes of further ones.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys;
        self
    }

    /// What becomes of new keys when there is no room for them. Keys that are held are never evicted for others.
    pub fn at_cap(mut self, at_cap: AtCap) -> Self {
        self.at_cap = at_cap;
        self
    }

    /// Says what clients are told: [`Advertise::Everything`] of a policy with keys, [`Advertise::RetryAfter`] of a global
    /// one, unless set.
    pub fn advertise(mut self, advertise: Advertise) -> Self {
        self.advertise = advertise;
        self
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The quota of requests for which [`quota_by`](Self::quota_by) does not choose another, as the policy was made;
    /// [`Limiter::quota`](crate::Limiter::quota) knows what [`set_quota`](crate::Limiter::set_quota) made of it.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Whether it counts all requests together.
    #[must_use]
    pub fn is_global(&self) -> bool {
        self.key.is_none()
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(crate) fn escaped_name(&self) -> &str {
        &self.escaped_name
    }

    pub(crate) fn missing(&self) -> Option<Missing> {
        self.missing
    }

    pub(crate) fn banned(&self) -> Option<Ban> {
        self.ban
    }

    /// Whether responses decide what counts.
    pub(crate) fn asks_the_response(&self) -> bool {
        self.count_if.is_some()
    }

    pub(crate) fn counts(&self, head: ResponseHead<'_>) -> bool {
        self.count_if.as_ref().is_none_or(|counts| counts(head))
    }

    pub(crate) fn cap(&self) -> (usize, AtCap) {
        (self.max_keys, self.at_cap)
    }

    pub(crate) fn advertised(&self) -> Advertise {
        self.advertise
    }

    pub(crate) fn remedy(&self, head: RequestHead<'_>) -> &'static str {
        self.key.as_deref().map_or("", |key| key.remedy(head))
    }

    pub(crate) fn challenge(&self, head: RequestHead<'_>) -> Option<HeaderValue> {
        self.key.as_deref().and_then(|key| key.challenge(head))
    }

    /// What a request is charged, under the quota `base` where none is chosen for it: `None` where the policy does not
    /// apply.
    ///
    /// # Errors
    ///
    /// The status to refuse it with when its key is missing. All user code of a decision runs in here, and under no
    /// lock.
    #[inline(always)]
    pub(crate) fn charge(
        &self,
        head: RequestHead<'_>,
        base: impl FnOnce() -> Quota,
    ) -> Result<Option<Charge>, StatusCode> {
        if self.when.as_ref().is_some_and(|applies| !applies(head)) {
            return Ok(None);
        }
        let key = match self.key.as_ref().map(|key| key.extract(head)) {
            None => Key::GLOBAL,
            Some(Ok(key)) => key,
            Some(Err(absence)) => match self.missing.unwrap_or(absence) {
                // Which refuses nothing.
                Missing::Reject(_) if matches!(self.enforce, Enforce::Never) => return Ok(None),
                Missing::Reject(status) => return Err(status),
                Missing::Share => Key::SHARED,
                Missing::Skip => return Ok(None),
            },
        };
        let quota = self.quota_by.as_ref().and_then(|choose| choose(head)).unwrap_or_else(base);
        let cells = self.cost_by.as_ref().map_or(1, |cost| cost(head));
        let shadow = match self.enforce {
            Enforce::Always => false,
            Enforce::Never => true,
            Enforce::Below(share) => key.spread() >= share,
        };
        Ok(Some(Charge { key, quota, cells, shadow }))
    }
}

/// Strings of structured fields (RFC 9651 §4.1.6) and of JSON (RFC 8259 §7) escape the same two characters of printable
/// ASCII, which names are.
fn escaped(name: &Arc<str>) -> Arc<str> {
    if name.contains(['"', '\\']) { name.replace('\\', r"\\").replace('"', "\\\"").into() } else { Arc::clone(name) }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("quota", &format_args!("{}", self.quota))
            .field("global", &self.is_global())
            .finish_non_exhaustive()
    }
}

/// What one request asks of one policy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge {
    pub(crate) key: Key,
    pub(crate) quota: Quota,
    pub(crate) cells: u32,
    pub(crate) shadow: bool,
}

/// What [`Policy::count_if`] sees of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    status: StatusCode,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> ResponseHead<'a> {
    pub(crate) fn of<B>(response: &'a Response<B>) -> Self {
        Self { status: response.status(), headers: response.headers(), extensions: response.extensions() }
    }

    /// The status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        self.status
    }

    /// The header fields.
    #[must_use]
    pub fn headers(self) -> &'a HeaderMap {
        self.headers
    }

    /// What the service wants its layers to know.
    #[must_use]
    pub fn extensions(self) -> &'a Extensions {
        self.extensions
    }
}
