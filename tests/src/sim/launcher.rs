//! One simulated node: a launcher process over the supervisor's core, and the machine beneath it.
//!
//! What an `exec` task runs belongs to the machine (in reality to its shim) and outlives the launcher
//! process; the store outlives it too. What a `sim` task "runs" is a timer of the launcher process,
//! is not on disk, and dies with it. Power loss takes everything that runs, changes the boot id, and
//! takes back what the store had not synced.

use super::equipment::Equipment;
use super::net::{ConnId, MS, Time};
use super::oracle::{Ending, Oracle, Running};
use super::plant::Plant;
use super::rng::Rng;
use super::sabotage;
use pronto_launcher::moment::Moment;
use pronto_launcher::supervisor::memory::MemoryStore;
use pronto_launcher::supervisor::{
    Durable, Effect, Event, Found, Job, Settings, StopCause, Supervisor,
};
use pronto_payloads::demand::Runtime;
use pronto_payloads::ids::{BootId, NodeUuid, SessionEpoch};
use pronto_payloads::instance::{End, EndCause, Usage};
use pronto_payloads::node::{NodeFacts, NodeLoad};
use pronto_payloads::place::AttemptId;
use pronto_payloads::start::Task;
use pronto_protocol::Frame;
use pronto_protocol::transport::Dialer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Attempts that a node remembers to lie about.
const KNOWN: usize = 64;

/// Something that a node will do later.
#[derive(Clone, Debug)]
pub enum Later {
    /// Tell the supervisor, if its process still lives.
    Tell(Event),
    /// Look whether this attempt has to end.
    Due(AttemptId),
}

/// How long a task runs and with which code it ends; a simulated process is told in its command.
fn course(task: &Task) -> (u64, i32) {
    match task {
        Task::Sim(task) => (task.run_ms, task.exit_code),
        Task::Exec(task) => {
            let word = |index: usize| task.command.get(index).map_or("0", String::as_str);
            (word(1).parse().unwrap_or(0), word(2).parse().unwrap_or(0))
        }
        _ => (0, 0),
    }
}

/// A process of a workload.
#[derive(Clone, Debug)]
struct Process {
    job: Arc<Job>,
    started_at: Moment,
    ends_at: Moment,
    fence_at: Option<Moment>,
    stopping: Option<StopCause>,
    code: i32,
    /// Set once it has ended.
    ended: Option<(Moment, End)>,
}

/// A machine with its launcher.
#[derive(Debug)]
pub struct Node {
    pub index: u32,
    pub name: String,
    pub uuid: NodeUuid,
    pub equipment: Equipment,
    boots: u64,
    booted_at: Time,
    /// The launcher process; none while it is dead.
    pub supervisor: Option<Supervisor>,
    /// Raised at each start of the launcher process: what was meant for an older one is void.
    pub life: u64,
    pub conn: Option<ConnId>,
    pub welcomed: bool,
    /// Whom it asks next, in its process's own order.
    pub dialer: Dialer,
    fresh_dialer: Dialer,
    /// The scheduler that it is at, or dials.
    pub target: u32,
    /// Until when the process is stopped by SIGSTOP.
    pub frozen_until: Time,
    store: MemoryStore,
    /// What the disk holds for certain.
    synced: MemoryStore,
    epoch: u64,
    processes: BTreeMap<AttemptId, Process>,
    pub wakes_at: Time,
    /// Its statuses promise too much until then.
    pub lies_until: Time,
    /// Its HELLOs are false until then.
    pub pretends_until: Time,
    /// It reports what others run until then.
    pub slanders_until: Time,
    /// Attempts of which it knows, since they were on it: the last few.
    known: VecDeque<AttemptId>,
    /// It says things twice until then.
    pub stutters_until: Time,
    /// Nothing starts on it until then.
    pub swallows_until: Time,
    /// Ends that were said once, for a planted bug.
    ends_said: BTreeSet<AttemptId>,
}

