//! What users see of the planner's state. Shows, and changes nothing.

use super::event::Actor;
use super::instance::{Instance as Living, Phase};
use super::nodes::Node as KnownNode;
use super::state::{STATES, State};
use crate::api::types::{
    CapacityView, Drain, EndRecord, Instance, InstanceState, Node, NodeLoadView, NodeStateName,
    Quota, RuntimeName, SchedulerStatus, Spec, Status, Step, StoreStatus, Submission, Tenant,
    TimelineStep,
};
use crate::store::{EndRow, SpecRow, SubmissionRow, Times, timestamp};
use pronto_payloads::demand::Capacity;
use pronto_payloads::hello::Mode;
use pronto_payloads::ids::InstanceId;
use pronto_payloads::node::NodeState;
use pronto_payloads::place::Refusal;
use std::collections::BTreeMap;

/// What an instance has in common with the others of its submission.
fn base(
    id: InstanceId,
    seq: u64,
    row: &SubmissionRow,
    workload: Option<&str>,
    spec: &Spec,
) -> Instance {
    Instance {
        id: id.uuid(),
        tenant: row.tenant.to_string(),
        name: row.instance_name(seq),
        workload: workload.map(str::to_owned),
        submission: row.request,
        state: InstanceState::Pending,
        stopping: false,
        runtime: spec.task.runtime(),
        demand: spec.demand.clone(),
        constraints: spec.constraints.clone(),
        labels: spec.labels.clone(),
        priority: spec.priority,
        attempt: 1,
        restarts: 0,
        reschedules: 0,
        node: None,
        waiting: None,
        submitted_at: timestamp(row.unix_ms),
        started_at: None,
        ended_at: None,
        end: None,
        usage: None,
    }
}

/// An ended instance, as it was read from the store.
#[must_use]
pub(crate) fn ended_view(
    id: InstanceId,
    row: &SubmissionRow,
    spec: &SpecRow,
    end: &EndRow,
) -> Instance {
    let at = |offset: Option<u64>| offset.map(|ns| timestamp(row.unix_ms + ns / 1_000_000));
    Instance {
        state: end.state,
        attempt: end.attempt,
        restarts: u32::from(end.restarts),
        reschedules: u32::from(end.reschedules),
        node: end.node.as_deref().map(str::to_owned),
        started_at: at(end.times.started_ns),
        ended_at: at(end.times.ended_ns).or(Some(timestamp(end.ended_unix_ms))),
        end: Some(EndRecord {
            cause: end.cause,
            code: end.code,
            signal: end.signal,
            message: end.message.clone(),
        }),
        usage: end.usage,
        ..base(id, end.seq, row, spec.workload.as_deref(), &spec.spec)
    }
}

/// The steps of an instance, with the time between each two.
#[must_use]
pub(crate) fn timeline(times: &Times) -> Vec<TimelineStep> {
    let steps = [
        (Step::Submitted, Some(0)),
        (Step::Admitted, times.admitted_ns),
        (Step::Committed, times.committed_ns),
        (Step::Dispatched, times.dispatched_ns),
        (Step::Placed, times.placed_ns),
        (Step::Received, times.received_ns),
        (Step::Started, times.started_ns),
        (Step::Ended, times.ended_ns),
        (Step::EndReported, times.reported_ns),
    ];
    let mut before = 0;
    let mut shown = Vec::with_capacity(steps.len());
    for (step, at) in steps {
        let Some(offset_ns) = at else { continue };
        shown.push(TimelineStep {
            step,
            offset_ns,
            delta_ns: offset_ns.saturating_sub(before),
        });
        before = offset_ns;
    }
    shown
}

/// The progress of a submission.
#[must_use]
pub(crate) fn submission_view(
    row: &SubmissionRow,
    states: &[u32; STATES],
    retries: u32,
) -> Submission {
    let mut by_name = BTreeMap::new();
    let mut ended = 0;
    for state in InstanceState::ALL {
        let count = states[state as usize];
        if count > 0 {
            by_name.insert(state.name().to_owned(), count);
        }
        if state.is_end() {
            ended += count;
        }
    }
    Submission {
        submission: row.request,
        tenant: row.tenant.to_string(),
        count: row.count,
        states: by_name,
        ended,
        retries,
        submitted_at: timestamp(row.unix_ms),
    }
}

fn capacity_view(capacity: &Capacity) -> CapacityView {
    CapacityView {
        cpu_millis: capacity.cpu_millis,
        memory_mib: capacity.memory_mib,
        disk_mib: capacity.disk_mib,
        gpu_millis: capacity.gpu_millis.clone(),
        resources: capacity
            .resources
            .iter()
            .map(|resource| (resource.name.clone(), resource.count))
            .collect(),
    }
}

impl State {
    fn times_of(&self, slot: u32) -> Times {
        let instance = self.instance(slot);
        let entry = self.submission(instance.submission);
        instance.times(
            entry.submitted_ns,
            entry.row.admitted_ns,
            entry.committed_ns,
        )
    }

