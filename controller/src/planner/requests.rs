//! What users and administrators ask: about instances, nodes, the controller itself.
//!
//! A user's request never tells whether another tenant's thing exists: it is answered as if it did
//! not. Whatever changes something leaves a line in the audit trail, in the same commit, and is
//! answered when that is durable.

use super::dispatch::Topic;
use super::event::{
    Actor, Call, DrainCall, LiveFilter, Located, Refused, ReopenCall, Reply, Resolved, Token,
};
use super::instance::Phase;
use super::journal::After;
use super::state::{STATES, State, Submission};
use super::template::Template;
use crate::api::types::{ErrorCode, InstanceState, Severity};
use crate::numbers::{SUFFIX_MIN_DIGITS, ends_in};
use crate::store::{AfterStop, AmendRow, EventRow, StopIntent, Write};
use crate::{policy, spec};
use pronto_payloads::SCHEMA;
use pronto_payloads::codec::encode;
use pronto_payloads::control::Delete;
use pronto_payloads::ids::InstanceId;
use pronto_payloads::place::Explain;
use pronto_protocol::operand::Operand;
use std::sync::Arc;

impl State {
    pub(crate) fn on_request(&mut self, token: Token, actor: &Actor, call: Call) {
        let reply = match call {
            Call::Submit(call) => return self.on_submit(token, actor, *call),
            Call::Stop { id, grace_ms, then } => {
                self.request_stop(token, actor, id, StopIntent { grace_ms, then })
            }
            Call::Forget {
                id,
                tenant,
                seq,
                node,
                as_of,
            } => self.change_ended(seq, as_of).map(|()| {
                self.forget(token, actor, id, tenant, seq, node);
                None
            }),
            Call::Reopen(call) => self.reopen(token, actor, *call),
            Call::Explain {
                runtime,
                demand,
                constraints,
                tenant,
                instance,
            } => {
                let demand = spec::demand(&demand);
                let constraints = spec::constraints(&constraints);
                let explain = Explain {
                    body_schema: SCHEMA,
                    runtime: runtime.wire(),
                    demand,
                    constraints,
                };
                self.explain(token, actor, explain, tenant.as_deref(), instance)
            }
            Call::Resolve { text, tenant } => {
                self.resolve(actor, &text, tenant.as_deref()).map(Some)
            }
            Call::Locate(id) => Ok(Some(self.locate(actor, id))),
            Call::Enter { id, kind, message } => {
                let slot = self.visible(actor, id);
                let instance = slot.map(|slot| self.instance(slot));
                let tenant = instance
                    .map(|instance| &self.submission(instance.submission).row.tenant)
                    .or(actor.scope())
                    .map(Arc::clone);
                let node = instance.and_then(|instance| self.nodes.name_of(instance.node));
                self.audit_about(actor, kind, tenant, Some(id), node, message);
                self.reply_durably(token, Reply::Done);
                Ok(None)
            }
            Call::Show(id) => Ok(Some(self.show(actor, id))),
            Call::List(filter) => self.list(actor, &filter).map(Some),
            Call::Submission(request) => self.show_submission(actor, request).map(Some),
            Call::Nodes => Ok(Some(Reply::Nodes(self.node_views(actor)))),
            Call::Node(name) => self
                .nodes
                .find(&name)
                .and_then(|index| self.node_view(actor, index))
                .map(|node| Some(Reply::Node(Box::new(node))))
                .ok_or_else(|| Refused::not_found("node", &name)),
            Call::Drain(call) => self.request_drain(token, actor, &call),
            Call::Restore(name) => self.request_restore(token, actor, &name),
            Call::DeleteNode { node, fenced } => {
                self.request_delete_node(token, actor, &node, fenced)
            }
            Call::Status => Ok(Some(Reply::Status(Box::new(self.status(actor))))),
            Call::ResumeRescheduling => Self::admin_only(actor).map(|()| {
                self.audit(actor, "rescheduling_resumed_by_hand", None, String::new());
                self.resume_by_hand();
                self.reply_durably(token, Reply::Done);
                None
            }),
            call => self.on_tenant_request(token, actor, call),
        };
        match reply {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(token, Ok(reply)),
            Err(refused) => self.reply(token, Err(refused)),
        }
    }

