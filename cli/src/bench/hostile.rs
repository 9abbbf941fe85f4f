//! `pronto bench hostile`: what honest placements cost while others misbehave, beside what they
//! cost under an equal load of others that don't.
//!
//! The others live on a thread of their own and have valid certificates where a certificate gets
//! them further. Each kind of misbehaviour is measured in turn with its honest counterpart, several
//! times, so that a machine that drifts drifts for both:
//!
//! | load | hostile | its honest equal |
//! |---|---|---|
//! | `silent` | connections that say nothing | nobody |
//! | `handshakes` | a user's certificate, refused at HELLO | launchers that come and go, as often |
//! | `statuses` | statuses of other sessions and of STARTs never sent | true ones, as many |
//! | `starts` | another controller's STARTs, replayed, of a stale epoch | fresh ones, as many |
//! | `crumbs` | frames in TLS records of one byte | whole frames, as many records |
//! | `deaf` | controllers that never read what they are told | ones that do |
//!
//! The scheduler's resident memory is looked at all the while, and must stay below its bound.

use super::figures::{as_f64, micros};
use super::fleet::{Controller, Fleet, node_name};
use super::rig::{Rig, Target};
use super::{Report, Row, parameters};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use pronto_payloads::codec::encode;
use pronto_payloads::demand::{Capacity, Demand, Runtime};
use pronto_payloads::hello::{ControllerHello, LauncherHello, Mode};
use pronto_payloads::ids::{
    Attempt, BootId, ControllerEpoch, InstanceId, NodeUuid, OwnerId, Seq, SessionEpoch, Term,
};
use pronto_payloads::node::{NodeFacts, Status};
use pronto_payloads::place::{AttemptId, StartPrefix};
use pronto_payloads::{SCHEMA, SCHEMA_MIN};
use pronto_protocol::transport::{Credentials, Wire, connect};
use pronto_protocol::{Frame, Hello, Operand, Purpose, Role, SessionConfig};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Resident memory of the scheduler under the worst of these, in MiB.
const RSS_BOUND_MIB: f64 = 256.0;
/// What the 99th percentile may become, beside the equal load.
const RATIO_BOUND: f64 = 2.0;
/// Between two honest STARTs.
const PACE: Duration = Duration::from_millis(2);
/// The others act this often, so many times at once as their rate asks.
const BEAT: Duration = Duration::from_millis(10);
/// Controllers that don't read.
const DEAF: u8 = 8;
/// The first of their stores' numbers: none of them is the honest controller's.
const FIRST_DEAF: u8 = 100;
/// Before a round is measured, its load has come up.
const SETTLE: Duration = Duration::from_millis(500);

/// Flags of `bench hostile`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct HostileArgs {
    /// Honest launchers that are connected
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) launchers: u32,
    /// Connections that say nothing
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=18_000))]
    pub(crate) connections: u32,
    /// Frames a second of those who flood
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rate: u32,
    /// Handshakes a second of those who come and go
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) handshakes: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) seconds: u64,
    /// Only this load
    #[arg(long, value_name = "LOAD", value_parser = KINDS.map(|(_, name)| name))]
    pub(crate) load: Option<String>,
    /// Measurements of each load and of its equal
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Silent,
    Handshakes,
    Statuses,
    Starts,
    Crumbs,
    Deaf,
}

const KINDS: [(Kind, &str); 6] = [
    (Kind::Silent, "silent"),
    (Kind::Handshakes, "handshakes"),
    (Kind::Statuses, "statuses"),
    (Kind::Starts, "starts"),
    (Kind::Crumbs, "crumbs"),
    (Kind::Deaf, "deaf"),
];

/// What the others need to be who they are.
#[derive(Clone)]
struct Cast {
    address: String,
    user: Arc<Credentials>,
    launcher: Arc<Credentials>,
    controller: Arc<Credentials>,
    /// The number of the launcher above all honest ones.
    node: u32,
    args: HostileArgs,
}

