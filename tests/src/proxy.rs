//! A bad network between a client and a server: a proxy of TCP connections whose weather a test makes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of bytes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Everything passes.
    Clear,
    /// Everything passes, each piece so much later.
    Slow(Duration),
    /// Nothing passes, and nothing is lost: packets are dropped, and sent again once it clears.
    Stalled,
    /// What the client says passes, and no answer does. Whoever missed one is cut off once it clears.
    Mute,
    /// The server's side of each connection is gone, and the client is not told: half open.
    HalfOpen,
    /// Every connection is reset, also new ones.
    Reset,
    /// New connections lead to another server, the others are reset.
    Astray(SocketAddr),
}

impl Weather {
    /// Whether a client can get anything done.
    pub fn is_fair(self) -> bool {
        matches!(self, Self::Clear | Self::Slow(_))
    }

    fn leads_to(self, home: SocketAddr) -> SocketAddr {
        if let Self::Astray(elsewhere) = self { elsewhere } else { home }
    }
}

/// See the module's documentation. It ends with its runtime.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    accepted: Arc<AtomicU64>,
}

impl Proxy {
    /// In clear weather, to a server at this address, which may be away.
    pub async fn start(home: &str) -> Self {
        let home = home.parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, seen) = watch::channel(Weather::Clear);
        let accepted = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&accepted);
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                counted.fetch_add(1, Relaxed);
                tokio::spawn(carry(client, home, seen.clone()));
            }
        });
        Self { address, weather, accepted }
    }

    /// Where it listens: `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// How many connections were made until now.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }
}

/// One connection, until either side ends it or the weather does.
async fn carry(mut client: TcpStream, home: SocketAddr, mut weather: watch::Receiver<Weather>) {
    let target = weather.borrow().leads_to(home);
    let mut server = None;
    // Bytes were lost, so that it can't go on.
    let mut spoilt = false;
    let (mut up, mut down) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    loop {
        let now = *weather.borrow_and_update();
        if now == Weather::Reset || now.leads_to(home) != target || spoilt && now.is_fair() {
            let _ = client.set_zero_linger();
            return;
        }
        if now == Weather::HalfOpen {
            spoilt = true;
            drop(server.take());
        }
        if matches!(now, Weather::HalfOpen | Weather::Stalled) {
            if weather.changed().await.is_err() {
                return;
            }
            continue;
        }
        let server = match &mut server {
            Some(server) => server,
            None => {
                let Ok(connected) = TcpStream::connect(target).await else { return };
                server.insert(connected)
            }
        };
        let passed = tokio::select! {
            changed = weather.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            read = client.read(&mut up) => pass(read, &up, now, server).await,
            read = server.read(&mut down) => match now {
                Weather::Mute if matches!(read, Ok(1..)) => {
                    spoilt = true;
                    Some(())
                }
                _ => pass(read, &down, now, &mut client).await,
            },
        };
        if passed.is_none() {
            return;
        }
    }
}

/// What was read goes to the other side. None at an end.
async fn pass(read: std::io::Result<usize>, bytes: &[u8], weather: Weather, to: &mut TcpStream) -> Option<()> {
    let read = read.ok().filter(|read| *read > 0)?;
    if let Weather::Slow(by) = weather {
        tokio::time::sleep(by).await;
    }
    to.write_all(&bytes[..read]).await.ok()
}