/// What the node wants of the world.
#[derive(Debug, Default)]
pub struct Wishes {
    pub send: Vec<Frame>,
    pub close: Option<String>,
    /// Reports among them that are made up.
    pub made_up: u64,
    /// After how long, what.
    pub later: Vec<(Time, Later)>,
}

impl Node {
    /// A machine that has just booted; its launcher is not started.
    #[must_use]
    pub fn new(index: u32, equipment: Equipment, dialer: Dialer) -> Self {
        let mut uuid = [1; 16];
        uuid[..4].copy_from_slice(&index.to_le_bytes());
        Self {
            index,
            name: equipment.name.clone(),
            uuid: NodeUuid(uuid),
            equipment,
            boots: 1,
            booted_at: 0,
            supervisor: None,
            life: 0,
            conn: None,
            welcomed: false,
            fresh_dialer: dialer.clone(),
            dialer,
            target: 0,
            frozen_until: 0,
            store: MemoryStore::default(),
            synced: MemoryStore::default(),
            epoch: 0,
            processes: BTreeMap::new(),
            wakes_at: Time::MAX,
            lies_until: 0,
            pretends_until: 0,
            slanders_until: 0,
            known: VecDeque::new(),
            stutters_until: 0,
            swallows_until: 0,
            ends_said: BTreeSet::new(),
        }
    }

    /// The node's own clock.
    #[must_use]
    pub const fn moment(&self, now: Time) -> Moment {
        // A second before the launcher starts the machine was up already.
        Moment(now - self.booted_at + 1000 * MS)
    }

    /// When a moment of this boot is, in simulated time.
    #[must_use]
    pub const fn time(&self, moment: Moment) -> Time {
        (moment.0 + self.booted_at).saturating_sub(1000 * MS)
    }

    fn boot_id(&self) -> BootId {
        let mut id = [2; 16];
        id[..4].copy_from_slice(&self.index.to_le_bytes());
        id[4..12].copy_from_slice(&self.boots.to_le_bytes());
        BootId(id)
    }

    /// Starts the launcher process: it restores, and adopts what it finds.
    pub fn start(
        &mut self,
        now: Time,
        oracle: &mut Oracle,
        rng: &mut Rng,
        plant: Option<Plant>,
    ) -> Wishes {
        self.life += 1;
        self.dialer = self.fresh_dialer.clone();
        if plant == Some(Plant::RepeatsSessionEpochs) {
            self.epoch = 0;
        }
        let restored = self.store.restore();
        let jobs = restored.jobs.clone();
        let boot_id = self.boot_id();
        let settings = Settings {
            facts: NodeFacts {
                hostname: self.name.clone(),
                address: String::new(),
                allocatable: self.equipment.capacity.clone(),
                labels: self.equipment.labels.clone(),
                runtimes: vec![Runtime::Exec, Runtime::Sim],
                schema_min: pronto_payloads::SCHEMA_MIN,
                schema_max: pronto_payloads::SCHEMA,
                isolation: "none".to_owned(),
                acceleration: String::new(),
            },
            node_uuid: self.uuid,
            boot_id,
            unacknowledged_limit: 1000,
            fencing: vec![Runtime::Exec, Runtime::Sim],
            seed: rng.next(),
        };
        self.supervisor = Some(Supervisor::new(settings, restored, self.moment(now)));
        let mut wishes = Wishes::default();
        for job in jobs {
            if job.boot_id != boot_id {
                continue;
            }
            let found = match self.processes.get(&job.id) {
                Some(process) if process.ended.is_some() && plant == Some(Plant::RunsTwice) => {
                    Found::NeverStarted
                }
                None => Found::NeverStarted,
                Some(Process {
                    ended: Some((ended_at, end)),
                    started_at,
                    ..
                }) => Found::Ended {
                    started_at: Some(*started_at),
                    ended_at: *ended_at,
                    end: end.clone(),
                    usage: Usage::default(),
                },
                Some(process) => Found::Running {
                    started_at: process.started_at,
                    fence_at: process.fence_at,
                },
            };
            let event = Event::Adopted { id: job.id, found };
            self.step(now, event, oracle, rng, plant, usize::MAX, &mut wishes);
        }
        wishes
    }

