//! The planner's whole state, its start from a snapshot, and its one entrance.

use super::ended::EndedChanges;
use super::event::{Change, Effect, Event, Now, Refused, Reply, Token};
use super::instance::{Instance, Phase};
use super::journal::{After, Journal};
use super::nodes::Nodes;
use super::queue::Queue;
use super::reconcile::Link;
use super::template::Template;
use crate::api::types::{InstanceState, QuotaLimits, QuotaUse, RuntimeName, Severity, Spec};
use crate::numbers::IdScheme;
use crate::policy::{RateLimit, TenantPolicy};
use crate::store::{
    AmendRow, EventRow, Meta, Snapshot, SubmissionRow, TenantRow, WorkloadRow, Write,
};
use pronto_payloads::ids::{Attempt, InstanceId};
use pronto_payloads::place::AttemptId;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use uuid::Uuid;

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A node that is away for longer is lost.
    pub lost_after_ms: u64,
    /// The scheduler may renew this controller's leases for so long.
    pub grant_ms: u64,
    /// Added to lease, `stop-after` and grace before a successor may run.
    pub fence_margin_ms: u64,
    /// STOP is repeated this often until it is answered.
    pub stop_repeat_ms: u64,
    /// A request id is remembered this long after its last instance ended.
    pub request_window_ms: u64,
    /// A class that has waited so long for room makes younger ones wait.
    pub overtake_after_ms: u64,
    /// Living instances over all tenants: what bounds the planner's memory.
    pub max_living: usize,
    /// The distinct specs of one tenant's submissions in memory, about.
    pub max_spec_bytes: u64,
    /// One tenant's workloads, about.
    pub max_workload_bytes: u64,
    /// Of the tenant `default`, and of new tenants.
    pub default_quota: QuotaLimits,
    pub default_runtimes: Vec<RuntimeName>,
    pub default_submit_rate_per_s: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lost_after_ms: 60_000,
            grant_ms: 10_000,
            fence_margin_ms: 2_000,
            stop_repeat_ms: 2_000,
            request_window_ms: 3_600_000,
            overtake_after_ms: 60_000,
            max_living: 1_000_000,
            max_spec_bytes: 256 << 20,
            max_workload_bytes: 64 << 20,
            default_quota: QuotaLimits {
                instances: Some(100_000),
                cpu_millis: Some(10_000_000),
                memory_mib: Some(40 << 20),
                disk_mib: Some(400 << 20),
                gpu_millis: Some(10_000_000),
            },
            default_runtimes: vec![
                RuntimeName::Exec,
                RuntimeName::Docker,
                RuntimeName::Qemu,
                RuntimeName::Sim,
            ],
            default_submit_rate_per_s: None,
        }
    }
}

/// Request ids that are remembered at most, beyond those of living instances: bounds memory.
pub(crate) const MAX_REMEMBERED: usize = 200_000;
/// Fewer timers are not worth looking through for those of what has ended.
const MIN_TIMERS: usize = 1024;
/// The name of the tenant that always exists.
pub(crate) const DEFAULT_TENANT: &str = "default";

#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: Arc<str>,
    pub(crate) policy: TenantPolicy,
    pub(crate) submit_rate_per_s: Option<u32>,
    pub(crate) created_unix_ms: u64,
    pub(crate) used: QuotaUse,
    pub(crate) rate: RateLimit,
    /// Living instances by state.
    pub(crate) states: [u64; STATES],
    /// [`Settings::max_spec_bytes`].
    pub(crate) spec_bytes: u64,
    /// [`Settings::max_workload_bytes`].
    pub(crate) workload_bytes: u64,
    pub(crate) deleted: bool,
}

pub(crate) const STATES: usize = InstanceState::ALL.len();

/// An admission in memory, as long as an instance of it lives or its request id is remembered.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) row: SubmissionRow,
    pub(crate) template: Arc<Template>,
    pub(crate) tenant: u32,
    pub(crate) submitted_ns: i64,
    /// Since `submitted_ns`; 0 until it is durable.
    pub(crate) committed_ns: u64,
    pub(crate) commit_took_ns: u64,
    pub(crate) durable: bool,
    /// Instances without a final end that was written.
    pub(crate) unfinished: u32,
    /// Instances in memory.
    pub(crate) living: u32,
    pub(crate) states: [u32; STATES],
    pub(crate) retries: u32,
}