    /// A line of the audit trail: who did what from where.
    pub(crate) fn audit(
        &mut self,
        actor: &Actor,
        kind: &'static str,
        tenant: Option<Arc<str>>,
        message: String,
    ) {
        self.audit_about(actor, kind, tenant, None, None, message);
    }

    pub(crate) fn audit_about(
        &mut self,
        actor: &Actor,
        kind: &'static str,
        tenant: Option<Arc<str>>,
        instance: Option<InstanceId>,
        node: Option<Arc<str>>,
        message: String,
    ) {
        self.record_row(EventRow {
            number: 0,
            unix_ms: self.now.unix_ms,
            kind,
            severity: Severity::Info,
            actor: actor.title(),
            source: actor.source.clone(),
            tenant,
            instance,
            node,
            message,
        });
    }

    /// The living instance, if the actor may see it.
    pub(crate) fn visible(&self, actor: &Actor, id: InstanceId) -> Option<u32> {
        let slot = self.living(id)?;
        let tenant = &self.submission(self.instance(slot).submission).row.tenant;
        actor
            .scope()
            .is_none_or(|own| own == tenant)
            .then_some(slot)
    }

    fn resolve(&self, actor: &Actor, text: &str, tenant: Option<&str>) -> Result<Reply, Refused> {
        let tenant = match (actor.scope(), tenant) {
            (None, None) => None,
            (_, tenant) => Some(self.tenant_of(actor, tenant)?),
        };
        let newest = self.meta.next_seq.saturating_sub(1);
        let mut resolved = Resolved::default();
        if let Some(candidates) = self.ids.candidates(text, 1, newest) {
            for seq in candidates {
                let Some(slot) = self.slot(seq) else {
                    resolved.past.push(seq);
                    continue;
                };
                let entry = self.submission(self.instance(slot).submission);
                let id = self.id(slot);
                let own = tenant.is_none_or(|tenant| tenant == entry.tenant);
                if own && entry.durable && ends_in(id, text) {
                    resolved.living.push(id);
                }
            }
            return Ok(Reply::Resolved(resolved));
        }
        let digits_only = crate::numbers_like(text);
        if digits_only && text.len() < SUFFIX_MIN_DIGITS {
            return Err(Refused::new(
                ErrorCode::InvalidRequest,
                format!("'{text}' is too short for an id: at least {SUFFIX_MIN_DIGITS} hex digits"),
            ));
        }
        let tenants: Vec<u32> = match tenant {
            Some(tenant) => vec![tenant],
            None => (0..u32::try_from(self.tenants.len()).unwrap_or(u32::MAX)).collect(),
        };
        for tenant in tenants {
            if let Some(&seq) = self.names.get(&(tenant, text.to_owned()))
                && let Some(slot) = self.slot(seq)
                && self.submission(self.instance(slot).submission).durable
            {
                resolved.living.push(self.id(slot));
            }
        }
        Ok(Reply::Resolved(resolved))
    }

    fn locate(&self, actor: &Actor, id: InstanceId) -> Reply {
        let Some(slot) = self.visible(actor, id) else {
            return Reply::NotLiving;
        };
        let instance = self.instance(slot);
        Reply::Located(Located {
            seq: instance.seq,
            state: instance.state,
            node: self.nodes.name_of(instance.node),
            attempt: instance.attempt,
            previous: instance
                .more
                .as_ref()
                .and_then(|more| more.previous.clone()),
        })
    }

    fn show(&self, actor: &Actor, id: InstanceId) -> Reply {
        let Some(slot) = self.visible(actor, id) else {
            return Reply::NotLiving;
        };
        Reply::Shown {
            instance: Box::new(self.instance_view(slot)),
            spec: Arc::clone(&self.template(slot).spec),
            timeline: self.timeline(slot),
        }
    }

