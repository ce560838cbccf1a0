//! Contains the connection to one server: how it is opened, what is sent over it, and what its
//! errors mean.
//!
//! This is the only file that knows the client crate. It must not know when to connect, nor which
//! server to ask.

use std::time::Duration;

use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo as _,
    RedisError, Value,
    aio::MultiplexedConnection,
    cmd,
    io::tcp::TcpSettings,
    pipe,
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};
use tokio::time::timeout;

use super::protocol::{ACQUIRE, RedisDemand, Reply, SETTLE, ServerTime, Settlement, SettlementPart};

/// Host and port.
pub(super) type NodeAddress = (String, u16);

/// How to reach a server and log in there.
#[derive(Clone, Debug)]
pub(super) struct Endpoint(ConnectionInfo);

impl Endpoint {
    /// Reads the address of a server. Returns `None` where it is invalid. The client's own error is
    /// not shown, because it may contain a password.
    pub(super) fn parse(url: &str) -> Option<Self> {
        let info = url.into_connection_info().ok()?;
        Some(Self(without_delay(info)))
    }

    /// The host and port, if this is a node of a cluster: TCP, and database 0.
    pub(super) fn node_address(&self) -> Option<NodeAddress> {
        match self.0.addr() {
            ConnectionAddr::Tcp(host, port) if self.0.redis_settings().db() == 0 => Some((host.clone(), *port)),
            _ => None,
        }
    }

    /// Another server with the same login.
    pub(super) fn beside(&self, host: &str, port: u16) -> Self {
        Self(self.0.clone().set_addr(ConnectionAddr::Tcp(host.to_owned(), port)))
    }

    /// Asks this sentinel for the primary of this name, and returns how to reach it with the login
    /// of `primary`.
    pub(super) async fn find_primary(&self, name: &str, primary: &Self) -> Result<Self, CallError> {
        let login = SentinelNodeConnectionInfo::default().set_redis_connection_info(primary.0.redis_settings().clone());
        let found = async { Sentinel::build(vec![self.0.clone()])?.async_master_for(name, Some(&login)).await };
        let client = found.await.map_err(|error| CallError::of(&error))?;
        Ok(Self(without_delay(client.get_connection_info().clone())))
    }

    /// Asks this node where the slots of its cluster are.
    pub(super) async fn slots(&self, within: Duration) -> Result<Vec<SlotRange>, CallError> {
        let asked = timeout(within, async {
            let mut connection = open(self.0.clone(), within, within).await?;
            cmd("CLUSTER").arg("SLOTS").query_async::<Value>(&mut connection).await
        });
        let answer = asked.await.unwrap_or_else(|_elapsed| Ok(Value::Nil)).map_err(|error| CallError::of(&error))?;
        let ranges = match (&answer, self.0.addr()) {
            (Value::Nil, _) => return Err(CallError::Timeout),
            (Value::Array(ranges), ConnectionAddr::Tcp(itself, _)) => {
                ranges.iter().map(|range| SlotRange::read(range, itself)).collect()
            }
            _ => None,
        };
        let ranges: Option<Vec<_>> = ranges.filter(|ranges: &Vec<_>| !ranges.is_empty());
        ranges.ok_or_else(|| CallError::Connection("the node does not know the slots of its cluster".into()))
    }
}

/// Disables Nagle's algorithm, which the client leaves on.
fn without_delay(info: ConnectionInfo) -> ConnectionInfo {
    info.set_tcp_settings(TcpSettings::default().set_nodelay(true))
}

async fn open(
    info: ConnectionInfo,
    connect_timeout: Duration,
    response_timeout: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(connect_timeout))
        .set_response_timeout(Some(response_timeout))
        .set_pipeline_buffer_size(1_024);
    Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
}

/// A range of slots, and the primary that serves it.
#[derive(Clone, Debug)]
pub(super) struct SlotRange {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) primary: NodeAddress,
}

impl SlotRange {
    /// Reads first slot, last slot, primary, replicas. `asked` is the host of the node that
    /// answers.
    fn read(range: &Value, asked: &str) -> Option<Self> {
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
            // The node prefers a host name and has none. Its address is in the metadata.
            Some(unknown) if unknown == "?" => {
                let Some(Value::Array(metadata)) = more.get(1) else { return None };
                let at = metadata.iter().position(|name| text(name).as_deref() == Some("ip"))?;
                text(metadata.get(at + 1)?)?
            }
            Some(host) if !host.is_empty() => host,
            // A node that does not know its address is where it was asked.
            _ => asked.to_owned(),
        };
        Some(Self { first: number(first)?, last: number(last)?, primary: (host, number(port)?) })
    }
}

/// A connection, with the names of the scripts there. Clones share it, and pipeline their calls.
#[derive(Clone)]
pub(super) struct Connection {
    multiplexed: MultiplexedConnection,
    acquire: String,
    settle: String,
}

impl Connection {
    /// Connects and loads the scripts. Calls that take longer than `response_timeout` are given up
    /// by the client.
    pub(super) async fn open(
        endpoint: Endpoint,
        connect_timeout: Duration,
        response_timeout: Duration,
    ) -> Result<Self, CallError> {
        let opened = async {
            let mut connection = open(endpoint.0, connect_timeout, response_timeout).await?;
            let acquire = cmd("SCRIPT").arg("LOAD").arg(ACQUIRE).query_async(&mut connection).await?;
            let settle = cmd("SCRIPT").arg("LOAD").arg(SETTLE).query_async(&mut connection).await?;
            Ok(Self { multiplexed: connection, acquire, settle })
        };
        opened.await.map_err(|error: RedisError| CallError::of(&error))
    }

