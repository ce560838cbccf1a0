//! Requests in flight behind real sockets, whatever becomes of clients and connections.
#![cfg(all(feature = "axum", feature = "tonic"))]

#[path = "support/server.rs"]
mod server;
#[path = "support/waiting.rs"]
mod waiting;
#[path = "support/wire.rs"]
mod wire;

use std::{
    convert::Infallible,
    future::pending,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use server::{Server, serve, serve_axum};
use tokio::sync::Semaphore;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_quota::{InFlightLayer, key::Header};
use waiting::within_a_minute;
use wire::Connection;

const ANN: [(&str, &str); 1] = [("x-api-key", "ann")];

fn of_each_key(limit: u32) -> InFlightLayer {
    InFlightLayer::per(Header::new("x-api-key"), limit)
}

/// How many requests a handler serves at once, as it sees it.
#[derive(Default)]
struct Serving {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Serving {
    fn begin(self: &Arc<Self>) -> Served {
        self.most.fetch_max(self.now.fetch_add(1, Ordering::AcqRel) + 1, Ordering::AcqRel);
        Served(Arc::clone(self))
    }

    fn now(&self) -> usize {
        self.now.load(Ordering::Acquire)
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::Acquire)
    }
}

struct Served(Arc<Serving>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A body of more bytes than sockets have buffers for, which is served as long as the client reads.
fn endless(served: Served) -> Body {
    let chunk = Bytes::from(vec![b'x'; 65_536]);
    Body::from_stream(stream::unfold(served, move |served| {
        let chunk = chunk.clone();
        async move { Some((Ok::<_, Infallible>(chunk), served)) }
    }))
}

/// An application that streams without an end, and what its handler sees.
fn streaming(layer: &InFlightLayer) -> (Router, Arc<Serving>) {
    let serving = Arc::<Serving>::default();
    let handler = {
        let serving = Arc::clone(&serving);
        move || async move { endless(serving.begin()) }
    };
    (Router::new().route("/", get(handler)).layer(layer.clone()), serving)
}

/// The status of an answer whose body nobody reads.
fn begin(stream: &mut TcpStream, request: &str) -> u16 {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    std::str::from_utf8(&head[9..]).unwrap().parse().unwrap()
}

fn ask(address: SocketAddr) -> (TcpStream, u16) {
    let mut stream = TcpStream::connect(address).unwrap();
    let status = begin(&mut stream, "GET / HTTP/1.1\r\nhost: test\r\nx-api-key: ann\r\n\r\n");
    (stream, status)
}

/// Runs a client, and fails if it has not ended in a minute.
fn run(client: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), client).await }).expect("it ends in time");
}

/// Waits until so many requests are in flight.
async fn in_flight(layer: &InFlightLayer, number: usize) {
    while layer.total_in_flight() != number {
        tokio::task::yield_now().await;
    }
}