/// Others at work, until dropped.
struct Others {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Others {
    fn start(kind: Kind, hostile: bool, cast: &Cast) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let (cast, told) = (cast.clone(), Arc::clone(&over));
        let thread = std::thread::Builder::new()
            .name("others".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                let outcome = runtime.block_on(misbehave(kind, hostile, &cast, &told));
                runtime.shutdown_background();
                outcome
            })?;
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }

    /// Ends them; what went wrong with them.
    fn end(mut self) -> Result<()> {
        self.over.store(true, Ordering::Release);
        match self.thread.take().map(std::thread::JoinHandle::join) {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(error.context("the others' load failed")),
            Some(Err(_)) => bail!("the others' thread panicked"),
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

async fn misbehave(kind: Kind, hostile: bool, cast: &Cast, over: &AtomicBool) -> Result<()> {
    match (kind, hostile) {
        (Kind::Silent, true) => silent(cast, over).await,
        (Kind::Silent, false) => Ok(()),
        (Kind::Handshakes, _) => handshakes(cast, hostile, over).await,
        (Kind::Statuses, _) => statuses(cast, hostile, over).await,
        (Kind::Starts, _) => starts(cast, hostile, over).await,
        (Kind::Crumbs, true) => crumbs(cast, over).await,
        (Kind::Crumbs, false) => statuses(cast, false, over).await,
        (Kind::Deaf, _) => deaf(cast, hostile, over).await,
    }
}

/// Keeps so many connections open; one that is closed on is followed by the next.
async fn silent(cast: &Cast, over: &AtomicBool) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..cast.args.connections {
        let address = cast.address.clone();
        tasks.spawn(async move {
            loop {
                let Ok(stream) = TcpStream::connect(&address).await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                // Readable means closed: nothing is ever said to who says nothing.
                let _closed = stream.readable().await;
            }
        });
    }
    while !over.load(Ordering::Acquire) {
        tokio::time::sleep(BEAT).await;
    }
    tasks.abort_all();
    Ok(())
}

async fn handshakes(cast: &Cast, hostile: bool, over: &AtomicBool) -> Result<()> {
    let every = Duration::from_secs(1) / cast.args.handshakes.max(1);
    let mut due = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let epoch = next_epoch()?;
    let mut number = 0_u64;
    while !over.load(Ordering::Acquire) {
        number += 1;
        let (cast, node) = (cast.clone(), cast.node);
        tasks.spawn(async move {
            if hostile {
                let _refused = refused(&cast).await;
            } else {
                let hello = launcher_hello(node, epoch + number);
                let config = SessionConfig::default();
                let role = Role::Scheduler;
                let dialed = connect(&cast.address, &cast.launcher, role, &hello, config).await;
                if let Ok(wire) = dialed {
                    wire.finish().await;
                }
            }
        });
        while tasks.try_join_next().is_some() {}
        due += every;
        tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
    }
    tasks.abort_all();
    Ok(())
}

/// A user's certificate has no place on a frame port: the scheduler says so at HELLO.
async fn refused(cast: &Cast) -> Result<()> {
    let mut stream = raw(&cast.address, &cast.user).await?;
    let hello = Hello::new(Purpose::Control, 1, Bytes::new());
    let mut bytes = Vec::new();
    pronto_protocol::codec::encode(&Frame::new(Operand::Hello, hello.encode()), &mut bytes)?;
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    let _reset = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
    Ok(())
}

type Raw = tokio_rustls::client::TlsStream<TcpStream>;

async fn raw(address: &str, credentials: &Credentials) -> Result<Raw> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let config = credentials.client_config(Role::Scheduler);
    let name = rustls_pki_types::ServerName::try_from("scheduler")?;
    let connector = tokio_rustls::TlsConnector::from(config);
    Ok(connector.connect(name, stream).await?)
}

/// Rises from one session to the next.
fn next_epoch() -> Result<u64> {
    Ok(u64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_nanos())?)
}

/// A launcher's session, and its epoch.
async fn launcher(cast: &Cast) -> Result<(Wire, u64)> {
    let epoch = next_epoch()?;
    let hello = launcher_hello(cast.node, epoch);
    let config = SessionConfig::default();
    let wire = connect(
        &cast.address,
        &cast.launcher,
        Role::Scheduler,
        &hello,
        config,
    );
    let wire = wire.await.context("the other launcher can't connect")?;
    Ok((wire, epoch))
}

/// Reads and forgets, without waiting; false when the session has ended.
async fn drain(wire: &mut Wire) -> bool {
    let mut frames = Vec::new();
    let reading = tokio::time::timeout(Duration::ZERO, wire.read_frames(&mut frames));
    !matches!(reading.await, Ok(Err(_)))
}

