//! TLS to Redis, with authorities and certificates that the tests make: a single server, Sentinel and its primary, and a
//! cluster.
#![cfg(feature = "redis-tls")]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/redis.rs"]
mod servers;
mod support;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use proxy::Proxy;
use servers::{Engine, Server, eventually, free_port, path_of};
use support::with_header;
use tower_quota::{
    Policy, Quota,
    key::Header,
    redis::{OnFailure, RedisBuilder, RedisLimiter},
};

const SECRET: &[u8] = b"the secret of these tests";

/// An authority, and certificates that it has signed.
struct Certificates(PathBuf);

impl Certificates {
    /// One for all tests of the process.
    fn get() -> &'static Self {
        static CERTIFICATES: OnceLock<Certificates> = OnceLock::new();
        CERTIFICATES.get_or_init(|| {
            let folder = env::temp_dir().join(format!("tower-quota-tls-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let certificates = Self(folder);
            certificates.authority("ca");
            certificates.authority("other-ca");
            certificates.sign("server", "ca", "subjectAltName=IP:127.0.0.1,DNS:localhost", 30);
            certificates.sign("named", "ca", "subjectAltName=DNS:limits.example", 30);
            certificates.sign("expired", "ca", "subjectAltName=IP:127.0.0.1", -1);
            certificates.sign("client", "ca", "extendedKeyUsage=clientAuth", 30);
            certificates.sign("stranger", "other-ca", "extendedKeyUsage=clientAuth", 30);
            certificates
        })
    }

    fn openssl(&self, arguments: &[&str]) {
        let mut command = Command::new(path_of("openssl"));
        let output = command.args(arguments).current_dir(&self.0).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn key(&self, name: &str) {
        self.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &format!("{name}.key")]);
    }