    fn list(&self, actor: &Actor, filter: &LiveFilter) -> Result<Reply, Refused> {
        let tenant = match (actor.scope(), filter.tenant.as_deref()) {
            (None, None) => None,
            (_, tenant) => Some(self.tenant_of(actor, tenant)?),
        };
        let before = filter.before.unwrap_or(u64::MAX);
        let mut found = Vec::new();
        for (&first, &index) in self.by_first.range(..before).rev() {
            let entry = self.submission(index);
            if entry.living == 0
                || !entry.durable
                || !self.submission_matches(entry, tenant, filter)
            {
                continue;
            }
            let end = (first + u64::from(entry.row.count)).min(before);
            for seq in (first..end).rev() {
                let Some(slot) = self.slot(seq) else { continue };
                let instance = self.instance(slot);
                let wanted = filter.states.is_empty() || filter.states.contains(&instance.state);
                let there = filter
                    .node
                    .as_deref()
                    .is_none_or(|node| self.nodes.name_of(instance.node).as_deref() == Some(node));
                let named = filter
                    .name
                    .as_deref()
                    .is_none_or(|name| entry.row.instance_name(seq).as_deref() == Some(name));
                if wanted && there && named {
                    found.push((seq, self.instance_view(slot)));
                    if found.len() >= filter.limit {
                        return Ok(Reply::Listed(found));
                    }
                }
            }
        }
        Ok(Reply::Listed(found))
    }

    fn submission_matches(
        &self,
        entry: &Submission,
        tenant: Option<u32>,
        filter: &LiveFilter,
    ) -> bool {
        tenant.is_none_or(|tenant| tenant == entry.tenant)
            && filter
                .submission
                .is_none_or(|request| request == entry.row.request)
            && filter
                .workload
                .as_deref()
                .is_none_or(|workload| entry.template.workload.as_deref() == Some(workload))
            && filter
                .labels
                .iter()
                .all(|(key, value)| entry.template.spec.labels.get(key) == Some(value))
    }

    fn show_submission(&self, actor: &Actor, request: uuid::Uuid) -> Result<Reply, Refused> {
        let tenants = match actor.scope() {
            Some(own) => self.tenant_index.get(own).copied().into_iter().collect(),
            None => (0..u32::try_from(self.tenants.len()).unwrap_or(u32::MAX)).collect::<Vec<_>>(),
        };
        tenants
            .into_iter()
            .find_map(|tenant| self.by_request.get(&(tenant, request)))
            .map(|&index| self.submission(index))
            .filter(|entry| entry.durable)
            .map_or(Ok(Reply::NotLiving), |entry| {
                Ok(Reply::Submission(super::views::submission_view(
                    &entry.row,
                    &entry.states,
                    entry.retries,
                )))
            })
    }

    fn request_stop(
        &mut self,
        token: Token,
        actor: &Actor,
        id: InstanceId,
        intent: StopIntent,
    ) -> Result<Option<Reply>, Refused> {
        let Some(slot) = self.visible(actor, id) else {
            let as_of = self.ended_changes.count();
            self.reply_durably(token, Reply::Ended { as_of });
            return Ok(None);
        };
        let (kind, verb) = match intent.then {
            AfterStop::Delete => ("instance_deleted", "deleted"),
            AfterStop::Restart => ("instance_restarted", "restarted"),
            AfterStop::Keep | AfterStop::Move => ("instance_stopped", "stopped"),
        };
        let phase = self.instance(slot).phase;
        let waits = matches!(phase, Phase::Committing | Phase::Queued | Phase::Waiting);
        if intent.then == AfterStop::Restart && (waits || phase == Phase::Ending) {
            return Err(Refused::new(
                ErrorCode::Conflict,
                if waits {
                    "it is pending: there is nothing to restart"
                } else {
                    "it is ending just now"
                },
            ));
        }
        let known = self.instance(slot).more.as_ref().and_then(|more| more.stop);
        if intent.then == AfterStop::Restart
            && known.is_some_and(|stop| stop.then == AfterStop::Delete)
        {
            return Err(Refused::new(ErrorCode::Conflict, "it is being deleted"));
        }
        let tenant = Arc::clone(&self.submission(self.instance(slot).submission).row.tenant);
        let node = self.nodes.name_of(self.instance(slot).node);
        self.audit_about(
            actor,
            kind,
            Some(tenant),
            Some(id),
            node,
            format!("{verb} by request"),
        );
        if phase == Phase::Ending {
            if intent.then == AfterStop::Delete {
                // Its end is under way already; the tombstone follows it.
                let seq = self.instance(slot).seq;
                self.instance_mut(slot).more().stop = Some(intent);
                self.journal.write(Write::Forget(seq));
            }
        } else {
            self.intend_stop(slot, intent);
            if waits {
                self.finish_stopped(slot);
            }
        }
        let view = self.instance_view(slot);
        self.reply_durably(token, Reply::Instance(Box::new(view)));
        Ok(None)
    }

