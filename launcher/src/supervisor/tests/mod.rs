//! Scenario tests of the core through a recording node: a fake that plays runtime and disk, and
//! fails when an effect went unexamined.

mod properties;
mod rules;

use super::event::Restored;
use super::memory::MemoryStore;
use super::*;
use pronto_payloads::codec;
use pronto_payloads::demand::{Capacity, Demand};
use pronto_payloads::hello::SchedulerWelcome;
use pronto_payloads::ids::{Attempt, InstanceId, Seq, Term};
use pronto_payloads::instance::{End, EndCause, InstanceReport, Phase, Usage};
use pronto_payloads::node::{Lease, Status};
use pronto_payloads::place::{StartPrefix, StartStamp};
use pronto_payloads::start::{ExecTask, OnDisconnect, SimTask, StartBody, Task};
use pronto_protocol::{Flags, Frame, Operand, Payload};

const MS: u64 = 1_000_000;
const LEASE_MS: u64 = 10_000;

fn settings() -> Settings {
    Settings {
        facts: NodeFacts {
            hostname: "n1".into(),
            address: String::new(),
            allocatable: Capacity {
                cpu_millis: 4000,
                memory_mib: 4096,
                disk_mib: 1000,
                gpu_millis: vec![1000, 1000],
                resources: Vec::new(),
            },
            labels: Vec::new(),
            runtimes: vec![Runtime::Exec, Runtime::Sim],
            schema_min: 1,
            schema_max: 1,
            isolation: "cgroup1".into(),
            acceleration: String::new(),
        },
        node_uuid: NodeUuid::default(),
        boot_id: BootId([7; 16]),
        unacknowledged_limit: 100,
        fencing: vec![Runtime::Exec],
        seed: 1,
    }
}

fn body() -> StartBody {
    StartBody {
        name: "job".into(),
        stop_grace_ms: 1000,
        ..StartBody::new(
            "t",
            Task::Exec(ExecTask {
                command: vec!["true".into()],
                ..ExecTask::default()
            }),
        )
    }
}

fn no_disk() -> End {
    End {
        cause: EndCause::Rejected,
        message: "no disk".into(),
    }
}

fn attempt(instance: u8, attempt: u32) -> AttemptId {
    AttemptId {
        owner: OwnerId([1; 16]),
        instance: InstanceId([instance; 16]),
        attempt: Attempt(attempt),
    }
}

fn exited(code: i32) -> End {
    End {
        cause: EndCause::Exited { code },
        message: String::new(),
    }
}

/// A node whose effects must all be looked at.
struct Node {
    core: Supervisor,
    store: MemoryStore,
    now: Moment,
    epoch: u64,
    seq: u64,
    term: u64,
    unseen: Vec<Effect>,
}

impl Node {
    /// Connected, active, leased.
    fn ready() -> Self {
        let mut node = Self::disconnected();
        node.connect();
        node.lease(&[]);
        node.skim();
        node
    }

    fn disconnected() -> Self {
        let now = Moment(1_000_000 * MS);
        Self {
            core: Supervisor::new(settings(), Restored::default(), now),
            store: MemoryStore::default(),
            now,
            epoch: 0,
            seq: 0,
            term: 1,
            unseen: Vec::new(),
        }
    }

    fn connect(&mut self) {
        self.epoch += 1;
        self.seq = 0;
        let _ = self.core.hello(SessionEpoch(self.epoch));
        self.step(Event::SessionUp {
            epoch: SessionEpoch(self.epoch),
            term: Term(self.term),
            active: true,
            welcome: SchedulerWelcome {
                stats_interval_ms: 1000,
                lease_ms: LEASE_MS,
                start_window: 64,
                owner_epoch: ControllerEpoch(0),
                nodes: 1,
            },
        });
    }

    /// Kills the process and starts it again over what is on its disk.
    fn restart(&mut self) {
        self.skim();
        self.core = Supervisor::new(settings(), self.store.restore(), self.now);
        self.core.sanity_check();
    }

    fn step(&mut self, event: Event) {
        let begin = self.unseen.len();
        self.core.step(self.now, event, &mut self.unseen);
        for effect in &self.unseen[begin..] {
            if let Effect::Keep(durable) = effect {
                self.store.apply(durable);
            }
        }
        self.core.sanity_check();
    }

