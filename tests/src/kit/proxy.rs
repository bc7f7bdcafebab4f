//! A proxy before Postgres that can stop, cut or silently drop traffic at the worst moment.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards all traffic, unless a fault is planned. Dropping it closes the port.
pub struct Proxy {
    address: String,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

/// Before or after the server executes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The server has not received the request.
    Before,
    /// The server has executed it; the answer is on the way.
    After,
}

/// The fault for the first request that contains the text.
struct Plan {
    text: String,
    side: Side,
    then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Cut,
    Wait,
}

#[derive(Default)]
struct State {
    /// To which new connections go.
    server: Mutex<String>,
    plan: Mutex<Option<Plan>>,
    stopped: watch::Sender<bool>,
    cuts: watch::Sender<u32>,
    lost: AtomicU32,
    /// Connections so far.
    connections: AtomicU64,
    /// Connections before this one swallow everything.
    swallowing_before: AtomicU64,
    ended: watch::Sender<bool>,
}

impl Proxy {
    /// Listens on a free port and passes on to `server` (`host:port`).
    pub async fn start(server: String) -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("no port for the proxy")?;
        let address = listener.local_addr()?.to_string();
        let state = Arc::new(State {
            server: Mutex::new(server),
            ..State::default()
        });
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Ok(Proxy {
            address,
            state,
            accepting,
        })
    }

    /// Acts as if the server were gone: cuts every connection, and refuses new ones until [`Proxy::admit`].
    pub async fn refuse(&mut self) {
        self.accepting.abort();
        // Until it has ended, the port is open.
        drop((&mut self.accepting).await);
        self.cut();
    }

    /// Lets clients in again, by the same port.
    pub async fn admit(&mut self) -> anyhow::Result<()> {
        let listener = TcpListener::bind(&self.address).await.context(self.address())?;
        self.accepting = tokio::spawn(accept(listener, self.state.clone()));
        Ok(())
    }

    /// Passes new connections on to another server, as a name does that has moved.
    pub fn point_at(&self, server: String) {
        *self.state.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Loses the answer to the next request that contains `text`: the server executes it, then the connection is cut.
    pub fn lose_answer_to(&self, text: &str) {
        self.state.plan(text, Side::After, Then::Cut);
    }

    /// Answers lost so far.
    pub fn lost(&self) -> u32 {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// Stops the next request that contains `text`, or its answer, until [`Proxy::go_on`] or [`Proxy::cut`].
    pub fn stop_at(&self, text: &str, side: Side) {
        self.state.plan(text, side, Then::Wait);
    }

    /// Waits until something is stopped.
    pub async fn stopped(&self) {
        // The sender lives as long as this proxy.
        drop(self.state.stopped.subscribe().wait_for(|stopped| *stopped).await);
    }

    /// Lets what is stopped go on.
    pub fn go_on(&self) {
        self.state.stopped.send_replace(false);
    }

    /// Silently drops all traffic of the present connections, as a firewall does that has forgotten them: no bytes of either side
    /// arrive, and neither learns that the other one has closed. New connections pass.
    pub fn swallow(&self) {
        let connections = self.state.connections.load(Ordering::SeqCst);
        self.state.swallowing_before.store(connections, Ordering::SeqCst);
    }

    /// As if the server's host were lost: as [`Proxy::swallow`], and new connections die in the same way until
    /// [`Proxy::find_host`].
    pub fn lose_host(&self) {
        self.state.swallowing_before.store(u64::MAX, Ordering::SeqCst);
    }

    /// Lets new connections pass again; those that have died stay dead.
    pub fn find_host(&self) {
        self.swallow();
    }

    /// Connections opened so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Cuts every connection that there is; what is stopped is lost.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
        self.go_on();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.state.ended.send_replace(true);
    }
}

impl State {
    /// True if the connection of this number swallows everything.
    fn swallows(&self, connection: u64) -> bool {
        connection < self.swallowing_before.load(Ordering::SeqCst)
    }

    /// Returns when the proxy may close the connection after one side closed it: never for a connection that swallows everything,
    /// unless the proxy ends.
    async fn gone(&self, connection: u64) {
        if self.swallows(connection) {
            drop(self.ended.subscribe().wait_for(|ended| *ended).await);
        }
    }

    fn plan(&self, text: &str, side: Side, then: Then) {
        let text = text.to_owned();
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = Some(Plan { text, side, then });
    }

    /// The side of this request on which to stop it, if the plan is about it.
    fn side_of(&self, request: &[u8]) -> Option<Side> {
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let Plan { text, side, .. } = plan.as_ref()?;
        let holds = request.windows(text.len()).any(|part| part == text.as_bytes());
        holds.then_some(*side)
    }

    /// Carries the plan out. Returns true if the stopped bytes are to be forwarded.
    async fn carry_out(&self) -> bool {
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner).take();
        match plan.map(|plan| plan.then) {
            Some(Then::Cut) => {
                self.lost.fetch_add(1, Ordering::SeqCst);
                false
            }
            Some(Then::Wait) => {
                let cuts = *self.cuts.borrow();
                self.stopped.send_replace(true);
                drop(self.stopped.subscribe().wait_for(|stopped| !stopped).await);
                // A cut ends the wait too, and may come before this task waits for it.
                *self.cuts.borrow() == cuts
            }
            None => true,
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            let server = state.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Ok(server) = TcpStream::connect(&server).await {
                pass(client, server, state).await;
            }
        });
    }
}

async fn pass(client: TcpStream, server: TcpStream, state: Arc<State>) {
    let number = state.connections.fetch_add(1, Ordering::SeqCst);
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let mut cuts = state.cuts.subscribe();
    let marked = AtomicBool::new(false);
    tokio::select! {
        biased;
        _ = cuts.changed() => {}
        () = requests(from_client, to_server, &state, number, &marked) => {}
        () = answers(from_server, to_client, &state, number, &marked) => {}
    }
}

/// Statements are sent by text once per connection and by name afterwards, so the first text of a plan marks its connection.
async fn requests(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    state: &State,
    connection: u64,
    marked: &AtomicBool,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = client.read(&mut buffer).await {
        if state.swallows(connection) {
            continue;
        }
        let request = &buffer[..length];
        let pass_on = match state.side_of(request) {
            Some(Side::Before) => state.carry_out().await,
            Some(Side::After) => {
                marked.store(true, Ordering::SeqCst);
                true
            }
            None => true,
        };
        if !pass_on || server.write_all(request).await.is_err() {
            break;
        }
    }
    state.gone(connection).await;
}

async fn answers(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    state: &State,
    connection: u64,
    marked: &AtomicBool,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = server.read(&mut buffer).await {
        if state.swallows(connection) {
            continue;
        }
        let answer = &buffer[..length];
        let stop = is_executed(answer) && marked.swap(false, Ordering::SeqCst);
        if (stop && !state.carry_out().await) || client.write_all(answer).await.is_err() {
            break;
        }
    }
    state.gone(connection).await;
}

/// True for the messages that say that a statement was executed and, by ready-for-query after it, that its transaction was
/// committed or is open.
fn is_executed(answer: &[u8]) -> bool {
    let complete = |part: &[u8]| matches!(part, [b'C', 0, 0, 0, length] if *length > 4);
    let ready = |status: u8| answer.ends_with(&[b'Z', 0, 0, 0, 5, status]);
    answer.windows(5).any(complete) && (ready(b'I') || ready(b'T'))
}