impl Submission {
    /// Whether no instance of it lives any more.
    fn has_ended(&self) -> bool {
        let mut counts = InstanceState::ALL.iter().zip(&self.states);
        counts.all(|(state, &count)| state.is_end() || count == 0)
    }
}

/// Tenant, workload and spec: equal ones share a template.
pub(crate) type TemplateKey = (Arc<str>, Option<Arc<str>>, Arc<Spec>);

/// What the planner knows. Everything in it but the node statistics can be had again from the
/// store and the scheduler.
#[derive(Debug)]
pub struct State {
    pub(crate) settings: Settings,
    pub(crate) meta: Meta,
    pub(crate) ids: IdScheme,
    pub(crate) now: Now,
    pub(crate) started_ns: i64,
    pub(crate) out: Vec<Effect>,
    pub(crate) journal: Journal,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) tenant_index: HashMap<Arc<str>, u32>,
    pub(crate) workloads: BTreeMap<(Arc<str>, Arc<str>), WorkloadRow>,
    pub(crate) templates: FxHashMap<u32, Arc<Template>>,
    pub(crate) template_index: HashMap<TemplateKey, u32>,
    pub(crate) next_template: u32,
    pub(crate) submissions: Vec<Option<Submission>>,
    pub(crate) free_submissions: Vec<u32>,
    /// Who waits for a submission's commit, and whether it repeated the request.
    pub(crate) admitting: FxHashMap<u32, Vec<(Token, bool)>>,
    pub(crate) by_request: HashMap<(u32, Uuid), u32>,
    pub(crate) by_first: BTreeMap<u64, u32>,
    /// Submissions without living instances, by the time at which they may be forgotten.
    pub(crate) remembered: VecDeque<(i64, u64)>,
    pub(crate) instances: Vec<Option<Instance>>,
    pub(crate) free_instances: Vec<u32>,
    pub(crate) by_seq: FxHashMap<u64, u32>,
    pub(crate) names: HashMap<(u32, String), u64>,
    pub(crate) ended_changes: EndedChanges,
    pub(crate) queue: Queue,
    pub(crate) nodes: Nodes,
    pub(crate) link: Link,
    /// (when, instance); what it means follows from the instance's phase.
    pub(crate) timers: BinaryHeap<Reverse<(i64, u64)>>,
    /// At so many, those of what has ended are dropped.
    pub(crate) sweep_timers_at: usize,
    /// Instances with a stop that is not confirmed, in order.
    pub(crate) stopping: std::collections::BTreeSet<u64>,
    pub(crate) last_sweep_ns: i64,
    pub(crate) disk_full: bool,
    pub(crate) commits: u64,
    pub(crate) last_commit_ns: u64,
}

