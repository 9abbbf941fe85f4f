//! One process that stands for many nodes: each with its own certificate, session and supervisor,
//! and nothing that runs.
//!
//! A certificate names one node, so each simulated node needs its own: the files `<node>.crt` and
//! `<node>.key` of the directory `simulate_certs_dir`, as `pronto cert issue` writes them. What a
//! node would have on disk is in memory; it lasts as long as the process.

use super::connection::{Connection, Happened};
use crate::config::LauncherConfig;
use crate::moment::Moment;
use crate::node::{Gpus, boot_id, facts};
use crate::runtime::sim::SimTimers;
use crate::supervisor::memory::MemoryStore;
use crate::supervisor::{Effect, Event, Settings, Supervisor, UNACKNOWLEDGED};
use anyhow::{Context, bail};
use pronto_payloads::demand::Runtime;
use pronto_payloads::ids::{BootId, NodeUuid, SessionEpoch};
use pronto_payloads::node::{NodeFacts, NodeLoad};
use pronto_protocol::Frame;
use pronto_protocol::transport::{Credentials, TlsFiles};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A node that nobody wakes turns this often, so that a pause of the process shows.
const TURN: Duration = Duration::from_secs(1);

/// Runs `count` simulated nodes until `shutdown`.
///
/// # Errors
/// If there are not enough certificates, or one can't be read.
pub async fn run_simulated(
    config: LauncherConfig,
    count: usize,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let directory = config.simulate_certs_dir.clone().context(
        "simulating nodes needs simulate_certs_dir, with <node>.crt and <node>.key of each",
    )?;
    let names = names(&directory, count)?;
    // Its file system is what the nodes' disks are taken to be.
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("can't make {}", config.data_dir.display()))?;
    // A simulated node has what is configured, and this machine's share otherwise.
    let library = config.nvml_library.clone();
    let gpus = tokio::task::spawn_blocking(move || Gpus::find(&library)).await?;
    let facts = facts(&config, &gpus, vec![Runtime::Sim], "none", "")?;
    let boot_id = boot_id()?;
    let mut nodes = JoinSet::new();
    for name in names {
        let tls = TlsFiles {
            ca: config.tls.ca.clone(),
            cert: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
            crl: config.tls.crl.clone(),
        };
        let credentials = Credentials::load(&tls)?;
        let uuid: NodeUuid = uuid::Uuid::new_v4().into();
        let seed = uuid.uuid().as_u64_pair().1;
        let connection =
            Connection::new(config.schedulers.clone(), credentials, seed, UNACKNOWLEDGED)?;
        let node = SimulatedNode::new(facts_of(&facts, &name), uuid, boot_id, seed, connection);
        nodes.spawn(node.run(shutdown.clone()));
    }
    while nodes.join_next().await.is_some() {}
    Ok(())
}

fn names(directory: &std::path::Path, count: usize) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let path: PathBuf = entry.ok()?.path();
            let is_certificate = path.extension()? == "crt" && path.with_extension("key").exists();
            is_certificate.then(|| Some(path.file_stem()?.to_str()?.to_owned()))?
        })
        .collect();
    names.sort();
    if names.len() < count {
        bail!(
            "{} has certificates for {} nodes; wanted: {count}",
            directory.display(),
            names.len()
        );
    }
    names.truncate(count);
    Ok(names)
}

fn facts_of(facts: &NodeFacts, name: &str) -> NodeFacts {
    let mut facts = facts.clone();
    facts.hostname = name.to_owned();
    for label in facts
        .labels
        .iter_mut()
        .filter(|label| label.key == "hostname")
    {
        label.value = name.to_owned();
    }
    facts
}

struct SimulatedNode {
    core: Supervisor,
    store: MemoryStore,
    timers: SimTimers,
    connection: Connection,
    epoch: SessionEpoch,
    started_at: Moment,
}

