//! The control session to a scheduler: dials one address after the other, says HELLO, passes on
//! what comes, begins anew when it ends.

use super::engine::Message;
use super::random;
use crate::planner::{Event, SessionUp};
use pronto_payloads::codec;
use pronto_payloads::hello::{ControllerHello, SchedulerWelcome};
use pronto_payloads::ids::{ControllerEpoch, OwnerId, Term};
use pronto_protocol::transport::{Backoff, Credentials, Dialer, Link, connect};
use pronto_protocol::{Hello, Purpose, Role, SessionConfig, Timeouts};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A scheduler that hangs is given up sooner than launchers are: there may be another.
const KEEPALIVE: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(7);
/// A whole window of the largest STARTs.
const QUEUE_LIMIT_BYTES: usize = 256 << 20;
/// The longest wait between two rounds over the addresses: users are waiting.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What the sessions of this controller have in common.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    owner: OwnerId,
    epoch: Arc<AtomicU64>,
    /// Of the scheduler that the control session is with.
    address: watch::Sender<Option<String>>,
}

impl Session {
    pub(crate) fn new(owner: OwnerId, epoch: u64) -> Self {
        Self {
            owner,
            epoch: Arc::new(AtomicU64::new(epoch)),
            address: watch::Sender::new(None),
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
    }

    pub(crate) fn scheduler(&self) -> Option<String> {
        self.address.borrow().clone()
    }
}

/// A number from 0 to 1.
fn jitter() -> f64 {
    f64::from(u32::try_from(random() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

pub(crate) async fn dial(
    addresses: Vec<String>,
    credentials: Arc<Credentials>,
    session: Session,
    inbox: mpsc::Sender<Message>,
    shutdown: CancellationToken,
) {
    let backoff = Backoff::new(Backoff::FIRST, LONGEST_WAIT);
    let Some(mut dialer) = Dialer::new(addresses, backoff) else {
        return;
    };
    loop {
        let (wait, address) = dialer.next_attempt(jitter());
        let address = address.to_owned();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let attempt = one_session(&address, &credentials, &session, &inbox, &mut dialer);
        tokio::select! {
            () = shutdown.cancelled() => return,
            ended = attempt => match ended {
                Ok(()) => info!(scheduler = address, "the session has ended"),
                Err(error) => warn!(scheduler = address, "{error:#}"),
            }
        }
        session.address.send_replace(None);
    }
}

async fn one_session(
    address: &str,
    credentials: &Arc<Credentials>,
    session: &Session,
    inbox: &mpsc::Sender<Message>,
    dialer: &mut Dialer,
) -> anyhow::Result<()> {
    let epoch = session.epoch();
    let body = codec::encode(&ControllerHello {
        owner: session.owner,
        epoch: ControllerEpoch(epoch),
    });
    let hello = Hello::new(Purpose::Control, epoch, body);
    let config = SessionConfig {
        timeouts: Timeouts {
            keepalive: KEEPALIVE,
            idle: IDLE,
            ..Timeouts::DEFAULT
        },
        queue_limit_bytes: QUEUE_LIMIT_BYTES,
        ..SessionConfig::default()
    };
    let mut wire = connect(address, credentials, Role::Scheduler, &hello, config).await?;
    let welcome = wire
        .session_mut()
        .take_welcome()
        .ok_or_else(|| anyhow::anyhow!("no WELCOME in an open session"))?;
    let body: SchedulerWelcome = codec::decode(&welcome.body)?;
    dialer.succeeded();
    let up = SessionUp {
        address: address.to_owned(),
        term: Term(welcome.term),
        active: welcome.active,
        welcome: body,
    };
    let (link, mut frames) = Link::spawn(wire, Arc::clone(credentials));
    session.address.send_replace(Some(address.to_owned()));
    if inbox.send(Message::Up { up, link }).await.is_err() {
        return Ok(());
    }
    let reason = loop {
        match frames.recv_batch().await {
            Ok(batch) => {
                if inbox.send(Message::Frames(batch)).await.is_err() {
                    return Ok(());
                }
            }
            Err(closed) => break closed.to_string(),
        }
    };
    // Fails only when the engine has ended, and the daemon with it.
    let _ending = inbox
        .send(Message::Event(Event::SessionDown { reason }))
        .await;
    Ok(())
}
