//! From an address to a [`Wire`] and from an accepted socket to one: listening, connecting, TLS
//! handshakes, and the limits on how long and how many.
//!
//! What the session's HELLO means is left to its owner: [`accept`] returns a wire that waits for
//! HELLO, [`connect`] one that has got its WELCOME. Invariant: every wait here ends by a time limit.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::UnixTime;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::hello::Hello;
use crate::identity::{Identity, Role};
use crate::session::{Session, SessionConfig};
use crate::transport::credentials::Credentials;
use crate::transport::tls::Tls;
use crate::transport::verify::{VerifyError, take_refusal};
use crate::transport::wire::{Wire, WireError, hear_out};

/// Connections that the kernel completes for us while we are busy: all launchers of a full cell
/// come back at once. The kernel lowers it to `net.core.somaxconn`.
const LISTEN_BACKLOG: u32 = 16 * 1024;

/// Silence after which the kernel probes a connection. Sessions ping long before; this is for
/// connections that are not sessions, and for a daemon that is stopped.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// One read of a handshake: a certificate chain is a few KiB.
const HANDSHAKE_READ_BYTES: usize = 8 * 1024;

/// Unconsumed bytes of a handshake: rustls accepts messages to 64 KiB.
const HANDSHAKE_KEPT_BYTES: usize = 80 * 1024;

/// Listens for frames or HTTPS, with a backlog for a whole cell's reconnection.
///
/// To be called within a tokio runtime.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A restarted daemon must not wait for its old connections to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// A bound on handshakes under way at once: each costs a signature and up to 80 KiB.
#[derive(Debug, Clone)]
pub struct HandshakeLimiter(Arc<Semaphore>);

/// Held during one handshake.
#[derive(Debug)]
pub struct HandshakePermit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl HandshakeLimiter {
    /// Enough to keep some cores busy with launchers that come back all at once, while peers that
    /// say nothing hold a slot for the handshake's time limit only.
    pub const DEFAULT_LIMIT: usize = 512;

    /// At most so many handshakes at once.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Semaphore::new(limit)))
    }

    /// Waits for a free place; to be called before `accept(2)`, so that the rest waits in the
    /// backlog.
    pub async fn acquire(&self) -> HandshakePermit {
        let permit = self.0.clone().acquire_owned().await;
        HandshakePermit(permit.expect("this semaphore is never closed"))
    }

    /// A place if one is free.
    #[must_use]
    pub fn try_acquire(&self) -> Option<HandshakePermit> {
        self.0.clone().try_acquire_owned().ok().map(HandshakePermit)
    }
}

impl Default for HandshakeLimiter {
    fn default() -> Self {
        Self::new(Self::DEFAULT_LIMIT)
    }
}

/// Connects to a daemon of this role, sends HELLO, and returns once WELCOME is here
/// ([`Session::take_welcome`]). All of it within `config.timeouts.handshake`.
pub async fn connect(
    address: &str,
    credentials: &Credentials,
    expected: Role,
    hello: &Hello,
    config: SessionConfig,
) -> Result<Wire, WireError> {
    let limit = config.timeouts.handshake;
    match timeout(
        limit,
        connect_unlimited(address, credentials, expected, hello, config),
    )
    .await
    {
        Ok(outcome) => outcome,
        Err(_) => Err(WireError::Timeout {
            what: "connection and handshake",
            limit,
        }),
    }
}

async fn connect_unlimited(
    address: &str,
    credentials: &Credentials,
    expected: Role,
    hello: &Hello,
    config: SessionConfig,
) -> Result<Wire, WireError> {
    let stream = connect_tcp(address).await?;
    let local = credentials.identity().role();
    let session = Session::client(local, expected, hello, config, Instant::now())?;
    let tls = Tls::client(credentials.client_config(expected))?;
    let shaken = handshake(stream, tls).await?;
    // rustls has verified the chain; what is left is to read who it was.
    let mut wire = shaken.into_wire(session)?;
    wire.flush().await?;
    match wire.read_welcome().await {
        Ok(()) => Ok(wire),
        Err(error) => {
            tokio::spawn(wire.finish());
            Err(error)
        }
    }
}

