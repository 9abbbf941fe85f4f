//! The thin shell: one loop that turns what happens outside into events, and effects into what
//! happens outside. It decides nothing.
//!
//! One tokio thread runs the loop, the connection and the streams; one plain thread executes what
//! may be slow (`executor`). What a frame's answer depends on (tombstones, mode) is on disk before
//! the answer is sent.

mod connection;
mod executor;
mod machinery;
mod ops;
mod simulate;

pub(crate) use executor::{Order, Orders};
pub use simulate::run_simulated;

use crate::config::LauncherConfig;
use crate::data_dir::DataDir;
use crate::moment::Moment;
use crate::node::{LoadMeter, boot_id, facts};
use crate::runtime::docker::end_containers;
use crate::runtime::exec::end_shim;
use crate::runtime::qemu::shim_dir;
use crate::runtime::{Events, Kind, Runtimes};
use crate::store::{AttemptStore, NodeStore};
use crate::streams::{Registry, Streams};
use crate::supervisor::{Durable, Effect, Event, Found, Settings, Supervisor};
use anyhow::Context;
use connection::{Connection, Happened};
use machinery::Machinery;
use ops::Ops;
use pronto_protocol::transport::{Credentials, follow_files, listen, serve_ops};
use pronto_protocol::{Frame, Operand};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events of runtimes that are taken in one turn.
const EVENTS_A_TURN: usize = 256;
/// The loop turns at least this often, so that a pause shows as one.
const TURN: Duration = Duration::from_secs(1);
/// What has aged is looked for this often.
const AGING_INTERVAL: Duration = Duration::from_secs(10);
/// How often the credentials' files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);
/// How long the last words of an orderly end may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Runs a launcher until `shutdown`. What it started goes on: the next launcher of the same data
/// directory adopts it.
///
/// # Errors
/// If the configuration is not acceptable, the data directory can't be used, or a write that must
/// be durable fails.
pub async fn run(config: LauncherConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut shell = Shell::open(config, &shutdown).await?;
    let outcome = shell.turn_until(&shutdown).await;
    shell.leave().await;
    outcome
}

/// Ends all workloads of a data directory whose launcher is gone, and their shims.
///
/// # Errors
/// If a shim or an engine is there and can't be told.
pub async fn end_workloads(data_dir: &std::path::Path, grace_ms: u64) -> anyhow::Result<()> {
    let data_dir = DataDir::new(data_dir.to_owned());
    let containers = end_containers(&data_dir, grace_ms).await;
    end_shim(&shim_dir(&data_dir), grace_ms).await?;
    end_shim(&data_dir, grace_ms).await?;
    containers
}

struct Shell {
    core: Supervisor,
    node_store: NodeStore,
    connection: Connection,
    events: Events,
    inbox: mpsc::UnboundedReceiver<Event>,
    orders: Orders,
    executor: std::thread::JoinHandle<()>,
    runtimes: Runtimes,
    registry: Arc<Registry>,
    streams: Streams,
    meter: Arc<Mutex<LoadMeter>>,
    ops: Arc<Ops>,
    effects: Vec<Effect>,
    aged_at: Moment,
}