    /// Acquires the cells of `requests` requests, or of as many as are granted. `asking` tells a
    /// node of a cluster that the slot is migrating there.
    pub(super) async fn acquire(
        &mut self,
        demands: &[RedisDemand],
        requests: u32,
        asking: bool,
    ) -> Result<Reply, CallError> {
        let call = |verb: &str, script: &str| {
            let mut command = script_call(verb, script, demands.iter().map(|demand| &demand.key));
            command.arg(requests);
            for RedisDemand { cost, burst, shadow, .. } in demands {
                command.arg(cost.get()).arg(burst.get()).arg(u8::from(*shadow));
            }
            command
        };
        let (by_name, in_full) = (call("EVALSHA", &self.acquire), || call("EVAL", ACQUIRE));
        let numbers = if asking {
            // In one pipeline, and in full, because it is not known which scripts that node has.
            let mut both = pipe();
            both.cmd("ASKING").ignore().add_command(in_full());
            let answers: Result<(Vec<i64>,), _> = both.query_async(&mut self.multiplexed).await;
            answers.map(|(numbers,)| numbers).map_err(|error| CallError::of(&last_of(error)))?
        } else {
            self.run(by_name, in_full).await?
        };
        Reply::read(&numbers, demands.len()).ok_or_else(|| CallError::Key("the reply is not that of the script".into()))
    }

    pub(super) async fn settle(&mut self, settlement: &Settlement) -> Result<(), CallError> {
        let Settlement { at: ServerTime { seconds, nanos }, parts } = settlement;
        let call = |verb: &str, script: &str| {
            let mut command = script_call(verb, script, parts.iter().map(|part| &part.key));
            command.arg(*seconds).arg(*nanos);
            for SettlementPart { refund, charge, burst, .. } in parts {
                command.arg(refund.get()).arg(charge.get()).arg(burst.get());
            }
            command
        };
        let by_name = call("EVALSHA", &self.settle);
        self.run::<i64>(by_name, || call("EVAL", SETTLE)).await.map(drop)
    }

    async fn run<T: FromRedisValue>(&mut self, by_name: Cmd, in_full: impl FnOnce() -> Cmd) -> Result<T, CallError> {
        let mut answer = by_name.query_async(&mut self.multiplexed).await;
        if answer.as_ref().is_err_and(|error: &RedisError| error.code() == Some("NOSCRIPT")) {
            // The scripts were flushed, or another server has the address. Nothing has run, so this
            // is no retry.
            answer = in_full().query_async(&mut self.multiplexed).await;
        }
        answer.map_err(|error| CallError::of(&error))
    }
}

/// The error of the last command of a pipeline. The client's error for all has neither code nor
/// detail.
fn last_of(error: RedisError) -> RedisError {
    let errors = error.clone().into_server_errors();
    match errors.as_deref().and_then(<[_]>::last) {
        Some((_, error)) => error.clone().into(),
        None => error,
    }
}

fn script_call<'a>(verb: &str, script: &str, keys: impl ExactSizeIterator<Item = &'a String>) -> Cmd {
    let mut command = cmd(verb);
    command.arg(script).arg(keys.len());
    for key in keys {
        command.arg(key);
    }
    command
}

/// The node that a cluster names for a key. The cluster has run nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    /// `None`: the same node again. Without a host: the host of the node that answers.
    pub(super) address: Option<NodeAddress>,
    /// Whether the slot is migrating to that node.
    pub(super) asking: bool,
}

impl Redirect {
    fn read(error: &RedisError) -> Option<Self> {
        let asking = match error.code() {
            Some("MOVED") => false,
            Some("ASK") => true,
            // Some of several keys have migrated already.
            Some("TRYAGAIN") => return Some(Self { address: None, asking: false }),
            _ => return None,
        };
        let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
        Some(Self { address: Some((host.to_owned(), port.parse().ok()?)), asking })
    }
}

/// Why a call failed, and so what it means for other calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// The connection, or its server, serves no call.
    Connection(Box<str>),
    /// These keys cause the error. Calls for other keys may succeed.
    Key(Box<str>),
    /// Another node has these keys.
    Redirect(Redirect),
    /// No answer in time. It is unknown whether the call has run, so no call is ever repeated.
    Timeout,
}

/// Errors that calls for all keys have. Before Redis 7 they are in the text of another error when a
/// script has them.
const SERVER_ERRORS: [&str; 9] =
    ["READONLY", "LOADING", "MASTERDOWN", "OOM", "NOREPLICAS", "MISCONF", "BUSY", "NOPERM", "CLUSTERDOWN"];

const IN_CLUSTER_MODE: &str = "the server is in cluster mode: list its nodes with `RedisBuilder::cluster`";

impl CallError {
    fn of(error: &RedisError) -> Self {
        if error.is_timeout() {
            return Self::Timeout;
        }
        if let Some(redirect) = Redirect::read(error) {
            return Self::Redirect(redirect);
        }
        let detail = error.detail().unwrap_or_default();
        match error.code() {
            // The script met a value of another type for these keys, or a number that is none.
            Some(code @ ("WRONGTYPE" | "ERR")) if !SERVER_ERRORS.iter().any(|word| detail.contains(word)) => {
                Self::Key(code.into())
            }
            // Possible only without `RedisBuilder::cluster`: otherwise the keys of a call are in
            // one slot.
            Some("CROSSSLOT") => Self::Connection(IN_CLUSTER_MODE.into()),
            Some(code) => Self::Connection(code.into()),
            // Refused, reset, closed. Only the category is shown: the text may contain an address.
            None => Self::Connection(error.category().into()),
        }
    }

    /// For an event.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Connection(reason) | Self::Key(reason) => reason,
            Self::Redirect(_) => IN_CLUSTER_MODE,
            Self::Timeout => "no answer in time",
        }
    }
}
