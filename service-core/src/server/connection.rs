//! Accepting connections: at most so many in all and from one address, each with a
//! time limit for its hand-shake, and a way to cut them all.
//!
//! The hand-shake is that of TLS, in a task of its own so that a slow one holds up
//! nobody, and the HTTP/2 preface: without a limit a peer that connects and says
//! nothing, or half a preface, is held for ever, because keep-alive begins only after
//! it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::config::{ServerConfig, millis};
use crate::telemetry::Metrics;
use crate::tls::{PeerCertificate, ServerTls};

/// The client preface (RFC 9113, 3.4): 24 bytes, then the header of a SETTINGS
/// frame.
const PREFACE_BYTES: usize = 24 + 9;
/// Pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

enum Next {
    Accepted(io::Result<(TcpStream, SocketAddr)>, OwnedSemaphorePermit),
    Shaken(Option<Box<Connection>>),
}

/// The stream of connections. Never fails: an error of accept is logged and
/// accepting goes on.
pub(super) fn incoming(
    listener: TcpListener,
    config: &ServerConfig,
    tls: Option<Arc<ServerTls>>,
    metrics: Metrics,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let room = Arc::new(Semaphore::new(config.max_connections.get().min(Semaphore::MAX_PERMITS)));
    let peers = Peers { cap: config.max_connections_per_peer.get(), open: Arc::default() };
    let handshake_timeout = millis(config.handshake_timeout_ms);
    async_stream::stream! {
        // Dropped with the stream, and with it those that have not ended.
        let mut shaking: JoinSet<Option<Box<Connection>>> = JoinSet::new();
        loop {
            let next = tokio::select! {
                Some(shaken) = shaking.join_next() => Next::Shaken(shaken.unwrap_or(None)),
                // The semaphore is never closed.
                Ok((permit, accepted)) = async {
                    let permit = room.clone().acquire_owned().await?;
                    Ok::<_, tokio::sync::AcquireError>((permit, listener.accept().await))
                } => Next::Accepted(accepted, permit),
                else => break,
            };
            match next {
                Next::Shaken(None) => {}
                Next::Shaken(Some(connection)) => yield Ok(*connection),
                Next::Accepted(Err(error), permit) => {
                    drop(permit);
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
                Next::Accepted(Ok((tcp, peer)), permit) => {
                    let Some(place) = peers.place(peer.ip()) else {
                        metrics.connection_refused("peer_cap");
                        continue;
                    };
                    if let Err(error) = tcp.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    let deadline = Instant::now() + handshake_timeout;
                    let local = tcp.local_addr().ok();
                    let open = Open::new(metrics.clone(), permit, place);
                    let cut = cut.clone();
                    let connection = move |socket, certificate| Connection {
                        handshake: Some((Box::pin(sleep_until(deadline)), 0)),
                        cut: Box::pin(cut.cancelled_owned()),
                        info: ConnectionInfo {
                            tcp: TcpConnectInfo { local_addr: local, remote_addr: Some(peer) },
                            certificate,
                        },
                        socket,
                        _open: open,
                    };
                    match &tls {
                        None => yield Ok(connection(Socket::Plain(tcp), None)),
                        Some(tls) => {
                            let acceptor = TlsAcceptor::from(tls.current());
                            let metrics = metrics.clone();
                            shaking.spawn(async move {
                                match timeout_at(deadline, acceptor.accept(tcp)).await {
                                    Ok(Ok(stream)) => {
                                        let certificate = PeerCertificate::of(stream.get_ref().1);
                                        Some(Box::new(connection(Socket::Tls(Box::new(stream)), certificate)))
                                    }
                                    Ok(Err(error)) => {
                                        metrics.connection_refused("handshake");
                                        tracing::debug!(%peer, %error, "TLS hand-shake failed");
                                        None
                                    }
                                    Err(_) => {
                                        metrics.connection_refused("handshake");
                                        None
                                    }
                                }
                            });
                        }
                    }
                }
            }
        }
    }
}

/// How many connections each address has.
#[derive(Clone)]
struct Peers {
    cap: usize,
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Peers {
    fn place(&self, peer: IpAddr) -> Option<Place> {
        let peer = network(peer);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(peer).or_default();
        if *count >= self.cap {
            return None;
        }
        *count += 1;
        Some(Place { peers: self.clone(), peer })
    }
}

/// One of the connections of an address.
struct Place {
    peers: Peers,
    peer: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = open.entry(self.peer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// One who has an IPv6 address has the 2^64 of its network.
pub(crate) fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

impl ConnectionInfo {
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.tcp.remote_addr.map(|address| address.ip().to_canonical())
    }
}

/// What a connection occupies, from accept to its end.
struct Open {
    metrics: Metrics,
    _permit: OwnedSemaphorePermit,
    _place: Place,
}

impl Open {
    fn new(metrics: Metrics, permit: OwnedSemaphorePermit, place: Place) -> Self {
        metrics.connection_opened();
        Self { metrics, _permit: permit, _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connection_closed();
    }
}

/// What requests know of their connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionInfo {
    pub(crate) tcp: TcpConnectInfo,
    pub(crate) certificate: Option<PeerCertificate>,
}

enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One accepted connection.
pub(super) struct Connection {
    socket: Socket,
    info: ConnectionInfo,
    /// Until the preface is there: its deadline, and the bytes so far.
    handshake: Option<(Pin<Box<Sleep>>, usize)>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _open: Open,
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl Socket {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let Some((deadline, _)) = &mut self.handshake else {
            return self.socket.poll_read(cx, buf);
        };
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        ready!(self.socket.poll_read(cx, buf))?;
        if let Some((_, seen)) = &mut self.handshake {
            *seen += buf.filled().len() - before;
            if *seen >= PREFACE_BYTES {
                self.handshake = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Socket::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Socket::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Plain(tcp) => tcp.is_write_vectored(),
            Socket::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Socket::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
