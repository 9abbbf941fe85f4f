//! Living instances and their submissions: how they come into memory, and how they leave it.
//!
//! A living instance is charged, counted by state and found by its number from the moment that it
//! comes in to the moment that it leaves; a submission stays a while longer, for its request id.

use super::instance::{Instance, NOWHERE, Phase};
use super::state::{MAX_REMEMBERED, STATES, State, Submission, ns};
use crate::policy::{charge, release};
use crate::store::{AmendRow, StoredSubmission};
use rustc_hash::FxHashMap;
use std::sync::Arc;

impl State {
    pub(crate) fn restore_submission(
        &mut self,
        stored: StoredSubmission,
        amends: &FxHashMap<u64, AmendRow>,
    ) {
        let StoredSubmission { row, ended } = stored;
        let Some(&tenant) = self.tenant_index.get(&row.tenant) else {
            return;
        };
        let Some(template) = self.templates.get(&row.spec).cloned() else {
            return;
        };
        let age_ms = self.now.unix_ms.saturating_sub(row.unix_ms);
        let age_ns = i64::try_from(age_ms)
            .unwrap_or(i64::MAX / 2)
            .saturating_mul(1_000_000);
        let count = row.count;
        let first = row.first_seq;
        let living = count - u32::try_from(ended.len()).unwrap_or(count);
        let mut states = [0; STATES];
        for (_, state) in &ended {
            states[*state as usize] += 1;
        }
        let submission = self.put_submission(Submission {
            tenant,
            template,
            submitted_ns: self.now.mono_ns.saturating_sub(age_ns),
            committed_ns: 0,
            commit_took_ns: 0,
            durable: true,
            unfinished: living,
            living,
            states,
            retries: 0,
            row,
        });
        if living == 0 {
            self.remember(submission);
            return;
        }
        let mut ended = ended.into_iter().map(|(seq, _)| seq).peekable();
        for seq in first..first + u64::from(count) {
            if ended.next_if_eq(&seq).is_none() {
                self.restore_instance(submission, seq, amends.get(&seq));
            }
        }
    }

    fn restore_instance(&mut self, submission: u32, seq: u64, amend: Option<&AmendRow>) {
        let slot = self.put_instance(submission, seq, Phase::Uncertain);
        let now_ns = self.now.mono_ns;
        let breaks = self.link.breaks;
        let runs_are_counted = self.template(slot).runs_are_counted();
        let mut waits_anew = false;
        let instance = self.instance_mut(slot);
        let more = instance.more();
        more.uncertain_since_break = breaks;
        more.uncertain_since_ns = now_ns;
        if let Some(amend) = amend {
            more.stop = amend.stop;
            more.stop_durable = true;
            more.highest_attempt = amend.highest_attempt;
            more.settled_attempt = amend.settled_attempt;
            instance.attempt = amend.attempt;
            instance.restarts = amend.restarts;
            instance.reschedules = amend.reschedules;
            instance.amended = true;
            let retried = amend.restarts > 0 || amend.reschedules > 0;
            instance.was_placed = amend.settled_attempt > 0 || (retried && !runs_are_counted);
            waits_anew = retried && !instance.was_placed;
            if amend.stop.is_some() {
                self.stopping.insert(seq);
            }
        }
        self.link.uncertain.insert(seq);
        if waits_anew {
            self.wait_anew(slot);
        } else if let Some(ms) = self.template(slot).spec.pending_timeout_ms {
            let submitted_ns = self.submission(submission).submitted_ns;
            self.arm(submitted_ns.saturating_add(ns(ms)), seq);
        }
    }

    pub(crate) fn put_submission(&mut self, submission: Submission) -> u32 {
        let index = if let Some(index) = self.free_submissions.pop() {
            index
        } else {
            self.submissions.push(None);
            u32::try_from(self.submissions.len() - 1).expect("bounded by max_living")
        };
        let key = (submission.tenant, submission.row.request);
        self.by_request.insert(key, index);
        self.by_first.insert(submission.row.first_seq, index);
        self.submissions[index as usize] = Some(submission);
        index
    }

