//! A way to Postgres that can be cut at the worst moment.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Passes everything on, until it is told to lose an answer. Dropping it cuts every connection.
pub struct Proxy {
    address: String,
    state: Arc<State>,
    accepting: AbortHandle,
}

#[derive(Default)]
struct State {
    /// The text in a request whose answer is lost.
    marker: Mutex<Option<String>>,
    lost: AtomicU32,
}

impl Proxy {
    /// Listens on a free port and passes on to `server` (`host:port`).
    pub async fn start(server: String) -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("no port for the proxy")?;
        let address = listener.local_addr()?.to_string();
        let state = Arc::new(State::default());
        let accepted = state.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, server) = (accepted.clone(), server.clone());
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(&server).await {
                        pass(client, server, state).await;
                    }
                });
            }
        });
        Ok(Proxy {
            address,
            state,
            accepting: accepting.abort_handle(),
        })
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Loses the answer to the next request that holds `text`: the server works it off, then the connection is cut.
    pub fn lose_answer_to(&self, text: &str) {
        *self.state.marker.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.to_owned());
    }

    /// How many answers were lost.
    pub fn lost(&self) -> u32 {
        self.state.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(client: TcpStream, server: TcpStream, state: Arc<State>) {
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let marked = Arc::new(AtomicU32::new(0));
    tokio::select! {
        () = requests(from_client, to_server, &state, &marked) => {}
        () = answers(from_server, to_client, &state, &marked) => {}
    }
}

/// Statements are sent by text once per connection and by name afterwards, so the first marked text marks its connection.
async fn requests(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, state: &State, marked: &AtomicU32) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        if let Some(marker) = &*state.marker.lock().unwrap_or_else(PoisonError::into_inner) {
            let holds = buffer[..length]
                .windows(marker.len())
                .any(|part| part == marker.as_bytes());
            marked.fetch_or(u32::from(holds), Ordering::SeqCst);
        }
        if server.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn answers(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, state: &State, marked: &AtomicU32) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = server.read(&mut buffer).await {
        // A data row, or the tag of a write, tells that the statement was executed; ready-for-query after it, that it was
        // committed.
        let answer = &buffer[..length];
        let tagged = |tag: &[u8]| answer.windows(tag.len()).any(|part| part == tag);
        let executed = answer.contains(&b'D') || tagged(b"INSERT 0 ") || tagged(b"COMMIT\0");
        if marked.load(Ordering::SeqCst) != 0 && executed && answer.ends_with(b"Z\0\0\0\x05I") {
            *state.marker.lock().unwrap_or_else(PoisonError::into_inner) = None;
            state.lost.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if client.write_all(answer).await.is_err() {
            return;
        }
    }
}