    fn authority(&self, name: &str) {
        self.key(name);
        let (key, pem) = (format!("{name}.key"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        self.openssl(&["req", "-x509", "-new", "-key", &key, "-out", &pem, "-subj", &subject, "-days", "30"]);
    }

    fn sign(&self, name: &str, authority: &str, extension: &str, days: i32) {
        self.key(name);
        fs::write(self.0.join(format!("{name}.ext")), format!("basicConstraints=CA:FALSE\n{extension}\n")).unwrap();
        let file = |what: &str| format!("{name}.{what}");
        let subject = format!("/CN={name}");
        self.openssl(&["req", "-new", "-key", &file("key"), "-out", &file("csr"), "-subj", &subject]);
        let (ca, ca_key) = (format!("{authority}.pem"), format!("{authority}.key"));
        let signed = ["x509", "-req", "-in", &file("csr"), "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"];
        let (ext, pem, days) = (file("ext"), file("pem"), days.to_string());
        self.openssl(&[&signed[..], &["-extfile", &ext, "-out", &pem, "-days", &days]].concat());
    }

    fn path(&self, file: &str) -> String {
        self.0.join(file).to_str().unwrap().to_owned()
    }

    fn pem(&self, file: &str) -> Vec<u8> {
        fs::read(Path::new(&self.0).join(file)).unwrap()
    }

    /// A server with this certificate, also on a port of TLS; with more settings.
    fn server(&self, certificate: &str, more: &[&str]) -> (Server, u16) {
        let tls_port = free_port();
        let (pem, key, ca) = self.files(certificate);
        let port = tls_port.to_string();
        let settings =
            ["--tls-port", &port, "--tls-cert-file", &pem, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
        (Server::start_with(Engine::Redis, &[&settings[..], more].concat()), tls_port)
    }

    fn files(&self, certificate: &str) -> (String, String, String) {
        (self.path(&format!("{certificate}.pem")), self.path(&format!("{certificate}.key")), self.path("ca.pem"))
    }
}

const NO_CLIENT: [&str; 2] = ["--tls-auth-clients", "no"];

fn plain(url: &str) -> RedisBuilder {
    RedisLimiter::builder(url, SECRET, OnFailure::Closed)
        .timeout(Duration::from_secs(5))
        .policy(Policy::per(Header::new("k"), Quota::per_hour(5)))
}

fn builder(url: &str) -> RedisBuilder {
    plain(url).ca_certificate(Certificates::get().pem("ca.pem"))
}

async fn serves(builder: RedisBuilder) {
    let limiter = builder.build().unwrap();
    assert!(limiter.connect(Duration::from_secs(30)).await, "{:?}", limiter.last_error());
    let mut admitted = 0;
    for _ in 0..7 {
        admitted += usize::from(limiter.decide(&with_header("k", "a")).await.is_allowed());
    }
    assert_eq!(admitted, 5);
}

async fn failure(builder: RedisBuilder) -> String {
    let limiter = builder.build().unwrap();
    eventually(|| async {
        let _ = limiter.decide(&with_header("k", "a")).await;
        limiter.last_error().is_some()
    })
    .await;
    assert!(!limiter.is_connected());
    limiter.last_error().unwrap()
}

fn tls_url(port: u16) -> String {
    format!("rediss://127.0.0.1:{port}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_tls_serves() {
    let certificates = Certificates::get();
    let (_server, port) = certificates.server("server", &NO_CLIENT);
    serves(builder(&tls_url(port))).await;
    let (_server, port) = certificates.server("server", &NO_CLIENT);
    serves(builder(&format!("valkeys://localhost:{port}?protocol=resp3"))).await;
    let (_server, port) = certificates.server("server", &["--tls-auth-clients", "yes"]);
    let client = (certificates.pem("client.pem"), certificates.pem("client.key"));
    serves(builder(&tls_url(port)).client_certificate(client.0, client.1)).await;
    let (_server, port) = certificates.server("named", &NO_CLIENT);
    serves(builder(&tls_url(port)).server_name("limits.example")).await;
    for certificate in ["named", "expired"] {
        let (_server, port) = certificates.server(certificate, &NO_CLIENT);
        serves(plain(&tls_url(port)).danger_accept_invalid_certificates()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_tls_is_explained() {
    let certificates = Certificates::get();
    let (server, port) = certificates.server("server", &["--tls-auth-clients", "yes"]);
    let stranger = (certificates.pem("stranger.pem"), certificates.pem("stranger.key"));
    let (named, expired) = (certificates.server("named", &NO_CLIENT), certificates.server("expired", &NO_CLIENT));
    for (builder, expected) in [
        (builder(&tls_url(port)), "wants a client certificate: give it by `client_certificate`"),
        (builder(&tls_url(port)).client_certificate(stranger.0, stranger.1), "does not accept the client certificate"),
        (builder(&tls_url(named.1)), "for another name: connect by a name that it has, or set `server_name`"),
        (builder(&tls_url(expired.1)), "has expired"),
        (plain(&tls_url(named.1)), "signed by no trusted authority: give it by `ca_certificate`"),
        (builder(&tls_url(server.port)), "write redis:// or valkey://"),
        (plain(&format!("redis://127.0.0.1:{port}")), "write rediss:// or valkeys://"),
        (plain(&format!("redis://user:pass@127.0.0.1:{port}")), "write rediss:// or valkeys://"),
    ] {
        let reason = failure(builder).await;
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
}

#[test]
fn settings_of_tls_that_cannot_be_used_are_an_error() {
    let certificates = Certificates::get();
    let tls = || plain("rediss://127.0.0.1");
    for (builder, expected) in [
        (tls().ca_certificate("no certificate"), "`ca_certificate` contains no certificate"),
        (tls().client_certificate("none", certificates.pem("client.key")), "the client certificate is not PEM"),
        (tls().client_certificate(certificates.pem("client.pem"), "none"), "not PEM of a private key"),
        (
            tls().client_certificate(certificates.pem("client.pem"), certificates.pem("server.key")),
            "client certificate",
        ),
        (tls().server_name("no name!"), "is not a name"),
        (plain("redis://127.0.0.1").server_name("limits.example"), "no address asks for it"),
        (builder("redis://127.0.0.1"), "no address asks for it"),
        (plain("rediss://127.0.0.1/#insecure"), "danger_accept_invalid_certificates"),
        (plain("rediss://127.0.0.1").cluster(["redis://127.0.0.1"]), "for all, or for none"),
    ] {
        let error = builder.build().unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

/// The primary has a port without TLS too, and the sentinel names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_for_tls_is_never_sent_in_the_clear() {
    let certificates = Certificates::get();
    let (server, _port) = certificates.server("server", &NO_CLIENT);
    assert_eq!(server.cli(&["ACL", "SETUSER", "mine", "on", ">only-by-tls", "~*", "+@all"]), "OK");
    let tap = Proxy::before(server.port);
    let sentinel = Server::sentinel("limits", tap.port, "");
    let reason = failure(builder("rediss://mine:only-by-tls@ignored").sentinels([sentinel.url()], "limits")).await;
    assert!(reason.contains("write redis:// or valkey://"), "{reason}");
    assert!(tap.accepted() > 0 && !tap.has_heard("only-by-tls"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_and_its_primary_of_tls_serve() {
    let certificates = Certificates::get();
    let (_server, port) = certificates.server("server", &[&NO_CLIENT[..], &["--tls-replication", "yes"]].concat());
    let (pem, key, ca) = certificates.files("server");
    let sentinel_port = free_port();
    let settings = format!(
        "tls-port {sentinel_port}\ntls-cert-file {pem}\ntls-key-file {key}\ntls-ca-cert-file {ca}\ntls-auth-clients no\n\
         tls-replication yes\n"
    );
    let _sentinel = Server::sentinel_with("limits", port, "", &settings);
    serves(builder("rediss://ignored").sentinels([tls_url(sentinel_port)], "limits")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_tls_serves() {
    let certificates = Certificates::get();
    let (pem, key, ca) = certificates.files("server");
    let settings = ["--tls-cert-file", &pem, "--tls-key-file", &key, "--tls-ca-cert-file", &ca, "--tls-cluster", "yes"];
    let (servers, ports) = Server::cluster_of_tls(&[&settings[..], &["--tls-replication", "yes"], &NO_CLIENT].concat());
    let limiter = builder(&tls_url(ports[0])).cluster([""; 0]).build().unwrap();
    assert!(limiter.connect(Duration::from_secs(30)).await, "{:?}", limiter.last_error());
    for key in 0..20 {
        let key = key.to_string();
        for n in 0..7 {
            assert_eq!(limiter.decide(&with_header("k", &key)).await.is_allowed(), n < 5);
        }
    }
    assert!(servers.iter().all(|server| !server.keys().is_empty()), "each has some of the keys");
}