impl State {
    /// The state of a controller that has just started on this store: all living instances may be
    /// anywhere. The store's epoch has been raised already.
    #[must_use]
    pub fn new(settings: Settings, snapshot: Snapshot, now: Now) -> Self {
        let mut state = Self {
            settings,
            meta: snapshot.meta,
            ids: IdScheme::new(snapshot.meta.id_key),
            now,
            started_ns: now.mono_ns,
            out: Vec::new(),
            journal: Journal::new(),
            tenants: Vec::new(),
            tenant_index: HashMap::new(),
            workloads: BTreeMap::new(),
            templates: FxHashMap::default(),
            template_index: HashMap::new(),
            next_template: snapshot.next_spec,
            submissions: Vec::new(),
            free_submissions: Vec::new(),
            admitting: FxHashMap::default(),
            by_request: HashMap::new(),
            by_first: BTreeMap::new(),
            remembered: VecDeque::new(),
            instances: Vec::new(),
            free_instances: Vec::new(),
            by_seq: FxHashMap::default(),
            names: HashMap::new(),
            ended_changes: EndedChanges::default(),
            queue: Queue::default(),
            nodes: Nodes::default(),
            link: Link::new(now.mono_ns),
            timers: BinaryHeap::new(),
            sweep_timers_at: MIN_TIMERS,
            stopping: std::collections::BTreeSet::new(),
            last_sweep_ns: now.mono_ns,
            disk_full: false,
            commits: 0,
            last_commit_ns: 0,
        };
        for row in snapshot.tenants {
            state.put_tenant(row);
        }
        if !state.tenant_index.contains_key(DEFAULT_TENANT) {
            let row = state.new_tenant_row(DEFAULT_TENANT);
            state.journal.write(Write::Tenant(row.clone()));
            state.put_tenant(row);
        }
        for row in snapshot.workloads {
            state.keep_workload(row);
        }
        for row in snapshot.specs {
            state.put_template(Arc::new(Template::new(&row)));
        }
        for row in snapshot.nodes {
            state.restore_node(row);
        }
        let amends: FxHashMap<u64, AmendRow> =
            snapshot.amends.iter().map(|row| (row.seq, *row)).collect();
        for stored in snapshot.submissions {
            state.restore_submission(stored, &amends);
        }
        state
    }

    pub(crate) fn new_tenant_row(&self, name: &str) -> TenantRow {
        TenantRow {
            name: name.into(),
            runtimes: self.settings.default_runtimes.clone(),
            privileged: false,
            submit_rate_per_s: self.settings.default_submit_rate_per_s,
            limits: self.settings.default_quota,
            created_unix_ms: self.now.unix_ms,
        }
    }

    pub(crate) fn put_tenant(&mut self, row: TenantRow) -> u32 {
        let index = u32::try_from(self.tenants.len()).expect("fewer tenants than instances");
        self.tenant_index.insert(Arc::clone(&row.name), index);
        self.tenants.push(Tenant {
            name: row.name,
            policy: TenantPolicy {
                runtimes: row.runtimes,
                privileged: row.privileged,
                limits: row.limits,
            },
            submit_rate_per_s: row.submit_rate_per_s,
            created_unix_ms: row.created_unix_ms,
            used: QuotaUse::default(),
            rate: RateLimit::new(row.submit_rate_per_s, self.now.mono_ns),
            states: [0; STATES],
            spec_bytes: 0,
            workload_bytes: 0,
            deleted: false,
        });
        index
    }

    pub(crate) fn put_template(&mut self, template: Arc<Template>) {
        self.next_template = self.next_template.max(template.id + 1);
        let key = (
            Arc::clone(&template.tenant),
            template.workload.clone(),
            Arc::clone(&template.spec),
        );
        self.template_index.insert(key, template.id);
        if let Some(&tenant) = self.tenant_index.get(&template.tenant) {
            self.tenants[tenant as usize].spec_bytes += template.bytes();
        }
        self.templates.insert(template.id, template);
    }

    pub(crate) fn submission(&self, index: u32) -> &Submission {
        self.submissions[index as usize]
            .as_ref()
            .expect("a submission outlives its instances")
    }

    pub(crate) fn submission_mut(&mut self, index: u32) -> &mut Submission {
        self.submissions[index as usize]
            .as_mut()
            .expect("a submission outlives its instances")
    }

    pub(crate) fn instance(&self, slot: u32) -> &Instance {
        self.instances[slot as usize]
            .as_ref()
            .expect("slots are dropped with their instances")
    }

    pub(crate) fn instance_mut(&mut self, slot: u32) -> &mut Instance {
        self.instances[slot as usize]
            .as_mut()
            .expect("slots are dropped with their instances")
    }

    pub(crate) fn slot(&self, seq: u64) -> Option<u32> {
        self.by_seq.get(&seq).copied()
    }

    pub(crate) fn id(&self, slot: u32) -> InstanceId {
        let instance = self.instance(slot);
        let row = &self.submission(instance.submission).row;
        self.ids.id(row.unix_ms, row.nonce, instance.seq)
    }

