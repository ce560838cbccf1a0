//! Contains the connection to one server: how it is opened, what is sent over it, and what its
//! errors mean.
//!
//! This is the only file that knows the client crate. It must not know when to connect, nor which
//! server to ask.

use std::{error::Error, io, sync::Arc};

use ::redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError, Value,
    aio::MultiplexedConnection, cmd, pipe,
};
use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use super::{
    address::{Login, NodeAddress},
    dial::BoxedStream,
    names::SLOTS,
    protocol::{Element, Query, RedisDemand, Reply, ServerTime, Settlement, SettlementPart, boundaries, plan_text},
    reason,
    script::{ACQUIRE, SETTLE, Script},
};

/// A range of slots, and the primary that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
            Value::SimpleString(text) => Some(text.clone()),
            _ => None,
        };
        let host = match text(host) {
            // The node prefers a host name and has none. Its address is in the metadata, if at all.
            Some(unknown) if unknown == "?" => metadata_ip(more.get(1), text),
            known => known,
        };
        // A node that does not know its address is where it was asked.
        let host = host.filter(|host| !host.is_empty()).unwrap_or_else(|| asked.to_owned());
        let (first, last) = (number(first)?, number(last)?);
        (first <= last && last < SLOTS).then_some(())?;
        Some(Self { first, last, primary: (host, number(port)?) })
    }

    /// Reads the reply to `CLUSTER SLOTS`. `None` where it knows of no slots.
    fn read_all(reply: &Value, asked: &str) -> Option<Vec<Self>> {
        let Value::Array(ranges) = reply else { return None };
        let ranges: Option<Vec<_>> = ranges.iter().map(|range| Self::read(range, asked)).collect();
        ranges.filter(|ranges| !ranges.is_empty())
    }
}

/// The address among pairs of a name and a value: a list of both in turn, or a map.
fn metadata_ip(metadata: Option<&Value>, text: impl Fn(&Value) -> Option<String>) -> Option<String> {
    let is_ip = |name: &Value| text(name).as_deref() == Some("ip");
    match metadata? {
        Value::Array(list) => list.chunks_exact(2).find(|pair| is_ip(&pair[0])).and_then(|pair| text(&pair[1])),
        Value::Map(pairs) => pairs.iter().find(|(name, _)| is_ip(name)).and_then(|(_, value)| text(value)),
        _ => None,
    }
}

/// A connection. Clones share it, and pipeline their calls. It ends with the last clone.
#[derive(Clone)]
pub(super) struct Connection {
    multiplexed: MultiplexedConnection,
    _driver: Arc<AbortOnDrop>,
}

/// The task that reads and writes.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Receives an error when the connection has ended.
pub(super) type Closed = oneshot::Receiver<()>;

/// Receives what is announced to those that have subscribed.
pub(super) type Announcements = mpsc::UnboundedReceiver<String>;

/// A connection that is logged in.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) closed: Closed,
    pub(super) announcements: Announcements,
}

impl Connection {
    /// Logs in. Only the third version of the protocol has announcements.
    pub(super) async fn open(stream: BoxedStream, login: &Login, resp3: bool) -> Result<Opened, CallError> {
        let Login { user, password, database, .. } = login;
        // The name of the client library is not announced: it would take a right, and some proxies
        // close the connection at it.
        let mut info = RedisConnectionInfo::default().set_db(*database).set_skip_set_lib_name();
        let (announce, announcements) = mpsc::unbounded_channel();
        // The worker has the timeouts.
        let mut config = AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(1_024);
        if resp3 {
            info = info.set_protocol(ProtocolVersion::RESP3);
            config = config.set_push_sender(move |pushed| message(pushed).map_or(Ok(()), |text| announce.send(text)));
        }
        if let Some(user) = user {
            info = info.set_username(user);
        }
        if let Some(password) = password {
            info = info.set_password(password);
        }
        let opened = MultiplexedConnection::new_with_config(&info, stream, config).await;
        let (multiplexed, driver) = opened.map_err(|error| CallError::of(&error))?;
        let (open, closed) = oneshot::channel();
        let driver = tokio::spawn(async move {
            driver.await;
            drop::<oneshot::Sender<()>>(open);
        });
        let connection = Self { multiplexed, _driver: Arc::new(AbortOnDrop(driver.abort_handle())) };
        Ok(Opened { connection, closed, announcements })
    }

