//! The control session: statuses, leases, statistics, and when it must be thrown away.

use super::{Effect, LEASE_INTERVAL, LEASE_RETRY, REPEATS_A_STEP, STATUS_COALESCE, Supervisor};
use crate::moment::Moment;
use pronto_payloads::codec;
use pronto_payloads::hello::{Mode, SchedulerWelcome};
use pronto_payloads::ids::{Seq, SessionEpoch, Term};
use pronto_payloads::instance::InstanceUsage;
use pronto_payloads::limits;
use pronto_payloads::node::{Lease, NodeLoad, Stats, Status};
use pronto_protocol::{Flags, Frame, Operand};
use std::collections::VecDeque;
use std::time::Duration;

/// Statuses that wait for their lease at once; older ones are not worth an answer any more.
const ASKED: usize = 16;
/// A lease that a peer may give at most: more would make fencing meaningless.
const LEASE_LIMIT_MS: u64 = 600_000;
/// Statistics are never wanted more often than this.
const STATS_INTERVAL_MIN_MS: u64 = 50;
/// A scheduler behind which no controller has stood for so long is left for another: a standby, one
/// that hangs, one that the controllers have left. A failover takes less, so that nobody leaves a
/// standby that is about to be activated.
const ORPHAN_LIMIT: Duration = Duration::from_secs(3);
/// It doubles so often while nobody is found: without any controller there is no better scheduler.
const ORPHAN_DOUBLINGS: u32 = 4;
/// A longer gap between two steps is this process's own pause: the shell turns every second.
const OWN_PAUSE: Duration = Duration::from_secs(2);

/// Between two portions of the ends that a new session hears: all at once may be four times what its
/// queue holds, which would end it, and the next one in the same way. So they are 6 MB a second at most.
const ENDS_INTERVAL: Duration = Duration::from_millis(50);

/// What is known of the live session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) epoch: SessionEpoch,
    pub(super) applied_seq: Seq,
    /// Correlation and moment of sending of the statuses that want a lease, oldest first.
    asked: VecDeque<(u64, Moment)>,
    next_correlation: u64,
    /// When a status is due because something changed.
    status_due: Option<Moment>,
    /// When a status is due to renew the lease.
    lease_due: Moment,
    stats_due: Moment,
    stats_interval: Duration,
    /// After a pause longer than this the session is thrown away.
    gap_limit: Duration,
    /// Where the next page of usages begins, when there are more than one STATS may carry.
    usage_offset: usize,
    /// When a lease last said that a controller stands behind this scheduler, or WELCOME.
    backed_at: Moment,
}

impl Session {
    pub(super) fn next_wakeup(&self) -> Moment {
        let periodic = self.lease_due.min(self.stats_due);
        self.status_due.map_or(periodic, |due| due.min(periodic))
    }
}

impl Supervisor {
    pub(super) fn session_up(
        &mut self,
        now: Moment,
        epoch: SessionEpoch,
        term: Term,
        active: bool,
        welcome: &SchedulerWelcome,
        effects: &mut Vec<Effect>,
    ) {
        if epoch != self.session_epoch {
            return;
        }
        let interval_ms = welcome.stats_interval_ms.max(STATS_INTERVAL_MIN_MS);
        let stats_interval = Duration::from_millis(interval_ms);
        let lease_ms = welcome.lease_ms.clamp(1, LEASE_LIMIT_MS);
        self.session = Some(Session {
            epoch,
            applied_seq: Seq(0),
            asked: VecDeque::new(),
            next_correlation: 1,
            status_due: None,
            lease_due: now,
            stats_due: now.after(self.jittered(now, stats_interval)),
            stats_interval,
            gap_limit: Duration::from_millis(lease_ms),
            usage_offset: 0,
            backed_at: now,
        });
        if active {
            self.raise_term(term, effects);
        }
        self.send_status(now, true, effects);
        // Level-triggered: a new session hears every end again.
        let ended: Vec<_> = self
            .records
            .values()
            .filter(|record| record.is_ended())
            .map(|record| record.job.id)
            .collect();
        let mut at = now;
        for some in ended.chunks(REPEATS_A_STEP) {
            for id in some {
                self.report_at(*id, at);
            }
            at = at.after(ENDS_INTERVAL);
        }
    }

