//! Contains [`Dialer`]: from an address to a socket, encrypted where the address says so, and the
//! login to use there.
//!
//! This file must not know the protocol of Redis, nor when to connect.

use std::{
    collections::HashMap,
    error, fmt, io,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::address::{Address, Login, NodeAddress};
#[cfg(feature = "redis-tls")]
use super::tls::{self, Tls};

/// A user and a password, or a token in its place. See
/// [`RedisBuilder::credentials`](super::RedisBuilder::credentials).
#[derive(Clone)]
pub struct RedisCredentials {
    user: Option<String>,
    password: String,
}

impl RedisCredentials {
    /// The credentials of a user of an access control list.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: Some(user.into()), password: password.into() }
    }

    /// The password of the default user.
    pub fn password(password: impl Into<String>) -> Self {
        Self { user: None, password: password.into() }
    }
}

/// Never shows the password.
impl fmt::Debug for RedisCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

pub(super) type BoxError = Box<dyn error::Error + Send + Sync>;
type ProvidedCredentials = Pin<Box<dyn Future<Output = Result<RedisCredentials, BoxError>> + Send>>;
/// Asked for credentials at each login.
pub(super) type CredentialsProvider = Arc<dyn Fn() -> ProvidedCredentials + Send + Sync>;
/// From the address that a server announces to the one at which it is reached from here.
pub(super) type AddressMap = Arc<dyn Fn(&str, u16) -> NodeAddress + Send + Sync>;

/// A socket, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
pub(super) type BoxedStream = Box<dyn Stream>;

/// Where one attempt to connect goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// One of the addresses of a name.
    Tcp(SocketAddr),
    Unix,
}

/// What all connections of a limiter have in common.
#[derive(Default)]
pub(super) struct Dialer {
    #[cfg(feature = "redis-tls")]
    pub(super) tls: Option<Tls>,
    pub(super) credentials: Option<CredentialsProvider>,
    pub(super) address_map: Option<AddressMap>,
    /// For each step: a name, a socket, a handshake, a login.
    pub(super) step: Duration,
    /// The addresses that were of no use last, of names that have several. The latest is the last.
    useless: Mutex<Vec<SocketAddr>>,
    look_ups: Mutex<HashMap<NodeAddress, LookUp>>,
}

type LookUp = Shared<BoxFuture<'static, Result<Vec<SocketAddr>, String>>>;

/// The shortest step: connecting happens in the background, so it may take longer than a request.
const MIN_STEP: Duration = Duration::from_millis(500);
/// So many addresses are known as useless. A name that has more is tried in its own order.
const MAX_USELESS: usize = 64;
/// For the provider of credentials, which may ask a server of its own.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle time before the system probes a connection, the time between probes, and their number.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(5), 3);
/// The system ends a connection on which sent data is not acknowledged for this long.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(30);

impl Dialer {
    /// For requests that wait so long for an answer: a server that answers them in time can be
    /// connected to.
    pub(super) fn new(call_timeout: Duration) -> Self {
        Self { step: MIN_STEP.max(call_timeout.saturating_mul(2)), ..Self::default() }
    }

    /// Where the address may be reached: all addresses of a name, and last those that were useless.
    pub(super) async fn targets(&self, address: &Address) -> Result<Vec<Target>, String> {
        let (host, port) = match address {
            Address::Tcp { host, port, .. } => (host, *port),
            Address::Unix(_) => return Ok(vec![Target::Unix]),
        };
        let found = match self.within(self.look_up(host, port)).await {
            Some(found) => found,
            None => Err(format!("no answer within {:?}", self.step)),
        };
        let mut found = found.map_err(|error| {
            format!("the name {host:?} cannot be resolved ({error}): check the address, and the DNS of this machine")
        })?;
        if found.is_empty() {
            return Err(format!("the name {host:?} has no address"));
        }
        let useless = self.useless.lock().unwrap_or_else(PoisonError::into_inner);
        // Stable: otherwise in the order of the name.
        found.sort_by_key(|address| useless.iter().position(|known| known == address).map_or(0, |at| at + 1));
        Ok(found.into_iter().map(Target::Tcp).collect())
    }

    /// The addresses of a name. Of each name there is one look-up at a time, which goes on after
    /// its time is over: one that hangs does not take up the resolvers of all other names.
    fn look_up(&self, host: &str, port: u16) -> LookUp {
        let mut look_ups = self.look_ups.lock().unwrap_or_else(PoisonError::into_inner);
        look_ups.retain(|_, look_up| look_up.peek().is_none());
        let name = (host.to_owned(), port);
        let start = || {
            let name = name.clone();
            let task = tokio::spawn(async move { lookup_host(name).await.map(Vec::from_iter) });
            let found = async move {
                match task.await {
                    Ok(found) => found.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                }
            };
            found.boxed().shared()
        };
        look_ups.entry(name.clone()).or_insert_with(start).clone()
    }

    /// Where a name has several addresses, one that was of no use is not tried first again.
    pub(super) fn used(&self, target: &Target, worked: bool) {
        let Target::Tcp(address) = target else { return };
        let mut useless = self.useless.lock().unwrap_or_else(PoisonError::into_inner);
        useless.retain(|known| known != address);
        if !worked {
            if useless.len() == MAX_USELESS {
                useless.remove(0);
            }
            useless.push(*address);
        }
    }

