//! The connection: dialling, probing, asking, and what errors mean.
//!
//! The only file that knows the client crate. Owns no decision about when to dial or whom to ask.

use std::{slice, time::Duration};

use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisError, Value,
    aio::MultiplexedConnection,
    cmd,
    io::tcp::TcpSettings,
    pipe,
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};
use tokio::time::timeout;

use super::script::{ACQUIRE, Limit, Part, Reply, SETTLE, Settlement};
use crate::clock::Clock;

/// How to connect to a server.
pub(super) type Contact = ConnectionInfo;

/// Where Redis or Valkey is. Made without connecting.
#[derive(Clone, Debug)]
pub(super) enum Server {
    Single(ConnectionInfo),
    /// The sentinels, the name of the primary that they watch, and how to log in there.
    Sentinel(Vec<ConnectionInfo>, String, Box<RedisConnectionInfo>),
}

/// For connecting and proving it. No request waits for it.
const DIAL: Duration = Duration::from_millis(500);
/// For one sentinel: the next may know.
const SENTINEL: Duration = Duration::from_secs(1);

impl Server {
    /// # Errors
    ///
    /// The reason in words, where the address is none.
    pub(super) fn new(url: &str, sentinels: Option<(&[String], &str)>) -> Result<Self, String> {
        let server = address(url)?;
        let Some((urls, primary)) = sentinels else { return Ok(Self::Single(server)) };
        if urls.is_empty() {
            return Err("no sentinel is named".to_owned());
        }
        let sentinels = urls.iter().map(|url| address(url)).collect::<Result<_, _>>()?;
        Ok(Self::Sentinel(sentinels, primary.to_owned(), Box::new(server.redis_settings().clone())))
    }

    /// A connection that has proved itself: the scripts are there, they run and write, and answer in time.
    ///
    /// In a cluster a node proves itself as well by knowing who has the probe: its slot may be on its way elsewhere, or be
    /// another's already.
    pub(super) async fn dial(&self, probe: &Limit, in_cluster: bool, patience: Duration) -> Result<Link, Fault> {
        let info = self.find().await?;
        let proving = async {
            let connection = connect(info, patience.saturating_mul(2)).await;
            let mut link = Link {
                connection: connection.map_err(|error| Fault::of(&error))?,
                acquire: String::new(),
                settle: String::new(),
                took: Duration::ZERO,
            };
            link.load().await.map_err(|error| Fault::of(&error))?;
            link.prove(probe, in_cluster).await?;
            let (clock, again) = (Clock::system(), link.prove(probe, in_cluster));
            timeout(patience, again).await.unwrap_or(Err(Fault::Late))?;
            link.took = Duration::from_nanos(clock.now());
            Ok(link)
        };
        timeout(DIAL.max(patience.saturating_mul(4)), proving).await.unwrap_or(Err(Fault::Late))
    }

    /// Where the server is now.
    async fn find(&self) -> Result<ConnectionInfo, Fault> {
        let (sentinels, primary, login) = match self {
            Self::Single(info) => return Ok(info.clone()),
            Self::Sentinel(sentinels, primary, login) => (sentinels, primary, login),
        };
        let node = SentinelNodeConnectionInfo::default().set_redis_connection_info((**login).clone());
        let mut fault = Fault::Late;
        for sentinel in sentinels {
            // One after the other, each for its own time: one that hangs hides none that knows.
            let asked = timeout(SENTINEL, async {
                Sentinel::build(vec![sentinel.clone()])?.async_master_for(primary, Some(&node)).await
            });
            match asked.await {
                Ok(Ok(client)) => return Ok(client.get_connection_info().clone().set_tcp_settings(at_once())),
                Ok(Err(error)) => fault = Fault::of(&error),
                Err(_late) => {}
            }
        }
        Err(match fault {
            Fault::Key(why) => Fault::Link(why),
            other => other,
        })
    }
}

/// Without the client's own words, in which there may be a password.
pub(super) fn address(url: &str) -> Result<ConnectionInfo, String> {
    let info = url.into_connection_info();
    let info =
        info.map_err(|_| "the address is none of Redis: redis://[user:password@]host[:port][/database]".to_owned())?;
    Ok(info.set_tcp_settings(at_once()))
}

/// Without Nagle's algorithm, which the client leaves on.
fn at_once() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

async fn connect(info: ConnectionInfo, give_up: Duration) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(DIAL))
        // Ours is the one that counts; this one ends what nobody waits for any more.
        .set_response_timeout(Some(give_up))
        .set_pipeline_buffer_size(1_024);
    Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
}

/// Host and port.
pub(super) type Address = (String, u16);