    pub(crate) fn attempt_id(&self, slot: u32) -> AttemptId {
        AttemptId {
            owner: self.meta.owner,
            instance: self.id(slot),
            attempt: Attempt(self.instance(slot).attempt),
        }
    }

    /// The living instance with this id.
    pub(crate) fn living(&self, id: InstanceId) -> Option<u32> {
        let seq = self.ids.seq(id, self.meta.next_seq.saturating_sub(1));
        let slot = self.slot(seq)?;
        let durable = self.submission(self.instance(slot).submission).durable;
        (durable && self.id(slot) == id).then_some(slot)
    }

    pub(crate) fn template(&self, slot: u32) -> &Arc<Template> {
        &self.submission(self.instance(slot).submission).template
    }

    /// Moves an instance to another phase, and what is counted by state with it.
    pub(crate) fn set_phase(&mut self, slot: u32, phase: Phase) {
        let instance = self.instance_mut(slot);
        instance.phase = phase;
        if phase != Phase::Ending {
            self.set_state(slot, phase.state());
        }
    }

    pub(crate) fn set_state(&mut self, slot: u32, state: InstanceState) {
        let instance = self.instance_mut(slot);
        let before = std::mem::replace(&mut instance.state, state);
        if before == state {
            return;
        }
        let submission = instance.submission;
        let entry = self.submission_mut(submission);
        entry.states[before as usize] -= 1;
        entry.states[state as usize] += 1;
        let tenant = entry.tenant;
        let counts = &mut self.tenants[tenant as usize].states;
        counts[before as usize] -= 1;
        if !state.is_end() {
            counts[state as usize] += 1;
        }
        self.tell_change(slot);
    }

    pub(crate) fn tell_change(&mut self, slot: u32) {
        let instance = self.instance(slot);
        let entry = self.submission(instance.submission);
        let change = Change {
            id: self.id(slot),
            seq: instance.seq,
            tenant: Arc::clone(&entry.row.tenant),
            submission: entry.row.request,
            submission_ended: entry.has_ended(),
            state: instance.state,
            node: self.nodes.name_of(instance.node),
            end_committed_ns: instance
                .state
                .is_end()
                .then(|| super::submit::since(entry.submitted_ns, self.now.mono_ns)),
        };
        self.out.push(Effect::Changed(change));
    }

    pub(crate) fn reply(&mut self, token: Token, reply: Result<Reply, Refused>) {
        self.out.push(Effect::Reply { token, reply });
    }

    /// Replies once all that was written so far is durable.
    pub(crate) fn reply_durably(&mut self, token: Token, reply: Reply) {
        self.journal.then(After::Effect(Effect::Reply {
            token,
            reply: Ok(reply),
        }));
    }

    /// Writes a line of the audit trail in the controller's own name.
    pub(crate) fn record(&mut self, kind: &'static str, severity: Severity, message: String) {
        self.record_row(self.own_row(kind, severity, message));
    }

    /// A line in the controller's own name, about nobody yet.
    pub(crate) fn own_row(
        &self,
        kind: &'static str,
        severity: Severity,
        message: String,
    ) -> EventRow {
        EventRow {
            number: 0,
            unix_ms: self.now.unix_ms,
            kind,
            severity,
            actor: "controller".to_owned(),
            source: String::new(),
            tenant: None,
            instance: None,
            node: None,
            message,
        }
    }

    pub(crate) fn record_row(&mut self, mut row: EventRow) {
        row.number = self.meta.next_event;
        self.meta.next_event += 1;
        self.journal.write(Write::Event(row.clone()));
        self.journal.then(After::Effect(Effect::Recorded(row)));
    }

    pub(crate) fn arm(&mut self, at_ns: i64, seq: u64) {
        if self.timers.len() >= self.sweep_timers_at {
            let by_seq = &self.by_seq;
            self.timers
                .retain(|Reverse((_, seq))| by_seq.contains_key(seq));
            self.sweep_timers_at = 2 * self.timers.len() + MIN_TIMERS;
        }
        self.timers.push(Reverse((at_ns, seq)));
    }

