//! Admission: from a request to instances in the queue, all of a submission or none.
//!
//! Everything that can be refused is refused before anything changes. The submission is charged
//! and named at once, so that two requests in one batch can't both take the last of a quota, and
//! is answered once it is durable; if the disk refuses it, all of it is taken back.

use super::event::{Actor, Effect, Refused, Reply, SubmitCall, Token};
use super::instance::Phase;
use super::journal::After;
use super::state::{DEFAULT_TENANT, STATES, State, Submission, ns};
use super::template::Template;
use crate::api::types::{ErrorCode, MAX_COUNT, Severity, Spec, SubmitResponse};
use crate::policy::{self, Rejection, TooFast};
use crate::spec;
use crate::store::{EventRow, SpecRow, SubmissionRow, Write};
use pronto_payloads::codec::Invalid;
use std::sync::Arc;
use uuid::Uuid;

impl State {
    /// The tenant that a request is about: a user's own, whatever it says; an administrator's
    /// choice. Another tenant's existence is not told.
    pub(crate) fn tenant_of(&self, actor: &Actor, named: Option<&str>) -> Result<u32, Refused> {
        let name = match (actor.scope(), named) {
            (None, Some(named)) => named,
            (None, None) => DEFAULT_TENANT,
            (Some(own), None) => own,
            (Some(own), Some(named)) if **own == *named => own,
            (Some(_), Some(named)) => return Err(Refused::not_found("tenant", named)),
        };
        let found = self.tenant_index.get(name).copied();
        found
            .filter(|&index| !self.tenants[index as usize].deleted)
            .ok_or_else(|| {
                Refused::not_found("tenant", name)
                    .hint("an administrator makes one with `pronto create tenant NAME`")
            })
    }

    pub(crate) fn on_submit(&mut self, token: Token, actor: &Actor, call: SubmitCall) {
        if let Err(refused) = self.submit(token, actor, call) {
            self.reply(token, Err(refused));
        }
    }

    fn submit(&mut self, token: Token, actor: &Actor, call: SubmitCall) -> Result<(), Refused> {
        let tenant = self.tenant_of(actor, call.tenant.as_deref())?;
        if let Some(&known) = self.by_request.get(&(tenant, call.request)) {
            return self.repeat(token, known, call.digest);
        }
        let (spec, workload) = self.resolve_spec(tenant, &call)?;
        if call.count == 0 || call.count > MAX_COUNT {
            return Err(invalid(&Invalid::new("count", format!("1 to {MAX_COUNT}"))));
        }
        let name = call.name.filter(|name| !name.is_empty());
        if let Some(name) = &name {
            spec::check_instance_name(name, call.count).map_err(|error| invalid(&error))?;
        }
        let template = self.template_for(tenant, workload, spec)?;
        let row = SubmissionRow {
            first_seq: self.meta.next_seq,
            count: call.count,
            request: call.request,
            digest: call.digest,
            tenant: Arc::clone(&self.tenants[tenant as usize].name),
            spec: template.id,
            name: name.map(Into::into),
            unix_ms: self.now.unix_ms,
            nonce: call.nonce,
            admitted_ns: since(call.received_ns, self.now.mono_ns),
        };
        self.check_names_free(tenant, &row)?;
        self.admit(tenant, &template, call.count)?;
        self.meta.next_seq += u64::from(call.count);
        self.put_new_template(&template);
        self.record_submission(actor, &row, &template);
        self.journal.write(Write::Submission(row.clone()));
        let index = self.put_submission(Submission {
            tenant,
            template,
            submitted_ns: call.received_ns,
            committed_ns: 0,
            commit_took_ns: 0,
            durable: false,
            unfinished: call.count,
            living: call.count,
            states: [0; STATES],
            retries: 0,
            row,
        });
        self.admitting.insert(index, vec![(token, false)]);
        let first = self.submission(index).row.first_seq;
        for seq in first..first + u64::from(call.count) {
            self.put_instance(index, seq, Phase::Committing);
        }
        self.journal.then(After::Admitted(index));
        Ok(())
    }

    fn repeat(&mut self, token: Token, known: u32, digest: u64) -> Result<(), Refused> {
        let entry = self.submission_mut(known);
        if entry.row.digest != digest {
            return Err(Refused::new(
                ErrorCode::Conflict,
                format!(
                    "request id {} was used for another submission",
                    entry.row.request
                ),
            )
            .hint("choose a new request id for each submission"));
        }
        if entry.durable {
            let reply = self.submitted(known, true);
            self.reply(token, Ok(reply));
        } else {
            self.admitting.entry(known).or_default().push((token, true));
        }
        Ok(())
    }

