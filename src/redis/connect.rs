//! Contains how a server is found and connected to: directly, through sentinels, or as a node of a
//! cluster, until the connection works.
//!
//! This file must not know when to connect.

use std::{slice, time::Duration};

use futures_util::future::{BoxFuture, join3};
use tokio::time::timeout;

use super::{
    address::{Address, Endpoint, NodeAddress},
    connection::{Announcements, CallError, Closed, Connection, Opened, Prepared, SlotRange},
    dial::{Dialer, Target},
    protocol::RedisDemand,
};
use crate::clock::Clock;

/// Where a server is. Created without connecting.
#[derive(Clone, Debug)]
pub(super) enum Server {
    Direct(Endpoint),
    Sentinel {
        sentinels: Vec<Endpoint>,
        /// The name of the primary.
        name: String,
        /// The login of the primary, and whether it has TLS.
        primary: Endpoint,
    },
}

/// A connection that works.
pub(super) struct Connected {
    pub(super) connection: Connection,
    pub(super) closed: Closed,
    pub(super) announcements: Announcements,
    pub(super) prepared: Prepared,
    /// How long an answer took.
    pub(super) latency: Duration,
    /// Where the server is.
    pub(super) address: Address,
}

/// How a connection is tested.
#[derive(Clone, Copy)]
pub(super) struct Test<'a> {
    pub(super) probe: &'a RedisDemand,
    /// The hash and the channel of what an operator says.
    pub(super) control: &'a str,
    /// A node of a cluster also works if it names another node for the probe, whose slot may be
    /// migrating or have moved.
    pub(super) in_cluster: bool,
    pub(super) call_timeout: Duration,
}

impl Server {
    /// Returns a connection that works: the script runs there, writes, and answers in time.
    ///
    /// The error has the address, and says what to do.
    pub(super) async fn connect(&self, dialer: &Dialer, test: Test<'_>) -> Result<Connected, String> {
        let (sentinels, name, primary) = match self {
            Self::Direct(endpoint) => return connect_to(dialer, endpoint, test).await,
            Self::Sentinel { sentinels, name, primary } => (sentinels, name, primary),
        };
        let mut failed = String::new();
        let mut tried = Vec::new();
        // One after the other: one that hangs, or that is behind the others, does not hide them.
        for sentinel in sentinels {
            let found = match find_primary(dialer, sentinel, name).await {
                Ok(found) => primary.beside(dialer.map(found)),
                Err(reason) => {
                    failed = reason;
                    continue;
                }
            };
            if tried.contains(&found.address) {
                continue;
            }
            match connect_to(dialer, &found, test).await {
                Ok(connected) => return Ok(connected),
                Err(reason) => failed = format!("{reason} (named by the sentinel {})", sentinel.address),
            }
            tried.push(found.address);
        }
        Err(failed)
    }
}

/// Asks a node of a cluster, over a connection of its own, where the slots are.
pub(super) async fn slots(dialer: &Dialer, node: &Endpoint) -> Result<Vec<SlotRange>, String> {
    let Some((host, _)) = &node.node_address() else { return Err("a unix socket is in no cluster".to_owned()) };
    at_each_target(dialer, &node.address, |target| {
        Box::pin(async move {
            let Opened { mut connection, .. } = log_in(dialer, node, &target, true).await?;
            let slots = dialer.within(connection.slots(host)).await;
            slots.ok_or_else(|| dialer.no_answer("to CLUSTER SLOTS"))?.map_err(|error| explain(node, &error))
        })
    })
    .await
}

async fn find_primary(dialer: &Dialer, sentinel: &Endpoint, name: &str) -> Result<NodeAddress, String> {
    at_each_target(dialer, &sentinel.address, |target| {
        Box::pin(async move {
            let Opened { mut connection, .. } = log_in(dialer, sentinel, &target, false).await?;
            let found = dialer.within(connection.primary(name)).await.ok_or_else(|| dialer.no_answer("to SENTINEL"))?;
            let found = found.map_err(|error| explain(sentinel, &error))?;
            found.ok_or_else(|| {
                format!("the sentinel knows no primary of the name {name:?}: see SENTINEL MASTERS there")
            })
        })
    })
    .await
}