    /// Hears what is announced on the channel from now on.
    pub(super) async fn subscribe(&self, channel: &str) -> Result<(), CallError> {
        self.multiplexed.clone().subscribe(channel).await.map_err(|error| CallError::of(&error))
    }

    /// Reads a hash: fields and values.
    pub(super) async fn settings(&self, hash: &str) -> Result<Vec<(String, String)>, CallError> {
        let read = cmd("HGETALL").arg(hash).query_async(&mut self.multiplexed.clone()).await;
        read.map_err(|error| CallError::of(&error))
    }

    /// Loads the scripts, so that none is dropped for others. A server or a proxy that forbids it
    /// gets them in full.
    pub(super) async fn load_scripts(&self) -> Result<(), CallError> {
        let loads = Script::of_requests().map(|script| {
            let mut connection = self.multiplexed.clone();
            async move { cmd("SCRIPT").arg("LOAD").arg(script.text).query_async::<Value>(&mut connection).await }
        });
        let failed: Vec<_> = join_all(loads).await.into_iter().filter_map(Result::err).collect();
        // A server that refuses a client says why, and closes the connection.
        let is_closed = failed.iter().any(|error| error.code().is_none());
        let said = failed.iter().find(|error| error.code().is_some()).or(failed.first());
        match said.filter(|_| is_closed) {
            Some(error) => Err(CallError::of(error)),
            None => Ok(()),
        }
    }

    /// Asks a sentinel for the primary of this name. `None` where it knows none.
    pub(super) async fn primary(&mut self, name: &str) -> Result<Option<NodeAddress>, CallError> {
        let asked = cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).to_owned();
        asked.query_async(&mut self.multiplexed).await.map_err(|error| CallError::of(&error))
    }

    /// Asks a node of a cluster, at this host, where the slots are.
    pub(super) async fn slots(&mut self, host: &str) -> Result<Vec<SlotRange>, CallError> {
        let reply = cmd("CLUSTER").arg("SLOTS").query_async::<Value>(&mut self.multiplexed).await;
        let reply = reply.map_err(|error| CallError::of(&error))?;
        SlotRange::read_all(&reply, host)
            .ok_or_else(|| CallError::Connection("the node does not know the slots of its cluster".into()))
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
            for demand @ RedisDemand { cells, quota, planned, patience, shadow, .. } in demands {
                command.arg(*cells).arg(quota.cell_nanos().get()).arg(quota.burst_size()).arg(patience.get());
                command.arg(if *planned { plan_text(*quota) } else { String::new() }).arg(u8::from(*shadow));
                command.arg(demand.boundaries());
            }
            command
        };
        let Script { text, name } = &*ACQUIRE;
        let (by_name, in_full) = (call("EVALSHA", name), || call("EVAL", text));
        let reply = if asking {
            // In one pipeline, and in full, because it is not known which scripts that node has.
            let mut both = pipe();
            both.cmd("ASKING").ignore().add_command(in_full());
            let answers: Result<(Value,), _> = both.query_async(&mut self.multiplexed).await;
            answers.map(|(reply,)| reply).map_err(|error| CallError::of(&last_of(error)))?
        } else {
            self.run(by_name, in_full).await?
        };
        elements(reply)
            .and_then(|reply| Reply::read(&reply, demands.len()))
            .ok_or_else(|| CallError::Key("the reply is not that of the script".into()))
    }

    pub(super) async fn settle(&mut self, settlement: &Settlement) -> Result<Value, CallError> {
        let Settlement { at, parts } = settlement;
        let call = |verb: &str, script: &str| {
            let mut command = script_call(verb, script, parts.iter().map(|part| &part.key));
            command.arg(at.seconds).arg(at.nanos);
            for part in parts {
                let SettlementPart {
                    refund, generation, quota, planned, arrival, charge, slack, paused, waits, ..
                } = part;
                command.arg(refund.get()).arg(*generation).arg(quota.cell_nanos().get()).arg(quota.burst_size());
                command.arg(arrival.map(|arrival| arrival.as_nanos().to_string()).unwrap_or_default());
                command.arg(*charge).arg(slack.get());
                command.arg(if *planned { plan_text(*quota) } else { String::new() }).arg(paused.get());
                command.arg(waits.get()).arg(boundaries(part.window));
                command.arg(ServerTime::of(part.window_start).seconds);
            }
            command
        };
        let Script { text, name } = &*SETTLE;
        self.run(call("EVALSHA", name), || call("EVAL", text)).await
    }

    /// Runs what an operator has asked for.
    pub(super) async fn query(&mut self, query: &Query) -> Result<Vec<Element>, CallError> {
        let reply = match query {
            Query::Script { script, key, arguments } => {
                let call = |verb: &str, script: &str| {
                    let mut command = script_call(verb, script, std::iter::once(key));
                    command.arg(arguments);
                    command
                };
                self.run(call("EVALSHA", &script.name), || call("EVAL", script.text)).await?
            }
            Query::Scan { cursor, pattern, count } => {
                let mut command = cmd("SCAN");
                command.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(*count);
                let reply = command.query_async(&mut self.multiplexed).await;
                reply.map_err(|error| CallError::of(&error))?
            }
            Query::Settings { hash } => {
                let settings = self.settings(hash).await?;
                let texts = settings.into_iter().flat_map(|(field, value)| [field, value]).map(Element::Text);
                return Ok(texts.collect());
            }
            Query::Settle(settlement) => self.settle(settlement).await?,
        };
        // Whoever reads it says that it is none of the script's, which has run all the same.
        Ok(elements(reply).unwrap_or_default())
    }

    async fn run(&mut self, by_name: Cmd, in_full: impl FnOnce() -> Cmd) -> Result<Value, CallError> {
        let mut answer = by_name.query_async(&mut self.multiplexed).await;
        if answer.as_ref().is_err_and(|error: &RedisError| error.code() == Some("NOSCRIPT")) {
            // The scripts were flushed, or another server has the address. Nothing has run, so this
            // is no retry.
            answer = in_full().query_async(&mut self.multiplexed).await;
        }
        answer.map_err(|error| CallError::of(&error))
    }
}