fn launcher_hello(node: u32, epoch: u64) -> Hello {
    let capacity = Capacity::default();
    let body = LauncherHello {
        node_uuid: NodeUuid([99; 16]),
        boot_id: BootId([99; 16]),
        term: Term(0),
        mode: Mode::Ready,
        facts: NodeFacts {
            hostname: node_name(node),
            address: "127.0.0.1".to_owned(),
            allocatable: capacity,
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

fn controller_hello(owner: u8) -> Hello {
    let body = ControllerHello {
        owner: OwnerId([owner; 16]),
        epoch: ControllerEpoch(1),
    };
    Hello::new(Purpose::Control, 1, encode(&body))
}

/// A node that offers nothing, so that no honest START goes there.
fn status(epoch: u64, applied_seq: u64) -> Bytes {
    encode(&Status {
        session_epoch: SessionEpoch(epoch),
        applied_seq: Seq(applied_seq),
        free: Capacity::default(),
        runtimes: vec![Runtime::Exec],
        reason: String::new(),
    })
}

/// A START of another owner without a body, which the scheduler does not look at.
fn start(owner: u8, number: u64, epoch: u64) -> Bytes {
    let mut instance = [0; 16];
    instance[..8].copy_from_slice(&number.to_le_bytes());
    encode(&StartPrefix {
        id: AttemptId {
            owner: OwnerId([owner; 16]),
            instance: InstanceId(instance),
            attempt: Attempt(1),
        },
        controller_epoch: ControllerEpoch(epoch),
        body_schema: SCHEMA,
        runtime: Runtime::Exec,
        demand: Demand {
            cpu_millis: 1,
            memory_mib: 1,
            ..Demand::default()
        },
        constraints: Vec::new(),
        prefer: None,
        avoid: Vec::new(),
    })
}

/// How many to send at this beat.
fn quota(per_second: u32) -> u32 {
    let beats = u32::try_from(Duration::from_secs(1).as_millis() / BEAT.as_millis()).unwrap_or(1);
    (per_second / beats).max(1)
}

async fn statuses(cast: &Cast, hostile: bool, over: &AtomicBool) -> Result<()> {
    let (mut wire, mut epoch) = launcher(cast).await?;
    while !over.load(Ordering::Acquire) {
        let status = if hostile {
            status(0, u64::MAX)
        } else {
            status(epoch, 0)
        };
        for _ in 0..quota(cast.args.rate) {
            let _full = wire.queue(&Frame::new(Operand::Ready, status.clone()));
        }
        let _ended = wire.flush().await;
        if !drain(&mut wire).await {
            (wire, epoch) = launcher(cast).await?;
        }
        tokio::time::sleep(BEAT).await;
    }
    Ok(())
}

async fn controller(cast: &Cast, owner: u8) -> Result<Wire> {
    let hello = controller_hello(owner);
    let config = SessionConfig::default();
    let wire = connect(
        &cast.address,
        &cast.controller,
        Role::Scheduler,
        &hello,
        config,
    );
    wire.await.context("the other controller can't connect")
}

async fn starts(cast: &Cast, hostile: bool, over: &AtomicBool) -> Result<()> {
    let mut wire = controller(cast, 200).await?;
    let mut number = 0;
    while !over.load(Ordering::Acquire) {
        for _ in 0..quota(cast.args.rate) {
            number += 1;
            let start = if hostile {
                start(200, 1, 0)
            } else {
                start(200, number, 1)
            };
            let _full = wire.queue(&Frame::request(Operand::Start, number, start));
        }
        let _ended = wire.flush().await;
        if !drain(&mut wire).await {
            wire = controller(cast, 200).await?;
        }
        tokio::time::sleep(BEAT).await;
    }
    Ok(())
}

/// One byte a TLS record, as many records as the honest ones send frames.
async fn crumbs(cast: &Cast, over: &AtomicBool) -> Result<()> {
    let epoch = next_epoch()?;
    let mut stream = raw(&cast.address, &cast.launcher).await?;
    let mut bytes = Vec::new();
    let hello = launcher_hello(cast.node, epoch);
    pronto_protocol::codec::encode(&Frame::new(Operand::Hello, hello.encode()), &mut bytes)?;
    stream.write_all(&bytes).await?;
    bytes.clear();
    let ready = Frame::new(Operand::Ready, status(epoch, 0));
    pronto_protocol::codec::encode(&ready, &mut bytes)?;
    let mut cycle = bytes.iter().cycle();
    while !over.load(Ordering::Acquire) {
        for _ in 0..quota(cast.args.rate) {
            let byte = *cycle.next().context("a frame has bytes")?;
            stream.write_all(&[byte]).await?;
            stream.flush().await?;
        }
        tokio::time::sleep(BEAT).await;
    }
    Ok(())
}

/// Controllers of other stores, which ask for the list of nodes again and again, and either read it
/// or don't.
async fn deaf(cast: &Cast, hostile: bool, over: &AtomicBool) -> Result<()> {
    let mut wires = Vec::new();
    for owner in FIRST_DEAF..FIRST_DEAF + DEAF {
        wires.push(controller(cast, owner).await?);
    }
    while !over.load(Ordering::Acquire) {
        for (owner, wire) in (FIRST_DEAF..).zip(&mut wires) {
            let _full = wire.queue(&Frame::request(Operand::Nodes, 1, Bytes::new()));
            let flushed = wire.try_flush();
            let ended = !hostile && !drain(wire).await;
            if flushed.is_err() || ended {
                *wire = controller(cast, owner).await?;
            }
        }
        tokio::time::sleep(BEAT).await;
    }
    Ok(())
}

/// Latencies of one load, and the most memory that the scheduler took.
struct Measured {
    latency: Histogram<u64>,
    rss_bytes: u64,
}

impl Measured {
    fn new() -> Result<Self> {
        Ok(Self {
            latency: Histogram::new(3)?,
            rss_bytes: 0,
        })
    }
}

/// Honest STARTs, one at a time, from sending to PLACED.
async fn measure(
    controller: &Controller,
    target: &Target,
    seconds: u64,
    into: &mut Measured,
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut looked = Instant::now();
    while Instant::now() < end {
        let goal = controller.sent() + 1;
        let began = Instant::now();
        controller.queue_start()?;
        controller.flush()?;
        while controller.answered.get() < goal {
            let waited = tokio::time::timeout(Duration::from_secs(30), controller.read_answers());
            waited
                .await
                .context("an honest START was not answered within 30 s")??;
        }
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        into.latency.record(nanos.max(1))?;
        if looked.elapsed() > Duration::from_millis(200) {
            looked = Instant::now();
            into.rss_bytes = into.rss_bytes.max(target.rss_bytes()?);
            controller.tick()?;
        }
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

/// Measures and reports. Fails if a bound is not kept.
pub(crate) async fn run(args: &HostileArgs) -> Result<Report> {
    let rig = Rig::new()?;
    let target = rig.scheduler()?;
    let fleet = Fleet::launch(&rig, &target, args.launchers)?;
    fleet.connected().await?;
    let controller = Controller::connect(&rig, &target).await?;
    controller.activate(args.launchers).await?;
    controller.await_placeable(args.launchers).await?;
    let cast = Cast {
        address: target.address.clone(),
        user: rig.other_credentials(Role::Admin, "stranger")?,
        launcher: rig.launcher_credentials(args.launchers)?,
        controller: rig.other_credentials(Role::Controller, "other")?,
        node: args.launchers,
        args: args.clone(),
    };
    let mut report = Report::new(parameters([
        ("bench", json!("hostile")),
        ("launchers", json!(args.launchers)),
        ("connections", json!(args.connections)),
        ("frames_per_second", json!(args.rate)),
        ("handshakes_per_second", json!(args.handshakes)),
        ("seconds", json!(args.seconds)),
        ("rounds", json!(args.rounds)),
        ("ratio_bound", json!(RATIO_BOUND)),
        ("rss_bound_mib", json!(RSS_BOUND_MIB)),
    ]));
    // Warms both ends up.
    measure(&controller, &target, 1, &mut Measured::new()?).await?;
    let mut worst_rss: f64 = 0.0;
    let wanted = |name| args.load.as_deref().is_none_or(|wanted| wanted == name);
    for (kind, name) in KINDS.into_iter().filter(|(_, name)| wanted(*name)) {
        let mut hostile = Measured::new()?;
        let mut honest = Measured::new()?;
        for _ in 0..args.rounds.max(1) {
            for (is_hostile, into) in [(true, &mut hostile), (false, &mut honest)] {
                let others = Others::start(kind, is_hostile, &cast)?;
                tokio::time::sleep(SETTLE).await;
                measure(&controller, &target, args.seconds, into).await?;
                others.end()?;
            }
        }
        let at =
            |measured: &Measured, quantile| micros(measured.latency.value_at_quantile(quantile));
        let (p99, reference) = (at(&hostile, 0.99), at(&honest, 0.99));
        report.rows.push(Row {
            name: format!("placement_us/{name}"),
            unit: "µs".to_owned(),
            value: p99,
            p50: Some(at(&hostile, 0.5)),
            p99: Some(p99),
            max: Some(micros(hostile.latency.max())),
            reference: Some(reference),
            ratio: Some(p99 / reference),
        });
        let mib = as_f64(hostile.rss_bytes) / f64::from(1 << 20);
        worst_rss = worst_rss.max(mib);
        report.rows.push(Row {
            name: format!("scheduler_rss_mib/{name}"),
            unit: "MiB".to_owned(),
            value: mib,
            reference: Some(as_f64(honest.rss_bytes) / f64::from(1 << 20)),
            ..Row::default()
        });
    }
    report.rows.push(Row {
        name: "scheduler_rss_mib".to_owned(),
        unit: "MiB".to_owned(),
        value: worst_rss,
        reference: Some(RSS_BOUND_MIB),
        ratio: Some(worst_rss / RSS_BOUND_MIB),
        ..Row::default()
    });
    if worst_rss > RSS_BOUND_MIB {
        bail!("the scheduler took {worst_rss:.0} MiB; its bound is {RSS_BOUND_MIB} MiB");
    }
    Ok(report)
}
