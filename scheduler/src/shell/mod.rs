//! The daemon around the core: sockets, TLS, the clock, metrics. It decides nothing.
//!
//! ```text
//!  caller's runtime                                   frame thread (one, with a runtime of its own)
//!  accept ─▶ TLS ─▶ HELLO ──── connection ──────────▶ hub: read ─▶ core ─▶ queue ─▶ flush once a turn
//!  ops port ◀────────────────── snapshot, registry ── once a second
//!  credentials: reloaded when their files change ───▶ sessions are verified again
//! ```

mod accept;
mod breaches;
mod hub;
mod pace;
mod registry;
mod sessions;
mod silent;
mod snapshot;

use crate::config::SchedulerConfig;
use anyhow::Context as _;
use hub::{Greeted, Shared};
use pronto_protocol::Role;
use pronto_protocol::transport::{Credentials, follow_files, listen, serve_ops};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Connections between their HELLO and the frame thread's next turn.
const GREETED: usize = 1024;

/// A scheduler that has its ports and does not serve yet.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    credentials: Arc<Credentials>,
    frames: TcpListener,
    ops: Option<TcpListener>,
}

/// Runs a scheduler until `shutdown`: its peers are told, and what was queued for them is written.
///
/// # Errors
/// If the configuration or the credentials can't be used, a port can't be had, or the frame thread
/// has ended by itself.
pub async fn run(config: SchedulerConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    Scheduler::bind(config)?.serve(shutdown).await
}

impl Scheduler {
    /// Reads the credentials and takes the ports. To be called within a tokio runtime.
    ///
    /// # Errors
    /// If the configuration or the credentials can't be used, or a port can't be had.
    pub fn bind(config: SchedulerConfig) -> anyhow::Result<Self> {
        config.check()?;
        let credentials = Credentials::load(&config.tls)?;
        let identity = credentials.identity();
        anyhow::ensure!(
            identity.role() == Role::Scheduler,
            "certificate {} is of {identity}; accepted: spiffe://<cluster>/scheduler/<name>",
            config.tls.cert.display()
        );
        let take = |address: SocketAddr, what: &str| {
            listen(address).with_context(|| format!("can't listen on {address} for {what}"))
        };
        let frames = take(config.listen, "frames")?;
        let ops = config
            .ops_listen
            .map(|address| take(address, "metrics"))
            .transpose()?;
        Ok(Self {
            config,
            credentials,
            frames,
            ops,
        })
    }

    /// Where launchers and controllers connect.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.frames.local_addr()
    }

    /// Where metrics and health are read.
    #[must_use]
    pub fn ops_address(&self) -> Option<SocketAddr> {
        self.ops.as_ref()?.local_addr().ok()
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// If the frame thread can't be started or has ended by itself.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self {
            config,
            credentials,
            frames,
            ops,
        } = self;
        info!(
            identity = %credentials.identity(),
            frames = ?frames.local_addr(),
            ops = ?ops.as_ref().map(TcpListener::local_addr),
            "scheduler is listening"
        );
        // Whatever ends the daemon ends all of it.
        let ending = shutdown.child_token();
        let _end_all = ending.clone().drop_guard();
        let shared = Shared {
            credentials: Arc::clone(&credentials),
            published: snapshot::Published::default(),
            registry: registry::Registry::default(),
            breaches: Arc::new(breaches::Breaches::default()),
        };
        let (greeted, incoming) = mpsc::channel::<Greeted>(GREETED);
        let ended = start_frame_thread(&config, shared.clone(), incoming, ending.clone())?;
        if let Some(ops) = ops {
            let (published, registry) = (shared.published.clone(), shared.registry.clone());
            let handler = Arc::new(move |path: &str| published.answer(path, &registry));
            tokio::spawn(serve_ops(
                ops,
                Arc::clone(&credentials),
                handler,
                ending.clone(),
            ));
        }
        let interval = Duration::from_millis(config.reload_interval_ms);
        tokio::spawn(follow_files(
            Arc::clone(&credentials),
            interval,
            ending.clone(),
            || {},
        ));
        let accepting = accept::accept_all(
            frames,
            &config,
            credentials,
            greeted,
            Arc::clone(&shared.breaches),
            ending.clone(),
        );
        let mut ended = std::pin::pin!(wait_for(ended));
        tokio::select! {
            () = accepting => {}
            outcome = &mut ended => return outcome,
        }
        // Accepting ends with the token alone; the frame thread still says goodbye to its peers.
        ended.await
    }
}

async fn wait_for(ended: oneshot::Receiver<std::io::Result<()>>) -> anyhow::Result<()> {
    match ended.await {
        Ok(outcome) => outcome.context("the frame thread has failed"),
        Err(_) => anyhow::bail!("the frame thread has ended by a panic"),
    }
}

fn start_frame_thread(
    config: &SchedulerConfig,
    shared: Shared,
    incoming: mpsc::Receiver<Greeted>,
    shutdown: CancellationToken,
) -> anyhow::Result<oneshot::Receiver<std::io::Result<()>>> {
    let (say_ended, ended) = oneshot::channel();
    let config = config.clone();
    // The standard library's hash keys are random at each start, which is all that this must be.
    let incarnation = RandomState::new().build_hasher().finish();
    std::thread::Builder::new()
        .name("frames".into())
        .spawn(move || {
            let outcome = hub::run(&config, incarnation, shared, incoming, shutdown);
            // Nobody listens once the daemon has ended.
            let _outcome = say_ended.send(outcome);
        })
        .context("can't start the frame thread")?;
    Ok(ended)
}
