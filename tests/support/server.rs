//! A server of a test's own, on a free port.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;

use axum::Router;
use tokio::{net::TcpListener, runtime::Runtime};

/// A server in the background, which ends with its runtime.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _runtime: Runtime,
}

pub(crate) fn serve_axum(app: Router) -> Server {
    serve(|listener| async move {
        axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await.unwrap();
    })
}

pub(crate) fn serve<F: Future<Output = ()> + Send + 'static>(run: impl FnOnce(TcpListener) -> F) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let server = {
        let _entered = runtime.enter();
        run(listener)
    };
    runtime.spawn(server);
    Server { address, _runtime: runtime }
}