async fn connect(address: SocketAddr) -> SendRequest<TestBody> {
    let stream = TokioIo::new(tokio::net::TcpStream::connect(address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

type TestBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

fn over_http2(address: SocketAddr) -> http::Request<TestBody> {
    let request = http::Request::get(format!("http://{address}/")).header("x-api-key", "ann");
    request.body(Empty::new().boxed_unsync()).unwrap()
}

#[test]
fn inf01_over_http1_as_many_are_served_as_may_be_and_one_more_when_a_client_goes() {
    let layer = of_each_key(4);
    let (app, serving) = streaming(&layer);
    let server = serve_axum(app);
    let mut open = Vec::new();
    let mut denied = 0;
    for _ in 0..12 {
        match ask(server.address) {
            (stream, 200) => open.push(stream),
            (_, 429) => denied += 1,
            (_, status) => panic!("{status}"),
        }
    }
    assert_eq!((open.len(), denied, serving.now(), layer.in_flight("ann")), (4, 8, 4, 4));
    // Without a farewell.
    drop(open.pop());
    within_a_minute(|| layer.in_flight("ann") == 3);
    let (_stream, status) = ask(server.address);
    assert_eq!(status, 200);
    drop(open);
    within_a_minute(|| layer.in_flight("ann") == 1);
    assert_eq!(serving.most(), 4);
}

#[test]
fn inf01_over_http2_the_streams_of_one_connection_are_requests() {
    let layer = of_each_key(8);
    let (app, serving) = streaming(&layer);
    let server = serve_axum(app);
    run(async {
        let mut sender = connect(server.address).await;
        let calls = (0..50).map(|_| sender.send_request(over_http2(server.address)));
        let responses = join_all(calls.collect::<Vec<_>>()).await;
        let (open, denied): (Vec<_>, Vec<_>) =
            responses.into_iter().map(Result::unwrap).partition(|response| response.status() == 200);
        assert!(denied.iter().all(|response| response.status() == 429));
        assert_eq!((open.len(), denied.len(), layer.in_flight("ann")), (8, 42, 8));
        // A dropped body resets its stream.
        drop(open);
        // Something has to be read for the resets to be sent.
        in_flight(&layer, 0).await;
    });
    assert_eq!((serving.most(), serving.now()), (8, 0));
}

#[test]
fn a_client_that_goes_before_the_head_ends_its_request() {
    let layer = of_each_key(9);
    let handler = || async {
        pending::<()>().await;
    };
    let server = serve_axum(Router::new().route("/", get(handler)).layer(layer.clone()));
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nx-api-key: ann\r\n\r\n").unwrap();
    within_a_minute(|| layer.in_flight("ann") == 1);
    drop(stream);
    within_a_minute(|| layer.in_flight("ann") == 0);

    run(async {
        let mut sender = connect(server.address).await;
        let call = tokio::spawn(sender.send_request(over_http2(server.address)));
        in_flight(&layer, 1).await;
        call.abort();
        in_flight(&layer, 0).await;
    });
}

#[test]
fn head_304_and_an_empty_body_leave_no_permit_on_an_open_connection() {
    let layer = of_each_key(1);
    let app = Router::new()
        .route("/", get(|| async { "a body that HEAD does not have" }))
        .route("/304", get(|| async { StatusCode::NOT_MODIFIED }))
        .route("/204", get(|| async { StatusCode::NO_CONTENT }))
        .route("/empty", get(|| async {}))
        .layer(layer.clone());
    let server = serve_axum(app);
    let mut connection = Connection::open(server.address);
    let mut raw = TcpStream::connect(server.address).unwrap();
    assert_eq!(begin(&mut raw, "HEAD / HTTP/1.1\r\nhost: test\r\nx-api-key: ann\r\n\r\n"), 200);
    within_a_minute(|| layer.in_flight("ann") == 0);
    for path in ["/304", "/204"] {
        let mut raw = TcpStream::connect(server.address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nx-api-key: ann\r\n\r\n");
        assert_eq!(begin(&mut raw, &request), path[1..].parse::<u16>().unwrap());
        within_a_minute(|| layer.in_flight("ann") == 0);
    }
    for path in ["/empty", "/"] {
        assert_eq!(connection.send("GET", path, &ANN).status, 200);
        within_a_minute(|| layer.in_flight("ann") == 0);
    }
}

#[test]
fn a_panic_in_the_handler_ends_the_request() {
    async fn fails() -> &'static str {
        panic!("in the handler")
    }
    let layer = of_each_key(1);
    let app = Router::new()
        .route("/", get(fails).layer(layer.clone()))
        .route("/caught", get(fails).layer((CatchPanicLayer::new(), layer.clone())));
    let server = serve_axum(app);
    for _ in 0..3 {
        let mut connection = Connection::open(server.address);
        connection.begin("GET", "/", &ANN, "");
        assert!(connection.try_receive().is_none(), "hyper closes the connection");
        within_a_minute(|| layer.in_flight("ann") == 0);
        assert_eq!(Connection::open(server.address).send("GET", "/caught", &ANN).status, 500);
        within_a_minute(|| layer.in_flight("ann") == 0);
    }
}

/// A handler that answers while the client still sends more than any buffer takes.
#[test]
fn an_early_answer_to_a_large_upload_ends_the_request() {
    let layer = of_each_key(1);
    let server = serve_axum(Router::new().route("/", post(|| async { "enough" })).layer(layer.clone()));
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = "POST / HTTP/1.1\r\nhost: test\r\nx-api-key: ann\r\ncontent-length: 1000000000\r\n\r\nabc";
    assert_eq!(begin(&mut stream, head), 200);
    within_a_minute(|| layer.in_flight("ann") == 0);
    run(async {
        let mut sender = connect(server.address).await;
        let chunks = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b'x'; 4_096]))));
        let upload = http::Request::post(format!("http://{}/", server.address)).header("x-api-key", "ann");
        let response = sender.send_request(upload.body(StreamBody::new(chunks).boxed_unsync()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "enough");
        in_flight(&layer, 0).await;
    });
}

