//! Contains TLS, by rustls: which certificates are trusted, and which one this process shows.
//!
//! Without the feature `redis-tls` there is no [`Tls`]: an address that asks for it is refused when
//! the limiter is built. This file must not know of the protocol of Redis.

use std::{io, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

/// What the builder says of TLS.
#[derive(Clone, Default)]
pub(super) struct TlsOptions {
    /// PEM. Those of the system if there is none.
    pub(super) authorities: Vec<Vec<u8>>,
    /// PEM: the chain, and its key.
    pub(super) client: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that certificates must have, in place of the address's host.
    pub(super) server_name: Option<String>,
    /// Whether any certificate is accepted.
    pub(super) accept_invalid: bool,
}

impl TlsOptions {
    /// Whether nothing is set.
    pub(super) fn is_default(&self) -> bool {
        self.authorities.is_empty() && self.client.is_none() && self.server_name.is_none() && !self.accept_invalid
    }

    /// The error says what is wrong, and contains neither a certificate nor a key.
    pub(super) fn build(&self) -> Result<Tls, String> {
        // The process's own choice, if it made one.
        let provider = CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = if self.accept_invalid {
            config.dangerous().with_custom_certificate_verifier(Arc::new(AcceptInvalid(provider)))
        } else {
            config.with_root_certificates(self.roots()?)
        };
        let config = match &self.client {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().unwrap_or_default();
                if chain.is_empty() {
                    return Err("the client certificate is not PEM".to_owned());
                }
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|_| "the key of the client certificate is not PEM of a private key".to_owned())?;
                config.with_client_auth_cert(chain, key).map_err(|error| format!("the client certificate: {error}"))?
            }
        };
        let server_name = match &self.server_name {
            Some(name) => Some(
                ServerName::try_from(name.clone()).map_err(|_| format!("the server name {name:?} is not a name"))?,
            ),
            None => None,
        };
        Ok(Tls { connector: TlsConnector::from(Arc::new(config)), server_name })
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        for pem in &self.authorities {
            let mut found = false;
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let added = certificate.ok().and_then(|certificate| roots.add(certificate).ok());
                added.ok_or("a certificate of `ca_certificate` is invalid")?;
                found = true;
            }
            if !found {
                return Err("`ca_certificate` contains no certificate in PEM".to_owned());
            }
        }
        if self.authorities.is_empty() {
            // Those that cannot be read are left out, as other programs do.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this system has no certificate authorities: give them by `ca_certificate`".to_owned());
            }
        }
        Ok(roots)
    }
}

/// Encrypts connections.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl Tls {
    pub(super) async fn handshake(&self, host: &str, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the host is not a name of TLS"))?,
        };
        self.connector.connect(name, socket).await
    }
}

/// What an error of TLS means, and what to do about it. `None` where it is none.
pub(super) fn reason(error: &io::Error) -> Option<String> {
    use rustls::Error;
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    let certificate = |error: &CertificateError| match error {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the server's certificate is for another name: connect by a name that it has, or set `server_name`"
        }
        CertificateError::UnknownIssuer => {
            "the server's certificate is signed by no trusted authority: give it by `ca_certificate`"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired: renew it, or set this machine's clock"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: set this machine's clock"
        }
        _ => "the server's certificate is invalid",
    };
    Some(match error {
        Error::InvalidCertificate(invalid) => match certificate(invalid) {
            "the server's certificate is invalid" => format!("the server's certificate is invalid: {invalid}"),
            known => known.to_owned(),
        },
        Error::InvalidMessage(_) => "it does not speak TLS: if the server has none, write redis:// or valkey://".into(),
        Error::AlertReceived(AlertDescription::CertificateRequired) => CLIENT_CERTIFICATE.into(),
        Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::BadCertificate) => {
            "the server does not accept the client certificate: check which authority it trusts".into()
        }
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "the client certificate has expired: renew it".into()
        }
        other => format!("TLS failed: {other}"),
    })
}

const CLIENT_CERTIFICATE: &str = "the server wants a client certificate: give it by `client_certificate`";

/// Accepts any certificate, and still checks that the server has its key.
#[derive(Debug)]
struct AcceptInvalid(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptInvalid {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
