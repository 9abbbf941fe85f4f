//! The launcher's end of the shim's socket: starting a shim where there is none, sending without
//! waiting, and reading what it says.

use crate::data_dir::DataDir;
use crate::moment::Moment;
use crate::shim::message::{FORMAT, FromShim, ShimSettings, ToShim};
use anyhow::{Context, bail};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// How long a shim may take to answer Hello: it does little more than exec.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// One read: many short messages.
const READ_BYTES: usize = 64 * 1024;

/// How to start a shim, and where its socket lies.
#[derive(Clone, Debug)]
pub(super) struct ShimPlace {
    pub(super) data_dir: DataDir,
    /// Program and first arguments; the settings follow as the last one.
    pub(super) command: Vec<String>,
    pub(super) settings: ShimSettings,
}

impl ShimPlace {
    /// The socket's path, short enough for its 108 bytes however deep the directory lies. It is
    /// valid while the directory is held open.
    fn socket(&self) -> anyhow::Result<(std::fs::File, PathBuf)> {
        let directory = std::fs::File::open(self.data_dir.path())
            .with_context(|| format!("can't open {}", self.data_dir.path().display()))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd()));
        Ok((directory, path))
    }

    /// Connects to the shim that is there.
    async fn connect(&self) -> anyhow::Result<UnixStream> {
        let (_directory, path) = self.socket()?;
        Ok(UnixStream::connect(path).await?)
    }

    /// Starts a shim and connects to it.
    async fn start(&self) -> anyhow::Result<UnixStream> {
        let (_directory, path) = self.socket()?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("can't remove the socket of a shim that is gone");
            }
            _ => {}
        }
        // Listening here already, so that there is no moment in which connecting fails.
        let listener = std::os::unix::net::UnixListener::bind(&path)
            .context("can't listen for the shim's connections")?;
        let [program, arguments @ ..] = &self.command[..] else {
            bail!("shim_command is empty")
        };
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.data_dir.path().join("shim.log"))?;
        let child = Command::new(program)
            .args(arguments)
            .arg(serde_json::to_string(&self.settings)?)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(log)
            .current_dir("/")
            .spawn()
            .with_context(|| format!("can't start the shim as {program}"))?;
        std::fs::write(self.data_dir.shim_pid(), format!("{}\n", child.id()))?;
        reap_later(child);
        Ok(UnixStream::connect(path).await?)
    }

    /// Connects, starting a shim if there is none, and hears what it has.
    pub(super) async fn open(&self) -> anyhow::Result<Greeted> {
        let socket = match self.connect().await {
            Ok(socket) => socket,
            Err(_) => self.start().await?,
        };
        let mut reader = Reader::new(Arc::new(socket));
        let mut hello = serde_json::to_vec(&ToShim::Hello { format: FORMAT })?;
        hello.push(b'\n');
        let greeting = async {
            let mut sent = 0;
            while sent < hello.len() {
                reader.socket.writable().await?;
                match reader.socket.try_write(&hello[sent..]) {
                    Ok(length) => sent += length,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let mut said = Vec::new();
            while !said.contains(&FromShim::Listed) {
                if !reader.read(&mut said).await? {
                    bail!("the shim ended at once; see shim.log in the data directory");
                }
            }
            Ok(said)
        };
        let said = tokio::time::timeout(GREETING_LIMIT, greeting)
            .await
            .context("the shim does not answer")??;
        let mut said = said.into_iter();
        let (pid, started_at) = match said.next() {
            Some(FromShim::Welcome {
                format: FORMAT,
                pid,
                started_at,
            }) => (pid, started_at),
            other => bail!("the shim speaks another format: {other:?}"),
        };
        Ok(Greeted {
            reader,
            pid,
            started_at,
            said: said.collect(),
        })
    }
}

/// A connection on which the shim has named what it has.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) reader: Reader,
    pub(super) pid: i32,
    pub(super) started_at: Moment,
    /// What it said after Welcome: Alive, Ended, Listed, and maybe more.
    pub(super) said: Vec<FromShim>,
}

/// Reads messages.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) socket: Arc<UnixStream>,
    inbox: Vec<u8>,
}

impl Reader {
    fn new(socket: Arc<UnixStream>) -> Self {
        Self {
            socket,
            inbox: Vec::new(),
        }
    }

    /// Appends what has come; false once the shim is gone. Safe to drop while it waits.
    pub(super) async fn read(&mut self, messages: &mut Vec<FromShim>) -> std::io::Result<bool> {
        loop {
            self.socket.ready(Interest::READABLE).await?;
            let mut chunk = [0; READ_BYTES];
            match self.socket.try_read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(length) => self.inbox.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
            let Some(end) = self.inbox.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            for line in self.inbox[..end].split(|byte| *byte == b'\n') {
                match serde_json::from_slice(line) {
                    Ok(message) => messages.push(message),
                    // An older or newer shim may say what this release does not know.
                    Err(error) => tracing::warn!(%error, "the shim said something unknown"),
                }
            }
            self.inbox.drain(..=end);
            return Ok(true);
        }
    }
}

/// Sends messages from any thread; never waits.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<OutboxState>,
    /// Told when something is left that the socket did not take.
    pub(super) left: Notify,
}

#[derive(Debug, Default)]
struct OutboxState {
    socket: Option<Arc<UnixStream>>,
    bytes: Vec<u8>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, OutboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends on this connection from now on; what an older one did not take is dropped.
    pub(super) fn attach(&self, socket: Option<Arc<UnixStream>>) {
        *self.lock() = OutboxState {
            socket,
            bytes: Vec::new(),
        };
    }

    /// Queues a message and writes as much as the socket takes.
    pub(super) fn send(&self, message: &ToShim) {
        let mut state = self.lock();
        let before = state.bytes.len();
        if serde_json::to_writer(&mut state.bytes, message).is_err() {
            state.bytes.truncate(before);
            return;
        }
        state.bytes.push(b'\n');
        if before == 0 && !flush(&mut state) {
            drop(state);
            self.left.notify_one();
        }
    }

    /// Writes what is left; true once nothing is.
    pub(super) fn flush(&self) -> bool {
        flush(&mut self.lock())
    }
}

fn flush(state: &mut OutboxState) -> bool {
    let OutboxState {
        socket: Some(socket),
        bytes,
    } = state
    else {
        return true;
    };
    let mut written = 0;
    while written < bytes.len() {
        match socket.try_write(&bytes[written..]) {
            Ok(length) => written += length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            // The reader sees the end of the connection and deals with it.
            Err(_) => written = bytes.len(),
        }
    }
    bytes.drain(..written);
    bytes.is_empty()
}

/// Waits for a shim that ends before us, so that it does not stay a zombie.
fn reap_later(mut child: std::process::Child) {
    let reaping = std::thread::Builder::new()
        .name("shim-reaper".into())
        .stack_size(64 * 1024)
        .spawn(move || child.wait());
    if let Err(error) = reaping {
        tracing::warn!(%error, "nobody waits for the shim's end");
    }
}