    fn resolve_spec(
        &self,
        tenant: u32,
        call: &SubmitCall,
    ) -> Result<(Spec, Option<Arc<str>>), Refused> {
        match (&call.spec, &call.workload) {
            (Some(spec), None) if call.overrides == Default::default() => Ok((spec.clone(), None)),
            (Some(_), None) => Err(invalid(&Invalid::new(
                "overrides",
                "only together with a workload",
            ))),
            (None, Some(workload)) => {
                let tenant = &self.tenants[tenant as usize].name;
                let key = (Arc::clone(tenant), Arc::from(workload.as_str()));
                let row = self
                    .workloads
                    .get(&key)
                    .ok_or_else(|| Refused::not_found("workload", workload))?;
                Ok((
                    spec::overridden(&row.spec, &call.overrides),
                    Some(Arc::clone(&row.name)),
                ))
            }
            (None, None) | (Some(_), Some(_)) => Err(invalid(&Invalid::new(
                "submission",
                "either a spec or a workload",
            ))),
        }
    }

    /// The template of a spec, shared with earlier submissions of the same.
    fn template_for(
        &self,
        index: u32,
        workload: Option<Arc<str>>,
        spec: Spec,
    ) -> Result<Arc<Template>, Refused> {
        let tenant = Arc::clone(&self.tenants[index as usize].name);
        let key = (tenant, workload, Arc::new(spec));
        if let Some(id) = self.template_index.get(&key) {
            return Ok(Arc::clone(&self.templates[id]));
        }
        spec::check(&key.2).map_err(|error| invalid(&error))?;
        let (tenant, workload, spec) = key;
        let template = Template::new(&SpecRow {
            id: self.next_template,
            tenant,
            workload,
            spec,
        });
        let held = self.tenants[index as usize].spec_bytes;
        if held + template.bytes() > self.settings.max_spec_bytes {
            return Err(Refused::new(
                ErrorCode::Busy,
                format!(
                    "the distinct specs of tenant {}'s living instances have {} MiB, their limit",
                    template.tenant,
                    self.settings.max_spec_bytes >> 20
                ),
            )
            .hint("wait for some of them to end")
            .retry_after(1000));
        }
        Ok(Arc::new(template))
    }

    fn put_new_template(&mut self, template: &Arc<Template>) {
        if !self.templates.contains_key(&template.id) {
            self.journal.write(Write::Spec(template.row()));
            self.put_template(Arc::clone(template));
        }
    }

    fn admit(&mut self, tenant: u32, template: &Template, count: u32) -> Result<(), Refused> {
        if self.by_seq.len() + count as usize > self.settings.max_living {
            return Err(Refused::new(
                ErrorCode::Busy,
                format!(
                    "the controller holds its limit of {} living instances",
                    self.settings.max_living
                ),
            )
            .retry_after(1000));
        }
        let now_ns = self.now.mono_ns;
        let entry = &mut self.tenants[tenant as usize];
        policy::admit(
            &entry.name,
            &entry.policy,
            &entry.used,
            &template.ask(count),
        )
        .map_err(|rejection| rejected(&rejection))?;
        entry.rate.take(count, now_ns).map_err(|why| {
            let rate = entry.submit_rate_per_s.unwrap_or_default();
            let text = format!("tenant {} may submit {rate} instances a second", entry.name);
            match why {
                TooFast::Wait { ms } => Refused::new(ErrorCode::RateLimited, text).retry_after(ms),
                TooFast::Never => Refused::new(ErrorCode::PolicyRefused, text),
            }
        })
    }

    fn check_names_free(&self, tenant: u32, row: &SubmissionRow) -> Result<(), Refused> {
        if row.name.is_none() {
            return Ok(());
        }
        for seq in row.first_seq..row.first_seq + u64::from(row.count) {
            let name = row.instance_name(seq).unwrap_or_default();
            let key = (tenant, name);
            if self.names.contains_key(&key) {
                return Err(Refused::new(
                    ErrorCode::Conflict,
                    format!("an instance named {} lives already", key.1),
                )
                .hint("choose another name, or stop that instance first"));
            }
        }
        Ok(())
    }

    fn record_submission(&mut self, actor: &Actor, row: &SubmissionRow, template: &Template) {
        let what = template.workload.as_deref().map_or_else(
            || format!("ad-hoc {}", template.spec.task.runtime().name()),
            |workload| format!("workload {workload}"),
        );
        let id = self.ids.id(row.unix_ms, row.nonce, row.first_seq);
        self.record_row(EventRow {
            number: 0,
            unix_ms: self.now.unix_ms,
            kind: "submitted",
            severity: Severity::Info,
            actor: actor.title(),
            source: actor.source.clone(),
            tenant: Some(Arc::clone(&row.tenant)),
            instance: Some(id),
            node: None,
            message: format!("{} of {what}, request {}", row.count, row.request),
        });
    }

