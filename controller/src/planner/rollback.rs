//! What a store that was put back from a backup does not know: instances that were admitted after the
//! backup, and attempts that were started after it.
//!
//! Nodes know. An instance that they report and the store does not is quarantined: left alone, with an
//! alarm. Of an instance that the store does know, the newest attempt that any node has is the current
//! one; which that is, is certain only once every node was asked, those too that the store never heard of
//! and that had time to come. Until then an attempt that the store had numbered before it was put back is
//! uncertain (`reconcile`), and what nodes report of it is held: an older attempt that has failed must
//! not be followed by a new one while a newer one runs elsewhere.
//!
//! Where nothing was put back there is no newer attempt than the store's: numbers are committed before
//! they are sent. A node that reports one lies, and would have work that is elsewhere be its own.

use super::instance::Phase;
use super::state::State;
use crate::api::types::Severity;
use crate::store::{EventRow, Write};
use pronto_payloads::ids::InstanceId;
use pronto_payloads::instance::InstanceReport;

/// The newest attempt that was reported so far.
#[derive(Debug)]
pub(crate) struct Held {
    node: u32,
    report: InstanceReport,
}

/// Attempts that a store which was put back without a word may have forgotten of one instance: more than
/// any instance takes between two backups, and few enough that no liar brings the numbers to their end.
const FORGOTTEN_ATTEMPTS: u32 = 1 << 16;

impl State {
    /// Whether this newer attempt than the store's may have been given out before the store was put back:
    /// it has such a number, or this process has placed nothing of the instance yet, nor found it.
    pub(crate) fn may_have_given_out(&self, slot: u32, attempt: u32) -> bool {
        let instance = self.instance(slot);
        let unknown = attempt.saturating_sub(instance.attempt) <= FORGOTTEN_ATTEMPTS;
        (instance.phase == Phase::Uncertain && unknown)
            || self.meta.numbered_before_restore(instance.seq, attempt)
    }

    /// Whether an attempt of an instance that has ended may have been given out before the store was put
    /// back.
    pub(crate) fn numbered_before_restore(&self, id: InstanceId, attempt: u32) -> bool {
        let newest = self.meta.next_seq.saturating_sub(1);
        self.meta
            .numbered_before_restore(self.ids.seq(id, newest), attempt)
    }

    /// Whether a newer attempt may be somewhere than the one that the store knows.
    pub(crate) fn is_outdated(&self, slot: u32) -> bool {
        let instance = self.instance(slot);
        instance.phase == Phase::Uncertain
            && self
                .meta
                .numbered_before_restore(instance.seq, instance.attempt)
    }

    /// Keeps what a node says until every node was asked; the newest attempt counts.
    pub(crate) fn hold(&mut self, slot: u32, node: u32, report: InstanceReport) {
        let instance = self.instance_mut(slot);
        let known = instance.attempt;
        let held = &mut instance.more().held;
        let newest = held.as_ref();
        let newest = newest.map_or(known, |held| held.report.id.attempt.0);
        let attempt = report.id.attempt.0;
        if attempt < newest {
            self.on_stale(node, &report);
            return;
        }
        let before = held.replace(Box::new(Held { node, report }));
        if let Some(before) = before.filter(|held| held.report.id.attempt.0 < attempt) {
            self.on_stale(before.node, &before.report);
        }
    }

    /// Every node was asked. False: none of them has an attempt of this instance.
    pub(crate) fn take_held(&mut self, slot: u32) -> bool {
        let Some(held) = self.instance_mut(slot).more().held.take() else {
            return false;
        };
        let Held { node, report } = *held;
        if report.id.attempt.0 > self.instance(slot).attempt {
            self.adopt_newer(slot, node, report);
        } else {
            self.on_current(slot, node, report);
        }
        // It may have gone since it was reported.
        self.consider_pull(node, false);
        true
    }

    /// A node has a newer attempt than the store: the node's is the truth.
    pub(crate) fn adopt_newer(&mut self, slot: u32, node: u32, report: InstanceReport) {
        let phase = self.instance(slot).phase;
        if phase == Phase::Ending {
            return;
        }
        if phase == Phase::Placing {
            // Its answer is still to come, and names an attempt that is older then.
            self.link.answered();
            let class = self.instance(slot).class;
            self.queue.void(class);
        }
        let message = format!(
            "a node reports attempt {} of {}, the store knows {}: the store was rolled back",
            report.id.attempt,
            report.id.instance,
            self.instance(slot).attempt
        );
        self.record("attempt_adopted", Severity::Alarm, message);
        let before = self.instance(slot).node;
        self.nodes.take_off(before, slot);
        let seq = self.instance(slot).seq;
        self.link.uncertain.remove(&seq);
        let instance = self.instance_mut(slot);
        instance.leave_node();
        instance.attempt = report.id.attempt.0;
        instance.amended = true;
        let row = self.amend_row(slot);
        self.journal.write(Write::Amend(row));
        self.set_phase(slot, Phase::Starting);
        let epoch = self.nodes.session_epoch(node);
        self.settle_on(slot, node, epoch, 0);
        self.on_current(slot, node, report);
    }

    /// A node keeps an instance of this store that the store does not know: it is left alone.
    pub(crate) fn quarantine(&mut self, node: u32, report: &InstanceReport) {
        if !self.nodes.quarantine(node, report.id.instance) {
            return;
        }
        let name = self.nodes.name_of(node);
        let message = format!(
            "node {} keeps attempt {} of an instance of this store that the store does not know: \
             it was rolled back; the instance is left alone",
            name.as_deref().unwrap_or_default(),
            report.id.attempt
        );
        self.record_row(EventRow {
            number: 0,
            unix_ms: self.now.unix_ms,
            kind: "quarantined",
            severity: Severity::Alarm,
            actor: "controller".to_owned(),
            source: String::new(),
            tenant: None,
            instance: Some(report.id.instance),
            node: name,
            message,
        });
    }
}