    pub(super) fn session_down(&mut self, epoch: SessionEpoch) {
        if self
            .session
            .as_ref()
            .is_some_and(|session| session.epoch == epoch)
        {
            self.session = None;
        }
    }

    /// Whether another scheduler should be asked: no controller stands behind this one.
    #[must_use]
    pub fn is_orphaned(&self, now: Moment) -> bool {
        let limit = ORPHAN_LIMIT * (1 << self.orphaned.min(ORPHAN_DOUBLINGS));
        let session = self.session.as_ref();
        session.is_some_and(|session| now.since(session.backed_at) > limit)
    }

    /// The session is left for one with another scheduler.
    pub fn leave_orphaned(&mut self) {
        self.session = None;
        self.orphaned = self.orphaned.saturating_add(1);
    }

    /// Ends the session from this side; its unread frames are never heard.
    pub(super) fn close_session(&mut self, reason: String, effects: &mut Vec<Effect>) {
        if self.session.take().is_some() {
            effects.push(Effect::CloseSession(reason));
        }
    }

    /// Rule 4: after a pause longer than a lease (SIGSTOP, suspension) what lies unread in the
    /// session is older than anybody still believes in.
    pub(super) fn notice_gap(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let gap = self.stepped_at.map_or(Duration::ZERO, |at| now.since(at));
        self.stepped_at = Some(now);
        if gap > OWN_PAUSE
            && let Some(session) = &mut self.session
        {
            // What the scheduler said meanwhile is yet to be read.
            session.backed_at = now;
        }
        let limit = self.session.as_ref().map(|session| session.gap_limit);
        if limit.is_some_and(|limit| gap > limit) {
            let reason = format!("this process was paused for {} ms", gap.as_millis());
            self.close_session(reason, effects);
        }
    }

    /// Something that a status shows has changed.
    pub(super) fn status_soon(&mut self, now: Moment) {
        if let Some(session) = &mut self.session {
            session.status_due.get_or_insert(now.after(STATUS_COALESCE));
        }
    }

    pub(super) fn session_tick(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let Some(session) = &mut self.session else {
            return;
        };
        if session.stats_due <= now {
            let interval = session.stats_interval;
            let due = now.after(self.jittered(now, interval));
            if let Some(session) = &mut self.session {
                session.stats_due = due;
            }
            effects.push(Effect::Measure);
        }
        let Some(session) = &self.session else { return };
        if session.lease_due <= now {
            self.send_status(now, true, effects);
        } else if session.status_due.is_some_and(|due| due <= now) {
            self.send_status(now, false, effects);
        }
    }

    /// Capacity and applied seq are read here, together, and nowhere else for a status.
    fn send_status(&mut self, now: Moment, want_lease: bool, effects: &mut Vec<Effect>) {
        let (operand, reason) = self.condition();
        let leased = now < self.lease_until;
        let free = self.ledger.free();
        let Some(session) = &mut self.session else {
            return;
        };
        let status = Status {
            session_epoch: session.epoch,
            applied_seq: session.applied_seq,
            free,
            runtimes: self.offered.clone(),
            reason,
        };
        let mut frame = Frame::new(operand, codec::encode(&status));
        session.status_due = None;
        if want_lease {
            frame = frame.with_flags(Flags::WANT_REPLY);
            frame.correlation = session.next_correlation;
            session.asked.push_back((session.next_correlation, now));
            if session.asked.len() > ASKED {
                session.asked.pop_front();
            }
            session.next_correlation += 1;
            session.lease_due = now.after(if leased { LEASE_INTERVAL } else { LEASE_RETRY });
        }
        effects.push(Effect::Send(frame));
    }