async fn connect_to(dialer: &Dialer, endpoint: &Endpoint, test: Test<'_>) -> Result<Connected, String> {
    at_each_target(dialer, &endpoint.address, |target| {
        Box::pin(async move {
            let Opened { mut connection, closed, announcements } = log_in(dialer, endpoint, &target, true).await?;
            // All at once. Whether announcements come decides nothing.
            let (loaded, subscribed, settings) = join3(
                dialer.within(connection.load_scripts()),
                dialer.within(connection.subscribe(test.control)),
                dialer.within(connection.settings(test.control)),
            )
            .await;
            loaded.ok_or_else(|| dialer.no_answer("to SCRIPT LOAD"))?.map_err(|error| explain(endpoint, &error))?;
            let subscribed = subscribed.unwrap_or(Err(CallError::Timeout));
            let prepared = Prepared { subscribed, settings: settings.unwrap_or(Err(CallError::Timeout)) };
            let first = dialer.within(test.run(&mut connection)).await;
            first.ok_or_else(|| dialer.no_answer("to the script"))?.map_err(|error| explain(endpoint, &error))?;
            let clock = Clock::system();
            let start = clock.now();
            let second = timeout(test.call_timeout, test.run(&mut connection)).await;
            second
                .map_err(|_elapsed| {
                    format!("the server takes longer than {:?} to answer: raise `timeout`", test.call_timeout)
                })?
                .map_err(|error| explain(endpoint, &error))?;
            let latency = clock.now().since(start).into();
            Ok(Connected { connection, closed, announcements, prepared, latency, address: endpoint.address.clone() })
        })
    })
    .await
}

impl Test<'_> {
    pub(super) async fn run(self, connection: &mut Connection) -> Result<(), CallError> {
        match connection.acquire(slice::from_ref(self.probe), 1, false).await {
            Err(CallError::Redirect(_)) if self.in_cluster => Ok(()),
            // The probe has no other key: what goes wrong with it goes wrong with all.
            Err(CallError::Key(reason)) => Err(CallError::Connection(reason)),
            answer => answer.map(drop),
        }
    }
}

/// Of the addresses of a name.
const MAX_REASONS: usize = 3;

/// Tries all addresses of a name in turn. The error has the address.
async fn at_each_target<'a, T>(
    dialer: &Dialer,
    address: &Address,
    attempt: impl Fn(Target) -> BoxFuture<'a, Result<T, String>>,
) -> Result<T, String> {
    let mut failed: Vec<String> = Vec::new();
    for target in dialer.targets(address).await.map_err(|reason| address.with(&reason))? {
        let attempted = attempt(target.clone()).await;
        dialer.used(&target, attempted.is_ok());
        match attempted {
            Ok(found) => return Ok(found),
            Err(reason) if failed.len() < MAX_REASONS && !failed.contains(&reason) => failed.push(reason),
            Err(_) => {}
        }
    }
    Err(address.with(&failed.join("; ")))
}

/// Logs in, with the third version of the protocol where the server has it, unless the address says
/// which.
async fn log_in(
    dialer: &Dialer,
    endpoint: &Endpoint,
    target: &Target,
    with_credentials: bool,
) -> Result<Opened, String> {
    let login = if with_credentials { dialer.login(&endpoint.login).await? } else { endpoint.login.clone() };
    let open = async |resp3: bool| {
        let stream = dialer.dial(&endpoint.address, target).await?;
        let opened = dialer.within(Connection::open(stream, &login, resp3)).await;
        Ok::<_, String>(opened.unwrap_or(Err(CallError::Timeout)))
    };
    let mut opened = open(login.resp3.unwrap_or(with_credentials)).await?;
    let unknown =
        matches!(opened, Err(CallError::Closed | CallError::NoResp3 | CallError::Protocol | CallError::Timeout));
    if unknown && login.resp3.is_none() && with_credentials {
        // A server from before the third version, or a proxy, may not know it.
        opened = open(false).await?;
    }
    if let Err(CallError::Timeout) = opened {
        return Err(dialer.no_answer("to the login"));
    }
    opened.map_err(|error| {
        let reason = explain(endpoint, &error);
        // A proxy that does not know a command may repeat what it was sent.
        let password = login.password.as_deref().filter(|password| !password.is_empty());
        password.map_or(reason.clone(), |password| reason.replace(password, "…"))
    })
}

/// Why a new connection does not work.
fn explain(endpoint: &Endpoint, error: &CallError) -> String {
    match error {
        CallError::Closed | CallError::Protocol if !endpoint.uses_tls() => {
            format!("{}: if the server has TLS there, write rediss:// or valkeys://", error.reason())
        }
        error => error.reason().to_owned(),
    }
}
