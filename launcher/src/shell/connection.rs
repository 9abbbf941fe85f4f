//! The control connection's life: waiting, dialling, up; and again.

use crate::supervisor::{REPORT_BYTES, Supervisor};
use pronto_payloads::codec;
use pronto_payloads::hello::SchedulerWelcome;
use pronto_payloads::ids::{SessionEpoch, Term};
use pronto_protocol::transport::{
    Backoff, Credentials, Dialer, Link, LinkClosed, LinkReceiver, LinkSender, Wire, WireError,
    connect,
};
use pronto_protocol::{Frame, Hello, Purpose, Role, SessionConfig};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// What a scheduler said in its WELCOME.
#[derive(Debug)]
pub(crate) struct Welcomed {
    pub(crate) term: Term,
    pub(crate) active: bool,
    pub(crate) body: SchedulerWelcome,
}

/// What happened on the connection.
pub(crate) enum Happened {
    /// It is time to dial: a HELLO is wanted.
    Due,
    /// A scheduler answered.
    Up(Welcomed),
    /// Frames have come.
    Frames(Vec<Frame>),
    /// The session has ended.
    Down(LinkClosed),
    /// This attempt did not come through.
    Failed,
}

enum State {
    Waiting(Pin<Box<Sleep>>),
    Dialling(Pin<Box<dyn Future<Output = Result<Wire, WireError>> + Send>>),
    Up {
        sender: LinkSender,
        receiver: LinkReceiver,
    },
}

/// See the module's documentation.
pub(crate) struct Connection {
    credentials: Arc<Credentials>,
    dialer: Dialer,
    address: String,
    epoch: SessionEpoch,
    state: State,
    random: u64,
    config: SessionConfig,
}

impl Connection {
    /// Dials at once. A whole inventory, with so many ends in it, is sent at once too.
    pub(crate) fn new(
        schedulers: Vec<String>,
        credentials: Arc<Credentials>,
        seed: u64,
        unacknowledged_limit: usize,
    ) -> anyhow::Result<Self> {
        let dialer = Dialer::new(schedulers, Backoff::default());
        let Some(dialer) = dialer else {
            anyhow::bail!("schedulers is empty")
        };
        let mut connection = Self {
            credentials,
            dialer,
            address: String::new(),
            epoch: SessionEpoch::default(),
            state: State::Waiting(Box::pin(sleep(Duration::ZERO))),
            random: seed,
            config: SessionConfig {
                queue_limit_bytes: SessionConfig::DEFAULT_QUEUE_LIMIT_BYTES
                    + unacknowledged_limit.saturating_mul(REPORT_BYTES),
                ..SessionConfig::default()
            },
        };
        connection.wait();
        Ok(connection)
    }

    /// The session's epoch.
    pub(crate) const fn epoch(&self) -> SessionEpoch {
        self.epoch
    }

    /// Where the session goes to.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) const fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    /// Waits for what comes next. Safe to drop while it waits.
    pub(crate) async fn next(&mut self) -> Happened {
        match &mut self.state {
            State::Waiting(until) => {
                until.await;
                Happened::Due
            }
            State::Dialling(dialling) => {
                let outcome = dialling.await;
                self.dialled(outcome)
            }
            State::Up { receiver, .. } => match receiver.recv_batch().await {
                Ok(frames) => Happened::Frames(frames),
                Err(closed) => {
                    self.wait();
                    Happened::Down(closed)
                }
            },
        }
    }

    /// Dials with the HELLO of a new session, whose epoch is on disk.
    pub(crate) fn dial(&mut self, epoch: SessionEpoch, core: &mut Supervisor) {
        let body = codec::encode(&core.hello(epoch));
        self.epoch = epoch;
        let hello = Hello::new(Purpose::Control, epoch.0, body);
        let address = self.address.clone();
        let credentials = self.credentials.clone();
        let config = self.config;
        self.state = State::Dialling(Box::pin(async move {
            connect(&address, &credentials, Role::Scheduler, &hello, config).await
        }));
    }

    /// Sends frames; false if the scheduler does not read, and the session has to end.
    pub(crate) fn send(&self, frames: &[Frame]) -> bool {
        match &self.state {
            State::Up { sender, .. } => sender.send_all(frames).is_ok(),
            // What is to be said is said again at the next session.
            _ => true,
        }
    }

    /// Ends the session, unread frames included, and dials again.
    pub(crate) fn close(&mut self) {
        if let State::Up { sender, .. } = &self.state {
            sender.close();
        }
        self.wait();
    }

    /// Leaves this scheduler for the next address. False, and nothing done, if there is no other.
    pub(crate) fn leave(&mut self) -> bool {
        if !self.dialer.pass_over() {
            return false;
        }
        self.close();
        true
    }

    /// Ends the session once all is written.
    pub(crate) async fn finish(mut self) {
        if let State::Up { sender, receiver } = &mut self.state {
            sender.close();
            while receiver.recv_batch().await.is_ok() {}
        }
    }

    fn dialled(&mut self, outcome: Result<Wire, WireError>) -> Happened {
        let address = &self.address;
        let welcomed = outcome.and_then(|mut wire| {
            // `connect` returns with the WELCOME inside.
            let welcome = wire
                .session_mut()
                .take_welcome()
                .ok_or(WireError::Closed { clean: false })?;
            Ok((wire, welcome))
        });
        let (wire, welcome) = match welcomed {
            Ok(welcomed) => welcomed,
            Err(error) => {
                if error.is_refusal() {
                    tracing::error!(address, %error, "the scheduler refuses this launcher");
                } else {
                    tracing::warn!(address, %error, "can't connect to a scheduler");
                }
                self.wait();
                return Happened::Failed;
            }
        };
        let body = match codec::decode::<SchedulerWelcome>(&welcome.body) {
            Ok(body) => body,
            Err(error) => {
                tracing::error!(address, %error, "the scheduler's WELCOME can't be read");
                self.wait();
                return Happened::Failed;
            }
        };
        tracing::info!(
            address,
            epoch = self.epoch.0,
            active = welcome.active,
            "connected"
        );
        self.dialer.succeeded();
        let (sender, receiver) = Link::spawn(wire, self.credentials.clone());
        self.state = State::Up { sender, receiver };
        Happened::Up(Welcomed {
            term: Term(welcome.term),
            active: welcome.active,
            body,
        })
    }

    fn wait(&mut self) {
        let random = self.random();
        let (wait, address) = self.dialer.next_attempt(random);
        self.address = address.to_owned();
        self.state = State::Waiting(Box::pin(sleep(wait)));
    }

    /// Uniform in 0..1, good enough to keep thousands of launchers out of step.
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let high = u32::try_from((bits ^ (bits >> 31)) >> 32).unwrap_or_default();
        f64::from(high) / (f64::from(u32::MAX) + 1.0)
    }
}