    fn forget(
        &mut self,
        token: Token,
        actor: &Actor,
        id: InstanceId,
        tenant: Arc<str>,
        seq: u64,
        node: Option<Arc<str>>,
    ) {
        self.audit_about(
            actor,
            "instance_deleted",
            Some(tenant),
            Some(id),
            node.clone(),
            "deleted by request".to_owned(),
        );
        self.journal.write(Write::Forget(seq));
        let connected = node
            .as_deref()
            .and_then(|node| self.nodes.find(node))
            .is_some_and(|index| self.nodes.is_connected(index));
        if let (Some(node), true) = (node, connected && self.link.up) {
            let delete = Delete {
                owner: self.meta.owner,
                instance: id,
            };
            self.send_to_node(Operand::Delete, Topic::Delete(seq), &node, &encode(&delete));
        }
        self.reply_durably(token, Reply::Done);
    }

    fn reopen(
        &mut self,
        token: Token,
        actor: &Actor,
        call: ReopenCall,
    ) -> Result<Option<Reply>, Refused> {
        let tenant = self.tenant_of(actor, Some(&call.submission.tenant))?;
        let template = self
            .templates
            .get(&call.spec.id)
            .cloned()
            .unwrap_or_else(|| Arc::new(Template::new(&call.spec)));
        let entry = &self.tenants[tenant as usize];
        policy::admit(&entry.name, &entry.policy, &entry.used, &template.ask(1))
            .map_err(|rejection| super::submit::rejected(&rejection))?;
        if let Some(name) = call.submission.instance_name(call.seq)
            && self.names.contains_key(&(tenant, name.clone()))
        {
            return Err(Refused::new(
                ErrorCode::Conflict,
                format!("another instance named {name} lives already"),
            ));
        }
        self.change_ended(call.seq, call.as_of)?;
        if !self.templates.contains_key(&template.id) {
            self.put_template(Arc::clone(&template));
        }
        let first_seq = call.submission.first_seq;
        let index = self.by_first.get(&first_seq).copied().unwrap_or_else(|| {
            let mut states = [0; STATES];
            for (state, count) in &call.ended {
                states[*state as usize] = *count;
            }
            let age_ms = self.now.unix_ms.saturating_sub(call.submission.unix_ms);
            self.put_submission(Submission {
                tenant,
                template: Arc::clone(&template),
                submitted_ns: self.now.mono_ns.saturating_sub(super::state::ns(age_ms)),
                committed_ns: 0,
                commit_took_ns: 0,
                durable: true,
                unfinished: 0,
                living: 0,
                states,
                retries: 0,
                row: call.submission.clone(),
            })
        });
        let entry = self.submission_mut(index);
        entry.unfinished += 1;
        entry.living += 1;
        let ended = &mut entry.states[call.end.state as usize];
        *ended = ended.saturating_sub(1);
        let slot = self.put_instance(index, call.seq, Phase::Committing);
        let prefer = call.end.node.clone();
        let highest = call.end.highest_attempt.max(call.end.attempt);
        let attempt = self.meta.next_attempt(call.seq, highest);
        let instance = self.instance_mut(slot);
        instance.attempt = attempt;
        instance.restarts = call.end.restarts.saturating_add(1);
        instance.reschedules = call.end.reschedules;
        instance.amended = true;
        let never_placed = matches!(
            call.end.state,
            InstanceState::Expired | InstanceState::Cancelled
        );
        instance.was_placed = !never_placed;
        let more = instance.more();
        more.prefer = prefer;
        more.settled_attempt = if never_placed { 0 } else { call.end.attempt };
        let seq = instance.seq;
        self.wait_anew(slot);
        let amend: AmendRow = self.amend_row(slot);
        let name = Some(Arc::clone(&call.submission.tenant));
        self.audit_about(
            actor,
            "instance_restarted",
            name,
            Some(call.id),
            call.end.node.clone(),
            "restarted after its end".to_owned(),
        );
        self.journal.write(Write::Reopen { amend, first_seq });
        self.journal.then(After::Raised {
            seq,
            attempt,
            not_before_ns: self.now.mono_ns,
            ack: None,
        });
        let view = self.instance_view(slot);
        self.reply_durably(token, Reply::Instance(Box::new(view)));
        Ok(None)
    }