    /// The admission is durable, or the disk refused it.
    pub(crate) fn on_admitted(&mut self, index: u32, refused: bool, took_ns: u64) {
        let now_ns = self.now.mono_ns;
        let waiters = self.admitting.remove(&index).unwrap_or_default();
        let entry = self.submission_mut(index);
        let first = entry.row.first_seq;
        let last = first + u64::from(entry.row.count);
        if refused {
            for seq in first..last {
                if let Some(slot) = self.slot(seq) {
                    self.remove_instance(slot);
                }
            }
            self.drop_submission(index);
            for (token, _) in waiters {
                let refusal = Refused::new(
                    ErrorCode::StorageFull,
                    "the controller's disk is full; nothing was submitted",
                )
                .hint("an administrator must make room in the controller's data directory");
                self.reply(token, Err(refusal));
            }
            return;
        }
        entry.durable = true;
        entry.committed_ns = since(entry.submitted_ns, now_ns);
        entry.commit_took_ns = took_ns;
        let tenant = entry.tenant;
        let template = Arc::clone(&entry.template);
        for (token, repeated) in waiters {
            let reply = self.submitted(index, repeated);
            self.reply(token, Ok(reply));
        }
        let timeout = template.spec.pending_timeout_ms.map(|ms| now_ns + ns(ms));
        for seq in first..last {
            let Some(slot) = self.slot(seq) else { continue };
            let instance = self.instance_mut(slot);
            instance.waiting_since_ns = now_ns;
            instance.phase = Phase::Queued;
            let class = instance.class;
            self.queue
                .push(template.priority(), tenant, class, seq, false);
            if let Some(at) = timeout {
                self.arm(at, seq);
            }
            self.tell_change(slot);
        }
    }

    fn submitted(&self, index: u32, repeated: bool) -> Reply {
        let entry = self.submission(index);
        let row = &entry.row;
        Reply::Submitted(SubmitResponse {
            submission: row.request,
            tenant: row.tenant.to_string(),
            instances: (row.first_seq..row.first_seq + u64::from(row.count))
                .map(|seq| self.ids.id(row.unix_ms, row.nonce, seq).uuid())
                .collect::<Vec<Uuid>>(),
            repeated,
            commit_ns: entry.commit_took_ns,
        })
    }

    /// Queues an instance again after a refusal, a back-off or a restart.
    pub(crate) fn requeue(&mut self, slot: u32) {
        let instance = self.instance(slot);
        let (class, seq) = (instance.class, instance.seq);
        let tenant = self.submission(instance.submission).tenant;
        let priority = self.template(slot).priority();
        self.set_phase(slot, Phase::Queued);
        self.queue.push(priority, tenant, class, seq, true);
    }

    /// A line for the operator's log.
    pub(crate) fn warn(&mut self, text: String) {
        self.out.push(Effect::Warn(text));
    }
}

/// Nanoseconds from one time to another, never negative.
pub(crate) fn since(from_ns: i64, to_ns: i64) -> u64 {
    to_ns.saturating_sub(from_ns).max(0).unsigned_abs()
}

pub(crate) fn invalid(error: &Invalid) -> Refused {
    Refused::new(ErrorCode::InvalidRequest, error.to_string())
}

pub(crate) fn rejected(rejection: &Rejection) -> Refused {
    match rejection {
        Rejection::Quota(refusal) => {
            let details = serde_json::to_value(refusal).unwrap_or_default();
            Refused::new(ErrorCode::QuotaExceeded, rejection.to_string())
                .details(details)
                .hint(format!(
                    "wait for instances to end, or ask an administrator: `pronto update quota {} {}=N`",
                    refusal.tenant,
                    key_of(&refusal.quota)
                ))
        }
        Rejection::Runtime { .. } | Rejection::Privileged { .. } => {
            Refused::new(ErrorCode::PolicyRefused, rejection.to_string())
                .hint("an administrator can change the tenant's policy")
        }
    }
}

/// What the command line calls a quota.
fn key_of(quota: &str) -> &str {
    match quota {
        "cpu_millis" => "cpus",
        "memory_mib" => "memory",
        "disk_mib" => "disk",
        "gpu_millis" => "gpus",
        other => other,
    }
}
