//! A way to a server that a test can make long, and that can forget its connections without a word.
#![allow(dead_code, reason = "each test file uses its part")]
#![expect(clippy::disallowed_methods, reason = "the way takes real time")]

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Milliseconds for each way.
    delay: AtomicU64,
    /// Connections of this number and below are forgotten: what is sent over them arrives nowhere.
    forgotten: AtomicUsize,
    accepted: AtomicUsize,
    /// What clients have sent.
    heard: Mutex<Vec<u8>>,
    /// After so many milliseconds of silence a connection is forgotten. Zero: never.
    forgets_after: AtomicU64,
}

impl Proxy {
    pub(crate) fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let state = Arc::clone(&proxy.state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let number = state.accepted.fetch_add(1, Ordering::SeqCst) + 1;
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", port))) else { continue };
                for stream in [&client, &server] {
                    stream.set_nodelay(true).unwrap();
                }
                let last = Arc::new(Mutex::new(Instant::now()));
                let ways = [(client.try_clone().unwrap(), server.try_clone().unwrap(), true), (server, client, false)];
                for (from, to, is_of_client) in ways {
                    let (state, last) = (Arc::clone(&state), Arc::clone(&last));
                    thread::spawn(move || carry(&state, number, &last, from, to, is_of_client));
                }
            }
        });
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn delay_each_way(&self, by: Duration) {
        self.state.delay.store(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    /// Forgets the connections that there are. Later ones work.
    pub(crate) fn forget(&self) {
        self.state.forgotten.store(self.state.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Forgets each connection after so much silence.
    pub(crate) fn forget_after(&self, silence: Duration) {
        self.state.forgets_after.store(u64::try_from(silence.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Whether a client has sent these bytes in the clear.
    pub(crate) fn has_heard(&self, words: &str) -> bool {
        self.state.heard.lock().unwrap().windows(words.len()).any(|window| window == words.as_bytes())
    }
}

fn carry(
    state: &State,
    number: usize,
    last: &Mutex<Instant>,
    mut from: TcpStream,
    mut to: TcpStream,
    is_of_client: bool,
) {
    // Delayed by a thread of its own, so that what follows is not delayed by more.
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    let writes = thread::spawn(move || {
        for (due, bytes) in receiver {
            wait_until(due);
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 65_536];
    let mut forgotten = false;
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let silence = std::mem::replace(&mut *last.lock().unwrap(), Instant::now()).elapsed();
        let forgets_after = state.forgets_after.load(Ordering::SeqCst);
        forgotten |= forgets_after > 0 && silence > Duration::from_millis(forgets_after);
        forgotten |= number <= state.forgotten.load(Ordering::SeqCst);
        if forgotten {
            continue;
        }
        if is_of_client {
            state.heard.lock().unwrap().extend_from_slice(&buffer[..length]);
        }
        let due = Instant::now() + Duration::from_millis(state.delay.load(Ordering::SeqCst));
        if sender.send((due, buffer[..length].to_vec())).is_err() {
            break;
        }
    }
    drop(sender);
    let _ = writes.join();
    let _ = from.shutdown(Shutdown::Both);
}

fn wait_until(due: Instant) {
    thread::sleep(due.saturating_duration_since(Instant::now()));
}
