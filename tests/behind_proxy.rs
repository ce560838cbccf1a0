//! A real nginx in front: who the client is does not depend on what the client says.

#[path = "support/example.rs"]
mod example;
#[path = "support/port.rs"]
mod port;
#[path = "support/wire.rs"]
mod wire;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use axum::{Router, routing::get};
use example::Example;
use port::free_port;
use tokio::net::{TcpSocket, UnixListener};
use tower_quota::{Limiter, Policy, Quota, RateLimitLayer, clock::ManualClock, key::ClientIp, limiter::Sweep};
use wire::{Connection, Reply};

/// An nginx of the test's own on a free port, which ends with the test.
struct Nginx {
    process: Child,
    address: SocketAddr,
}

impl Nginx {
    /// Passes requests on to `app`: an address, or `unix:` and the path of a socket.
    fn before(app: impl std::fmt::Display) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nginx");
        let found =
            Command::new("sh").arg(root.join("tests/support/nginx.sh")).arg(&tools).stderr(Stdio::inherit()).output();
        let found = found.unwrap();
        assert!(found.status.success(), "this test needs nginx: install it, or run on Debian");
        let binary = String::from_utf8(found.stdout).unwrap();

        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let folder = tools.join(format!("{}", address.port()));
        fs::create_dir_all(&folder).unwrap();
        let configuration = folder.join("nginx.conf");
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", folder.join(name).display()))
            .concat();
        fs::write(
            &configuration,
            format!(
                "daemon off; master_process off; pid {pid};\n\
                 events {{ worker_connections 64; }}\n\
                 http {{ access_log off; {temporary}\n\
                 server {{ listen {address}; location / {{\n\
                 proxy_pass http://{app}; proxy_http_version 1.1;\n\
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}\n",
                pid = folder.join("pid").display(),
            ),
        )
        .unwrap();
        let process = Command::new(binary.trim())
            .args(["-e", "stderr", "-p"])
            .arg(&folder)
            .arg("-c")
            .arg(&configuration)
            .spawn()
            .unwrap_or_else(|error| panic!("{binary}: {error}"));
        let mut nginx = Self { process, address };
        while TcpStream::connect(address).is_err() {
            let ended = nginx.process.try_wait().unwrap();
            assert!(ended.is_none(), "nginx has ended: {ended:?}");
            thread::yield_now();
        }
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // An error is a process that has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A request from an address of the loopback network that is not the proxy's.
fn ask(from: Ipv4Addr, server: SocketAddr, fields: &[(&str, &str)]) -> Reply {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        socket.connect(server).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    Connection::over(stream).send("GET", "/", fields)
}

#[test]
fn behind_nginx_each_client_is_itself_whatever_it_says() {
    let app = Example::run_with("behind_proxy", &[("QUOTA", "3/h"), ("TRUSTED", "127.0.0.1")]);
    let nginx = Nginx::before(app.address);
    let (alice, bob, eve) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3), Ipv4Addr::new(127, 0, 0, 4));

    // Alice says that she is somebody else, in every way she knows, and stays one client.
    let forgeries: Vec<Reply> = (0..12)
        .map(|n| {
            let forged = [format!("9.9.9.{n}"), format!("9.9.9.{n}, 127.0.0.1"), format!("\"unclosed, 9.9.9.{n}")];
            let forged = &forged[n % 3];
            let fields = [
                ("x-forwarded-for", forged.as_str()),
                ("forwarded", "for=9.9.9.9"),
                ("x-real-ip", forged),
                ("cf-connecting-ip", "9.9.9.9"),
            ];
            ask(alice, nginx.address, &fields)
        })
        .collect();
    let statuses: Vec<u16> = forgeries.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [&[200; 3][..], &[429; 9]].concat());
    for reply in &forgeries[..3] {
        assert_eq!(reply.body, format!("Hello, {alice}!\n"), "never the proxy's address, nor a forged one");
    }
    assert!(forgeries[3].field("retry-after").is_some());

    // Bob has a bucket of his own; so the proxy's address was nobody's key.
    let reply = ask(bob, nginx.address, &[]);
    assert_eq!((reply.status, reply.body), (200, format!("Hello, {bob}!\n")));
    assert_eq!(ask(bob, nginx.address, &[("x-forwarded-for", "127.0.0.2")]).status, 200, "nor can he spend Alice's");

    // Eve goes around the proxy. Nobody vouches for what she writes, so she is counted by her own address.
    let around: Vec<u16> =
        (0..5).map(|n| ask(eve, app.address, &[("x-forwarded-for", &format!("8.8.8.{n}"))]).status).collect();
    assert_eq!(around, [200, 200, 200, 429, 429]);
}

#[test]
fn behind_nginx_on_a_unix_socket_each_client_is_itself() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (alice, bob) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let trusted: [(&str, ClientIp, [u16; 4]); 3] = [
        ("behind", ClientIp::behind(["unix:"]).unwrap(), [200, 200, 429, 200]),
        ("hops", ClientIp::hops(1), [200, 200, 429, 200]),
        ("tcp_only", ClientIp::behind(["127.0.0.1"]).unwrap(), [500; 4]),
    ];
    for (name, client, expected) in trusted {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.sock", std::process::id()));
        let _ = fs::remove_file(&path);
        let policy = Policy::per(client, Quota::per_hour(2));
        let limiter = Limiter::builder().policy(policy).clock(ManualClock::new()).sweep(Sweep::Manual).build().unwrap();
        let app = Router::new().route("/", get(|| async { "" })).layer(RateLimitLayer::new(&limiter));
        {
            let _entered = runtime.enter();
            let listener = UnixListener::bind(&path).unwrap();
            runtime.spawn(async move { axum::serve(listener, app).await });
        }
        let nginx = Nginx::before(format!("unix:{}:", path.display()));
        let status = |from, forged: &str| ask(from, nginx.address, &[("x-forwarded-for", forged)]).status;
        let seen = [status(alice, "9.9.9.1"), status(alice, "9.9.9.2"), status(alice, "unknown"), status(bob, "")];
        assert_eq!(seen, expected, "{name}");
        let _ = fs::remove_file(&path);
    }
}
