//! HTTP on ports of our own: for operators (`lifecycle.rs`), for the payment provider (`webhook.rs`), for Restate (`objects`).
//!
//! Whoever can reach a port can open connections and send nothing, or never come to an end. So a port has room for so many
//! connections, few enough that the process keeps files for Kafka and Postgres. When it is full, the oldest connection without a
//! request under way gives way to the new one. The head of a request must fit and arrive in time, and after a while a connection
//! takes no further request. A failed accept is tried again.

mod certificate;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::CertificateFiles;
use certificate::Certificate;
pub use certificate::Error as CertificateError;

/// Most connections of one port.
const ROOM: usize = 256;

/// Longest time for a TLS handshake, for the head of a request, and between two requests of one connection.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes.
const HEAD_BYTES: usize = 64 << 10;

/// Age at which a connection of HTTP/1.1 takes no further request.
const LIFETIME: Duration = Duration::from_secs(600);

/// Longest time for what is under way on a connection that takes no further request.
const LAST: Duration = Duration::from_secs(20);

/// As [`LAST`], for Restate, which calls again what did not end.
const LAST_INVOCATIONS: Duration = Duration::from_secs(10);

/// Pause of Restate's connections before the other side is asked whether it is there, and the time for its answer.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Pause after a connection could not be accepted, as when the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port that listens.
pub struct Port {
    listener: TcpListener,
    certificate: Option<Certificate>,
}

/// The reason why a port cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: set {flag} to a free address")]
    Bind {
        address: SocketAddr,
        flag: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// The bounds of a port's connections.
#[derive(Clone, Copy)]
struct Bounds {
    /// Longest time until the first request; none where the protocol bounds every head.
    first: Option<Duration>,
    /// Age at which a connection takes no further request.
    lifetime: Option<Duration>,
    /// Longest time for what is under way then, or at the end.
    last: Duration,
}

/// The protocol of a port, as it is agreed on in the TLS handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Port {
    /// Listens on `address`, the value of the setting `flag`; by TLS if there is a certificate.
    ///
    /// # Errors
    /// The address is taken, or the certificate cannot be used.
    pub async fn open(
        address: SocketAddr,
        flag: &'static str,
        certificate: Option<CertificateFiles>,
        protocol: Protocol,
    ) -> Result<Self, Error> {
        let certificate = match certificate {
            Some(files) => Some(Certificate::read(files, protocol)?),
            None => None,
        };
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| Error::Bind { address, flag, source })?;
        Ok(Self { listener, certificate })
    }

    /// Serves each connection until `shutdown`.
    async fn serve<C>(
        self,
        shutdown: CancellationToken,
        bounds: Bounds,
        connect: impl Fn(Stream, Arc<Connection>) -> C + Send + Sync + 'static,
    ) where
        C: GracefulConnection + Send + 'static,
        C::Error: std::fmt::Display + Send,
    {
        let (room, connect, tasks) = (Arc::new(Room::default()), Arc::new(connect), TaskTracker::new());
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&room) => accepted,
                () = shutdown.cancelled() => break,
            };
            let (tcp, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let acceptor = self.certificate.as_ref().map(Certificate::acceptor);
            let (shutdown, connect) = (shutdown.clone(), connect.clone());
            tasks.spawn(async move {
                let evicted = place.connection.evicted.clone();
                let served = async {
                    let stream = tokio::select! {
                        stream = secured(tcp, acceptor) => stream,
                        () = shutdown.cancelled() => None,
                    };
                    let Some(stream) = stream else { return };
                    attend(connect(stream, place.connection.clone()), &shutdown, bounds).await;
                };
                tokio::select! {
                    () = served => {}
                    () = evicted.cancelled() => tracing::debug!("a connection without a request gave way"),
                    () = place.connection.stays_silent(bounds.first) => {
                        tracing::debug!("a connection without a request was closed");
                    }
                }
                drop(place);
            });
        }
        drop(self.listener);
        tasks.close();
        tasks.wait().await;
    }

    async fn accept(&self, room: &Arc<Room>) -> std::io::Result<(TcpStream, Place)> {
        let (tcp, _) = self.listener.accept().await?;
        Ok((tcp, room.admit().await))
    }
}

/// Serves a router by HTTP/1.1 until `shutdown`; requests under way are then answered.
pub async fn serve_router(port: Port, router: Router, shutdown: CancellationToken) {
    let connect = move |stream, connection: Arc<Connection>| {
        let router = TowerToHyperService::new(router.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (arriving, busy) = Arriving::new(request, connection.clone());
            let answered = router.call(arriving);
            async move {
                let answer = answered.await;
                drop(busy);
                answer
            }
        });
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(stream, service)
    };
    let bounds = Bounds {
        first: None,
        lifetime: Some(LIFETIME),
        last: LAST,
    };
    port.serve(shutdown, bounds, connect).await;
}

/// Serves Restate's calls by HTTP/2 until `shutdown`; invocations under way then have 10 s to come to their end. A connection whose
/// calls are answered never gives way; one that has made none, or has only been refused, does, and is closed after 10 s.
pub async fn serve_calls<S, B>(port: Port, service: S, shutdown: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connect = move |stream, connection: Arc<Connection>| {
        let service = service.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (connection, answered) = (connection.clone(), service.call(request));
            async move {
                let answer = answered.await?;
                if answer.status() != StatusCode::UNAUTHORIZED {
                    connection.requests.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, Infallible>(answer)
            }
        });
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .serve_connection(stream, service)
    };
    let bounds = Bounds {
        first: Some(HEAD_WITHIN),
        lifetime: None,
        last: LAST_INVOCATIONS,
    };
    port.serve(shutdown, bounds, connect).await;
}

