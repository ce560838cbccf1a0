//! How a limiter over Redis is put together, and what is refused.

use std::{error, fmt, sync::Arc, time::Duration};

use super::{
    RedisLimiter, Shared,
    cluster::{Cluster, Place},
    leases::Lease,
    link::{self, Server},
    node::{Manner, Node},
    script::{Limit, Names},
};
use crate::{
    key::KeyHasher,
    limiter::{ConfigError, Limiter},
    observe::Source,
    policy::Policy,
};

/// What becomes of requests where Redis does not answer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum OnFailure {
    /// They are refused: 503. For limits that guard something, such as logins, where no other instance may be guessed at.
    Closed,
    /// This process decides alone, by a share of each quota. With one over the number of processes, all together admit no more
    /// than the whole, but for one more burst when it begins; where a share of the burst is less than one cell, each has one. What
    /// was known of a key when Redis was lost still counts. A request that costs more than the share of the burst is answered 503.
    Local {
        /// Above 0 and at most 1.
        share: f64,
    },
    /// They pass, uncounted. For limits that are about fairness and not about safety.
    Open,
}

/// In bytes.
const SHORTEST_SECRET: usize = 16;

/// Puts a [`RedisLimiter`] together. Made by [`RedisLimiter::builder`].
#[must_use]
pub struct Builder {
    url: String,
    sentinel: Option<(Vec<String>, String)>,
    /// Further nodes, where the server is one of a cluster.
    cluster: Option<Vec<String>>,
    secret: Vec<u8>,
    prefix: String,
    on_failure: OnFailure,
    exceptions: Vec<(String, OnFailure)>,
    policies: Vec<Policy>,
    timeout: Duration,
    lease: Option<Lease>,
}

impl Builder {
    pub(super) fn new(url: String, secret: &[u8], on_failure: OnFailure) -> Self {
        Self {
            url,
            sentinel: None,
            cluster: None,
            secret: secret.to_owned(),
            prefix: "tower-quota".to_owned(),
            on_failure,
            exceptions: Vec::new(),
            policies: Vec::new(),
            timeout: Duration::from_millis(50),
            lease: None,
        }
    }