/// # Errors
///
/// Where it is no host and port, as those of a cluster are.
pub(super) fn address_of(contact: &Contact) -> Result<Address, String> {
    match contact.addr() {
        ConnectionAddr::Tcp(host, port) if contact.redis_settings().db() == 0 => Ok((host.clone(), *port)),
        _ => Err("a node of a cluster is `redis://host:port`, without a database".to_owned()),
    }
}

/// A node of a cluster of which another one is known.
pub(super) fn beside(other: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    other.clone().set_addr(ConnectionAddr::Tcp(host.to_owned(), port))
}

/// A primary of a cluster, and the first and last of the slots in a row that it has.
pub(super) type Range = (u16, u16, Address);

/// Where the slots of a cluster are, as one of its nodes says.
pub(super) async fn slots(node: &ConnectionInfo) -> Result<Vec<Range>, Fault> {
    let asked = timeout(DIAL, async {
        let mut connection = connect(node.clone(), DIAL).await?;
        cmd("CLUSTER").arg("SLOTS").query_async::<Value>(&mut connection).await
    });
    let answer = asked.await.unwrap_or_else(|_late| Ok(Value::Nil)).map_err(|error| Fault::of(&error))?;
    let ranges = match (&answer, node.addr()) {
        (Value::Nil, _) => return Err(Fault::Late),
        (Value::Array(ranges), ConnectionAddr::Tcp(itself, _)) => {
            ranges.iter().map(|range| read_range(range, itself)).collect()
        }
        _ => None,
    };
    let ranges: Option<Vec<_>> = ranges.filter(|ranges: &Vec<_>| !ranges.is_empty());
    ranges.ok_or_else(|| Fault::Link("a node of the cluster does not say where the slots are".into()))
}

/// First slot, last slot, primary, replicas.
fn read_range(range: &Value, asked: &str) -> Option<Range> {
    let number = |value: &Value| match value {
        Value::Int(number) => u16::try_from(*number).ok(),
        _ => None,
    };
    let Value::Array(range) = range else { return None };
    let [first, last, Value::Array(primary), ..] = &range[..] else { return None };
    let [host, port, more @ ..] = &primary[..] else { return None };
    let text = |value: &Value| match value {
        Value::BulkString(text) => String::from_utf8(text.clone()).ok(),
        _ => None,
    };
    let host = match text(host) {
        // It is to have a name, and has none: its address is told besides.
        Some(unknown) if unknown == "?" => {
            let Some(Value::Array(besides)) = more.get(1) else { return None };
            let at = besides.iter().position(|name| text(name).as_deref() == Some("ip"))?;
            text(besides.get(at + 1)?)?
        }
        Some(host) if !host.is_empty() => host,
        // A node that does not know where it is, is where it was found.
        _ => asked.to_owned(),
    };
    Some((number(first)?, number(last)?, (host, number(port)?)))
}

/// A connection, and the names of the scripts behind it. Clones share it, and what they ask is pipelined.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    acquire: String,
    settle: String,
    /// What an answer took when it was dialled.
    pub(super) took: Duration,
}

impl Link {
    async fn load(&mut self) -> Result<(), RedisError> {
        self.acquire = cmd("SCRIPT").arg("LOAD").arg(ACQUIRE).query_async(&mut self.connection).await?;
        self.settle = cmd("SCRIPT").arg("LOAD").arg(SETTLE).query_async(&mut self.connection).await?;
        Ok(())
    }

