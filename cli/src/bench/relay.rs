//! The reference of `bench dispatch`: a bare TLS relay that decodes nothing.
//!
//! It has the scheduler's topology, frame sizes and batching, and none of its work: what comes from
//! the controller is cut into pieces of the START's known length, each is put behind ready-made
//! bytes and copied to the next launcher, and the controller gets ready-made bytes back. One thread,
//! rustls' ordinary buffered interface, one read for all that arrived, one flush for all that is
//! ready. What launchers send is decrypted and dropped.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use pronto_payloads::codec::encode;
use pronto_payloads::hello::SchedulerWelcome;
use pronto_payloads::ids::{ControllerEpoch, Seq, SessionEpoch, Term};
use pronto_payloads::place::{Placed, StartStamp};
use pronto_protocol::transport::{Credentials, TlsFiles, listen};
use pronto_protocol::{Frame, HEADER_BYTES, Hello, Identity, Operand, Payload, Role, Welcome};
use rustls::ServerConnection;
use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

/// What one read takes from a connection's plaintext.
const READ_BYTES: usize = 128 * 1024;

/// The sizes that the relay imitates.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RelayShape {
    /// Bytes of a START's payload as the controller sends it
    #[arg(long)]
    start_bytes: usize,
    /// Bytes of a PLACED's payload
    #[arg(long)]
    placed_bytes: usize,
}

/// Flags of the hidden `bench relay`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RelayArgs {
    #[command(flatten)]
    shape: RelayShape,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    ca: PathBuf,
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    key: PathBuf,
}

impl RelayShape {
    /// The shape of a scheduler whose STARTs have this payload.
    pub(crate) fn of(start_bytes: usize) -> Self {
        let placed = Placed {
            id: pronto_payloads::place::AttemptId {
                owner: Default::default(),
                instance: Default::default(),
                attempt: Default::default(),
            },
            node: super::fleet::node_name(0),
            session_epoch: SessionEpoch(1),
            seq: Seq(1),
            placing_ns: 0,
        };
        Self {
            start_bytes,
            placed_bytes: encode(&placed).len(),
        }
    }

    /// As flags of the hidden command.
    pub(crate) fn arguments(&self) -> [String; 4] {
        [
            "--start-bytes".to_owned(),
            self.start_bytes.to_string(),
            "--placed-bytes".to_owned(),
            self.placed_bytes.to_string(),
        ]
    }
}

/// One connection: a socket and its TLS.
struct Peer {
    stream: TcpStream,
    tls: RefCell<ServerConnection>,
    /// Wakes the reading task when a flush got stuck.
    stuck: tokio::sync::Notify,
}

struct Socket<'a>(&'a TcpStream);

