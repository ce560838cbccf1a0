//! Contains what an address of a server says: [`Endpoint`], where the server is and how to log in.
//!
//! This file must not know how to connect.

use std::{error, fmt, path::PathBuf};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

/// Host and port.
pub(super) type NodeAddress = (String, u16);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Address {
    /// A reason with the address that it is about.
    pub(super) fn with(&self, reason: &str) -> String {
        format!("{self}: {reason}")
    }
}

/// How to log in.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
    /// Whether to use the third version of the protocol, where the address says it.
    pub(super) resp3: Option<bool>,
}

/// Never shows the password.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).field("database", &self.database).finish_non_exhaustive()
    }
}

/// A server, and how to log in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: Address,
    pub(super) login: Login,
}

impl Endpoint {
    /// Reads an address as an operator writes it.
    pub(super) fn parse(text: &str) -> Result<Self, AddressError> {
        let url = Url::parse(text).map_err(|_| AddressError::Form)?;
        let some_text = |text: &str| match percent_decode_str(text).decode_utf8() {
            Ok(text) => Ok(Some(text.into_owned()).filter(|text| !text.is_empty())),
            Err(_) => Err(AddressError::Form),
        };
        let parameters = || {
            url.query()
                .into_iter()
                .flat_map(|query| query.split('&'))
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        };
        match url.fragment() {
            None => {}
            Some("insecure") => return Err(AddressError::Insecure),
            Some(_) => return Err(AddressError::Form),
        }
        let mut login = Login { user: some_text(url.username())?, ..Login::default() };
        login.password = some_text(url.password().unwrap_or_default())?;
        let tls = match url.scheme() {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            "unix" | "redis+unix" | "valkey+unix" => {
                for (name, value) in parameters() {
                    match name {
                        "db" => login.database = database(value)?,
                        "user" => login.user = some_text(value)?,
                        "pass" => login.password = some_text(value)?,
                        "protocol" => login.resp3 = Some(is_resp3(value)?),
                        other => return Err(AddressError::Parameter(other.to_owned())),
                    }
                }
                let path = some_text(url.path())?.filter(|path| path.starts_with('/')).ok_or(AddressError::Form)?;
                if url.has_host() && url.host_str().is_some_and(|host| !host.is_empty()) {
                    return Err(AddressError::Form);
                }
                return Self { address: Address::Unix(path.into()), login }.checked();
            }
            _ => return Err(AddressError::Form),
        };
        for (name, value) in parameters() {
            match name {
                "protocol" => login.resp3 = Some(is_resp3(value)?),
                other => return Err(AddressError::Parameter(other.to_owned())),
            }
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => some_text(name)?,
            Some(Host::Ipv4(ip)) => Some(ip.to_string()),
            Some(Host::Ipv6(ip)) => Some(ip.to_string()),
            None => None,
        };
        let host = host.ok_or(AddressError::Form)?;
        let path = url.path().trim_start_matches('/');
        if !path.is_empty() {
            login.database = database(path)?;
        }
        if tls && cfg!(not(feature = "redis-tls")) {
            return Err(AddressError::TlsFeature);
        }
        Self { address: Address::Tcp { host, port: url.port().unwrap_or(6_379), tls }, login }.checked()
    }

    fn checked(self) -> Result<Self, AddressError> {
        match (&self.login.user, &self.login.password) {
            (Some(_), None) => Err(AddressError::NoPassword),
            _ => Ok(self),
        }
    }

    /// Reads the address of a server that has no databases: a sentinel, or a node of a cluster.
    pub(super) fn parse_without_database(text: &str) -> Result<Self, AddressError> {
        let endpoint = Self::parse(text)?;
        if endpoint.login.database == 0 { Ok(endpoint) } else { Err(AddressError::NoDatabases) }
    }

    /// The host and port, where it has them.
    pub(super) fn node_address(&self) -> Option<NodeAddress> {
        match &self.address {
            Address::Tcp { host, port, .. } => Some((host.clone(), *port)),
            Address::Unix(_) => None,
        }
    }

    /// Whether the connection is encrypted.
    pub(super) fn uses_tls(&self) -> bool {
        matches!(self.address, Address::Tcp { tls: true, .. })
    }

    /// Another server with the same login, and encrypted if this one is.
    pub(super) fn beside(&self, (host, port): NodeAddress) -> Self {
        Self { address: Address::Tcp { host, port, tls: self.uses_tls() }, login: self.login.clone() }
    }
}

fn database(text: &str) -> Result<i64, AddressError> {
    text.parse().ok().filter(|number| *number >= 0).ok_or(AddressError::Database)
}

fn is_resp3(version: &str) -> Result<bool, AddressError> {
    match version {
        "2" | "resp2" => Ok(false),
        "3" | "resp3" => Ok(true),
        _ => Err(AddressError::Protocol),
    }
}