    async fn prove(&mut self, probe: &Limit, in_cluster: bool) -> Result<(), Fault> {
        match self.acquire(slice::from_ref(probe), 1, false).await {
            Err(Fault::Elsewhere(_)) if in_cluster => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Asks for `want` requests of these limits, or as many as are to be had. `asking` tells a node of a cluster that the slot is
    /// on its way there.
    pub(super) async fn acquire(&mut self, limits: &[Limit], want: u32, asking: bool) -> Result<Reply, Fault> {
        let ask = |verb: &str, script: &str| {
            let mut command = call(verb, script, limits.iter().map(|limit| &limit.key));
            command.arg(want);
            for Limit { unit, burst, shadow, .. } in limits {
                command.arg(*unit).arg(*burst).arg(u8::from(*shadow));
            }
            command
        };
        let (by_name, in_full) = (ask("EVALSHA", &self.acquire), || ask("EVAL", ACQUIRE));
        let numbers = if asking {
            // In one go, and in full: which scripts that node has is not known.
            let mut both = pipe();
            both.cmd("ASKING").ignore().add_command(in_full());
            let answers: Result<(Vec<i64>,), _> = both.query_async(&mut self.connection).await;
            answers.map(|(numbers,)| numbers).map_err(|error| Fault::of(&last_of(error)))?
        } else {
            self.run(by_name, in_full).await?
        };
        Reply::read(&numbers, limits.len()).ok_or_else(|| Fault::Key("a reply that is not the script's".into()))
    }

    pub(super) async fn settle(&mut self, settlement: &Settlement) -> Result<(), Fault> {
        let Settlement { at: (seconds, nanos), parts } = settlement;
        let ask = |verb: &str, script: &str| {
            let mut command = call(verb, script, parts.iter().map(|part| &part.key));
            command.arg(*seconds).arg(*nanos);
            for Part { returned, charged, burst, .. } in parts {
                command.arg(*returned).arg(*charged).arg(*burst);
            }
            command
        };
        let by_name = ask("EVALSHA", &self.settle);
        self.run::<i64>(by_name, || ask("EVAL", SETTLE)).await.map(drop)
    }

    async fn run<T: FromRedisValue>(&mut self, by_name: Cmd, in_full: impl FnOnce() -> Cmd) -> Result<T, Fault> {
        let mut answer = by_name.query_async(&mut self.connection).await;
        if answer.as_ref().is_err_and(|error: &RedisError| error.code() == Some("NOSCRIPT")) {
            // Flushed, or another server behind the address. Nothing has run: this is the first time, not the second.
            answer = in_full().query_async(&mut self.connection).await;
        }
        answer.map_err(|error| Fault::of(&error))
    }
}

/// The error of the last command of several: of all together the client says neither code nor detail.
fn last_of(error: RedisError) -> RedisError {
    let errors = error.clone().into_server_errors();
    match errors.as_deref().and_then(<[_]>::last) {
        Some((_, error)) => error.clone().into(),
        None => error,
    }
}

fn call<'a>(verb: &str, script: &str, keys: impl ExactSizeIterator<Item = &'a String>) -> Cmd {
    let mut command = cmd(verb);
    command.arg(script).arg(keys.len());
    for key in keys {
        command.arg(key);
    }
    command
}

/// Where a cluster says that a key is; it has carried nothing out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    /// `None` for the same node, once more. Without a host it is that of the node that says so.
    pub(super) address: Option<Address>,
    /// The slot is on its way to that node.
    pub(super) asking: bool,
}

impl Elsewhere {
    fn read(error: &RedisError) -> Option<Self> {
        let asking = match error.code() {
            Some("MOVED") => false,
            Some("ASK") => true,
            // Of several keys some have moved already.
            Some("TRYAGAIN") => return Some(Self { address: None, asking: false }),
            _ => return None,
        };
        let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
        Some(Self { address: Some((host.to_owned(), port.parse().ok()?)), asking })
    }
}

/// What an error means for those who come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// These keys are not here.
    Elsewhere(Elsewhere),
    /// Something about these keys: it says nothing of others.
    Key(Box<str>),
    /// No answer in time. Whether it was carried out is unknown, so nothing is ever asked twice.
    Late,
    /// The connection, or the server behind it, is of no use to anybody.
    Link(Box<str>),
}

/// What all keys would meet. Before Redis 7 they stand inside the text of another error when a script meets them.
const OF_THE_SERVER: [&str; 9] =
    ["READONLY", "LOADING", "MASTERDOWN", "OOM", "NOREPLICAS", "MISCONF", "BUSY", "NOPERM", "CLUSTERDOWN"];

const IN_CLUSTER_MODE: &str = "keys are elsewhere: the server is in cluster mode, which `Builder::cluster` is for";

impl Fault {
    fn of(error: &RedisError) -> Self {
        if error.is_timeout() {
            return Self::Late;
        }
        if let Some(elsewhere) = Elsewhere::read(error) {
            return Self::Elsewhere(elsewhere);
        }
        let detail = error.detail().unwrap_or_default();
        match error.code() {
            // Of the script for these keys: another type stands there, or a number is none.
            Some(code @ ("WRONGTYPE" | "ERR")) if !OF_THE_SERVER.iter().any(|word| detail.contains(word)) => {
                Self::Key(code.into())
            }
            // Only where `Builder::cluster` was not called: else what is asked together is in one slot.
            Some("CROSSSLOT") => Self::Link(IN_CLUSTER_MODE.into()),
            Some(code) => Self::Link(code.into()),
            // Refused, reset, closed. Of the client's words the category: in others there may be an address.
            None => Self::Link(error.category().into()),
        }
    }

    /// For an event.
    pub(super) fn why(&self) -> &str {
        match self {
            Self::Key(why) | Self::Link(why) => why,
            Self::Late => "no answer in time",
            Self::Elsewhere(_) => IN_CLUSTER_MODE,
        }
    }
}
