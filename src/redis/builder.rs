//! Contains [`RedisBuilder`]: from policies and the address of a server to a limiter, or to the
//! reason why not.

use std::{
    fmt,
    sync::{Arc, Weak, atomic::AtomicU64},
    time::Duration,
};

#[cfg(feature = "redis-tls")]
use super::tls::{Tls, TlsOptions};
use super::{
    address::{AddressError, Endpoint},
    announcement::Listener,
    connect::Server,
    dial::{AddressMap, BoxError, CredentialsProvider, Dialer, RedisCredentials},
    error::{MIN_SECRET, RedisConfigError},
    fallback::{FallbackBuckets, OnFailure},
    health::HealthLimits,
    leases::LeaseConfig,
    limiter::{RedisLimiter, RedisParts},
    lower_bounds::LowerBounds,
    names::KeyNames,
    node::{Node, NodeConfig},
    protocol::RedisDemand,
    topology::{Cluster, Topology},
    windows::ServerWindows,
};
use crate::{
    key::KeyHasher,
    limiter::{PolicySet, PolicySetOptions},
    policy::Policy,
};

impl RedisLimiter {
    /// Returns the builder of a limiter, with the server's address, the secret under which this
    /// deployment's keys are hashed, and what happens to requests when Redis does not answer.
    ///
    /// The address is one of these, with `valkey` in place of `redis` if you like:
    ///
    /// | | |
    /// |---|---|
    /// | `redis://[user:password@]host[:port][/database]` | the port is 6379 and the database 0 unless written |
    /// | `rediss://…` | the same over TLS; needs the feature `redis-tls` |
    /// | `unix:///path[?db=0&user=…&pass=…]` | a unix socket |
    /// | `…?protocol=resp3` | the third version of the protocol |
    ///
    /// Special characters of a user or password are percent-encoded. Where a name has several
    /// addresses, each is tried in turn.
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
            stall: None,
            lease: None,
            cached_keys: 1_000_000,
            options: PolicySetOptions::default(),
            credentials: None,
            address_map: None,
            #[cfg(feature = "redis-tls")]
            tls: TlsOptions::default(),
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
    stall: Option<Duration>,
    lease: Option<LeaseConfig>,
    cached_keys: usize,
    pub(super) options: PolicySetOptions,
    credentials: Option<CredentialsProvider>,
    address_map: Option<AddressMap>,
    #[cfg(feature = "redis-tls")]
    tls: TlsOptions,
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
    ///
    /// Connecting takes several round trips, in the background. Each may take twice this time, and
    /// at least 500 ms.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets after which time without any answer no further request is sent, until an answer comes;
    /// 10 ms, or four times the latency of the connection, unless set.
    ///
    /// Requests that wait already go on waiting, for the [`timeout`](Self::timeout). A longer time
    /// rides out pauses of the server, such as a slow command of somebody else's; when the server
    /// is lost, all requests of that time are delayed by the timeout. A shorter time delays fewer
    /// requests then, and decides more of them without Redis when the server is only slow.
    pub fn stall_after(mut self, time: Duration) -> Self {
        self.stall = Some(time);
        self
    }

