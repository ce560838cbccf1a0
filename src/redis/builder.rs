//! Contains [`RedisBuilder`]: from policies and the address of a server to a limiter, or to the
//! reason why not.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    connect::Server,
    connection::Endpoint,
    error::{MIN_SECRET, RedisConfigError},
    fallback::{FallbackBuckets, OnFailure},
    leases::LeaseConfig,
    limiter::{RedisLimiter, RedisParts},
    lower_bounds::LowerBounds,
    node::{Node, NodeConfig},
    protocol::{KeyNames, RedisDemand},
    topology::{Cluster, Topology},
};
use crate::{
    key::KeyHasher,
    limiter::{PolicySet, PolicySetOptions},
    policy::Policy,
};

impl RedisLimiter {
    /// Returns the builder of a limiter, with the server's address
    /// (`redis://[user:password@]host[:port][/db]`), the secret under which this deployment's keys
    /// are hashed, and what happens to requests when Redis does not answer.
    ///
    /// Processes that share buckets need the same secret. Anyone who knows it can identify the keys
    /// in Redis.
    pub fn builder(url: impl Into<String>, secret: impl AsRef<[u8]>, on_failure: OnFailure) -> RedisBuilder {
        RedisBuilder {
            url: url.into(),
            sentinels: None,
            cluster: None,
            secret: secret.as_ref().to_owned(),
            prefix: "tower-quota".to_owned(),
            on_failure,
            exceptions: Vec::new(),
            policies: Vec::new(),
            timeout: Duration::from_millis(50),
            lease: None,
        }
    }
}

/// Builds a [`RedisLimiter`]. Made by [`RedisLimiter::builder`].
#[must_use]
pub struct RedisBuilder {
    url: String,
    /// The addresses of the sentinels, and the name of the primary.
    sentinels: Option<(Vec<String>, String)>,
    /// The addresses of further nodes, where the server is a node of a cluster.
    cluster: Option<Vec<String>>,
    secret: Vec<u8>,
    prefix: String,
    on_failure: OnFailure,
    exceptions: Vec<(String, OnFailure)>,
    policies: Vec<Policy>,
    timeout: Duration,
    lease: Option<LeaseConfig>,
}

impl RedisBuilder {
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

    /// Sets what happens to the requests of the policy of this name when Redis does not answer.
    pub fn on_failure_of(mut self, policy: impl Into<String>, on_failure: OnFailure) -> Self {
        self.exceptions.push((policy.into(), on_failure));
        self
    }

    /// Sets the start of all names in Redis; `tower-quota` unless set. Limiters with the same
    /// prefix, secret, policy and quota share their buckets.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets how long a request waits for Redis at most; 50 ms unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Acquires cells in advance for keys with many requests: at most `max` for a key. This process
    /// uses them for `time`, and refunds the rest then. Off unless set.
    ///
    /// No more cells are acquired than requests came since the last call, or recently in that time,
    /// and at most a sixteenth of what is left of the limit: so near a limit decisions are as exact
    /// as without leases. A refund is less what time has returned since. In one moment each process
    /// may admit `max` cells beyond the limit, which it had acquired before. It may wrongly deny as
    /// many for as long. A process that ends, or loses its connection, does not refund its leases.
    pub fn lease(mut self, max: u32, time: Duration) -> Self {
        self.lease = Some(LeaseConfig { max, time });
        self
    }

    /// Asks these sentinels (`redis://host:26379`) for the primary of this name, instead of
    /// connecting to the builder's address. User, password and database of that address are used
    /// for the primary. Sentinels are asked one after the other, and again whenever the connection
    /// is lost.
    pub fn sentinels<U: Into<String>>(mut self, urls: impl IntoIterator<Item = U>, primary: impl Into<String>) -> Self {
        self.sentinels = Some((urls.into_iter().map(Into::into).collect(), primary.into()));
        self
    }

    /// Connects to a cluster, of which these are further nodes (`redis://host:port`), in case the
    /// first one is down. User and password of the builder's address are used for all nodes. Each
    /// primary has a connection of its own. Without one of them [`OnFailure`] decides for the keys
    /// that it has.
    ///
    /// Policies that count one principal are decided by one call. For several principals (an
    /// address, and the whole service) each primary is asked at the same time. Where one denies,
    /// what others have granted is refunded a moment later, less what time has returned since.
    /// Until then it counts.
    pub fn cluster<U: Into<String>>(mut self, others: impl IntoIterator<Item = U>) -> Self {
        self.cluster = Some(others.into_iter().map(Into::into).collect());
        self
    }

