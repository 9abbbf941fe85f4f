//! The clients of a bench: one controller and many launchers, over real mutual TLS.
//!
//! They speak the protocol and nothing else: a launcher here counts the STARTs that reach it and
//! answers with READY as a real one does, within five milliseconds of a change, but runs nothing.
//! All of them live on one thread, so that a time stamp taken by the controller can be compared
//! with one taken by a launcher.

use super::rig::{Rig, Target};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use pronto_payloads::codec::{decode, encode, take};
use pronto_payloads::control::Activate;
use pronto_payloads::demand::{Capacity, Demand, Runtime};
use pronto_payloads::hello::{ControllerHello, LauncherHello, Mode};
use pronto_payloads::ids::{
    Attempt, BootId, ControllerEpoch, InstanceId, NodeUuid, OwnerId, Seq, SessionEpoch, Term,
};
use pronto_payloads::node::{NodeFacts, Status};
use pronto_payloads::place::{AttemptId, Explain, Explanation, StartPrefix, StartStamp};
use pronto_payloads::start::{ExecTask, StartBody, Task};
use pronto_payloads::{SCHEMA, SCHEMA_MIN};
use pronto_protocol::transport::{Backoff, Credentials, Wire, connect, read_frames};
use pronto_protocol::{
    Flags, Frame, Hello, Operand, Purpose, Role, SendError, SessionConfig, Timeouts,
};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{JoinHandle, spawn_local};

/// READY follows a change within this time, as PROTOCOL.md asks of a launcher.
const READY_DELAY: Duration = Duration::from_millis(5);
/// Connections under way at once: what a scheduler does at once, and some for the network.
const DIALING: usize = 256;
/// The capacity of every node: more than any bench places at once.
const NODE_CPU_MILLIS: u32 = 1_000_000_000;
const NODE_MEMORY_MIB: u32 = 1_000_000_000;
/// A bench waits so long for a cluster to be whole before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

fn session_config() -> SessionConfig {
    SessionConfig {
        // Whole clusters connect at once; a handshake then waits for its turn.
        timeouts: Timeouts {
            handshake: PATIENCE,
            ..Timeouts::DEFAULT
        },
        ..SessionConfig::default()
    }
}

/// What all launchers of a fleet share.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// STARTs that reached a launcher.
    pub(crate) received: Cell<u64>,
    /// LEASE replies.
    pub(crate) leases: Cell<u64>,
    pub(crate) connected: Cell<u64>,
    /// Somebody waits for `received` to reach this.
    pub(crate) awaited: Cell<u64>,
    pub(crate) reached: Notify,
    /// When the last START reached a launcher.
    pub(crate) last_received: Cell<Option<Instant>>,
    /// Whether each START's arrival is timed, which costs a look at the clock.
    pub(crate) timed: Cell<bool>,
}

impl Counters {
    fn note_starts(&self, count: u64) {
        let received = self.received.get() + count;
        self.received.set(received);
        if self.timed.get() || received >= self.awaited.get() {
            self.last_received.set(Some(Instant::now()));
            self.reached.notify_waiters();
        }
    }

    /// Waits until so many STARTs in all have reached the launchers.
    pub(crate) async fn reach(&self, count: u64) {
        self.awaited.set(count);
        while self.received.get() < count {
            let notified = self.reached.notified();
            if self.received.get() < count {
                notified.await;
            }
        }
    }
}

/// One launcher's connection.
struct Launcher {
    wire: RefCell<Option<Wire>>,
    credentials: Arc<Credentials>,
    epoch: Cell<u64>,
    applied: Cell<u64>,
    dirty: Cell<bool>,
    node: u32,
}

/// Many launchers on this thread. Their tasks are local: to be used within a `LocalSet`.
pub(crate) struct Fleet {
    pub(crate) counters: Rc<Counters>,
    launchers: Vec<Rc<Launcher>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// Launchers with their certificates read, not yet connecting.
    pub(crate) fn prepare(rig: &Rig, count: u32) -> Result<Self> {
        let launchers = (0..count)
            .map(|node| {
                Ok(Rc::new(Launcher {
                    wire: RefCell::new(None),
                    credentials: rig.launcher_credentials(node)?,
                    epoch: Cell::new(0),
                    applied: Cell::new(0),
                    dirty: Cell::new(false),
                    node,
                }))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            counters: Rc::default(),
            launchers,
            tasks: Vec::new(),
        })
    }