/// What a new connection has heard, or why it hears nothing.
pub(super) struct Prepared {
    pub(super) subscribed: Result<(), CallError>,
    pub(super) settings: Result<Vec<(String, String)>, CallError>,
}

/// The text of a message to those that have subscribed.
fn message(pushed: PushInfo) -> Option<String> {
    match (pushed.kind, pushed.data.into_iter().nth(1)) {
        (PushKind::Message, Some(Value::BulkString(text))) => Some(String::from_utf8_lossy(&text).into_owned()),
        (PushKind::Message, Some(Value::SimpleString(text))) => Some(text),
        _ => None,
    }
}

/// The numbers and texts of a reply. `None` where it has others.
fn elements(reply: Value) -> Option<Vec<Element>> {
    fn add(value: Value, to: &mut Vec<Element>) -> Option<()> {
        match value {
            Value::Int(number) => to.push(Element::Number(number)),
            Value::BulkString(text) => to.push(Element::Text(String::from_utf8_lossy(&text).into_owned())),
            Value::SimpleString(text) => to.push(Element::Text(text)),
            Value::Array(values) => return values.into_iter().try_for_each(|value| add(value, to)),
            _ => return None,
        }
        Some(())
    }
    let mut elements = Vec::new();
    add(reply, &mut elements).map(|()| elements)
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
    /// The server has closed the connection.
    Closed,
    /// The connection, or its server, serves no call.
    Connection(Box<str>),
    /// The connection has failed. It is unknown whether the call has run.
    Io(Box<str>),
    /// These keys cause the error. Calls for other keys may succeed.
    Key(Box<str>),
    /// What answers does not speak the protocol of Redis.
    Protocol,
    /// Another node has these keys.
    Redirect(Redirect),
    /// The server has no third version of the protocol.
    NoResp3,
    /// No answer in time. It is unknown whether the call has run, so no call is ever repeated.
    Timeout,
}