    /// Opens a socket, encrypted where the address says so. The error says what to do.
    pub(super) async fn dial(&self, address: &Address, target: &Target) -> Result<BoxedStream, String> {
        let (host, tls, socket) = match (address, target) {
            #[cfg(not(unix))]
            (Address::Unix(_), _) => return Err("this system has no unix sockets: use host and port".to_owned()),
            #[cfg(unix)]
            (Address::Unix(path), _) => {
                let socket = self.within(tokio::net::UnixStream::connect(path)).await;
                return match socket {
                    Some(Ok(socket)) => Ok(Box::new(socket)),
                    Some(Err(error)) => {
                        Err(format!("cannot connect ({error}): check the path, and who may write to it"))
                    }
                    None => Err(self.no_answer("to the connection")),
                };
            }
            (Address::Tcp { host, tls, .. }, Target::Tcp(socket)) => (host, *tls, socket),
            (Address::Tcp { .. }, Target::Unix) => return Err("the address is no unix socket".to_owned()),
        };
        let stream = match self.within(TcpStream::connect(socket)).await {
            Some(Ok(stream)) => stream,
            Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(format!("{} refuses connections: is the server running, on this port?", socket.ip()));
            }
            Some(Err(error)) => return Err(format!("cannot connect to {} ({error})", socket.ip())),
            None => return Err(self.no_answer(&format!("from {} to the connection", socket.ip()))),
        };
        tune(&stream).map_err(|error| format!("cannot set up the connection ({error})"))?;
        if tls { self.encrypt(host, stream).await } else { Ok(Box::new(stream)) }
    }

    #[cfg(feature = "redis-tls")]
    async fn encrypt(&self, host: &str, stream: TcpStream) -> Result<BoxedStream, String> {
        let Some(tls) = &self.tls else { return Err("no TLS is set up".to_owned()) };
        match self.within(tls.handshake(host, stream)).await {
            Some(Ok(stream)) => Ok(Box::new(stream)),
            Some(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err("the server closes the connection during the handshake of TLS: \
                     if it has no TLS, write redis:// or valkey://"
                    .to_owned())
            }
            Some(Err(error)) => Err(tls::reason(&error).unwrap_or_else(|| format!("TLS failed ({error})"))),
            None => Err(self.no_answer("to the handshake of TLS: if the server has none, write redis:// or valkey://")),
        }
    }

    /// Never in the clear, whatever the address has come through.
    #[cfg(not(feature = "redis-tls"))]
    #[expect(clippy::unused_async, reason = "as with the feature")]
    async fn encrypt(&self, _: &str, _: TcpStream) -> Result<BoxedStream, String> {
        Err("the address asks for TLS: enable the feature `redis-tls` of tower-quota".to_owned())
    }

    /// The login to use now.
    pub(super) async fn login(&self, login: &Login) -> Result<Login, String> {
        let Some(provider) = &self.credentials else { return Ok(login.clone()) };
        let asked = AssertUnwindSafe(async { provider().await }).catch_unwind();
        match timeout(CREDENTIALS_TIMEOUT, asked).await {
            Ok(Ok(Ok(RedisCredentials { user, password }))) => {
                Ok(Login { user, password: Some(password), ..login.clone() })
            }
            Ok(Ok(Err(error))) => Err(format!("the provider of credentials failed ({error})")),
            Ok(Err(_panic)) => Err("the provider of credentials panicked".to_owned()),
            Err(_elapsed) => Err(format!("the provider of credentials did not answer within {CREDENTIALS_TIMEOUT:?}")),
        }
    }

    /// Where the server that announces this address is reached from here.
    pub(super) fn map(&self, (host, port): NodeAddress) -> NodeAddress {
        match &self.address_map {
            Some(map) => map(&host, port),
            None => (host, port),
        }
    }

    /// One step of connecting. `None` where it takes too long.
    pub(super) async fn within<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        timeout(self.step, step).await.ok()
    }

    pub(super) fn no_answer(&self, to: &str) -> String {
        format!("no answer {to} within {:?}: check the network, or raise `timeout`", self.step)
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("step", &self.step).finish_non_exhaustive()
    }
}

/// Sends at once, and notices a peer that is gone.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (idle, interval, retries) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(idle);
    #[cfg(any(target_os = "linux", target_vendor = "apple", windows))]
    let keepalive = keepalive.with_interval(interval).with_retries(retries);
    #[cfg(not(any(target_os = "linux", target_vendor = "apple", windows)))]
    let _ = (interval, retries);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_was_useless_is_not_tried_first_again() {
        let dialer = Dialer { step: Duration::from_secs(60), ..Dialer::default() };
        let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: 1, tls: false };
        assert_eq!(dialer.targets(&address).await, Ok(vec![Target::Tcp("127.0.0.1:1".parse().unwrap())]));
        let sorted = |dialer: &Dialer| {
            let useless = dialer.useless.lock().unwrap().clone();
            useless.iter().map(SocketAddr::port).collect::<Vec<_>>()
        };
        let target = |port: u16| Target::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
        for (port, worked, useless) in [(1, false, &[1][..]), (2, false, &[1, 2]), (1, false, &[2, 1]), (2, true, &[1])]
        {
            dialer.used(&target(port), worked);
            assert_eq!(sorted(&dialer), useless);
        }
        for port in 0..1_000 {
            dialer.used(&target(port), false);
        }
        assert_eq!(sorted(&dialer).len(), MAX_USELESS);
    }

    #[test]
    fn no_secret_is_shown() {
        assert!(!format!("{:?}", RedisCredentials::new("user", "secret")).contains("secret"));
    }
}