    /// They connect, and connect again whenever they are cut off. Returns at once.
    pub(crate) fn launch_at(&mut self, target: &Target) {
        let dialing = Rc::new(Semaphore::new(DIALING));
        for launcher in &self.launchers {
            self.tasks.push(spawn_local(live(
                launcher.clone(),
                target.address.clone(),
                self.counters.clone(),
                dialing.clone(),
            )));
        }
        self.tasks.push(spawn_local(beat(self.launchers.clone())));
    }

    /// Both at once.
    pub(crate) fn launch(rig: &Rig, target: &Target, count: u32) -> Result<Self> {
        let mut fleet = Self::prepare(rig, count)?;
        fleet.launch_at(target);
        Ok(fleet)
    }

    /// Waits until every launcher has its WELCOME.
    pub(crate) async fn connected(&self) -> Result<()> {
        let began = Instant::now();
        while self.counters.connected.get() < self.launchers.len() as u64 {
            if began.elapsed() > PATIENCE {
                bail!(
                    "{} of {} launchers connected within {PATIENCE:?}",
                    self.counters.connected.get(),
                    self.launchers.len()
                );
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Every launcher queues `frames` READYs, the last of which asks for a lease, and flushes as
    /// the socket takes them.
    pub(crate) fn flood_ready(&self, frames: u32) {
        for launcher in &self.launchers {
            let mut slot = launcher.wire.borrow_mut();
            let Some(wire) = slot.as_mut() else { continue };
            for index in 0..frames {
                let mut frame = Frame::new(Operand::Ready, launcher.status());
                if index + 1 == frames {
                    frame = frame.with_flags(Flags::WANT_REPLY);
                }
                // The queue holds thousands of them; a bench that overflows it shows as a count
                // of leases that is never reached.
                let _full = wire.queue(&frame);
            }
            let _error_ends_the_reader = wire.try_flush();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Launcher {
    fn status(&self) -> Bytes {
        encode(&Status {
            session_epoch: SessionEpoch(self.epoch.get()),
            applied_seq: Seq(self.applied.get()),
            free: capacity(),
            runtimes: vec![Runtime::Exec],
            reason: String::new(),
        })
    }

    fn hello(&self) -> Hello {
        let epoch = self.epoch.get() + 1;
        self.epoch.set(epoch);
        self.applied.set(0);
        let mut id = [0; 16];
        id[..4].copy_from_slice(&self.node.to_le_bytes());
        let body = LauncherHello {
            node_uuid: NodeUuid(id),
            boot_id: BootId(id),
            term: Term(0),
            mode: Mode::Ready,
            facts: NodeFacts {
                hostname: node_name(self.node),
                address: "127.0.0.1".to_owned(),
                allocatable: capacity(),
                labels: Vec::new(),
                runtimes: vec![Runtime::Exec],
                schema_min: SCHEMA_MIN,
                schema_max: SCHEMA,
                isolation: "none".to_owned(),
                acceleration: String::new(),
            },
            owners: Vec::new(),
        };
        Hello::new(Purpose::Control, epoch, encode(&body))
    }
}

fn capacity() -> Capacity {
    Capacity {
        cpu_millis: NODE_CPU_MILLIS,
        memory_mib: NODE_MEMORY_MIB,
        disk_mib: NODE_MEMORY_MIB,
        ..Capacity::default()
    }
}

/// The name of a bench's node, also in its certificate.
pub(crate) fn node_name(node: u32) -> String {
    format!("bench-{node:05}")
}

/// Connects, reads until the connection ends, and does so again.
async fn live(
    launcher: Rc<Launcher>,
    address: String,
    counters: Rc<Counters>,
    dialing: Rc<Semaphore>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(500));
    // Spreads the fleet's attempts; the node's number is as good as a random one.
    let jitter = f64::from(launcher.node.wrapping_mul(2_654_435_769) >> 8) / f64::from(1 << 24);
    loop {
        let permit = dialing.acquire().await;
        let hello = launcher.hello();
        let dialed = connect(
            &address,
            &launcher.credentials,
            Role::Scheduler,
            &hello,
            session_config(),
        )
        .await;
        drop(permit);
        let Ok(mut wire) = dialed else {
            tokio::time::sleep(backoff.next_wait(jitter)).await;
            continue;
        };
        backoff.reset();
        let ready = Frame::new(Operand::Ready, launcher.status()).with_flags(Flags::WANT_REPLY);
        if wire.queue(&ready).is_ok() && wire.try_flush().is_ok() {
            *launcher.wire.borrow_mut() = Some(wire);
            counters.connected.set(counters.connected.get() + 1);
            read(&launcher, &counters).await;
            counters.connected.set(counters.connected.get() - 1);
            *launcher.wire.borrow_mut() = None;
        }
    }
}

/// Reads frames until the connection ends.
async fn read(launcher: &Launcher, counters: &Counters) {
    let mut frames = Vec::new();
    loop {
        let outcome = std::future::poll_fn(|cx| {
            let mut slot = launcher.wire.borrow_mut();
            let wire = slot.as_mut().expect("set for as long as this reader lives");
            wire.poll_read_frames(cx, &mut frames)
        })
        .await;
        let mut starts = 0;
        for frame in frames.drain(..) {
            match frame.operand {
                Operand::Start => {
                    starts += 1;
                    let mut bytes = frame.payload.into_bytes();
                    if let Ok(stamp) = take::<StartStamp>(&mut bytes) {
                        launcher
                            .applied
                            .set(stamp.seq.0.max(launcher.applied.get()));
                    }
                    launcher.dirty.set(true);
                }
                Operand::Lease => counters.leases.set(counters.leases.get() + 1),
                _ => {}
            }
        }
        if starts > 0 {
            counters.note_starts(starts);
        }
        if outcome.is_err() {
            return;
        }
    }
}

/// Sends READY for each launcher that has changed, and each second in any case: who is not heard is
/// given nothing.
async fn beat(launchers: Vec<Rc<Launcher>>) {
    let mut every = tokio::time::interval(READY_DELAY);
    let mut ticked = Instant::now();
    loop {
        every.tick().await;
        let now = Instant::now();
        let tick = now - ticked > Duration::from_secs(1);
        if tick {
            ticked = now;
        }
        for launcher in &launchers {
            let dirty = launcher.dirty.replace(false);
            if !dirty && !tick {
                continue;
            }
            let mut slot = launcher.wire.borrow_mut();
            let Some(wire) = slot.as_mut() else { continue };
            if tick {
                let _error_ends_the_reader = wire.tick(now);
            }
            let ready = Frame::new(Operand::Ready, launcher.status());
            if wire.queue(&ready).is_ok() {
                let _error_ends_the_reader = wire.try_flush();
            }
        }
    }
}

/// The controller of a bench.
pub(crate) struct Controller {
    wire: RefCell<Wire>,
    frames: RefCell<Vec<Frame>>,
    pub(crate) answered: Cell<u64>,
    pub(crate) placed: Cell<u64>,
    sent: Cell<u64>,
    start: Vec<u8>,
}

impl Controller {
    /// Connects; does not activate the scheduler.
    pub(crate) async fn connect(rig: &Rig, target: &Target) -> Result<Self> {
        let owner = OwnerId([7; 16]);
        let hello = ControllerHello {
            owner,
            epoch: ControllerEpoch(1),
        };
        let hello = Hello::new(Purpose::Control, 1, encode(&hello));
        let mut config = session_config();
        // Tens of thousands of STARTs may be under way when the best window is looked for.
        config.queue_limit_bytes = 64 << 20;
        let wire = connect(
            &target.address,
            rig.controller_credentials()?.as_ref(),
            Role::Scheduler,
            &hello,
            config,
        )
        .await
        .context("the bench's controller can't connect")?;
        Ok(Self {
            wire: RefCell::new(wire),
            frames: RefCell::new(Vec::new()),
            answered: Cell::new(0),
            placed: Cell::new(0),
            sent: Cell::new(0),
            start: start_payload(owner),
        })
    }

    /// Makes the scheduler the active one.
    pub(crate) async fn activate(&self, expected_nodes: u32) -> Result<()> {
        let frame = Frame::request(
            Operand::Activate,
            1,
            encode(&Activate {
                term: Term(1),
                expected_nodes,
            }),
        );
        self.ask(&frame, Operand::Done).await.map(drop)
    }

    /// Asks again and again until this demand would fit on so many nodes.
    pub(crate) async fn await_placeable(&self, nodes: u32) -> Result<()> {
        let explain = encode(&Explain {
            body_schema: SCHEMA,
            runtime: Runtime::Exec,
            demand: demand(),
            constraints: Vec::new(),
        });
        let began = Instant::now();
        loop {
            let frame = Frame::request(Operand::Explain, 2, explain.clone());
            let answer = self.ask(&frame, Operand::Explanation).await?;
            let answer: Explanation = decode(&answer)?;
            if answer.fits >= nodes {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!(
                    "{} of {nodes} nodes are placeable after {PATIENCE:?}",
                    answer.fits
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ask(&self, frame: &Frame, answer: Operand) -> Result<Bytes> {
        self.wire.borrow_mut().queue(frame)?;
        self.wire.borrow_mut().try_flush()?;
        loop {
            let mut frames = Vec::new();
            let outcome = read_frames(&self.wire, &mut frames).await;
            for reply in frames {
                if reply.operand == answer && reply.correlation == frame.correlation {
                    return Ok(reply.payload.into_bytes());
                }
                if reply.operand.kind() == pronto_protocol::Kind::Error
                    && reply.correlation == frame.correlation
                {
                    bail!("{} was answered with {}", frame.operand, reply.operand);
                }
            }
            outcome?;
        }
    }

    /// The length of one START's payload as this controller sends it.
    pub(crate) fn start_payload_bytes(&self) -> usize {
        self.start.len()
    }

    /// Queues one START; the instance's id is its number.
    pub(crate) fn queue_start(&self) -> Result<(), SendError> {
        let number = self.sent.get() + 1;
        self.sent.set(number);
        // The id follows the owner, both 16 bytes: see PROTOCOL.md, START.
        let (head, rest) = self.start.split_at(16);
        let mut instance = [0; 16];
        instance[..8].copy_from_slice(&number.to_le_bytes());
        self.wire.borrow_mut().queue_pieces(
            Operand::Start,
            Flags::NONE,
            number,
            &[head, &instance, &rest[16..]],
        )
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.wire.borrow_mut().try_flush()?;
        Ok(())
    }

    pub(crate) fn tick(&self) -> Result<()> {
        self.wire.borrow_mut().tick(Instant::now())?;
        Ok(())
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Reads what has come; counts the answers to STARTs.
    pub(crate) async fn read_answers(&self) -> Result<()> {
        let mut frames = self.frames.take();
        let outcome = read_frames(&self.wire, &mut frames).await;
        for frame in frames.drain(..) {
            match frame.operand {
                Operand::Placed => {
                    self.placed.set(self.placed.get() + 1);
                    self.answered.set(self.answered.get() + 1);
                }
                Operand::StartFailure => self.answered.set(self.answered.get() + 1),
                _ => {}
            }
        }
        self.frames.replace(frames);
        outcome?;
        Ok(())
    }
}

fn demand() -> Demand {
    Demand {
        cpu_millis: 1,
        memory_mib: 1,
        ..Demand::default()
    }
}

/// A START of `true`, as `pronto run -- true` makes it.
fn start_payload(owner: OwnerId) -> Vec<u8> {
    let prefix = StartPrefix {
        id: AttemptId {
            owner,
            instance: InstanceId::default(),
            attempt: Attempt(1),
        },
        controller_epoch: ControllerEpoch(1),
        body_schema: SCHEMA,
        runtime: Runtime::Exec,
        demand: demand(),
        constraints: Vec::new(),
        prefer: None,
        avoid: Vec::new(),
    };
    let body = StartBody {
        stop_grace_ms: 10_000,
        ..StartBody::new(
            "default",
            Task::Exec(ExecTask {
                command: vec!["true".to_owned()],
                ..ExecTask::default()
            }),
        )
    };
    let mut payload = Vec::new();
    pronto_payloads::codec::encode_into(&prefix, &mut payload);
    pronto_payloads::codec::encode_into(&body, &mut payload);
    payload
}
