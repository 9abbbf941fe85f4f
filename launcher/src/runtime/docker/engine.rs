//! The connection to the engine, and whether there is one.
//!
//! One task asks the engine for its health and publishes a client while it answers. Everybody else
//! goes through [`Engine::call`], which repeats a request over the engine's absence: a request that
//! failed for want of an engine says nothing about containers, and must never be reported as if it
//! did. What may be repeated is the caller's to know.

use super::DockerSettings;
use crate::runtime::Offers;
use bollard::Docker;
use bollard::errors::Error;
use pronto_payloads::demand::Runtime as Kind;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// How often a healthy engine is asked whether it still is.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// How often one that went away is looked for; one that was never there, as rarely as a healthy one.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Rounds are never closer together, however many callers suspect something.
const ROUND_MIN: Duration = Duration::from_millis(50);
/// An engine under load answers a ping within this; a wedged one never does.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What a request may take until its answer begins. Creating and starting take longest, on a busy
/// disk; waits and logs begin at once.
const REQUEST_TIMEOUT_SECONDS: u64 = 120;
/// Where an engine listens if nobody says otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// What the health task found last.
#[derive(Clone, Debug, Default)]
struct Health {
    /// Rises with each look.
    round: u64,
    client: Option<Docker>,
}

/// Access to the engine. Clones share one connection and one health task.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    health: watch::Receiver<Health>,
    look: Arc<Notify>,
    host: Arc<str>,
}

/// The engine's address: the setting, `DOCKER_HOST`, or the usual socket.
pub(super) fn address(setting: Option<&str>) -> String {
    let chosen = setting
        .map(str::to_owned)
        .or_else(|| std::env::var("DOCKER_HOST").ok());
    match chosen.filter(|host| !host.is_empty()) {
        Some(path) if path.starts_with('/') => format!("unix://{path}"),
        Some(host) => host,
        None => DEFAULT_HOST.to_owned(),
    }
}

impl Engine {
    /// Starts the health task on the current tokio runtime. It ends when the last clone is gone.
    pub(super) fn new(settings: &DockerSettings, offers: Offers) -> Self {
        let host = address(settings.host.as_deref());
        let (publish, health) = watch::channel(Health::default());
        let look = Arc::new(Notify::new());
        tokio::spawn(keep_watch(host.clone(), publish, look.clone(), offers));
        Self {
            health,
            look,
            host: host.into(),
        }
    }

    /// Whether the engine's files are this machine's: it listens on a socket file.
    pub(super) fn is_local(&self) -> bool {
        self.host.starts_with("unix://")
    }

    /// Its address.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The client if the engine answered last time.
    pub(super) fn now(&self) -> Option<Docker> {
        self.health.borrow().client.clone()
    }

    /// The client, as soon as there is an engine.
    pub(super) async fn up(&self) -> Docker {
        let mut health = self.health.clone();
        loop {
            if let Some(client) = &health.borrow_and_update().client {
                return client.clone();
            }
            if health.changed().await.is_err() {
                // The health task is gone with its runtime: so will be this task.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the engine came after it was away; for the first time at once if it is there.
    pub(super) async fn returned(&self) -> Docker {
        let mut health = self.health.clone();
        // An error means that the runtime ends, and this with it.
        let _ = health.wait_for(|health| health.client.is_none()).await;
        self.up().await
    }

    /// A request failed for want of an engine: returns after the next look at it.
    pub(super) async fn suspect(&self) {
        let mut health = self.health.clone();
        let round = health.borrow_and_update().round;
        self.look.notify_one();
        let _ = health.wait_for(|health| health.round > round).await;
    }

    /// Sends a request, again and again while the engine is away. Errors are the engine's own.
    pub(super) async fn call<T, F, R>(&self, request: F) -> Result<T, Error>
    where
        F: Fn(Docker) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        loop {
            match request(self.up().await).await {
                Err(error) if is_away(&error) => {
                    tracing::debug!(%error, "the Docker engine did not answer");
                    self.suspect().await;
                }
                result => return result,
            }
        }
    }
}

/// Whether an error says that there is no engine, rather than what the engine says.
pub(super) fn is_away(error: &Error) -> bool {
    match error {
        // dockerd that ends, or lost its containerd, answers so for a moment.
        Error::DockerResponseServerError {
            status_code,
            message,
        } => {
            *status_code >= 500
                && [
                    "transport is closing",
                    "unavailable: ",
                    "server is shutting down",
                ]
                .iter()
                .any(|words| message.contains(words))
        }
        Error::DockerStreamError { .. }
        | Error::DockerContainerWaitError { .. }
        | Error::UnsupportedURISchemeError { .. }
        | Error::JsonSerdeError { .. }
        | Error::URLEncodedError { .. }
        | Error::URLParseError { .. } => false,
        _ => true,
    }
}

/// The engine's answer has this HTTP status.
pub(super) const fn has_status(error: &Error, status: u16) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

/// What the engine says, without the client's preamble.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        Error::DockerStreamError { error } => error.clone(),
        other => other.to_string(),
    }
}

async fn keep_watch(
    host: String,
    publish: watch::Sender<Health>,
    look: Arc<Notify>,
    offers: Offers,
) {
    let mut client: Option<Docker> = None;
    let mut ever = false;
    loop {
        let started = Instant::now();
        let found = match client.take() {
            Some(known) => ping(known).await,
            None => connect(&host).await,
        };
        let was_up = publish.borrow().client.is_some();
        match (&found, was_up) {
            (Ok(_), false) => tracing::info!(%host, "the Docker engine answers"),
            (Err(error), true) => tracing::warn!(%host, %error, "the Docker engine is away"),
            _ => {}
        }
        client = found.ok();
        offers.set(Kind::Docker, client.is_some());
        publish.send_modify(|health| {
            health.round += 1;
            health.client.clone_from(&client);
        });
        ever |= client.is_some();
        let interval = if client.is_some() || !ever {
            HEALTH_INTERVAL
        } else {
            RETRY_INTERVAL
        };
        tokio::select! {
            () = sleep_until(started + interval) => {}
            () = look.notified() => sleep_until(started + ROUND_MIN).await,
            () = publish.closed() => return,
        }
    }
}

/// A connection whose protocol version both ends speak.
pub(super) async fn connect(host: &str) -> Result<Docker, Error> {
    let client = if host.starts_with("unix://") {
        Docker::connect_with_unix(host, REQUEST_TIMEOUT_SECONDS, bollard::API_DEFAULT_VERSION)?
    } else {
        Docker::connect_with_host(host)?
    };
    ping(limited(client.negotiate_version()).await?).await
}

async fn ping(client: Docker) -> Result<Docker, Error> {
    limited(client.ping()).await?;
    Ok(client)
}

async fn limited<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(PING_TIMEOUT, work)
        .await
        .unwrap_or(Err(Error::RequestTimeoutError))
}