    pub(crate) fn timeline(&self, slot: u32) -> Vec<TimelineStep> {
        timeline(&self.times_of(slot))
    }

    pub(crate) fn instance_view(&self, slot: u32) -> Instance {
        let instance = self.instance(slot);
        let entry = self.submission(instance.submission);
        let times = self.times_of(slot);
        let more = instance.more.as_deref();
        let ending = more.and_then(|more| more.ending);
        Instance {
            // Shown only in answers that wait for the end's commit; lists go by what is durable.
            state: ending
                .filter(|_| instance.phase == Phase::Ending)
                .unwrap_or(instance.state),
            stopping: instance.stop().is_some() && instance.phase != Phase::Ending,
            attempt: instance.attempt,
            restarts: u32::from(instance.restarts),
            reschedules: u32::from(instance.reschedules),
            node: self
                .nodes
                .name_of(instance.node)
                .map(|name| name.to_string()),
            waiting: self.waiting_text(slot),
            started_at: times
                .started_ns
                .map(|ns| timestamp(entry.row.unix_ms + ns / 1_000_000)),
            usage: more.and_then(|more| more.usage),
            ..base(
                self.id(slot),
                instance.seq,
                &entry.row,
                entry.template.workload.as_deref(),
                &entry.template.spec,
            )
        }
    }

    /// Why an instance waits, for its tenant.
    pub(crate) fn waiting_text(&self, slot: u32) -> Option<String> {
        let instance = self.instance(slot);
        let trouble = instance
            .more
            .as_ref()
            .and_then(|more| more.trouble.as_ref())
            .filter(|(_, text)| !text.is_empty())
            .map(|(_, text)| format!("; its last attempt: {text}"))
            .unwrap_or_default();
        let text = match instance.phase {
            Phase::Committing => "being written to disk".to_owned(),
            Phase::Waiting => "waits before it is tried again".to_owned(),
            Phase::Queued => self.queued_text(instance),
            Phase::Placing => "asked for a place".to_owned(),
            Phase::Uncertain => "its start was under way when the connection to the scheduler \
                                 broke; the nodes are being asked"
                .to_owned(),
            Phase::Starting if self.template(slot).spec.await_inputs > 0 => {
                "its input files are being brought to its node".to_owned()
            }
            Phase::Starting | Phase::Running | Phase::Ending => return None,
        };
        Some(text + &trouble)
    }

    fn queued_text(&self, instance: &Living) -> String {
        if !self.link.is_ready() {
            return "no scheduler is connected".to_owned();
        }
        if self.link.superseded {
            return "this controller has been superseded by another".to_owned();
        }
        if let Some(barrier) = &self.queue.barrier
            && barrier.seq < instance.seq
            && barrier.class != instance.class
        {
            return "waits behind an older, larger demand".to_owned();
        }
        match &self.queue.class_ref(instance.class).refused {
            None => "waits for its turn".to_owned(),
            Some(last) => match last.refusal {
                Refusal::CloudFull => "no node has room for it now".to_owned(),
                Refusal::NoNodes => "no node is connected".to_owned(),
                Refusal::NeverFits => {
                    "no connected node could hold it, even empty; `pronto explain` says why"
                        .to_owned()
                }
                Refusal::Warming => "the nodes are still connecting".to_owned(),
                _ => "waits for the scheduler".to_owned(),
            },
        }
    }

    pub(crate) fn quota_view(&self, index: u32) -> Quota {
        let entry = &self.tenants[index as usize];
        Quota {
            tenant: entry.name.to_string(),
            limits: entry.policy.limits,
            used: entry.used,
        }
    }

    pub(crate) fn tenant_view(&self, index: u32) -> Tenant {
        let entry = &self.tenants[index as usize];
        Tenant {
            name: entry.name.to_string(),
            runtimes: entry.policy.runtimes.clone(),
            privileged: entry.policy.privileged,
            submit_rate_per_s: entry.submit_rate_per_s,
            quota: self.quota_view(index),
            created_at: timestamp(entry.created_unix_ms),
        }
    }