impl io::Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.try_write(buffer)
    }

    fn write_vectored(&mut self, buffers: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(buffers)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Peer {
    fn queue(&self, bytes: &[u8]) -> io::Result<()> {
        self.tls.borrow_mut().writer().write_all(bytes)
    }

    /// Writes what the socket takes; false if something is left.
    fn flush(&self) -> io::Result<bool> {
        let mut tls = self.tls.borrow_mut();
        while tls.wants_write() {
            match tls.write_tls(&mut Socket(&self.stream)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stuck.notify_one();
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads once; false where nothing was there. Appends plaintext.
    fn read(&self, plain: &mut Vec<u8>) -> io::Result<bool> {
        let mut tls = self.tls.borrow_mut();
        let mut took = false;
        loop {
            match tls.read_tls(&mut Socket(&self.stream)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => took = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(took),
                Err(error) => return Err(error),
            }
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            tls.reader().read_exact(&mut plain[start..])?;
            if plain.len() >= READ_BYTES {
                return Ok(took);
            }
        }
    }

    /// Waits until there is something to read, finishing stuck flushes meanwhile.
    async fn readable(&self) -> io::Result<()> {
        loop {
            let wants_write = self.tls.borrow().wants_write();
            tokio::select! {
                ready = self.stream.readable() => return ready,
                ready = self.stream.writable(), if wants_write => {
                    ready?;
                    self.flush()?;
                }
                () = self.stuck.notified(), if !wants_write => {}
            }
        }
    }
}

/// Runs until it is killed.
pub(crate) fn run(args: &RelayArgs) -> Result<()> {
    let files = TlsFiles {
        ca: args.ca.clone(),
        cert: args.cert.clone(),
        key: args.key.clone(),
        crl: None,
    };
    let credentials = Credentials::load(&files)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shape = args.shape.clone();
    runtime.block_on(LocalSet::new().run_until(async move {
        let listener = listen(args.listen)?;
        let launchers = Rc::new(RefCell::new(Vec::new()));
        let shape = Rc::new(Ready::new(&shape));
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let tls = ServerConnection::new(credentials.server_config())?;
            let launchers = launchers.clone();
            let shape = shape.clone();
            spawn_local(async move {
                // A peer that goes away takes nothing with it but its own connection.
                let _ended = serve(stream, tls, &launchers, &shape).await;
            });
        }
    }))
}

/// Ready-made bytes.
struct Ready {
    /// What a START from the controller takes on the wire.
    piece_bytes: usize,
    /// Header and stamp of a forwarded START.
    start: Bytes,
    placed: Bytes,
}

impl Ready {
    fn new(shape: &RelayShape) -> Self {
        let stamp = encode(&StartStamp {
            session_epoch: SessionEpoch(1),
            seq: Seq(1),
            term: Term(1),
            gpus: Vec::new(),
        });
        let whole = Payload::with_prefix(stamp.clone(), vec![0; shape.start_bytes]);
        let start = encoded(&Frame::new(Operand::Start, whole));
        let placed = encoded(&Frame::new(Operand::Placed, vec![0; shape.placed_bytes]));
        Self {
            piece_bytes: HEADER_BYTES + shape.start_bytes,
            start: start.slice(..HEADER_BYTES + stamp.len()),
            placed,
        }
    }
}

fn encoded(frame: &Frame) -> Bytes {
    let mut out = Vec::new();
    pronto_protocol::codec::encode(frame, &mut out).expect("these frames are within their limits");
    out.into()
}

type Launchers = Rc<RefCell<Vec<Rc<Peer>>>>;

async fn serve(
    stream: TcpStream,
    tls: ServerConnection,
    launchers: &Launchers,
    ready: &Ready,
) -> Result<()> {
    let peer = Rc::new(Peer {
        stream,
        tls: RefCell::new(tls),
        stuck: tokio::sync::Notify::new(),
    });
    peer.tls.borrow_mut().set_buffer_limit(None);
    let mut plain = Vec::new();
    let role = greet(&peer, &mut plain).await?;
    if role == Role::Launcher {
        launchers.borrow_mut().push(peer.clone());
    }
    let mut cursor = 0;
    loop {
        if role == Role::Launcher {
            plain.clear();
        } else {
            relay(&peer, &mut plain, &mut cursor, launchers, ready)?;
        }
        peer.readable().await?;
        peer.read(&mut plain)?;
    }
}

/// The handshake, HELLO and a ready-made WELCOME.
async fn greet(peer: &Peer, plain: &mut Vec<u8>) -> Result<Role> {
    loop {
        peer.flush()?;
        if plain.len() >= HEADER_BYTES {
            let length = u32::from_le_bytes(plain[4..8].try_into()?) as usize;
            if plain.len() >= HEADER_BYTES + length {
                break;
            }
        }
        peer.readable().await?;
        peer.read(plain)?;
    }
    let length = u32::from_le_bytes(plain[4..8].try_into()?) as usize;
    let hello = Bytes::copy_from_slice(&plain[HEADER_BYTES..HEADER_BYTES + length]);
    plain.drain(..HEADER_BYTES + length);
    let hello = Hello::decode(&hello)?;
    let body = encode(&SchedulerWelcome {
        stats_interval_ms: 1000,
        lease_ms: 10_000,
        start_window: 1_000_000,
        owner_epoch: ControllerEpoch(0),
        nodes: 0,
    });
    let welcome = Welcome {
        version: hello.versions.max,
        session_epoch: hello.session_epoch,
        ..Welcome::new(1, 1, true, body)
    };
    peer.queue(&encoded(&Frame::new(Operand::Welcome, welcome.encode())))?;
    peer.flush()?;
    let tls = peer.tls.borrow();
    let chain = tls
        .peer_certificates()
        .context("a peer without a certificate")?;
    let identity = Identity::from_certificate(chain.first().context("an empty chain")?)?;
    match identity.role() {
        role @ (Role::Launcher | Role::Controller) => Ok(role),
        role => bail!("a {role} has no place at a relay"),
    }
}

/// Copies whole pieces to launchers in turn, then flushes everybody once.
fn relay(
    controller: &Peer,
    plain: &mut Vec<u8>,
    cursor: &mut usize,
    launchers: &Launchers,
    ready: &Ready,
) -> Result<()> {
    let launchers = launchers.borrow();
    let pieces = plain.len() / ready.piece_bytes;
    if pieces == 0 || launchers.is_empty() {
        return Ok(());
    }
    let first = *cursor;
    // Grouped by launcher, so that one record carries all that one launcher gets.
    for offset in 0..pieces.min(launchers.len()) {
        let launcher = &launchers[(first + offset) % launchers.len()];
        for piece in (offset..pieces).step_by(launchers.len()) {
            let at = piece * ready.piece_bytes;
            launcher.queue(&ready.start)?;
            launcher.queue(&plain[at + HEADER_BYTES..at + ready.piece_bytes])?;
        }
        launcher.flush()?;
    }
    *cursor = (first + pieces) % launchers.len();
    controller.queue(&ready.placed.repeat(pieces))?;
    controller.flush()?;
    plain.drain(..pieces * ready.piece_bytes);
    Ok(())
}