    /// Sets who is asked for user and password, or a token in its place, at each login to a server
    /// (of sentinels only the address is used). For credentials that end or rotate: IAM of AWS,
    /// Entra ID, a vault.
    ///
    /// The closure runs on the limiter's own tokio runtime, and may take up to ten seconds. While
    /// it fails there is no connection, [`OnFailure`] decides, and
    /// [`last_error`](RedisLimiter::last_error) has the error.
    ///
    /// ```no_run
    /// # use tower_quota::{Policy, Quota, redis::{OnFailure, RedisCredentials, RedisLimiter}};
    /// # async fn token() -> Result<String, std::io::Error> { Ok(String::new()) }
    /// # let secret = [0; 32];
    /// let limiter = RedisLimiter::builder("redis://limits.example", secret, OnFailure::Open)
    ///     .credentials(|| async { Ok::<_, std::io::Error>(RedisCredentials::new("limiter", token().await?)) })
    ///     .policy(Policy::global(Quota::per_second(100)))
    ///     .build();
    /// ```
    pub fn credentials<F, T, E>(mut self, provider: F) -> Self
    where
        F: Fn() -> T + Send + Sync + 'static,
        T: Future<Output = Result<RedisCredentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.credentials = Some(Arc::new(move || {
            let asked = provider();
            Box::pin(async move { asked.await.map_err(Into::into) })
        }));
        self
    }

    /// Sets where servers are reached from here, given the host and port that they announce:
    /// through a sentinel, or as nodes of a cluster. For servers behind NAT or in containers. As
    /// announced, unless set. The closure must not block.
    pub fn map_address(mut self, map: impl Fn(&str, u16) -> (String, u16) + Send + Sync + 'static) -> Self {
        self.address_map = Some(Arc::new(map));
        self
    }

    /// Trusts the certificate authorities in this PEM, instead of those of the system. May be
    /// called several times.
    #[cfg(feature = "redis-tls")]
    pub fn ca_certificate(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.tls.authorities.push(pem.as_ref().to_owned());
        self
    }

    /// Shows servers this certificate: the chain and its private key, in PEM.
    #[cfg(feature = "redis-tls")]
    pub fn client_certificate(mut self, chain: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.tls.client = Some((chain.as_ref().to_owned(), key.as_ref().to_owned()));
        self
    }

    /// Sets the name that the certificate of each server must have; the host of its address unless
    /// set. For nodes that are announced by an address, and whose certificate has a name.
    #[cfg(feature = "redis-tls")]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.server_name = Some(name.into());
        self
    }

    /// Accepts any certificate, of anybody, for any name and time. Who can reroute the connection
    /// can then read the password and change limits. For tests only.
    #[cfg(feature = "redis-tls")]
    pub fn danger_accept_invalid_certificates(mut self) -> Self {
        self.tls.accept_invalid = true;
        self
    }

    /// Sets for how many keys of each policy this process remembers denials and blocks; 1,000,000
    /// unless set. Requests of further keys ask Redis. At least one.
    pub fn cached_keys(mut self, keys: usize) -> Self {
        self.cached_keys = keys.clamp(1, 1 << 31);
        self
    }

    /// Accepts that there is no policy. See
    /// [`Builder::allow_empty`](crate::limiter::Builder::allow_empty).
    pub fn allow_empty(mut self) -> Self {
        self.options.allow_empty = true;
        self
    }

    /// Tracks so many of the keys that this process denies most, for
    /// [`RedisLimiter::top_denied`]. None unless set, and at most 4,096.
    pub fn top_denied(mut self, keys: usize) -> Self {
        self.options.top_denied = keys.min(4_096);
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
    /// for the primary, and it has TLS if that address begins with `rediss://`; each sentinel's own
    /// address says the same for the sentinel. Sentinels are asked one after the other, and again
    /// whenever the connection is lost.
    pub fn sentinels<U: Into<String>>(mut self, urls: impl IntoIterator<Item = U>, primary: impl Into<String>) -> Self {
        self.sentinels = Some((urls.into_iter().map(Into::into).collect(), primary.into()));
        self
    }

    /// Connects to a cluster, of which these are further nodes (`redis://host:port`), in case the
    /// first one is down. User, password and TLS of the builder's address are used for all nodes.
    /// Each primary has a connection of its own. Without one of them [`OnFailure`] decides for the
    /// keys that it has.
    ///
    /// For a configuration endpoint, whose name has the addresses of several nodes, there are no
    /// others: `.cluster([""; 0])`.
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
    /// when an address is not accepted, or asks for TLS and the feature `redis-tls` is off; when
    /// settings of TLS are invalid, or no address asks for it; when credentials are in the address
    /// and from a provider; when the prefix is empty, not printable ASCII, or contains a brace;
    /// when the secret is shorter than 16 bytes; when a share is not above 0 and at most 1; when
    /// the timeout is zero or above a minute, or [`stall_after`](Self::stall_after) zero or above
    /// the timeout; when leases have no cells, or last less than a millisecond or more than ten
    /// seconds; when both sentinels and a cluster are given; and when
    /// [`on_failure_of`](Self::on_failure_of) names a policy that does not exist.
    pub fn build(self) -> Result<RedisLimiter, RedisConfigError> {
        self.check()?;
        let servers = self.servers()?;
        #[cfg_attr(not(feature = "redis-tls"), expect(unused_mut, reason = "there is no TLS to set"))]
        let mut dialer = self.dialer();
        #[cfg(feature = "redis-tls")]
        {
            dialer.tls = self.tls(&servers)?;
        }
        if let Some(capped) = self.policies.iter().find(|policy| policy.is_capped()) {
            return Err(RedisConfigError::Capped(capped.name().to_owned()));
        }
        if let Some(counting) = self.policies.iter().find(|policy| policy.counts_denied()) {
            return Err(RedisConfigError::CountsDenied(counting.name().to_owned()));
        }
        let options = PolicySetOptions { hasher: Some(KeyHasher::with_secret(&self.secret)), ..self.options };
        let set = PolicySet::new(self.policies, options)?;
        let mut on_failure: Box<[_]> = set.policies().iter().map(|_| self.on_failure).collect();
        for (name, exception) in self.exceptions {
            let (policy, _) = set.find(&name).map_err(RedisConfigError::UnknownPolicy)?;
            on_failure[policy] = exception;
        }
        let names = KeyNames::new(self.prefix);
        // The connections hear what other processes announce.
        let parts = Arc::new_cyclic(|parts: &Weak<RedisParts>| {
            let listener: Weak<dyn Listener> = parts.clone();
            let config = NodeConfig {
                names: names.clone(),
                listener,
                limits: HealthLimits { call_timeout: self.timeout, stall: self.stall },
                counts: Arc::default(),
                lease: self.lease,
                dialer: Arc::new(dialer),
                io: Arc::default(),
            };
            let topology = match servers {
                Servers::Cluster(seeds) => Topology::Cluster(Arc::new(Cluster::new(seeds, config.clone()))),
                Servers::Single(server) => {
                    let probe = RedisDemand::probe(names.probe(|_| true));
                    Topology::Single(Arc::new(Node::new(server, probe, config.clone(), None)))
                }
            };
            RedisParts {
                names,
                topology,
                lower_bounds: LowerBounds::new(&set, self.cached_keys),
                windows: ServerWindows::new(&set),
                fallback: FallbackBuckets::new(&set, on_failure),
                config,
                slacks: set.policies().iter().map(|_| AtomicU64::new(0)).collect(),
                debt_slacks: set.policies().iter().map(|_| AtomicU64::new(0)).collect(),
                set,
            }
        });
        Ok(RedisLimiter { parts })
    }

    fn check(&self) -> Result<(), RedisConfigError> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}');
        if self.prefix.is_empty() || !self.prefix.bytes().all(allowed) {
            return Err(RedisConfigError::Prefix(self.prefix.clone()));
        }
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(60) {
            return Err(RedisConfigError::Timeout(self.timeout));
        }
        if let Some(time) = self.stall.filter(|time| time.is_zero() || *time > self.timeout) {
            return Err(RedisConfigError::StallAfter(time));
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

    fn servers(&self) -> Result<Servers, RedisConfigError> {
        let first = Endpoint::parse(&self.url).map_err(RedisConfigError::Address)?;
        if self.credentials.is_some() && (first.login.user.is_some() || first.login.password.is_some()) {
            return Err(RedisConfigError::Credentials);
        }
        match (&self.cluster, &self.sentinels) {
            (Some(_), Some(_)) => Err(RedisConfigError::SentinelsOfACluster),
            (Some(others), None) => {
                let node = |url: &str| {
                    let endpoint = Endpoint::parse_without_database(url)?;
                    let address = endpoint.node_address().ok_or(AddressError::NoSockets)?;
                    Ok((address, endpoint.uses_tls()))
                };
                node(&self.url).map_err(RedisConfigError::ClusterAddress)?;
                let mut seeds = vec![first.clone()];
                for url in others {
                    let (address, tls) = node(url).map_err(RedisConfigError::ClusterAddress)?;
                    if tls != first.uses_tls() {
                        return Err(RedisConfigError::ClusterOfBoth);
                    }
                    seeds.push(first.beside(address));
                }
                Ok(Servers::Cluster(seeds))
            }
            (None, Some((urls, _))) if urls.is_empty() => Err(RedisConfigError::NoSentinel),
            (None, Some((urls, name))) => {
                let sentinels = urls.iter().map(|url| Endpoint::parse_without_database(url)).collect::<Result<_, _>>();
                let sentinels = sentinels.map_err(RedisConfigError::SentinelAddress)?;
                first.node_address().ok_or(RedisConfigError::Address(AddressError::NoSockets))?;
                Ok(Servers::Single(Server::Sentinel { sentinels, name: name.clone(), primary: first }))
            }
            (None, None) => Ok(Servers::Single(Server::Direct(first))),
        }
    }

    fn dialer(&self) -> Dialer {
        let mut dialer = Dialer::new(self.timeout);
        dialer.credentials.clone_from(&self.credentials);
        dialer.address_map.clone_from(&self.address_map);
        dialer
    }

    /// `None` where no address asks for it.
    #[cfg(feature = "redis-tls")]
    fn tls(&self, servers: &Servers) -> Result<Option<Tls>, RedisConfigError> {
        let is_used = match servers {
            Servers::Cluster(seeds) => seeds[0].uses_tls(),
            Servers::Single(Server::Direct(endpoint)) => endpoint.uses_tls(),
            Servers::Single(Server::Sentinel { sentinels, primary, .. }) => {
                primary.uses_tls() || sentinels.iter().any(Endpoint::uses_tls)
            }
        };
        match is_used {
            true => self.tls.build().map(Some).map_err(RedisConfigError::Tls),
            false if self.tls.is_default() => Ok(None),
            false => Err(RedisConfigError::TlsWithoutAddress),
        }
    }
}

/// Where to connect to.
enum Servers {
    /// The known nodes of a cluster.
    Cluster(Vec<Endpoint>),
    Single(Server),
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
