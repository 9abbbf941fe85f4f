//! Attempts that were given up with their node, and come back before they have a successor.
//!
//! When a node stays away, its instances wait for room elsewhere, each with a new attempt number. In a
//! full cluster they may wait for long, and the node may be back first, with work that ran on all the
//! while. Such an attempt is taken back, with all that it has done: it is the current one again, and
//! the numbers that were committed meanwhile are never given out again.
//!
//! ```text
//! successor is      report of the attempt that was given up
//! not sent          taken back
//! sent, unanswered  kept: taken back if the successor is refused, stale if it is placed
//! placed, uncertain stale: it is ended
//! ```
//!
//! No two run at once: what is not sent, and what was refused, runs nowhere.

use super::instance::Phase;
use super::state::State;
use crate::api::types::Severity;
use crate::store::Write;
use pronto_payloads::instance::{EndCause, InstanceReport, Phase as NodePhase};
use std::sync::Arc;

/// An attempt whose node was lost, while nothing came of its successors yet.
#[derive(Debug)]
pub(crate) struct GivenUp {
    attempt: u32,
    node: Arc<str>,
    /// What the node said of it once it was back, while a successor's answer is due.
    report: Option<InstanceReport>,
}

/// Whether an attempt in this state is worth more than a new one: it runs, or came to an end of its own.
fn is_worth_more(report: &InstanceReport) -> bool {
    match &report.end {
        None => report.phase != NodePhase::Ended,
        Some(end) => matches!(
            end.cause,
            EndCause::Exited { .. }
                | EndCause::Signaled { .. }
                | EndCause::OutOfMemory { .. }
                | EndCause::TimedOut
                | EndCause::CannotExecute { .. }
        ),
    }
}

impl State {
    /// An instance's current attempt is about to be given up with its node.
    pub(crate) fn give_up_with_node(&mut self, slot: u32) {
        let Some(node) = self.nodes.name_of(self.instance(slot).node) else {
            return;
        };
        let instance = self.instance_mut(slot);
        let given_up = GivenUp {
            attempt: instance.attempt,
            node,
            report: None,
        };
        instance.more().given_up = Some(Box::new(given_up));
    }

    /// A report of an attempt that is not the current one. False: it has a successor, and is stale.
    pub(crate) fn consider_return(
        &mut self,
        slot: u32,
        node: u32,
        report: &InstanceReport,
    ) -> bool {
        let name = self.nodes.name_of(node);
        let instance = self.instance_mut(slot);
        let phase = instance.phase;
        let more = instance.more.as_mut();
        let Some(given_up) = more.and_then(|more| more.given_up.as_mut()) else {
            return false;
        };
        if given_up.attempt != report.id.attempt.0 || name.as_ref() != Some(&given_up.node) {
            return false;
        }
        match phase {
            Phase::Committing | Phase::Queued | Phase::Waiting if is_worth_more(report) => {
                self.take_back(slot, node, report.clone());
                true
            }
            Phase::Placing => {
                given_up.report = Some(report.clone());
                true
            }
            _ => false,
        }
    }

    /// The successor of an attempt that was given up was refused. True: that attempt is back.
    pub(crate) fn take_back_instead(&mut self, slot: u32) -> bool {
        let given_up = self.instance_mut(slot).more().given_up.as_mut();
        let Some((name, report)) = given_up
            .and_then(|given_up| Some((Arc::clone(&given_up.node), given_up.report.take()?)))
        else {
            return false;
        };
        let Some(node) = self
            .nodes
            .find(&name)
            .filter(|&node| self.nodes.is_connected(node))
        else {
            return false;
        };
        if is_worth_more(&report) {
            self.take_back(slot, node, report);
            true
        } else {
            self.on_stale(node, &report);
            false
        }
    }

    /// What was given up can't be taken back any more: something may have come of a successor.
    pub(crate) fn let_go(&mut self, slot: u32) {
        let Some(more) = self.instance_mut(slot).more.as_mut() else {
            return;
        };
        if let Some(given_up) = more.given_up.take()
            && let Some(report) = given_up.report
            && let Some(node) = self.nodes.find(&given_up.node)
        {
            self.on_stale(node, &report);
        }
    }

    fn take_back(&mut self, slot: u32, node: u32, report: InstanceReport) {
        let instance = self.instance_mut(slot);
        let (seq, class, unsent) = (instance.seq, instance.class, instance.attempt);
        let highest_attempt = instance.highest_attempt();
        instance.leave_node();
        instance.attempt = report.id.attempt.0;
        instance.reschedules = instance.reschedules.saturating_sub(1);
        let more = instance.more();
        more.highest_attempt = highest_attempt;
        more.given_up = None;
        more.trouble = None;
        self.queue.left(class, seq);
        let row = self.amend_row(slot);
        self.journal.write(Write::Amend(row));
        let epoch = self.nodes.session_epoch(node);
        self.settle_on(slot, node, epoch, 0);
        let message = format!(
            "its node is back before attempt {unsent} was placed: attempt {} is taken back",
            report.id.attempt
        );
        self.record_instance(slot, "taken_back", Severity::Info, message);
        self.set_phase(slot, Phase::Starting);
        self.on_report(node, report);
    }
}