    /// A submission without living instances is kept for its request id, for a while.
    pub(crate) fn remember(&mut self, index: u32) {
        let first = self.submission(index).row.first_seq;
        let until = self
            .now
            .mono_ns
            .saturating_add(ns(self.settings.request_window_ms));
        self.remembered.push_back((until, first));
        self.forget_remembered();
    }

    /// What is remembered for its request id alone goes in time: retention may remove its spec.
    pub(crate) fn forget_remembered(&mut self) {
        while let Some(&(until, first)) = self.remembered.front() {
            if until > self.now.mono_ns && self.remembered.len() <= MAX_REMEMBERED {
                break;
            }
            self.remembered.pop_front();
            if let Some(&index) = self.by_first.get(&first)
                && self.submission(index).living == 0
            {
                self.drop_submission(index);
            }
        }
    }

    pub(crate) fn drop_submission(&mut self, index: u32) {
        let Some(submission) = self.submissions[index as usize].take() else {
            return;
        };
        self.free_submissions.push(index);
        self.by_first.remove(&submission.row.first_seq);
        self.by_request
            .remove(&(submission.tenant, submission.row.request));
        let template = submission.template;
        // One reference here and one in the table: nobody else uses it.
        if Arc::strong_count(&template) == 2 {
            self.templates.remove(&template.id);
            let tenant = &mut self.tenants[submission.tenant as usize];
            tenant.spec_bytes = tenant.spec_bytes.saturating_sub(template.bytes());
            let key = (
                Arc::clone(&template.tenant),
                template.workload.clone(),
                Arc::clone(&template.spec),
            );
            self.template_index.remove(&key);
        }
    }

    /// A new living instance: charged, counted, indexed.
    pub(crate) fn put_instance(&mut self, submission: u32, seq: u64, phase: Phase) -> u32 {
        let entry = self.submission(submission);
        let (tenant, template) = (entry.tenant, Arc::clone(&entry.template));
        let name = entry.row.instance_name(seq);
        let class = self.queue.class(&template.class, 1);
        let state = phase.state();
        let instance = Instance {
            seq,
            submission,
            class,
            node: NOWHERE,
            attempt: 1,
            restarts: 0,
            reschedules: 0,
            phase,
            state,
            was_placed: false,
            amended: false,
            session_epoch: 0,
            start_seq: 0,
            version: 0,
            waiting_since_ns: self.now.mono_ns,
            more: None,
        };
        let slot = if let Some(slot) = self.free_instances.pop() {
            self.instances[slot as usize] = Some(instance);
            slot
        } else {
            self.instances.push(Some(instance));
            u32::try_from(self.instances.len() - 1).expect("bounded by max_living")
        };
        self.by_seq.insert(seq, slot);
        let tenant_entry = &mut self.tenants[tenant as usize];
        charge(&mut tenant_entry.used, &template.each, 1);
        tenant_entry.states[state as usize] += 1;
        self.submission_mut(submission).states[state as usize] += 1;
        if let Some(name) = name {
            self.names.insert((tenant, name), seq);
        }
        slot
    }

    /// Takes an instance out of memory and gives its quota back. Its final state stays counted in
    /// its submission.
    pub(crate) fn remove_instance(&mut self, slot: u32) {
        let Some(instance) = self.instances[slot as usize].take() else {
            return;
        };
        self.free_instances.push(slot);
        self.by_seq.remove(&instance.seq);
        self.queue.leave_class(instance.class);
        self.nodes.take_off(instance.node, slot);
        self.stopping.remove(&instance.seq);
        self.link.uncertain.remove(&instance.seq);
        let entry = self.submission(instance.submission);
        let tenant = entry.tenant;
        let each = entry.template.each;
        if let Some(name) = entry.row.instance_name(instance.seq) {
            self.names.remove(&(tenant, name));
        }
        let tenant_entry = &mut self.tenants[tenant as usize];
        release(&mut tenant_entry.used, &each);
        // An end state is not one of a living instance.
        if !instance.state.is_end() {
            tenant_entry.states[instance.state as usize] -= 1;
        }
        let entry = self.submission_mut(instance.submission);
        entry.living -= 1;
        if entry.living == 0 {
            self.remember(instance.submission);
        }
    }
}
