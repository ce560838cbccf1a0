//! The connection: dialling, probing, asking, and what errors mean.
//!
//! The only file that knows the client crate. Owns no decision about when to dial or whom to ask.

use std::{slice, time::Duration};

use ::redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo, RedisError,
    aio::MultiplexedConnection,
    cmd,
    io::tcp::TcpSettings,
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};
use tokio::time::timeout;

use super::script::{ACQUIRE, Limit, Reply};
use crate::clock::Clock;

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

    /// A connection that has proved itself: the script is there, it runs and writes, and answers in time.
    pub(super) async fn dial(&self, probe: &Limit, patience: Duration) -> Result<Link, Fault> {
        let info = self.find().await?;
        let proving = async {
            let client = Client::open(info).map_err(|error| Fault::of(&error))?;
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(DIAL))
                // Ours is the one that counts; this one ends what nobody waits for any more.
                .set_response_timeout(Some(patience.saturating_mul(2)))
                .set_pipeline_buffer_size(1_024);
            let connection = client.get_multiplexed_async_connection_with_config(&config).await;
            let mut link = Link {
                connection: connection.map_err(|error| Fault::of(&error))?,
                sha: String::new(),
                took: Duration::ZERO,
            };
            link.load().await.map_err(|error| Fault::of(&error))?;
            link.acquire(slice::from_ref(probe), 1).await?;
            let (clock, again) = (Clock::system(), link.acquire(slice::from_ref(probe), 1));
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
fn address(url: &str) -> Result<ConnectionInfo, String> {
    let info = url.into_connection_info();
    let info =
        info.map_err(|_| "the address is none of Redis: redis://[user:password@]host[:port][/database]".to_owned())?;
    Ok(info.set_tcp_settings(at_once()))
}

/// Without Nagle's algorithm, which the client leaves on.
fn at_once() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

/// A connection, and the name of the script behind it. Clones share it, and what they ask is pipelined.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    sha: String,
    /// What an answer took when it was dialled.
    pub(super) took: Duration,
}

impl Link {
    async fn load(&mut self) -> Result<(), RedisError> {
        self.sha = cmd("SCRIPT").arg("LOAD").arg(ACQUIRE).query_async(&mut self.connection).await?;
        Ok(())
    }

    /// Asks for `want` requests of these limits, or as many as are to be had.
    pub(super) async fn acquire(&mut self, limits: &[Limit], want: u32) -> Result<Reply, Fault> {
        let ask = |verb: &str, script: &str| {
            let mut command = cmd(verb);
            command.arg(script).arg(limits.len());
            for limit in limits {
                command.arg(&limit.key);
            }
            command.arg(want);
            for Limit { unit, burst, shadow, .. } in limits {
                command.arg(*unit).arg(*burst).arg(u8::from(*shadow));
            }
            command
        };
        let mut answer = ask("EVALSHA", &self.sha).query_async::<Vec<i64>>(&mut self.connection).await;
        if answer.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT")) {
            // Flushed, or another server behind the address. Nothing has run: this is the first time, not the second.
            answer = ask("EVAL", ACQUIRE).query_async(&mut self.connection).await;
        }
        match answer {
            Ok(numbers) => {
                Reply::read(&numbers, limits.len()).ok_or_else(|| Fault::Key("a reply that is not the script's".into()))
            }
            Err(error) => Err(Fault::of(&error)),
        }
    }
}

/// What an error means for those who come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
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

impl Fault {
    fn of(error: &RedisError) -> Self {
        if error.is_timeout() {
            return Self::Late;
        }
        let detail = error.detail().unwrap_or_default();
        match error.code() {
            // Of the script for these keys: another type stands there, or a number is none.
            Some(code @ ("WRONGTYPE" | "ERR")) if !OF_THE_SERVER.iter().any(|word| detail.contains(word)) => {
                Self::Key(code.into())
            }
            // A server in cluster mode, which is not supported: all would meet it sooner or later.
            Some(code @ ("CROSSSLOT" | "MOVED" | "ASK")) => {
                Self::Link(format!("{code}: the server is in cluster mode, which is not supported").into())
            }
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
        }
    }
}