/// Connects without TLS: resolves, tries each address, sets what our sockets have set.
pub async fn connect_tcp(address: &str) -> Result<TcpStream, WireError> {
    let resolved = tokio::net::lookup_host(address)
        .await
        .map_err(|source| WireError::Resolve {
            address: address.to_owned(),
            source,
        })?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no addresses");
    for socket_address in resolved {
        match TcpStream::connect(socket_address).await {
            Ok(stream) => {
                prepare(&stream)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(WireError::Connect {
        address: address.to_owned(),
        source: last,
    })
}

/// Takes an accepted socket through TLS. Its peer is of our cluster afterwards, and of any role:
/// the session examines the role when HELLO comes ([`Wire::read_hello`]).
pub async fn accept(
    stream: TcpStream,
    credentials: &Credentials,
    config: SessionConfig,
) -> Result<Wire, WireError> {
    let limit = config.timeouts.handshake;
    let shaking = async {
        prepare(&stream)?;
        let tls = Tls::server(credentials.server_config())?;
        handshake(stream, tls).await
    };
    let shaken = match timeout(limit, shaking).await {
        Ok(shaken) => shaken?,
        Err(_) => {
            return Err(WireError::Timeout {
                what: "TLS handshake",
                limit,
            });
        }
    };
    let local = credentials.identity().role();
    let peer = shaken.peer_identity()?.role();
    shaken.into_wire(Session::server(local, peer, config, Instant::now()))
}

/// What every socket of ours has set.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Frames are batched by us; waiting for more to send would only add latency.
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))
}

/// A connection whose TLS handshake is done.
struct Shaken {
    stream: TcpStream,
    tls: Tls,
    /// Records of ours that end the handshake and go out with the first frames.
    unsent: Vec<u8>,
    /// What has arrived behind the handshake.
    unread: Vec<u8>,
    early: Vec<u8>,
}

async fn handshake(mut stream: TcpStream, mut tls: Tls) -> Result<Shaken, WireError> {
    let mut unread = Vec::new();
    let mut unsent = Vec::new();
    let mut early = Vec::new();
    loop {
        let _of_another_connection = take_refusal();
        let pumped = tls.pump(&mut unread, &mut unsent, &mut |plain| {
            early.extend_from_slice(plain)
        });
        match pumped {
            Ok(pumped) => {
                unread.drain(..pumped.consumed);
                if pumped.peer_closed {
                    return Err(WireError::Closed { clean: true });
                }
            }
            Err(error) => {
                // The alert must arrive, or the peer learns nothing but that we hung up.
                let refusal = take_refusal();
                if stream.write_all(&unsent).await.is_ok() {
                    tokio::spawn(hear_out(stream));
                }
                return Err(refusal.map_or_else(|| error.into(), WireError::Peer));
            }
        }
        if !tls.state().is_handshaking() {
            return Ok(Shaken {
                stream,
                tls,
                unsent,
                unread,
                early,
            });
        }
        if !unsent.is_empty() {
            stream.write_all(&unsent).await?;
            unsent.clear();
        }
        if unread.len() > HANDSHAKE_KEPT_BYTES {
            return Err(WireError::Tls(rustls::Error::InvalidMessage(
                rustls::InvalidMessage::HandshakePayloadTooLarge,
            )));
        }
        unread.reserve(HANDSHAKE_READ_BYTES);
        if stream.read_buf(&mut unread).await? == 0 {
            return Err(WireError::Closed { clean: false });
        }
    }
}

impl Shaken {
    /// Who the peer is; its chain has been verified in the handshake.
    fn peer_identity(&self) -> Result<Identity, VerifyError> {
        let chain = self
            .tls
            .state()
            .peer_certificates()
            .ok_or(VerifyError::Missing)?;
        let certificate = chain.first().ok_or(VerifyError::Missing)?;
        Ok(Identity::from_certificate(certificate)?)
    }

    fn into_wire(self, mut session: Session) -> Result<Wire, WireError> {
        let peer = self.peer_identity()?;
        let address = self.stream.peer_addr()?;
        let mut frames = Vec::new();
        let received = session.receive(&self.early, &mut frames);
        let wire = Wire::new(
            self.stream,
            self.tls,
            session,
            peer,
            address,
            self.unsent,
            self.unread,
        );
        match received {
            Ok(()) => Ok(wire),
            Err(error) => {
                tokio::spawn(wire.finish());
                Err(error.into())
            }
        }
    }
}

/// The time by UTC, for judging certificates.
#[must_use]
pub fn wall_clock() -> UnixTime {
    UnixTime::now()
}