    /// The controller's epoch, as HELLO must say it.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.meta.epoch
    }

    /// Entries of the queue, and distinct demands that live.
    #[must_use]
    pub fn queue_sizes(&self) -> (usize, usize) {
        (self.queue.waiting(), self.queue.class_count())
    }

    /// Handles one event; the effects are to be carried out in their order.
    pub fn step(&mut self, now: Now, event: Event, effects: &mut Vec<Effect>) {
        self.step_batch(now, std::iter::once(event), effects);
    }

    /// Handles several events that are there at once, with one commit and one round of dispatch
    /// for all of them.
    pub fn step_batch(
        &mut self,
        now: Now,
        events: impl IntoIterator<Item = Event>,
        effects: &mut Vec<Effect>,
    ) {
        self.now = now;
        for event in events {
            self.handle(event);
        }
        self.run_ready();
        self.dispatch();
        if let Some(batch) = self.journal.take_batch() {
            self.out.push(Effect::Commit(batch));
        }
        effects.append(&mut self.out);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Request { token, actor, call } => self.on_request(token, &actor, *call),
            Event::SessionUp(up) => self.on_session_up(up),
            Event::SessionDown { reason } => self.on_session_down(&reason),
            Event::Frame(frame) => self.on_frame(frame),
            Event::CommitDone {
                number,
                admissions_refused,
                took_ns,
            } => {
                self.commits += 1;
                self.last_commit_ns = took_ns;
                self.on_commit_done(number, admissions_refused, took_ns);
            }
            Event::LookedUp { lookup, past } => self.on_looked_up(lookup, past),
            Event::Tick => self.on_tick(),
        }
        self.run_ready();
    }

    fn on_commit_done(&mut self, number: u64, admissions_refused: bool, took_ns: u64) {
        if admissions_refused != self.disk_full {
            self.disk_full = admissions_refused;
            let text = if admissions_refused {
                "the disk is full: submissions are refused"
            } else {
                "the disk has room again"
            };
            self.out.push(Effect::Warn(text.to_owned()));
        }
        self.journal.acknowledge(number);
        while let Some(after) = self.journal.pop_ready() {
            self.follow(after, admissions_refused, took_ns);
        }
    }

    /// Lets out what depends on no batch that is still to come.
    fn run_ready(&mut self) {
        while let Some(after) = self.journal.pop_ready() {
            self.follow(after, false, 0);
        }
    }

    fn follow(&mut self, after: After, admissions_refused: bool, took_ns: u64) {
        match after {
            After::Effect(effect) => self.out.push(effect),
            After::Admitted(submission) => {
                self.on_admitted(submission, admissions_refused, took_ns)
            }
            After::Raised {
                seq,
                attempt,
                not_before_ns,
                ack,
            } => self.on_raised(seq, attempt, not_before_ns, ack),
            After::Ended { seq, ack } => self.on_ended(seq, ack),
            After::Stop { seq } => self.on_stop_durable(seq),
            After::Activate => self.send_activate(),
        }
    }

    fn on_tick(&mut self) {
        self.run_timers();
        const SWEEP_NS: i64 = 250_000_000;
        if self.now.mono_ns - self.last_sweep_ns >= SWEEP_NS {
            self.last_sweep_ns = self.now.mono_ns;
            self.sweep_link();
            self.sweep_nodes();
            self.sweep_stops();
            self.sweep_pulls();
            self.sweep_uncertain();
            self.sweep_barrier();
            self.forget_remembered();
        }
    }

    /// When [`Event::Tick`] is due at the latest.
    #[must_use]
    pub fn next_tick_ns(&self) -> i64 {
        const SWEEP_NS: i64 = 250_000_000;
        let sweep = self.last_sweep_ns.saturating_add(SWEEP_NS);
        self.timers
            .peek()
            .map_or(sweep, |Reverse((at, _))| sweep.min(*at))
    }
}

/// Milliseconds as nanoseconds, clamped to what the clock can hold.
pub(crate) fn ns(ms: u64) -> i64 {
    i64::try_from(ms)
        .unwrap_or(i64::MAX / 4)
        .saturating_mul(1_000_000)
        .min(i64::MAX / 4)
}