    /// Which status this node is in, with the reason of FULL.
    fn condition(&self) -> (Operand, String) {
        if self.node.mode == Mode::Maintenance {
            return (Operand::Maintenance, String::new());
        }
        if let Some(pressure) = &self.pressure {
            return (Operand::Full, pressure.clone());
        }
        if self.ended >= self.unacknowledged_limit {
            let text = format!("{} ended instances wait to be acknowledged", self.ended);
            return (Operand::Full, text);
        }
        (Operand::Ready, String::new())
    }

    pub(super) fn leased(
        &mut self,
        now: Moment,
        correlation: u64,
        lease: &Lease,
        effects: &mut Vec<Effect>,
    ) {
        let Some(session) = &mut self.session else {
            return;
        };
        let Some(index) = session
            .asked
            .iter()
            .position(|(asked, _)| *asked == correlation)
        else {
            return;
        };
        if lease.term.0 == 0 || lease.lease_ms == 0 {
            // Nobody has activated this scheduler; once somebody has, it answers again.
            session.asked.drain(..index);
            return;
        }
        let sent_at = session.asked[index].1;
        session.asked.drain(..=index);
        if lease.term < self.node.term {
            return;
        }
        if !lease.owners.is_empty() {
            session.backed_at = now;
            self.orphaned = 0;
        }
        self.raise_term(lease.term, effects);
        self.end_overdue(now, effects);
        let until = sent_at.after_ms(lease.lease_ms.min(LEASE_LIMIT_MS));
        self.lease_until = self.lease_until.max(until);
        for owner in &lease.owners {
            let known = self.owner_leases.entry(*owner).or_default();
            *known = until.max(*known);
        }
        let idle = |owner: &_| lease.owners.contains(owner);
        self.owner_leases.retain(|owner, until| {
            idle(owner) || *until > now || { self.records.keys().any(|id| id.owner == *owner) }
        });
        self.refresh_fences(now, effects);
        if now < self.lease_until {
            self.launch_waiting(now, effects);
        }
    }

    fn raise_term(&mut self, term: Term, effects: &mut Vec<Effect>) {
        if term > self.node.term {
            self.node.term = term;
            self.keep_state(effects);
        }
    }

    pub(super) fn measured(
        &mut self,
        load: NodeLoad,
        mut usages: Vec<InstanceUsage>,
        effects: &mut Vec<Effect>,
    ) {
        usages.retain(|usage| self.is_running(&usage.id));
        for usage in &usages {
            if let Some(record) = self.records.get_mut(&usage.id) {
                record.usage = usage.usage;
            }
        }
        let Some(session) = &mut self.session else {
            return;
        };
        // A later STATS replaces an earlier one on its way, so pages take turns.
        let total = usages.len();
        if total > limits::PAGE {
            let begin = session.usage_offset % total;
            usages.rotate_left(begin);
            usages.truncate(limits::PAGE);
            session.usage_offset = begin + limits::PAGE;
        }
        let stats = Stats { load, usages };
        effects.push(Effect::Send(Frame::new(
            Operand::Stats,
            codec::encode(&stats),
        )));
    }

    /// Says that the node goes, so that nobody takes it for lost.
    pub(super) fn leaving(&mut self, effects: &mut Vec<Effect>) {
        let free = self.ledger.free();
        if let Some(session) = self.session.take() {
            let status = Status {
                session_epoch: session.epoch,
                applied_seq: session.applied_seq,
                free,
                runtimes: Vec::new(),
                reason: "the launcher is ending; what runs goes on".into(),
            };
            effects.push(Effect::Send(Frame::new(
                Operand::Offline,
                codec::encode(&status),
            )));
        }
    }

    /// The interval give or take a tenth, so that thousands of nodes don't report in step.
    fn jittered(&mut self, now: Moment, interval: Duration) -> Duration {
        let mut bits = self.seed ^ now.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let percent = u32::try_from(bits % 21).unwrap_or_default() + 90;
        interval * percent / 100
    }
}