impl CallError {
    fn of(error: &RedisError) -> Self {
        if error.is_timeout() {
            return Self::Timeout;
        }
        if let Some(redirect) = Redirect::read(error) {
            return Self::Redirect(redirect);
        }
        let detail = error.detail().unwrap_or_default();
        if error.kind() == ErrorKind::RESP3NotSupported
            || error.code() == Some("NOPROTO")
            || detail.to_ascii_lowercase().contains("'hello'")
        {
            return Self::NoResp3;
        }
        match (error.code(), error.kind()) {
            // The script met a value of another type for these keys, or a number that is none.
            (Some(code @ ("WRONGTYPE" | "ERR")), _) if !reason::is_of_server(detail) => {
                Self::Key(reason::of_reply(code, detail).into())
            }
            (Some(code), _) => Self::Connection(reason::of_reply(code, detail).into()),
            (None, ErrorKind::AuthenticationFailed) => Self::Connection(reason::LOGIN.into()),
            (None, ErrorKind::Parse) => Self::Protocol,
            (None, _) => {
                // The client's error has an `Arc` of the system's.
                let source = error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
                let source = source.and_then(|source| source.downcast_ref::<io::Error>());
                #[cfg(feature = "redis-tls")]
                if let Some(reason) = source.and_then(super::tls::reason) {
                    return Self::Io(reason.into());
                }
                match source {
                    Some(source) if source.get_ref().is_some() => Self::Io(source.to_string().into()),
                    _ if error.is_connection_dropped() => Self::Closed,
                    Some(source) => Self::Io(source.to_string().into()),
                    None => Self::Io(error.category().into()),
                }
            }
        }
    }

    /// For an event.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Closed => "the server closed the connection",
            Self::Connection(reason) | Self::Io(reason) | Self::Key(reason) => reason,
            Self::NoResp3 => "the server does not know the third version of the protocol: write ?protocol=resp2",
            Self::Protocol => "what answers does not speak the protocol of Redis",
            Self::Redirect(_) => reason::CLUSTER_MODE,
            Self::Timeout => "no answer in time",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn a_node_is_where_it_says_and_otherwise_where_it_was_asked() {
        let list = Value::Array(vec![text("hostname"), text("x"), text("ip"), text("10.0.0.1")]);
        let map = Value::Map(vec![(text("ip"), text("10.0.0.2"))]);
        let empty = Value::Map(vec![]);
        for (host, metadata, expected) in [
            (text("node.example"), None, "node.example"),
            (Value::SimpleString("node.example".to_owned()), None, "node.example"),
            (text("?"), Some(list), "10.0.0.1"),
            (text("?"), Some(map), "10.0.0.2"),
            (text("?"), Some(empty), "asked"),
            (text("?"), None, "asked"),
            (text(""), None, "asked"),
            (Value::Nil, None, "asked"),
        ] {
            let mut primary = vec![host, Value::Int(7_000), text("id")];
            primary.extend(metadata);
            let range = Value::Array(vec![Value::Int(0), Value::Int(16_383), Value::Array(primary)]);
            let read = SlotRange::read_all(&Value::Array(vec![range]), "asked").unwrap();
            assert_eq!(read, [SlotRange { first: 0, last: 16_383, primary: (expected.to_owned(), 7_000) }]);
        }
    }

    #[test]
    fn a_reply_that_is_no_map_of_slots_is_none() {
        let range =
            |first: Value, primary: Value| Value::Array(vec![Value::Array(vec![first, Value::Int(1), primary])]);
        let primary = || Value::Array(vec![text("host"), Value::Int(7_000)]);
        for reply in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Nil]),
            range(Value::Int(-1), primary()),
            range(Value::Int(2), primary()),
            range(text("0"), primary()),
            range(Value::Int(0), text("host")),
            range(Value::Int(0), Value::Array(vec![text("host"), Value::Int(70_000)])),
        ] {
            assert_eq!(SlotRange::read_all(&reply, "asked"), None, "{reply:?}");
        }
    }
}