    pub(crate) fn node_views(&self, actor: &Actor) -> Vec<Node> {
        let mut views: Vec<Node> = self
            .nodes
            .iter()
            .filter_map(|(index, _)| self.node_view(actor, index))
            .collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    /// A node; what it runs for others is not shown to a user.
    pub(crate) fn node_view(&self, actor: &Actor, index: u32) -> Option<Node> {
        let node = self.nodes.node(index)?;
        let admin = actor.scope().is_none();
        let facts = node.facts.as_ref();
        let mine = node.attempts.iter().filter(|&&slot| {
            let entry = self.submission(self.instance(slot).submission);
            actor.scope().is_none_or(|own| *own == entry.row.tenant)
        });
        let instances = u32::try_from(mine.count()).unwrap_or(u32::MAX);
        let away_ns = self.now.mono_ns.saturating_sub(node.disconnected_ns);
        let remaining = u32::try_from(node.attempts.len()).unwrap_or(u32::MAX);
        Some(Node {
            name: node.row.name.to_string(),
            state: state_name(node),
            reason: node.reason.clone(),
            hostname: facts.map(|f| f.hostname.clone()).unwrap_or_default(),
            address: facts.map(|f| f.address.clone()).unwrap_or_default(),
            allocatable: facts
                .map(|facts| capacity_view(&facts.allocatable))
                .unwrap_or_default(),
            available: node.available.as_ref().map(capacity_view),
            labels: facts
                .into_iter()
                .flat_map(|facts| &facts.labels)
                .map(|label| (label.key.clone(), label.value.clone()))
                .collect(),
            runtimes: facts
                .into_iter()
                .flat_map(|facts| &facts.runtimes)
                .map(|&runtime| RuntimeName::from_wire(runtime))
                .collect(),
            isolation: facts.map(|f| f.isolation.clone()).unwrap_or_default(),
            acceleration: facts.map(|f| f.acceleration.clone()).unwrap_or_default(),
            load: node.load.as_ref().map(|load| NodeLoadView {
                load1_hundredths: load.load1_hundredths,
                cpu_used_millis: load.cpu_used_millis,
                cpu_total_millis: load.cpu_total_millis,
                memory_used_mib: load.memory_used_mib,
                memory_total_mib: load.memory_total_mib,
                disk_used_mib: load.disk_used_mib,
                disk_total_mib: load.disk_total_mib,
                uptime_s: load.uptime_s,
                instances: if admin { load.instances } else { instances },
            }),
            instances,
            session_epoch: node.session_epoch,
            disconnected_ms: (!node.connected).then(|| away_ns.max(0).unsigned_abs() / 1_000_000),
            drain: node
                .row
                .drain_until_unix_ms
                .filter(|_| admin)
                .map(|until| Drain {
                    deadline_at: timestamp(until),
                    remaining,
                    done: remaining == 0,
                }),
            quarantined: if admin {
                node.quarantined.iter().map(|id| id.uuid()).collect()
            } else {
                Vec::new()
            },
        })
    }

    pub(crate) fn status(&self, actor: &Actor) -> Status {
        let admin = actor.scope().is_none();
        let states = self.living_states(actor);
        let instances = InstanceState::ALL
            .into_iter()
            .filter(|state| !state.is_end())
            .map(|state| (state.name().to_owned(), states[state as usize]))
            .collect();
        let connected = self.nodes.iter().filter(|(_, node)| node.connected).count();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            owner: self.meta.owner.uuid(),
            epoch: self.meta.epoch,
            uptime_ms: super::submit::since(self.started_ns, self.now.mono_ns) / 1_000_000,
            scheduler: SchedulerStatus {
                connected: self.link.up,
                address: if admin {
                    self.link.address.clone()
                } else {
                    String::new()
                },
                active: self.link.is_ready(),
                term: self.meta.term,
            },
            instances,
            pending_classes: count(self.queue.class_count()),
            nodes_connected: count(connected),
            nodes_known: count(self.nodes.iter().count()),
            rescheduling_suspended: self.nodes.suspended,
            alarms: if admin { self.alarms() } else { Vec::new() },
            store: StoreStatus {
                schema: crate::store::SCHEMA_VERSION,
                commits: self.commits,
                last_commit_ns: self.last_commit_ns,
                full: self.disk_full,
            },
        }
    }

    /// What somebody must look at.
    fn alarms(&self) -> Vec<String> {
        let mut alarms = Vec::new();
        if self.link.superseded {
            alarms.push("a newer controller works on this store: nothing is started".to_owned());
        }
        if self.nodes.suspended {
            alarms.push(
                "more than a fifth of the nodes are away together: rescheduling is suspended"
                    .to_owned(),
            );
        }
        if self.disk_full {
            alarms.push("the disk is full: submissions are refused".to_owned());
        }
        let quarantined: usize = self.nodes.iter().map(|(_, n)| n.quarantined.len()).sum();
        if quarantined > 0 {
            alarms.push(format!(
                "{quarantined} instances on nodes are unknown to this store: it was rolled back"
            ));
        }
        alarms
    }
}

fn state_name(node: &KnownNode) -> NodeStateName {
    let draining = node.row.drain_until_unix_ms.is_some() && !node.attempts.is_empty();
    match node.state {
        _ if node.lost => NodeStateName::Lost,
        _ if !node.connected => NodeStateName::Offline,
        _ if draining => NodeStateName::Draining,
        NodeState::Maintenance => NodeStateName::Maintenance,
        _ if node.row.wish == Some(Mode::Maintenance) => NodeStateName::Maintenance,
        NodeState::Full => NodeStateName::Full,
        NodeState::Ready => NodeStateName::Ready,
        NodeState::Offline => NodeStateName::Offline,
    }
}