impl Shell {
    async fn open(config: LauncherConfig, shutdown: &CancellationToken) -> anyhow::Result<Self> {
        let credentials = Credentials::load(&config.tls)?;
        let name = credentials.identity().name().to_owned();
        let data_dir = DataDir::new(config.data_dir.clone());
        let (node_store, restored) = NodeStore::open(data_dir.clone())?;
        let retention = Duration::from_millis(config.retention_ms);
        let attempts = AttemptStore::open(data_dir.clone(), retention)?;
        let (events, inbox) = Events::channel();

        let machinery =
            Machinery::open(&config, &name, node_store.node_uuid(), &data_dir, &events).await?;
        let Machinery {
            runtimes,
            isolation,
            acceleration,
            offered,
            gpus,
        } = machinery;
        let kinds: Vec<Kind> = runtimes.iter().map(|runtime| runtime.kind()).collect();
        let facts = facts(&config, &gpus, kinds, isolation, acceleration)?;
        tracing::info!(name, isolation, allocatable = ?facts.allocatable, "this node");

        let seed = node_store.node_uuid().uuid().as_u64_pair().1;
        let settings = Settings {
            facts,
            node_uuid: node_store.node_uuid(),
            boot_id: boot_id()?,
            unacknowledged_limit: config.unacknowledged_limit,
            fencing: runtimes
                .iter()
                .filter(|runtime| runtime.fences())
                .map(|runtime| runtime.kind())
                .collect(),
            seed,
        };
        let jobs = restored.jobs.clone();
        let mut core = Supervisor::new(settings, restored, Moment::now());
        // An engine that is not there yet says so itself when it is.
        core.step(Moment::now(), Event::OfferChanged(offered), &mut Vec::new());
        let registry = Arc::new(Registry::default());
        jobs.iter()
            .for_each(|job| registry.insert(job, core.live_job(&job.id).is_some()));
        let live: Vec<_> = jobs
            .into_iter()
            .filter(|job| core.live_job(&job.id).is_some())
            .collect();
        tracing::info!(attempts = live.len(), "attempts to adopt");

        let (orders, executor) = executor::spawn(attempts, runtimes.clone(), events.clone())?;
        let _ = orders.send(vec![Order::Adopt(live)]);
        let streams = Streams::new(
            registry.clone(),
            runtimes.clone(),
            data_dir.clone(),
            orders.clone(),
            events.clone(),
        );
        let ops = Arc::new(Ops::default());
        if let Some(address) = config.ops_listen {
            let listener = listen(address).with_context(|| format!("ops_listen = {address}"))?;
            let answering = ops.clone();
            let handler = Arc::new(move |path: &str| answering.answer(path));
            tokio::spawn(serve_ops(
                listener,
                credentials.clone(),
                handler,
                shutdown.clone(),
            ));
        }
        tokio::spawn(follow_files(
            credentials.clone(),
            RELOAD_INTERVAL,
            shutdown.clone(),
            || {},
        ));
        let meter = LoadMeter::new(
            config.data_dir.clone(),
            config.low_memory_mib,
            config.low_disk_mib,
        );
        let connection = Connection::new(
            config.schedulers,
            credentials,
            seed,
            config.unacknowledged_limit,
        )?;
        Ok(Self {
            core,
            node_store,
            connection,
            events,
            inbox,
            orders,
            executor,
            runtimes,
            registry,
            streams,
            meter: Arc::new(Mutex::new(meter)),
            ops,
            effects: Vec::new(),
            aged_at: Moment::now(),
        })
    }