    /// Adds a policy.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policies.push(policy);
        self
    }

    /// Adds policies.
    pub fn policies(mut self, policies: impl IntoIterator<Item = Policy>) -> Self {
        self.policies.extend(policies);
        self
    }

    /// Says otherwise for the policy of this name.
    pub fn on_failure_of(mut self, policy: impl Into<String>, on_failure: OnFailure) -> Self {
        self.exceptions.push((policy.into(), on_failure));
        self
    }

    /// The beginning of all names in Redis; `tower-quota` unless set. Limiters with the same prefix, secret, policy and quota
    /// share their buckets.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long a request waits for Redis at most; 50 ms unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Draws cells ahead for keys that are asked for often: at most so many at once for a key, which are this process's own for
    /// so long, and go back then. Off unless set.
    ///
    /// No more are drawn than came since the last call, or in that time of late, and at most a sixteenth of what is left of the
    /// limit: so near a limit decisions are as exact as without. What goes back has lost what time has returned since. What it may admit in one moment beyond the limit: `most` for each process, of
    /// cells that were drawn before. What it may refuse wrongly: as much, for as long. A process that ends, or loses its
    /// connection, leaves them drawn.
    pub fn lease(mut self, most: u32, time: Duration) -> Self {
        self.lease = Some(Lease { most, time });
        self
    }

    /// Asks these sentinels (`redis://host:26379`) for the primary of this name, instead of connecting to the host that the
    /// builder began with; user, password and database of that address are the primary's. They are asked one after the other,
    /// and anew whenever the connection is lost.
    pub fn sentinels<U: Into<String>>(mut self, urls: impl IntoIterator<Item = U>, primary: impl Into<String>) -> Self {
        self.sentinel = Some((urls.into_iter().map(Into::into).collect(), primary.into()));
        self
    }

    /// The server is one of a cluster, of which these are others (`redis://host:port`): for when that one is away. User and
    /// password of the builder's address count for all. Each primary has a connection of its own, and without one of them
    /// [`OnFailure`] decides for what is kept there.
    ///
    /// Policies that count one principal are decided by one call, as ever. Over several principals (an address, and the whole
    /// service) each primary is asked at once; where one refuses, what others have granted is put back a moment later, less
    /// what time has returned since. Meanwhile it counts.
    pub fn cluster<U: Into<String>>(mut self, others: impl IntoIterator<Item = U>) -> Self {
        self.cluster = Some(others.into_iter().map(Into::into).collect());
        self
    }

    /// Builds the limiter. Connects to nothing: that begins with the first decision, in the background.
    ///
    /// # Errors
    ///
    /// What [`limiter::Builder::build`](crate::limiter::Builder::build) refuses; an address that is none; a prefix that is
    /// empty, not printable ASCII, or has a brace in it; a secret shorter than 16 bytes; a share that is not above 0 and at
    /// most 1; a timeout of zero or above a minute; a lease of no cells, or for less than a millisecond or
    /// more than ten seconds; sentinels of a cluster; and an exception for a
    /// policy that there is not.
    pub fn build(self) -> Result<RedisLimiter, RedisConfigError> {
        let fault = |text: String| Err(RedisConfigError(text));
        let visible = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}');
        if self.prefix.is_empty() || !self.prefix.bytes().all(visible) {
            return fault(format!("the prefix {:?} is empty, not printable ASCII, or has a brace in it", self.prefix));
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(60) {
            return fault(format!("a timeout of {:?} is not above zero and at most a minute", self.timeout));
        }
        if let Some(Lease { most, time }) = self.lease {
            if most == 0 || time < Duration::from_millis(1) || time > Duration::from_secs(10) {
                return fault(format!("a lease of {most} cells for {time:?} is not of one or more, for 1 ms to 10 s"));
            }
        }
        if self.secret.len() < SHORTEST_SECRET {
            return fault(format!(
                "the secret is shorter than {SHORTEST_SECRET} bytes: whoever guesses it can tell whose keys are whose"
            ));
        }
        for on_failure in self.exceptions.iter().map(|(_, on_failure)| on_failure).chain([&self.on_failure]) {
            if let OnFailure::Local { share } = on_failure {
                if !(*share > 0.0 && *share <= 1.0) {
                    return fault(format!("a share of {share} is not above 0 and at most 1"));
                }
            }
        }
        let hasher = KeyHasher::of(&self.secret);
        let build =
            |policies, source| Limiter::builder().policies(policies).hasher(hasher.clone()).source(source).build();
        let (local, alone) = (build(self.policies.clone(), Source::Remembered)?, build(self.policies, Source::Alone)?);
        let mut on_failure: Box<[_]> = local.policies().iter().map(|_| self.on_failure).collect();
        for (name, exception) in self.exceptions {
            let Some(policy) = local.policies().iter().position(|policy| policy.name() == name) else {
                return fault(format!("there is no policy {name:?} to make an exception for"));
            };
            on_failure[policy] = exception;
        }
        let manner =
            Manner { prefix: self.prefix.clone(), patience: self.timeout, counts: Arc::default(), lease: self.lease };
        let sentinels = self.sentinel.as_ref().map(|(urls, primary)| (&urls[..], &primary[..]));
        let place = match (&self.cluster, sentinels) {
            (Some(_), Some(_)) => return fault("a cluster has no sentinels: its nodes see to that".to_owned()),
            (Some(others), None) => {
                let first = link::address(&self.url).map_err(RedisConfigError)?;
                link::address_of(&first).map_err(RedisConfigError)?;
                let mut seeds = vec![first.clone()];
                for url in others {
                    let (host, port) =
                        link::address(url).and_then(|other| link::address_of(&other)).map_err(RedisConfigError)?;
                    seeds.push(link::beside(&first, &host, port));
                }
                Place::Cluster(Arc::new(Cluster::new(seeds, manner.clone())))
            }
            (None, sentinels) => {
                let server = Server::new(&self.url, sentinels).map_err(RedisConfigError)?;
                let probe = Limit::probe(&self.prefix, |_| true);
                Place::One(Arc::new(Node::new(server, probe, manner.clone(), None)))
            }
        };
        let names = Names { prefix: self.prefix, hasher };
        Ok(RedisLimiter { shared: Arc::new(Shared { local, alone, on_failure, names, place, manner }) })
    }
}

/// Shows neither the secret nor the address, which may have a password in it.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("prefix", &self.prefix)
            .field("on_failure", &self.on_failure)
            .field("policies", &self.policies)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Why a [`RedisLimiter`] was refused. Its text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisConfigError(String);

impl From<ConfigError> for RedisConfigError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for RedisConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl error::Error for RedisConfigError {}