    fn admin_only(actor: &Actor) -> Result<(), Refused> {
        if actor.scope().is_none() {
            return Ok(());
        }
        Err(Refused::new(
            ErrorCode::Forbidden,
            "only an administrator may do this",
        ))
    }

    fn known_node(&self, actor: &Actor, name: &str) -> Result<u32, Refused> {
        Self::admin_only(actor)?;
        self.nodes
            .find(name)
            .ok_or_else(|| Refused::not_found("node", name))
    }

    fn request_drain(
        &mut self,
        token: Token,
        actor: &Actor,
        call: &DrainCall,
    ) -> Result<Option<Reply>, Refused> {
        let index = self.known_node(actor, &call.node)?;
        let name = self.nodes.name_of(index);
        let message = format!("drained within {} ms", call.deadline_ms);
        self.audit_about(actor, "node_drained", None, None, name, message);
        self.drain(index, call.deadline_ms);
        self.reply_node(token, actor, index);
        Ok(None)
    }

    fn request_restore(
        &mut self,
        token: Token,
        actor: &Actor,
        name: &str,
    ) -> Result<Option<Reply>, Refused> {
        let index = self.known_node(actor, name)?;
        let name = self.nodes.name_of(index);
        self.audit_about(actor, "node_restored", None, None, name, String::new());
        self.restore(index);
        self.reply_node(token, actor, index);
        Ok(None)
    }

    fn reply_node(&mut self, token: Token, actor: &Actor, index: u32) {
        if let Some(view) = self.node_view(actor, index) {
            self.reply_durably(token, Reply::Node(Box::new(view)));
        }
    }

    fn request_delete_node(
        &mut self,
        token: Token,
        actor: &Actor,
        name: &str,
        fenced: bool,
    ) -> Result<Option<Reply>, Refused> {
        let index = self.known_node(actor, name)?;
        let Some(node) = self.nodes.node(index) else {
            return Err(Refused::not_found("node", name));
        };
        if node.connected {
            return Err(
                Refused::new(ErrorCode::Conflict, format!("node {name} is connected"))
                    .hint("drain it and stop its launcher first"),
            );
        }
        let empty = node.attempts.is_empty() && self.link.uncertain.is_empty();
        if !fenced && !empty {
            return Err(Refused::new(
                ErrorCode::Conflict,
                format!("node {name} may still run instances"),
            )
            .hint("if its power is off or its disk is wiped: `pronto delete node NAME --fenced`"));
        }
        let shown = self.nodes.name_of(index);
        let message = if fenced {
            "deleted as fenced: nothing runs there any more"
        } else {
            "deleted"
        };
        self.audit_about(actor, "node_deleted", None, None, shown, message.to_owned());
        self.delete_node(index);
        self.reply_durably(token, Reply::Done);
        Ok(None)
    }

    /// Counts by state of living instances.
    pub(crate) fn living_states(&self, actor: &Actor) -> [u64; STATES] {
        let mut sum = [0; STATES];
        for tenant in &self.tenants {
            if actor.scope().is_none_or(|own| *own == tenant.name) {
                for (sum, count) in sum.iter_mut().zip(&tenant.states) {
                    *sum += count;
                }
            }
        }
        sum
    }

    /// Living instances by state, for metrics.
    #[must_use]
    pub fn instances_by_state(&self) -> Vec<(InstanceState, u64)> {
        InstanceState::ALL
            .into_iter()
            .filter(|state| !state.is_end())
            .map(|state| {
                let count = self.tenants.iter().map(|t| t.states[state as usize]).sum();
                (state, count)
            })
            .collect()
    }
}