    /// The launcher process dies, and its `sim` tasks with it; what its shims own goes on.
    pub fn kill(&mut self, oracle: &mut Oracle) {
        let dying: Vec<AttemptId> = self
            .processes
            .iter()
            .filter(|(_, process)| process.job.runtime() == Runtime::Sim)
            .map(|(id, _)| *id)
            .collect();
        for id in dying {
            let process = self.processes.remove(&id).expect("just found");
            if process.ended.is_none() {
                oracle.ends(id, Ending::Died);
            }
        }
        self.supervisor = None;
        self.conn = None;
        self.welcomed = false;
        self.frozen_until = 0;
        // A wake-up of the dead process must not stand in the way of its successor's.
        self.wakes_at = Time::MAX;
    }

    /// The machine loses power and boots again.
    pub fn power_cycle(&mut self, now: Time, oracle: &mut Oracle) {
        self.kill(oracle);
        self.processes.clear();
        oracle.node_died(self.index, now);
        self.boots += 1;
        self.booted_at = now;
        self.store = self.synced.clone();
    }

    /// Whether all that was promised is free again.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.supervisor
            .as_ref()
            .is_some_and(|supervisor| supervisor.free() == self.equipment.capacity)
    }

    /// How many attempts its launcher keeps.
    #[must_use]
    pub fn kept(&self) -> usize {
        let supervisor = self.supervisor.as_ref();
        supervisor.map_or(0, |supervisor| supervisor.counts().0)
    }

    /// What was written so far is on the platter.
    pub fn sync(&mut self) {
        self.synced = self.store.clone();
    }

    /// Raises and syncs the session epoch; the HELLO that carries it.
    ///
    /// # Panics
    /// If the launcher process is dead.
    pub fn hello(&mut self) -> (u64, bytes::Bytes) {
        self.epoch += 1;
        let supervisor = self
            .supervisor
            .as_mut()
            .expect("only a living launcher dials");
        let hello = supervisor.hello(SessionEpoch(self.epoch));
        (self.epoch, pronto_payloads::codec::encode(&hello))
    }

    /// The epoch of the present session.
    #[must_use]
    pub const fn session_epoch(&self) -> SessionEpoch {
        SessionEpoch(self.epoch)
    }

    /// One step of the core and its effects, of which only the first `survives` are carried out:
    /// then the process dies. Says whether it lives.
    #[expect(clippy::too_many_arguments, reason = "the world in which a node lives")]
    pub fn step(
        &mut self,
        now: Time,
        event: Event,
        oracle: &mut Oracle,
        rng: &mut Rng,
        plant: Option<Plant>,
        survives: usize,
        wishes: &mut Wishes,
    ) -> bool {
        let moment = self.moment(now);
        let Some(supervisor) = self.supervisor.as_mut() else {
            return false;
        };
        let mut effects = Vec::new();
        supervisor.step(moment, event, &mut effects);
        supervisor.sanity_check();
        for (index, effect) in effects.into_iter().enumerate() {
            if index >= survives {
                return false;
            }
            self.carry_out(now, effect, oracle, rng, plant, wishes);
        }
        true
    }

    fn carry_out(
        &mut self,
        now: Time,
        effect: Effect,
        oracle: &mut Oracle,
        rng: &mut Rng,
        plant: Option<Plant>,
        wishes: &mut Wishes,
    ) {
        match effect {
            Effect::Send(mut frame) => {
                if plant == Some(Plant::PostdatesInventories) {
                    sabotage::postdate(&mut frame);
                }
                if let Some((id, end)) = sabotage::end_in(&frame) {
                    oracle.refuses(self.index, id, &end);
                    if plant == Some(Plant::LosesEnds) {
                        self.store.apply(&Durable::Deleted(id));
                        if !self.ends_said.insert(id) {
                            return;
                        }
                    }
                }
                if plant == Some(Plant::WithholdsRoom) {
                    sabotage::withhold(&mut frame);
                }
                if now < self.lies_until {
                    sabotage::boast(&mut frame);
                }
                if now < self.slanders_until
                    && sabotage::is_status(&frame)
                    && let Some(id) = self.somebody_elses(rng)
                {
                    wishes.send.push(sabotage::make_up(id, rng));
                    wishes.made_up += 1;
                }
                if now < self.stutters_until && rng.per_mille(300) {
                    wishes.send.push(frame.clone());
                }
                wishes.send.push(frame);
            }
            Effect::CloseSession(reason) => wishes.close = Some(reason),
            Effect::OpenBulk => {}
            Effect::Keep(durable) => self.keep(&durable, plant),
            Effect::Prepare {
                job,
                start_at_once,
                fence_at,
            } => {
                if rng.per_mille(2) || now < self.swallows_until {
                    let end = End {
                        cause: EndCause::Rejected,
                        message: "no disk".to_owned(),
                    };
                    let event = Event::Failed { id: job.id, end };
                    wishes
                        .later
                        .push((rng.between(1, 5 * MS), Later::Tell(event)));
                } else if start_at_once {
                    self.begin(now, job, fence_at, oracle, rng, wishes);
                } else {
                    let event = Event::Prepared(job.id);
                    wishes
                        .later
                        .push((rng.between(1, 5 * MS), Later::Tell(event)));
                }
            }
            Effect::Start { job, fence_at } => self.begin(now, job, fence_at, oracle, rng, wishes),
            Effect::Stop {
                id,
                cause,
                grace_ms,
                ..
            } => {
                self.end_early(now, id, cause, grace_ms, rng, wishes);
            }
            Effect::Fence { owner, lease_until } => {
                for (id, process) in &mut self.processes {
                    let after = process.job.stop_after_ms().filter(|_| id.owner == owner);
                    if let Some(ms) = after {
                        process.fence_at = Some(lease_until.after_ms(ms));
                    }
                }
            }
            Effect::Measure => {
                let event = Event::Measured {
                    load: NodeLoad::default(),
                    usages: Vec::new(),
                };
                wishes.later.push((1, Later::Tell(event)));
            }
        }
    }

    /// A later attempt of an instance that was here: where it is, if anywhere, is not here.
    fn somebody_elses(&self, rng: &mut Rng) -> Option<AttemptId> {
        let supervisor = self.supervisor.as_ref()?;
        if self.known.is_empty() {
            return None;
        }
        let mut id = self.known[usize::try_from(rng.below(self.known.len() as u64)).ok()?];
        id.attempt.0 = match rng.below(8) {
            0 => u32::MAX,
            more => id
                .attempt
                .0
                .saturating_add(u32::try_from(more / 3).ok()? + 1),
        };
        let is_here = supervisor.live_job(&id).is_some() || self.processes.contains_key(&id);
        (!is_here).then_some(id)
    }

    fn keep(&mut self, durable: &Durable, plant: Option<Plant>) {
        let forgotten = matches!(
            (durable, plant),
            (Durable::Accepted(_), Some(Plant::ForgetsAccepted))
        );
        if forgotten {
            return;
        }
        if let Durable::Acknowledged(job) = durable {
            self.processes.remove(&job.id);
        }
        self.store.apply(durable);
        // Mode, term and epochs are synced when they are written.
        if let Durable::State(_) = durable {
            self.synced.apply(durable);
        }
    }

    fn begin(
        &mut self,
        now: Time,
        job: Arc<Job>,
        fence_at: Option<Moment>,
        oracle: &mut Oracle,
        rng: &mut Rng,
        wishes: &mut Wishes,
    ) {
        let id = job.id;
        let (run_ms, code) = course(&job.body.task);
        if self.known.len() == KNOWN {
            self.known.pop_front();
        }
        self.known.push_back(id);
        oracle.begins(
            id,
            Running {
                node: self.index,
                since: self.time(job.received_at),
                demand: job.demand.clone(),
                gpus: job.gpus.clone(),
                on_disconnect: job.body.on_disconnect,
                tenant: job.body.tenant.clone(),
                durable: job.runtime() == Runtime::Exec,
            },
        );
        let started_at = self.moment(now);
        let ends_at = started_at.after_ms(run_ms);
        let process = Process {
            job,
            started_at,
            ends_at,
            fence_at,
            stopping: None,
            code,
            ended: None,
        };
        self.processes.insert(id, process);
        let told = rng.between(1, MS);
        wishes
            .later
            .push((told, Later::Tell(Event::Started { id, at: started_at })));
        wishes.later.push((told + run_ms * MS, Later::Due(id)));
        if let Some(fence_at) = fence_at {
            wishes
                .later
                .push((self.time(fence_at).saturating_sub(now), Later::Due(id)));
        }
    }

    fn end_early(
        &mut self,
        now: Time,
        id: AttemptId,
        cause: StopCause,
        grace_ms: u64,
        rng: &mut Rng,
        wishes: &mut Wishes,
    ) {
        let moment = self.moment(now);
        match self.processes.get_mut(&id) {
            Some(process) if process.ended.is_none() => {
                if process.stopping.is_none() {
                    process.stopping = Some(cause);
                    // Some heed SIGTERM at once, some only SIGKILL.
                    let takes = if rng.per_mille(700) {
                        rng.between(1, 20)
                    } else {
                        grace_ms
                    };
                    process.ends_at = moment.after_ms(takes).min(process.ends_at);
                }
                wishes.later.push((
                    self.time(self.processes[&id].ends_at).saturating_sub(now),
                    Later::Due(id),
                ));
            }
            Some(_) => {}
            None => {
                let end = End {
                    cause: cause.end_cause(),
                    message: String::new(),
                };
                wishes
                    .later
                    .push((1, Later::Tell(Event::Failed { id, end })));
            }
        }
    }

    /// Ends an attempt whose time has come; what the launcher is to be told. Otherwise says when
    /// to look again.
    pub fn due(
        &mut self,
        now: Time,
        id: AttemptId,
        oracle: &mut Oracle,
        plant: Option<Plant>,
    ) -> (Vec<Event>, Option<Time>) {
        let moment = self.moment(now);
        let Some(process) = self.processes.get_mut(&id) else {
            return (Vec::new(), None);
        };
        if process.ended.is_some() {
            return (Vec::new(), None);
        }
        let fenced =
            process.fence_at.is_some_and(|at| at <= moment) && plant != Some(Plant::IgnoresFence);
        if !fenced && process.ends_at > moment {
            let next = process
                .fence_at
                .map_or(process.ends_at, |at| at.min(process.ends_at));
            let next = if next <= moment {
                process.ends_at
            } else {
                next
            };
            let at = self.time(next);
            return (Vec::new(), Some(at));
        }
        let (cause, ending) = if process.ends_at <= moment {
            match process.stopping {
                Some(cause) => (cause.end_cause(), Ending::Ended),
                None => (
                    EndCause::Exited { code: process.code },
                    Ending::Exited(process.code),
                ),
            }
        } else {
            (EndCause::LeaseExpired, Ending::Ended)
        };
        let end = End {
            cause,
            message: String::new(),
        };
        process.ended = Some((moment, end.clone()));
        oracle.ends(id, ending);
        let events = vec![
            Event::Ended {
                id,
                at: moment,
                end,
                usage: Usage::default(),
            },
            Event::Emptied(id),
        ];
        (events, None)
    }

    /// Everything that runs here, for the trace.
    #[must_use]
    pub fn running(&self) -> usize {
        self.processes
            .values()
            .filter(|process| process.ended.is_none())
            .count()
    }
}