    /// Lets time pass, ticking whenever the core wants to be woken.
    fn wait_ms(&mut self, ms: u64) {
        let end = self.now.after_ms(ms);
        while let Some(at) = self.core.next_wakeup().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.step(Event::Tick);
        }
        self.now = end;
        self.step(Event::Tick);
    }

    fn frame(&mut self, operand: Operand, correlation: u64, payload: impl Into<Payload>) {
        let epoch = SessionEpoch(self.epoch);
        let frame = Frame::request(operand, correlation, payload);
        self.step(Event::Frame { epoch, frame });
    }

    /// Answers the last status that wanted a lease.
    fn lease(&mut self, owners: &[OwnerId]) {
        let asked = self.unseen.iter().rev().find_map(|effect| match effect {
            Effect::Send(frame) if frame.wants_reply() => Some(frame.correlation),
            _ => None,
        });
        let lease = Lease {
            term: Term(self.term),
            lease_ms: LEASE_MS,
            owners: owners.to_vec(),
        };
        let correlation = asked.expect("a status asked for a lease");
        self.frame(Operand::Lease, correlation, codec::encode(&lease));
    }

    fn start(&mut self, id: AttemptId) {
        self.start_with(
            id,
            &Demand {
                cpu_millis: 1000,
                ..Demand::default()
            },
            &body(),
        );
    }

    fn start_with(&mut self, id: AttemptId, demand: &Demand, body: &StartBody) {
        self.seq += 1;
        let stamp = StartStamp {
            session_epoch: SessionEpoch(self.epoch),
            seq: Seq(self.seq),
            term: Term(self.term),
            gpus: Vec::new(),
        };
        self.start_stamped(id, demand, body, &stamp, 1);
    }

    fn start_stamped(
        &mut self,
        id: AttemptId,
        demand: &Demand,
        body: &StartBody,
        stamp: &StartStamp,
        controller_epoch: u64,
    ) {
        let prefix = StartPrefix {
            id,
            controller_epoch: ControllerEpoch(controller_epoch),
            body_schema: 1,
            runtime: body.task.runtime(),
            demand: demand.clone(),
            constraints: Vec::new(),
            prefer: None,
            avoid: Vec::new(),
        };
        let mut payload = Vec::new();
        codec::encode_into(stamp, &mut payload);
        codec::encode_into(&prefix, &mut payload);
        codec::encode_into(body, &mut payload);
        self.frame(Operand::Start, 0, payload);
    }

    /// Runs what was started: Prepared, Started.
    fn run(&mut self, id: AttemptId) {
        assert!(self.took(|effect| matches!(effect, Effect::Prepare { job, .. } if job.id == id)));
        self.step(Event::Prepared(id));
        assert!(self.took(|effect| matches!(effect, Effect::Start { job, .. } if job.id == id)));
        self.step(Event::Started { id, at: self.now });
    }

    fn end(&mut self, id: AttemptId, end: End) {
        self.step(Event::Ended {
            id,
            at: self.now,
            end,
            usage: Usage::default(),
        });
        self.step(Event::Emptied(id));
    }

    /// Takes the first effect that matches; says whether there was one.
    fn took(&mut self, wanted: impl Fn(&Effect) -> bool) -> bool {
        let found = self.unseen.iter().position(wanted);
        found.map(|index| self.unseen.remove(index)).is_some()
    }

    /// Takes every report that was sent.
    fn reports(&mut self) -> Vec<InstanceReport> {
        self.take_frames(Operand::InstanceChanged)
            .iter()
            .map(|frame| codec::decode(&frame.payload.to_bytes()).unwrap())
            .collect()
    }

    /// The only report that was sent.
    fn report(&mut self) -> InstanceReport {
        let mut reports = self.reports();
        assert_eq!(reports.len(), 1, "{reports:?}");
        reports.remove(0)
    }

    fn statuses(&mut self) -> Vec<(Operand, Status)> {
        [Operand::Ready, Operand::Full, Operand::Maintenance]
            .into_iter()
            .flat_map(|operand| self.take_frames(operand))
            .map(|frame| {
                (
                    frame.operand,
                    codec::decode(&frame.payload.to_bytes()).unwrap(),
                )
            })
            .collect()
    }

    /// Waits for the next coalesced status and takes it.
    fn next_status(&mut self) -> (Operand, Status) {
        self.statuses();
        self.wait_ms(5);
        let mut statuses = self.statuses();
        assert_eq!(statuses.len(), 1);
        statuses.remove(0)
    }

    fn take_frames(&mut self, operand: Operand) -> Vec<Frame> {
        let mut frames = Vec::new();
        self.unseen.retain(|effect| match effect {
            Effect::Send(frame) if frame.operand == operand => {
                frames.push(frame.clone());
                false
            }
            _ => true,
        });
        frames
    }

    /// Looks away from statuses, statistics and disk writes; everything else must have been taken.
    fn skim(&mut self) {
        self.statuses();
        self.take_frames(Operand::Stats);
        self.unseen
            .retain(|effect| !matches!(effect, Effect::Keep(_) | Effect::Measure));
        assert!(
            self.unseen.is_empty(),
            "unexamined effects: {:?}",
            self.unseen
        );
    }
}