    /// Builds the limiter. It does not connect: the first decision does, in the background.
    ///
    /// # Errors
    ///
    /// When [`limiter::Builder::build`](crate::limiter::Builder::build) fails for the policies;
    /// when an address is invalid; when the prefix is empty, not printable ASCII, or contains a
    /// brace; when the secret is shorter than 16 bytes; when a share is not above 0 and at most 1;
    /// when the timeout is zero or above a minute; when leases have no cells, or last less than a
    /// millisecond or more than ten seconds; when both sentinels and a cluster are given; and when
    /// [`on_failure_of`](Self::on_failure_of) names a policy that does not exist.
    pub fn build(self) -> Result<RedisLimiter, RedisConfigError> {
        self.check()?;
        let config = NodeConfig {
            prefix: self.prefix.clone(),
            call_timeout: self.timeout,
            counts: Arc::default(),
            lease: self.lease,
        };
        let topology = self.topology(&config)?;
        let options =
            PolicySetOptions { hasher: Some(KeyHasher::with_secret(&self.secret)), ..PolicySetOptions::default() };
        let set = PolicySet::new(self.policies, options)?;
        let mut on_failure: Box<[_]> = set.policies().iter().map(|_| self.on_failure).collect();
        for (name, exception) in self.exceptions {
            let (policy, _) = set.find(&name).map_err(RedisConfigError::UnknownPolicy)?;
            on_failure[policy] = exception;
        }
        Ok(RedisLimiter::of(RedisParts {
            names: KeyNames { prefix: self.prefix },
            topology,
            lower_bounds: LowerBounds::new(&set),
            fallback: FallbackBuckets::new(&set, on_failure),
            config,
            set,
        }))
    }

    fn check(&self) -> Result<(), RedisConfigError> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}');
        if self.prefix.is_empty() || !self.prefix.bytes().all(allowed) {
            return Err(RedisConfigError::Prefix(self.prefix.clone()));
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(60) {
            return Err(RedisConfigError::Timeout(self.timeout));
        }
        if let Some(LeaseConfig { max, time }) = self.lease {
            if max == 0 || time < Duration::from_millis(1) || time > Duration::from_secs(10) {
                return Err(RedisConfigError::Lease { max, time });
            }
        }
        if self.secret.len() < MIN_SECRET {
            return Err(RedisConfigError::ShortSecret);
        }
        for on_failure in self.exceptions.iter().map(|(_, on_failure)| on_failure).chain([&self.on_failure]) {
            if let OnFailure::Local { share } = on_failure {
                if !(*share > 0.0 && *share <= 1.0) {
                    return Err(RedisConfigError::Share(*share));
                }
            }
        }
        Ok(())
    }

    fn topology(&self, config: &NodeConfig) -> Result<Topology, RedisConfigError> {
        let first = Endpoint::parse(&self.url).ok_or(RedisConfigError::Address)?;
        let server = match (&self.cluster, &self.sentinels) {
            (Some(_), Some(_)) => return Err(RedisConfigError::SentinelsOfACluster),
            (Some(others), None) => {
                first.node_address().ok_or(RedisConfigError::ClusterAddress)?;
                let mut seeds = vec![first.clone()];
                for url in others {
                    let address = Endpoint::parse(url).and_then(|other| other.node_address());
                    let (host, port) = address.ok_or(RedisConfigError::ClusterAddress)?;
                    seeds.push(first.beside(&host, port));
                }
                return Ok(Topology::Cluster(Arc::new(Cluster::new(seeds, config.clone()))));
            }
            (None, Some((urls, _))) if urls.is_empty() => return Err(RedisConfigError::NoSentinel),
            (None, Some((urls, name))) => {
                let sentinels = urls.iter().map(|url| Endpoint::parse(url)).collect::<Option<_>>();
                let sentinels = sentinels.ok_or(RedisConfigError::SentinelAddress)?;
                Server::Sentinel { sentinels, name: name.clone(), primary: Box::new(first) }
            }
            (None, None) => Server::Direct(first),
        };
        let probe = RedisDemand::probe(&self.prefix, |_| true);
        Ok(Topology::Single(Arc::new(Node::new(server, probe, config.clone(), None))))
    }
}

/// Shows neither the secret nor the address, which may contain a password.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder")
            .field("prefix", &self.prefix)
            .field("on_failure", &self.on_failure)
            .field("policies", &self.policies)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