/// An upload is in flight as long as the handler reads it.
#[test]
fn a_slow_upload_is_in_flight() {
    let layer = of_each_key(1);
    let read = |request: Request| async { request.into_body().collect().await.unwrap().to_bytes().len().to_string() };
    let server = serve_axum(Router::new().route("/", post(read)).layer(layer.clone()));
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: test\r\nx-api-key: ann\r\ncontent-length: 6\r\n\r\nabc").unwrap();
    within_a_minute(|| layer.in_flight("ann") == 1);
    assert_eq!(Connection::open(server.address).send_body("POST", "/", &ANN, "abc").status, 429);
    assert_eq!(begin(&mut stream, "def"), 200);
    within_a_minute(|| layer.in_flight("ann") == 0);
    assert_eq!(Connection::open(server.address).send_body("POST", "/", &ANN, "abc").body, "3");
}

/// hyper without a framework, with a body of its own that has trailers.
#[test]
fn in_hyper_a_request_is_in_flight_until_its_trailers() {
    let layer = of_each_key(1);
    let gate = Arc::new(Semaphore::new(0));
    let (served_by, opened) = (layer.clone(), Arc::clone(&gate));
    let server = serve(|listener| async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let gate = Arc::clone(&opened);
            let inner = tower::service_fn(move |_: http::Request<hyper::body::Incoming>| {
                let gate = Arc::clone(&gate);
                async move {
                    let data = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"data")))]);
                    let trailers = stream::once(async move {
                        gate.acquire().await.unwrap().forget();
                        Ok(Frame::trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())])))
                    });
                    Ok::<_, Infallible>(http::Response::new(StreamBody::new(data.chain(trailers).boxed())))
                }
            });
            let service = ServiceBuilder::new().layer(served_by.clone()).service(inner);
            tokio::spawn(async move {
                let connection = auto::Builder::new(TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
            });
        }
    });
    run(async {
        let mut sender = connect(server.address).await;
        let mut response = sender.send_request(over_http2(server.address)).await.unwrap();
        assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "data");
        assert_eq!(layer.in_flight("ann"), 1);
        let denied = sender.send_request(over_http2(server.address)).await.unwrap();
        assert_eq!(denied.status(), 429);
        gate.add_permits(1);
        assert_eq!(response.frame().await.unwrap().unwrap().into_trailers().unwrap()["x-sum"], "7");
        in_flight(&layer, 0).await;
        assert!(response.body().is_end_stream());
    });
}

#[test]
fn with_a_queue_all_are_served_and_never_more_at_once_than_may_be() {
    const REQUESTS: usize = 40;
    let layer = of_each_key(3);
    let serving = Arc::<Serving>::default();
    let handler = {
        let serving = Arc::clone(&serving);
        move || async move {
            let served = serving.begin();
            tokio::task::yield_now().await;
            Body::from_stream(stream::unfold((served, 3), |(served, left)| async move {
                tokio::task::yield_now().await;
                (left > 0).then(|| (Ok::<_, Infallible>("data"), (served, left - 1)))
            }))
        }
    };
    let queue = layer.clone().queue(Duration::from_secs(60), |_| pending::<()>());
    let server = serve_axum(Router::new().route("/", get(handler)).layer(queue.clone()));
    let mut statuses = Vec::new();
    run(async {
        let mut senders = [connect(server.address).await, connect(server.address).await];
        let calls = (0..REQUESTS).map(|n| senders[n % 2].send_request(over_http2(server.address)));
        let calls = calls.map(|call| async {
            let response = call.await.unwrap();
            let status = response.status().as_u16();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "datadatadata");
            status
        });
        statuses = join_all(calls.collect::<Vec<_>>()).await;
    });
    assert_eq!(statuses, [200; REQUESTS]);
    within_a_minute(|| layer.in_flight("ann") == 0 && queue.waiting() == 0);
    assert_eq!(serving.most(), 3);
}