type Stream = TokioIo<Box<dyn Duplex>>;

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The connection after its TLS handshake, if there is to be one.
async fn secured(tcp: TcpStream, acceptor: Option<tokio_rustls::TlsAcceptor>) -> Option<Stream> {
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "a connection is gone");
        return None;
    }
    let Some(acceptor) = acceptor else {
        return Some(TokioIo::new(Box::new(tcp)));
    };
    match timeout(HEAD_WITHIN, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => Some(TokioIo::new(Box::new(stream))),
        Ok(Err(error)) => {
            tracing::debug!(%error, "no TLS with whoever connected");
            None
        }
        Err(_elapsed) => None,
    }
}

async fn attend<C>(connection: C, shutdown: &CancellationToken, Bounds { lifetime, last, .. }: Bounds)
where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    let mut connection = pin!(connection);
    let grows_old = async {
        match lifetime {
            Some(lifetime) => sleep(lifetime).await,
            None => pending().await,
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = grows_old => None,
        () = shutdown.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match timeout(last, connection).await {
                Ok(ended) => ended,
                Err(_elapsed) => {
                    tracing::warn!("a connection was closed: what was under way on it took longer than {last:?}");
                    return;
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// The connections of a port, by age.
#[derive(Default)]
struct Room {
    connections: Mutex<(u64, BTreeMap<u64, Arc<Connection>>)>,
    freed: Arc<Notify>,
}

#[derive(Default)]
struct Connection {
    /// Requests under way.
    requests: AtomicUsize,
    evicted: CancellationToken,
    /// The room's: a connection whose last request has ended may give way.
    freed: Arc<Notify>,
}

impl Connection {
    /// Ends when there was no request for so long; never, once there was one.
    async fn stays_silent(&self, limit: Option<Duration>) {
        if let Some(limit) = limit {
            sleep(limit).await;
            if self.requests.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
        pending().await
    }
}

/// The place of one connection; dropping it makes room for another.
struct Place {
    number: u64,
    connection: Arc<Connection>,
    room: Arc<Room>,
}

impl Room {
    /// Makes room for a connection; waits while every other has a request under way.
    async fn admit(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_admit() {
                return place;
            }
            self.freed.notified().await;
        }
    }

    fn try_admit(self: &Arc<Self>) -> Option<Place> {
        let mut guard = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, connections) = &mut *guard;
        if connections.len() >= ROOM {
            let idle = connections
                .iter()
                .find(|(_, one)| one.requests.load(Ordering::Relaxed) == 0);
            let number = *idle?.0;
            connections.remove(&number)?.evicted.cancel();
        }
        let connection = Connection {
            freed: self.freed.clone(),
            ..Connection::default()
        };
        let (number, connection) = (*next, Arc::new(connection));
        *next += 1;
        connections.insert(number, connection.clone());
        let room = self.clone();
        Some(Place {
            number,
            connection,
            room,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guard = self.room.connections.lock().unwrap_or_else(PoisonError::into_inner);
        guard.1.remove(&self.number);
        self.room.freed.notify_one();
    }
}

/// A request under way on a connection.
struct Busy(Arc<Connection>);

impl Busy {
    fn new(connection: Arc<Connection>) -> Self {
        connection.requests.fetch_add(1, Ordering::Relaxed);
        Self(connection)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.freed.notify_one();
        }
    }
}

/// The body of a request, which is under way once that has arrived: who sends slowly gives way as who sends nothing.
struct Arriving {
    body: Incoming,
    connection: Arc<Connection>,
    busy: Arc<OnceLock<Busy>>,
}

impl Arriving {
    fn new(request: Request<Incoming>, connection: Arc<Connection>) -> (Request<Self>, Arc<OnceLock<Busy>>) {
        let busy = Arc::new(OnceLock::new());
        let arriving = |body| Self {
            body,
            connection,
            busy: busy.clone(),
        };
        let request = request.map(arriving);
        request.body().note();
        (request, busy)
    }

    fn note(&self) {
        if self.body.is_end_stream() {
            self.busy.get_or_init(|| Busy::new(self.connection.clone()));
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.note();
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_connection_without_a_request_gives_way() {
        let room = Arc::new(Room::default());
        let mut places: Vec<Place> = (0..ROOM).map(|_| room.try_admit().unwrap()).collect();
        let busy = Busy::new(places[0].connection.clone());
        places.push(room.try_admit().unwrap());
        let evicted: Vec<u64> = (places.iter().filter(|place| place.connection.evicted.is_cancelled()))
            .map(|place| place.number)
            .collect();
        assert_eq!(evicted, [1]);
        drop(busy);
        places.push(room.try_admit().unwrap());
        assert!(places[0].connection.evicted.is_cancelled());
    }

    #[test]
    fn while_every_connection_has_a_request_the_next_one_waits() {
        let room = Arc::new(Room::default());
        let mut places: Vec<Place> = (0..ROOM).map(|_| room.try_admit().unwrap()).collect();
        let busy: Vec<Busy> = places.iter().map(|place| Busy::new(place.connection.clone())).collect();
        assert!(room.try_admit().is_none());
        places.pop();
        assert!(room.try_admit().is_some());
        drop(busy);
    }

    #[tokio::test]
    async fn the_end_of_a_request_makes_room_for_whoever_waits() {
        let room = Arc::new(Room::default());
        let places: Vec<Place> = (0..ROOM).map(|_| room.try_admit().unwrap()).collect();
        let mut busy: Vec<Busy> = places.iter().map(|place| Busy::new(place.connection.clone())).collect();
        let waiting = tokio::spawn(async move { room.admit().await.number });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        busy.pop();
        assert_eq!(waiting.await.unwrap(), ROOM as u64);
        assert!(places[ROOM - 1].connection.evicted.is_cancelled());
    }
}
