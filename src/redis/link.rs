//! The connection: dialling, probing, asking, and what errors mean.
//!
//! The only file that knows the client crate. Owns no decision about when to dial or whom to ask.

use std::time::Duration;

use ::redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo as _, RedisError,
    aio::MultiplexedConnection,
    cmd,
    io::tcp::TcpSettings,
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};
use tokio::time::timeout;

use super::script::{ACQUIRE, Limit, Reply};

/// Where Redis or Valkey is. Made without connecting.
#[derive(Clone, Debug)]
pub(super) enum Server {
    Single(Client),
    /// The sentinels, and the name of the primary that they watch.
    Sentinel(Vec<ConnectionInfo>, String),
}

/// Of a server that is there. Behind a slow one this is what a redial costs at most; no request waits for it.
const DIAL: Duration = Duration::from_millis(500);

impl Server {
    /// # Errors
    ///
    /// The reason in words, where the address is none.
    pub(super) fn single(url: &str) -> Result<Self, String> {
        Client::open(address(url)?).map(Self::Single).map_err(|error| error.to_string())
    }

    pub(super) fn sentinel(urls: &[&str], primary: &str) -> Result<Self, String> {
        if urls.is_empty() {
            return Err("no sentinel is named".to_owned());
        }
        let sentinels = urls.iter().map(|url| address(url)).collect::<Result<_, _>>()?;
        Ok(Self::Sentinel(sentinels, primary.to_owned()))
    }

    /// A connection that has proved itself: the script is there, and it runs and writes.
    pub(super) async fn dial(&self, probe: &Limit, patience: Duration) -> Result<Link, Fault> {
        timeout(DIAL, async {
            let connection = self.connect(patience).await.map_err(|error| Fault::of(&error))?;
            let mut link = Link { connection, sha: String::new() };
            link.load().await.map_err(|error| Fault::of(&error))?;
            for _ in 0..2 {
                link.acquire(std::slice::from_ref(probe), 1, 1).await?;
            }
            Ok(link)
        })
        .await
        .unwrap_or(Err(Fault::Late))
    }

    async fn connect(&self, patience: Duration) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(DIAL))
            // Ours is the one that counts; this one ends what nobody waits for any more.
            .set_response_timeout(Some(patience * 2))
            .set_pipeline_buffer_size(1_024);
        match self {
            Self::Single(client) => client.get_multiplexed_async_connection_with_config(&config).await,
            Self::Sentinel(sentinels, primary) => {
                // Asked anew each time: the primary may be another one.
                let mut sentinel = Sentinel::build(sentinels.clone())?;
                let node = SentinelNodeConnectionInfo::default();
                let client = sentinel.async_master_for(primary, Some(&node)).await?;
                let info = client.get_connection_info().clone().set_tcp_settings(at_once());
                Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
            }
        }
    }
}

fn address(url: &str) -> Result<ConnectionInfo, String> {
    let info = url.into_connection_info().map_err(|error| format!("the address is none of Redis: {error}"))?;
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
}

impl Link {
    async fn load(&mut self) -> Result<(), RedisError> {
        self.sha = cmd("SCRIPT").arg("LOAD").arg(ACQUIRE).query_async(&mut self.connection).await?;
        Ok(())
    }

    /// Asks for `want` requests of these limits, and for none if fewer than `need` are to be had.
    pub(super) async fn acquire(&mut self, limits: &[Limit], need: u32, want: u32) -> Result<Reply, Fault> {
        let ask = |verb: &str, script: &str| {
            let mut command = cmd(verb);
            command.arg(script).arg(limits.len());
            for limit in limits {
                command.arg(&limit.key);
            }
            command.arg(need).arg(want);
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
            Ok(numbers) => Reply::read(&numbers, limits.len()).ok_or(Fault::Key),
            Err(error) => Err(Fault::of(&error)),
        }
    }
}

/// What an error means for those who come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Something about these keys: it says nothing of others.
    Key,
    /// No answer in time. Whether it was carried out is unknown, so nothing is ever asked twice.
    Late,
    /// The connection, or the server behind it, is of no use to anybody.
    Link,
}

impl Fault {
    fn of(error: &RedisError) -> Self {
        if error.is_timeout() {
            return Self::Late;
        }
        match error.code() {
            // Of the script for these keys: another type stands there, or a number is none.
            Some("WRONGTYPE" | "ERR" | "CROSSSLOT") => Self::Key,
            // READONLY, LOADING, MASTERDOWN, OOM, NOREPLICAS, MISCONF, BUSY, NOPERM, NOAUTH, …: all keys would meet it. And what
            // has no code: refused, reset, closed.
            _ => Self::Link,
        }
    }
}
