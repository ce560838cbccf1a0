//! HTTP/1.1 by hand over a socket: what a client really receives, field by field.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A connection that stays open until it is dropped.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn over(stream: TcpStream) -> Self {
        // A server that never answers fails the test instead of hanging it.
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, method: &str, path: &str, fields: &[(&str, &str)]) -> Reply {
        self.send_body(method, path, fields, "")
    }

    pub(crate) fn send_body(&mut self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> Reply {
        self.begin(method, path, fields, body);
        self.receive()
    }

    /// Sends a request, and does not wait for the answer.
    pub(crate) fn begin(&mut self, method: &str, path: &str, fields: &[(&str, &str)], body: &str) {
        let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{fields}\r\n{body}");
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
    }

    /// The answer, if it begins to arrive in this time.
    pub(crate) fn receive_within(&mut self, time: Duration) -> Option<Reply> {
        self.stream.get_ref().set_read_timeout(Some(time)).unwrap();
        let reply = self.try_receive();
        self.stream.get_ref().set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        reply
    }

    /// The answer, unless the server has closed the connection without one.
    pub(crate) fn try_receive(&mut self) -> Option<Reply> {
        let open = self.stream.fill_buf().is_ok_and(|bytes| !bytes.is_empty());
        open.then(|| self.receive())
    }

    /// The status of an answer, of which nothing more is read.
    pub(crate) fn status(&mut self) -> u16 {
        let line = self.line();
        line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{line:?}"))
    }

    pub(crate) fn receive(&mut self) -> Reply {
        let status = self.status();
        let mut fields = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else { break };
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut reply = Reply { status, fields, body: String::new() };
        let mut body = Vec::new();
        if let Some(length) = reply.field("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.stream.read_exact(&mut body).unwrap();
        } else {
            assert_eq!(reply.field("transfer-encoding"), Some("chunked"), "{reply:?}");
            loop {
                let length = usize::from_str_radix(&self.line(), 16).unwrap();
                let begin = body.len();
                body.resize(begin + length, 0);
                self.stream.read_exact(&mut body[begin..]).unwrap();
                self.line();
                if length == 0 {
                    break;
                }
            }
        }
        reply.body = String::from_utf8(body).unwrap();
        reply
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Reply {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

/// The statuses of `times` requests, each on a connection of its own.
pub(crate) fn statuses(address: SocketAddr, path: &str, fields: &[(&str, &str)], times: usize) -> Vec<u16> {
    (0..times).map(|_| Connection::open(address).send("GET", path, fields).status).collect()
}
