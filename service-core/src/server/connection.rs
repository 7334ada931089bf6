//! Accepting connections: at most so many, each with a time limit for its
//! hand-shake, and a way to cut them all.
//!
//! The hand-shake limit counts the bytes of the HTTP/2 preface: without it a peer
//! that connects and says nothing, or half a preface, is held for ever, because
//! keep-alive begins only after it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::config::{ServerConfig, millis};

/// The client preface (RFC 9113, 3.4): 24 bytes, then the header of a SETTINGS
/// frame.
const PREFACE_BYTES: usize = 24 + 9;
/// Pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The stream of connections. Never fails: an error of accept is logged and
/// accepting goes on.
pub(super) fn incoming(
    listener: TcpListener,
    config: &ServerConfig,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let room = Arc::new(Semaphore::new(config.max_connections.get().min(Semaphore::MAX_PERMITS)));
    let handshake_timeout = millis(config.handshake_timeout_ms);
    async_stream::stream! {
        // The semaphore is never closed.
        while let Ok(permit) = room.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((tcp, peer)) => {
                    if let Err(error) = tcp.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    yield Ok(Connection {
                        handshake: Some((Box::pin(sleep(handshake_timeout)), 0)),
                        cut: Box::pin(cut.clone().cancelled_owned()),
                        local: tcp.local_addr().ok(),
                        peer,
                        tcp,
                        _permit: permit,
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One accepted connection.
pub(super) struct Connection {
    tcp: TcpStream,
    local: Option<SocketAddr>,
    peer: SocketAddr,
    /// Until the preface is there: its deadline, and the bytes so far.
    handshake: Option<(Pin<Box<Sleep>>, usize)>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.local, remote_addr: Some(self.peer) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let Some((deadline, _)) = &mut self.handshake else {
            return Pin::new(&mut self.tcp).poll_read(cx, buf);
        };
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.tcp).poll_read(cx, buf))?;
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
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