/// A client that gives up while it waits leaves its place.
#[test]
fn inf03_over_sockets_who_gives_up_while_waiting_leaves_its_place() {
    let layer = of_each_key(1);
    let (app, serving) = {
        let serving = Arc::<Serving>::default();
        let begun = Arc::clone(&serving);
        let handler = move || async move { endless(begun.begin()) };
        let queue = layer.clone().queue(Duration::from_secs(60), |_| pending::<()>());
        (Router::new().route("/", get(handler)).layer(queue), serving)
    };
    let server = serve_axum(app);
    let (first, status) = ask(server.address);
    assert_eq!((status, layer.in_flight("ann")), (200, 1));
    let waits = || {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nx-api-key: ann\r\n\r\n").unwrap();
        stream
    };
    let (gives_up, mut stays) = (waits(), waits());
    drop(gives_up);
    drop(first);
    assert_eq!(begin(&mut stays, ""), 200);
    assert_eq!((layer.in_flight("ann"), serving.most()), (1, 1));
    drop(stays);
    within_a_minute(|| layer.in_flight("ann") == 0);
}

mod grpc {
    use bytes::{Buf as _, BufMut as _};
    use tonic::{
        Response, Status, Streaming,
        codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
        codegen::http::uri::PathAndQuery,
    };

    use super::*;

    /// Messages of bytes, without a schema.
    #[derive(Clone, Copy, Default)]
    struct Raw;

    impl Codec for Raw {
        type Encode = Bytes;
        type Decode = Bytes;
        type Encoder = Self;
        type Decoder = Self;

        fn encoder(&mut self) -> Self {
            *self
        }

        fn decoder(&mut self) -> Self {
            *self
        }
    }

    impl Encoder for Raw {
        type Item = Bytes;
        type Error = Status;

        fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
            buffer.put(item);
            Ok(())
        }
    }

    impl Decoder for Raw {
        type Item = Bytes;
        type Error = Status;

        fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
            Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
        }
    }

    /// All four kinds of calls. Each waits for the gate before it ends.
    fn serve_calls(layer: InFlightLayer, gate: Arc<Semaphore>) -> Server {
        type Messages = stream::BoxStream<'static, Result<Bytes, Status>>;

        async fn pass(gate: Arc<Semaphore>) {
            gate.acquire().await.unwrap().forget();
        }

        /// One message, and another one after the gate.
        fn messages(gate: Arc<Semaphore>) -> Messages {
            let first = stream::iter([Ok(Bytes::from_static(b"first"))]);
            let last = stream::once(async move {
                pass(gate).await;
                Ok(Bytes::from_static(b"last"))
            });
            first.chain(last).boxed()
        }

        let calls = tower::service_fn(move |request: http::Request<tonic::body::Body>| {
            let gate = Arc::clone(&gate);
            async move {
                let mut server = tonic::server::Grpc::new(Raw);
                let response = match request.uri().path() {
                    "/test/unary" => {
                        let answer = tower::service_fn(move |message: tonic::Request<Bytes>| {
                            let gate = Arc::clone(&gate);
                            async move {
                                pass(gate).await;
                                Ok::<_, Status>(Response::new(message.into_inner()))
                            }
                        });
                        server.unary(answer, request).await
                    }
                    "/test/server" => {
                        let answer = tower::service_fn(move |_: tonic::Request<Bytes>| {
                            let messages = messages(Arc::clone(&gate));
                            async { Ok::<_, Status>(Response::new(messages)) }
                        });
                        server.server_streaming(answer, request).await
                    }
                    "/test/client" => {
                        let answer = tower::service_fn(|messages: tonic::Request<Streaming<Bytes>>| async {
                            let count = messages.into_inner().count().await;
                            Ok::<_, Status>(Response::new(Bytes::from(count.to_string())))
                        });
                        server.client_streaming(answer, request).await
                    }
                    "/test/both" => {
                        let answer = tower::service_fn(|messages: tonic::Request<Streaming<Bytes>>| async {
                            Ok::<_, Status>(Response::new(messages.into_inner()))
                        });
                        server.streaming(answer, request).await
                    }
                    path => panic!("{path}"),
                };
                Ok::<_, Infallible>(response)
            }
        });
        serve(|listener| async move {
            let routes = tonic::service::Routes::from(
                Router::new().fallback_service(
                    ServiceBuilder::new()
                        .map_request(|request: http::Request<Body>| request.map(tonic::body::Body::new))
                        .service(calls),
                ),
            );
            let server = tonic::transport::Server::builder().layer(layer).add_routes(routes);
            server.serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener)).await.unwrap();
        })
    }

    fn path(kind: &str) -> PathAndQuery {
        format!("/test/{kind}").parse().unwrap()
    }

    #[test]
    fn calls_of_all_four_kinds_are_in_flight_until_their_status_is_sent() {
        let (layer, gate) = (InFlightLayer::global(1), Arc::new(Semaphore::new(0)));
        let server = serve_calls(layer.clone(), Arc::clone(&gate));
        run(async {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
            let mut client = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
            let mut other = client.clone();
            let message = || tonic::Request::new(Bytes::from_static(b"hello"));
            let mut is_full = async || {
                other.ready().await.unwrap();
                let status = other.unary(message(), path("unary"), Raw).await.unwrap_err();
                assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
                assert_eq!(status.message(), "Too many requests at once.");
            };

            let mut unary = client.clone();
            let call = tokio::spawn(async move {
                unary.ready().await.unwrap();
                unary.unary(message(), path("unary"), Raw).await
            });
            in_flight(&layer, 1).await;
            is_full().await;
            gate.add_permits(1);
            assert_eq!(call.await.unwrap().unwrap().into_inner(), "hello");
            in_flight(&layer, 0).await;

            client.ready().await.unwrap();
            let mut answers = client.server_streaming(message(), path("server"), Raw).await.unwrap().into_inner();
            assert_eq!(answers.message().await.unwrap().unwrap(), "first");
            is_full().await;
            gate.add_permits(1);
            assert_eq!(answers.message().await.unwrap().unwrap(), "last");
            assert!(answers.message().await.unwrap().is_none());
            in_flight(&layer, 0).await;
            // A call that the client cancels.
            client.ready().await.unwrap();
            let answers = client.server_streaming(message(), path("server"), Raw).await.unwrap();
            in_flight(&layer, 1).await;
            drop(answers);
            in_flight(&layer, 0).await;

            let (messages, receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
            let sent = |mut receiver: tokio::sync::mpsc::UnboundedReceiver<Bytes>| {
                tonic::Request::new(stream::poll_fn(move |cx| receiver.poll_recv(cx)))
            };
            let mut uploading = client.clone();
            let request = sent(receiver);
            let call = tokio::spawn(async move {
                uploading.ready().await.unwrap();
                uploading.client_streaming(request, path("client"), Raw).await
            });
            messages.send(Bytes::from_static(b"one")).unwrap();
            in_flight(&layer, 1).await;
            is_full().await;
            drop(messages);
            assert_eq!(call.await.unwrap().unwrap().into_inner(), "1");
            in_flight(&layer, 0).await;

            let (messages, receiver) = tokio::sync::mpsc::unbounded_channel();
            client.ready().await.unwrap();
            let mut answers = client.streaming(sent(receiver), path("both"), Raw).await.unwrap().into_inner();
            messages.send(Bytes::from_static(b"one")).unwrap();
            assert_eq!(answers.message().await.unwrap().unwrap(), "one");
            is_full().await;
            drop(messages);
            assert!(answers.message().await.unwrap().is_none());
            in_flight(&layer, 0).await;
        });
    }
}