    async fn turn_until(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let mut arrived = Vec::with_capacity(EVENTS_A_TURN);
        loop {
            let now = Moment::now();
            let wait = self
                .core
                .next_wakeup()
                .map_or(TURN, |at| at.since(now).min(TURN));
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                happened = self.connection.next() => self.happened(happened)?,
                _ = self.inbox.recv_many(&mut arrived, EVENTS_A_TURN) => {
                    let now = Moment::now();
                    for event in arrived.drain(..) {
                        // What was adopted runs as well: commands and input may reach it.
                        if let Event::Started { id, .. }
                        | Event::Adopted { id, found: Found::Running { .. } } = &event
                        {
                            self.registry.started(*id);
                        }
                        if let Event::Prepared(id) = &event {
                            self.registry.prepared(*id);
                        }
                        self.core.step(now, event, &mut self.effects);
                    }
                }
                () = tokio::time::sleep(wait) => {
                    self.core.step(Moment::now(), Event::Tick, &mut self.effects);
                }
            }
            self.seek_a_better_scheduler();
            self.execute()?;
        }
    }

    fn seek_a_better_scheduler(&mut self) {
        if self.core.is_orphaned(Moment::now()) && self.connection.leave() {
            tracing::warn!("no controller stands behind this scheduler: asking the next one");
            self.core.leave_orphaned();
        }
    }

    fn happened(&mut self, happened: Happened) -> anyhow::Result<()> {
        let now = Moment::now();
        let epoch = self.connection.epoch();
        match happened {
            Happened::Due => {
                let epoch = self.node_store.next_session_epoch()?;
                self.connection.dial(epoch, &mut self.core);
            }
            Happened::Up(welcomed) => {
                self.ops.count_session();
                let (term, active, welcome) = (welcomed.term, welcomed.active, welcomed.body);
                let event = Event::SessionUp {
                    epoch,
                    term,
                    active,
                    welcome,
                };
                self.core.step(now, event, &mut self.effects);
            }
            Happened::Frames(frames) => {
                for frame in frames {
                    if frame.operand == Operand::Start {
                        self.ops.count_start();
                    }
                    self.core
                        .step(now, Event::Frame { epoch, frame }, &mut self.effects);
                }
            }
            Happened::Down(closed) => {
                tracing::warn!(%closed, "the session with the scheduler has ended");
                self.core
                    .step(now, Event::SessionDown { epoch }, &mut self.effects);
            }
            Happened::Failed => {}
        }
        Ok(())
    }

    fn execute(&mut self) -> anyhow::Result<()> {
        let mut frames: Vec<Frame> = Vec::new();
        let mut orders: Vec<Order> = Vec::new();
        let mut kept: Vec<Durable> = Vec::new();
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Send(frame) => frames.push(frame),
                Effect::CloseSession(reason) => {
                    tracing::warn!(reason, "ending the session");
                    frames.clear();
                    self.connection.close();
                }
                Effect::OpenBulk => {
                    let (address, credentials) =
                        (self.connection.address(), self.connection.credentials());
                    self.streams
                        .open_bulk(address, credentials, self.connection.epoch());
                }
                // An answer may follow, so these are written here and now.
                Effect::Keep(Durable::Tombstone(tombstone)) => {
                    self.node_store.keep_tombstone(&tombstone)?;
                }
                Effect::Keep(Durable::Over(tombstone)) => {
                    if let Err(error) = self.node_store.keep_end(&tombstone) {
                        tracing::warn!("{error:#}");
                    }
                }
                Effect::Keep(Durable::State(record)) => self.node_store.keep_node(record)?,
                Effect::Measure => self.measure(),
                other => {
                    if let Effect::Keep(durable) = &other {
                        kept.push(durable.clone());
                    }
                    orders.push(Order::Do(other));
                }
            }
        }
        let now = Moment::now();
        if now.since(self.aged_at) > AGING_INTERVAL {
            self.aged_at = now;
            orders.push(Order::Age);
        }
        if !orders.is_empty() {
            self.orders
                .send(orders)
                .map_err(|_| anyhow::anyhow!("the executor thread has ended"))?;
        }
        // Behind the orders: whoever sees it here and asks the executor then finds it done.
        for durable in kept {
            self.registry.notice(&durable);
        }
        if !frames.is_empty() && !self.connection.send(&frames) {
            tracing::warn!("the scheduler does not read: ending the session");
            self.connection.close();
            let epoch = self.connection.epoch();
            self.core
                .step(now, Event::SessionDown { epoch }, &mut self.effects);
        }
        self.count(&frames);
        self.ops.observe(now, &self.core);
        Ok(())
    }

    fn count(&self, frames: &[Frame]) {
        for frame in frames
            .iter()
            .filter(|frame| frame.operand == Operand::InstanceChanged)
        {
            if let Ok(report) = pronto_payloads::codec::decode(&frame.payload.to_bytes()) {
                self.ops.count_end(&report);
            }
        }
    }

    /// Measures off this thread: hundreds of small files may have to be read.
    fn measure(&self) {
        let (runtimes, meter, events) = (
            self.runtimes.clone(),
            self.meter.clone(),
            self.events.clone(),
        );
        let (all, ended) = self.core.counts();
        let instances = u32::try_from(all - ended).unwrap_or(u32::MAX);
        tokio::spawn(async move {
            let mut usages = Vec::new();
            for runtime in runtimes.iter() {
                usages.extend(runtime.usages().await);
            }
            let measured = tokio::task::spawn_blocking(move || {
                meter
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .measure(instances)
            });
            if let Ok((load, pressure)) = measured.await {
                events.tell(Event::PressureChanged(pressure));
                events.tell(Event::Measured { load, usages });
            }
        });
    }

    /// Says goodbye; what is on its way to the disk gets there.
    async fn leave(mut self) {
        self.core
            .step(Moment::now(), Event::Leaving, &mut self.effects);
        if let Err(error) = self.execute() {
            tracing::error!("{error:#}");
        }
        let Self {
            connection,
            orders,
            executor,
            streams,
            ..
        } = self;
        let _ = tokio::time::timeout(FAREWELL, connection.finish()).await;
        drop(streams);
        drop(orders);
        let joined = tokio::task::spawn_blocking(move || executor.join());
        let _ = tokio::time::timeout(FAREWELL, joined).await;
    }
}