impl SimulatedNode {
    fn new(
        facts: NodeFacts,
        node_uuid: NodeUuid,
        boot_id: BootId,
        seed: u64,
        connection: Connection,
    ) -> Self {
        let settings = Settings {
            facts,
            node_uuid,
            boot_id,
            unacknowledged_limit: UNACKNOWLEDGED,
            fencing: vec![Runtime::Sim],
            seed,
        };
        let store = MemoryStore::default();
        let started_at = Moment::now();
        Self {
            core: Supervisor::new(settings, store.restore(), started_at),
            store,
            timers: SimTimers::default(),
            connection,
            epoch: SessionEpoch(0),
            started_at,
        }
    }

    async fn run(mut self, shutdown: CancellationToken) {
        let mut effects = Vec::new();
        loop {
            let now = Moment::now();
            let next = [self.core.next_wakeup(), self.timers.next_end()]
                .into_iter()
                .flatten()
                .min();
            let wait = next.map_or(TURN, |at| at.since(now).min(TURN));
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.core.step(Moment::now(), Event::Leaving, &mut effects);
                    self.execute(&mut effects);
                    return;
                }
                happened = self.connection.next() => self.happened(happened, &mut effects),
                () = tokio::time::sleep(wait) => {
                    let now = Moment::now();
                    let mut ended = Vec::new();
                    self.timers.poll(now, &mut ended);
                    ended.push(Event::Tick);
                    ended.into_iter().for_each(|event| self.core.step(now, event, &mut effects));
                }
            }
            if self.core.is_orphaned(Moment::now()) && self.connection.leave() {
                self.core.leave_orphaned();
            }
            self.execute(&mut effects);
        }
    }

    fn happened(&mut self, happened: Happened, effects: &mut Vec<Effect>) {
        let now = Moment::now();
        let epoch = self.epoch;
        match happened {
            Happened::Due => {
                self.epoch = self.epoch.next();
                self.connection.dial(self.epoch, &mut self.core);
            }
            Happened::Up(welcomed) => {
                let (term, active, welcome) = (welcomed.term, welcomed.active, welcomed.body);
                self.core.step(
                    now,
                    Event::SessionUp {
                        epoch,
                        term,
                        active,
                        welcome,
                    },
                    effects,
                );
            }
            Happened::Frames(frames) => {
                for frame in frames {
                    self.core.step(now, Event::Frame { epoch, frame }, effects);
                }
            }
            Happened::Down(_) => self.core.step(now, Event::SessionDown { epoch }, effects),
            Happened::Failed => {}
        }
    }

    fn execute(&mut self, effects: &mut Vec<Effect>) {
        let mut frames: Vec<Frame> = Vec::new();
        while !effects.is_empty() {
            let now = Moment::now();
            let mut events = Vec::new();
            for effect in effects.drain(..) {
                match effect {
                    Effect::Send(frame) => frames.push(frame),
                    Effect::CloseSession(_) => {
                        frames.clear();
                        self.connection.close();
                    }
                    Effect::Keep(durable) => self.store.apply(&durable),
                    Effect::Prepare {
                        job,
                        start_at_once: true,
                        ..
                    }
                    | Effect::Start { job, .. } => {
                        self.timers.start(now, &job, &mut events);
                    }
                    Effect::Prepare { job, .. } => events.push(Event::Prepared(job.id)),
                    Effect::Stop { id, cause, .. } => self.timers.stop(now, id, cause, &mut events),
                    Effect::Measure => events.push(Event::Measured {
                        load: self.load(now),
                        usages: Vec::new(),
                    }),
                    // No streams into what runs nothing.
                    Effect::OpenBulk | Effect::Fence { .. } => {}
                }
            }
            events
                .into_iter()
                .for_each(|event| self.core.step(now, event, effects));
        }
        if !frames.is_empty() && !self.connection.send(&frames) {
            self.connection.close();
            self.core.step(
                Moment::now(),
                Event::SessionDown { epoch: self.epoch },
                effects,
            );
        }
    }

    fn load(&self, now: Moment) -> NodeLoad {
        let (all, ended) = self.core.counts();
        NodeLoad {
            uptime_s: now.since(self.started_at).as_secs(),
            instances: u32::try_from(all - ended).unwrap_or(u32::MAX),
            ..NodeLoad::default()
        }
    }
}