/// Why an address is not accepted. The text never contains the address, which may have a password
/// in it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressError {
    /// The database is not a number.
    Database,
    /// The text is not an address.
    Form,
    /// The address asks for TLS without a check of certificates.
    Insecure,
    /// A sentinel, or a node of a cluster, has a database.
    NoDatabases,
    /// The address has a user and no password.
    NoPassword,
    /// A node of a cluster has a unix socket.
    NoSockets,
    /// The address has a parameter that does not exist.
    Parameter(String),
    /// The protocol is neither `resp2` nor `resp3`.
    Protocol,
    /// The address asks for TLS, and the feature `redis-tls` is off.
    TlsFeature,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "the database is not a number: expected redis://host/0 or the like",
            Self::Form => {
                "expected redis://[user:password@]host[:port][/database], rediss://… for TLS, or unix:///path"
            }
            Self::Insecure => {
                "`#insecure` is not accepted in an address: call `danger_accept_invalid_certificates` if that is meant"
            }
            Self::NoDatabases => "a sentinel or a node of a cluster has no databases: leave the number out",
            Self::NoPassword => "the address has a user and no password: write user:password@, or leave both out",
            Self::NoSockets => "a node of a cluster has no unix socket: use its host and port",
            Self::Parameter(name) => {
                return write!(
                    f,
                    "unknown parameter {name:?}: `protocol` is known, and for unix sockets `db`, `user`, `pass`"
                );
            }
            Self::Protocol => "unknown protocol: use resp2 or resp3",
            Self::TlsFeature => "the address asks for TLS: enable the feature `redis-tls` of tower-quota",
        })
    }
}

impl error::Error for AddressError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.to_owned(), port, tls: false }
    }

    #[test]
    fn an_address_has_a_server_and_a_login() {
        let login = |user: &str, password: &str, database| Login {
            user: Some(user.to_owned()).filter(|user| !user.is_empty()),
            password: Some(password.to_owned()).filter(|password| !password.is_empty()),
            database,
            resp3: None,
        };
        let parse = |text: &str| Endpoint::parse(text).unwrap();
        for (text, address, login) in [
            ("redis://limits.example", tcp("limits.example", 6_379), login("", "", 0)),
            ("REDIS://10.0.0.1:7000/5", tcp("10.0.0.1", 7_000), login("", "", 5)),
            ("valkey://:p%40ss@[2001:db8::1]:7000/", tcp("2001:db8::1", 7_000), login("", "p@ss", 0)),
            ("redis://user:p%2Fw@host", tcp("host", 6_379), login("user", "p/w", 0)),
            (
                "unix:///run/redis.sock?db=2&user=u&pass=p+p",
                Address::Unix("/run/redis.sock".into()),
                login("u", "p+p", 2),
            ),
            ("redis+unix:///a%20b", Address::Unix("/a b".into()), login("", "", 0)),
        ] {
            assert_eq!(parse(text), Endpoint { address, login }, "{text}");
        }
        for (version, resp3) in [("resp3", true), ("3", true), ("resp2", false), ("2", false)] {
            assert_eq!(parse(&format!("redis://host?protocol={version}")).login.resp3, Some(resp3));
        }
        assert_eq!(parse("redis://[2001:db8::1]").address.to_string(), "[2001:db8::1]:6379");
        assert!(!format!("{:?}", parse("redis://user:secret@host")).contains("secret"));
    }

    #[test]
    fn an_address_that_is_none_is_an_error_with_its_reason() {
        for (text, error) in [
            ("", AddressError::Form),
            ("host:6379", AddressError::Form),
            ("http://host", AddressError::Form),
            ("redis://", AddressError::Form),
            ("unix://", AddressError::Form),
            ("redis://host:99999", AddressError::Form),
            ("redis://host/abc", AddressError::Database),
            ("redis://host/-1", AddressError::Database),
            ("redis://host?protocol=4", AddressError::Protocol),
            ("redis://host?db=4", AddressError::Parameter("db".to_owned())),
            ("redis://host#x", AddressError::Form),
            ("redis://user@host", AddressError::NoPassword),
            ("redis://:%ff@host", AddressError::Form),
            ("unix://run/redis.sock", AddressError::Form),
            ("rediss://host/#insecure", AddressError::Insecure),
        ] {
            assert_eq!(Endpoint::parse(text), Err(error), "{text}");
        }
        assert_eq!(Endpoint::parse_without_database("redis://host/1"), Err(AddressError::NoDatabases));
    }

    #[test]
    fn an_address_of_tls_is_of_tls_or_names_the_feature() {
        for text in ["rediss://host", "valkeys://host", "REDISS://host"] {
            match Endpoint::parse(text) {
                Ok(endpoint) => assert!(endpoint.uses_tls() && cfg!(feature = "redis-tls")),
                Err(error) => {
                    assert_eq!(error, AddressError::TlsFeature);
                    assert!(cfg!(not(feature = "redis-tls")) && error.to_string().contains("`redis-tls`"));
                }
            }
        }
    }
}
