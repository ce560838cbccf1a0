//! Contains how a server is found and connected to: directly or through sentinels, until the
//! connection works.
//!
//! This file must not know when to connect.

use std::{slice, time::Duration};

use tokio::time::timeout;

use super::{
    connection::{CallError, Connection, Endpoint},
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
        /// The login of the primary.
        primary: Box<Endpoint>,
    },
}

/// For connecting and testing the connection. No request waits for it.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// For one sentinel: the next one may answer.
const SENTINEL_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that works.
pub(super) struct Connected {
    pub(super) connection: Connection,
    /// How long an answer took.
    pub(super) latency: Duration,
}

impl Server {
    /// Returns a connection that works: the scripts are there, they run and write, and answer in
    /// time.
    ///
    /// A node of a cluster also works if it names another node for the probe, whose slot may be
    /// migrating or have moved.
    pub(super) async fn connect(
        &self,
        probe: &RedisDemand,
        in_cluster: bool,
        call_timeout: Duration,
    ) -> Result<Connected, CallError> {
        let endpoint = self.find().await?;
        let connecting = async {
            // The worker's timeout decides. The client's own only ends calls that nobody waits for
            // any more.
            let mut connection = Connection::open(endpoint, CONNECT_TIMEOUT, call_timeout.saturating_mul(2)).await?;
            test(&mut connection, probe, in_cluster).await?;
            let clock = Clock::system();
            let start = clock.now();
            let second = timeout(call_timeout, test(&mut connection, probe, in_cluster));
            second.await.unwrap_or(Err(CallError::Timeout))?;
            Ok(Connected { connection, latency: clock.now().since(start).into() })
        };
        let limit = CONNECT_TIMEOUT.max(call_timeout.saturating_mul(4));
        timeout(limit, connecting).await.unwrap_or(Err(CallError::Timeout))
    }

    /// Where the server is now.
    async fn find(&self) -> Result<Endpoint, CallError> {
        let (sentinels, name, primary) = match self {
            Self::Direct(endpoint) => return Ok(endpoint.clone()),
            Self::Sentinel { sentinels, name, primary } => (sentinels, name, primary),
        };
        let mut error = CallError::Timeout;
        for sentinel in sentinels {
            // One after the other, each with its own timeout, so that a hanging one does not hide
            // the others.
            match timeout(SENTINEL_TIMEOUT, sentinel.find_primary(name, primary)).await {
                Ok(Ok(endpoint)) => return Ok(endpoint),
                Ok(Err(failed)) => error = failed,
                Err(_elapsed) => {}
            }
        }
        Err(match error {
            CallError::Key(reason) => CallError::Connection(reason),
            other => other,
        })
    }
}

async fn test(connection: &mut Connection, probe: &RedisDemand, in_cluster: bool) -> Result<(), CallError> {
    match connection.acquire(slice::from_ref(probe), 1, false).await {
        Err(CallError::Redirect(_)) if in_cluster => Ok(()),
        answer => answer.map(drop),
    }
}
