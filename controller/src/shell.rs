//! The daemon around the planner: sockets, threads, the clock. It decides nothing.
//!
//! ```text
//!  users ─▶ TLS ─▶ API ── Ask ──▶┐                       ┌──▶ writer thread ─▶ SQLite
//!                                ├─▶ engine (one task) ──┤        └── CommitDone ─▶ engine
//!  scheduler ◀─▶ dialer ─ Frames ▶┘   step_batch          └──▶ link, replies, watchers
//!            ◀─▶ streams (a bulk session, on demand) ◀──▶ bodies of API responses
//! ```
//!
//! The engine takes all that is there at once, so that the busier it is the more shares one
//! commit and one system call. Whatever ends it ends the daemon.

pub(crate) mod dialer;
pub(crate) mod engine;
pub(crate) mod hub;
pub(crate) mod metrics;
mod writer;

use crate::api::{self, App};
use crate::config::ControllerConfig;
use crate::planner::{Now, State};
use crate::store::sqlite::OpenOptions;
use crate::store::{Reader, SqliteStore};
use crate::streams::Streams;
use anyhow::Context as _;
use engine::Engine;
use hub::Hub;
use metrics::Metrics;
use pronto_payloads::ids::OwnerId;
use pronto_protocol::Role;
use pronto_protocol::transport::{Credentials, follow_files, listen};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;
use uuid::Uuid;

/// Messages that may wait for the engine; who brings the next one waits.
const INBOX: usize = 8192;
/// How often the credentials' files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// The clock of one daemon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    pub(crate) fn mono_ns(self) -> i64 {
        i64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }

    pub(crate) fn now(self) -> Now {
        Now {
            mono_ns: self.mono_ns(),
            unix_ms: unix_ms(),
        }
    }

    fn instant(self, mono_ns: i64) -> Instant {
        let after = Duration::from_nanos(mono_ns.max(0).unsigned_abs());
        self.origin + after
    }
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// Random bits.
pub(crate) fn random() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    // A version 4 UUID has fixed bits in each half, at different places.
    high ^ low.rotate_left(23)
}

/// A controller that has its port and its store, and does not serve yet.
#[derive(Debug)]
pub struct Controller {
    config: ControllerConfig,
    credentials: Arc<Credentials>,
    listener: TcpListener,
}

/// Runs a controller until `shutdown`.
///
/// # Errors
/// If the configuration, the credentials or the store can't be used, the port can't be had, or the
/// store fails while it runs.
pub async fn run(config: ControllerConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    Controller::bind(config)?.serve(shutdown).await
}

impl Controller {
    /// Reads the credentials and takes the port. To be called within a tokio runtime.
    ///
    /// # Errors
    /// If the configuration or the credentials can't be used, or the port can't be had.
    pub fn bind(config: ControllerConfig) -> anyhow::Result<Self> {
        config.check()?;
        let credentials = Credentials::load(&config.tls)?;
        let identity = credentials.identity();
        anyhow::ensure!(
            identity.role() == Role::Controller,
            "certificate {} is of {identity}; accepted: spiffe://<cluster>/controller/<name>",
            config.tls.cert.display()
        );
        let listener = listen(config.listen)
            .with_context(|| format!("can't listen on {} for the API", config.listen))?;
        Ok(Self {
            config,
            credentials,
            listener,
        })
    }

    /// Where users connect.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// If the store can't be opened, or fails.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            config,
            credentials,
            listener,
        } = self;
        let clock = Clock::start();
        let options = OpenOptions {
            owner: OwnerId::from(Uuid::new_v4()),
            id_key: random(),
            now_unix_ms: unix_ms(),
            request_window_ms: config.request_window_ms,
        };
        let data_dir = config.data_dir.clone();
        let (store, snapshot) =
            tokio::task::spawn_blocking(move || SqliteStore::open(&data_dir, &options))
                .await?
                .with_context(|| {
                    format!("can't open the store in {}", config.data_dir.display())
                })?;
        let meta = snapshot.meta;
        info!(
            identity = %credentials.identity(),
            api = ?listener.local_addr(),
            owner = %meta.owner,
            epoch = meta.epoch,
            submissions = snapshot.submissions.len(),
            "controller is listening"
        );
        let ending = shutdown.child_token();
        let _end_all = ending.clone().drop_guard();
        let reader = Arc::new(Reader::open(&config.data_dir, meta.id_key)?);
        let hub = Arc::new(Hub::default());
        let metrics = Arc::new(Metrics::default());
        let (inbox, messages) = mpsc::channel(INBOX);
        let (writer, written) = writer::start(
            store,
            inbox.clone(),
            Arc::clone(&metrics),
            writer::Retention {
                instances_ms: config.retention_ms.max(config.request_window_ms),
                events_ms: config.events_retention_ms,
            },
        )?;
        let state = State::new(config.settings(), snapshot, clock.now());
        let session = dialer::Session::new(meta.owner, meta.epoch);
        let engine = Engine::new(
            state,
            clock,
            writer,
            Arc::clone(&hub),
            Arc::clone(&metrics),
            session.clone(),
        );
        let streams = Streams::new(
            meta.owner,
            session.clone(),
            Arc::clone(&credentials),
            Duration::from_millis(config.file_silence_ms),
        );
        tokio::spawn(dialer::dial(
            config.schedulers.clone(),
            Arc::clone(&credentials),
            session,
            inbox.clone(),
            ending.clone(),
        ));
        // A connection's certificate is judged again by itself, every half minute.
        tokio::spawn(follow_files(
            Arc::clone(&credentials),
            RELOAD_INTERVAL,
            ending.clone(),
            || {},
        ));
        let app = Arc::new(App::new(
            engine::Planner::new(inbox),
            reader,
            streams,
            Arc::clone(&hub),
            metrics,
            clock,
            meta,
        ));
        tokio::spawn(api::server::serve(
            listener,
            Arc::clone(&credentials),
            app,
            config.max_connections,
            ending.clone(),
        ));
        let engine = tokio::spawn(engine.run(messages, ending.clone()));
        // The writer ends when the engine has dropped it and all that it was given is on disk; or
        // by a failure of the store, and then at once.
        if let Ok(error) = written.await {
            return Err(anyhow::Error::from(error).context("the store failed"));
        }
        engine.await.context("the planner panicked")?;
        info!("controller ended");
        Ok(())
    }
}
