//! Frames that say something else than the core wrote: how liars lie, and how planted bugs act.

use super::rng::Rng;
use bytes::Bytes;
use pronto_payloads::codec::{decode, encode, take};
use pronto_payloads::control::FromNode;
use pronto_payloads::hello::{LauncherHello, Mode, OwnerSummary};
use pronto_payloads::ids::{
    Attempt, BootId, ControllerEpoch, InstanceId, NodeUuid, OwnerId, Seq, Term, Version,
};
use pronto_payloads::instance::{End, EndCause, InstanceReport, Inventory, Phase, Usage};
use pronto_payloads::node::{Label, Lease, Status};
use pronto_payloads::place::{AttemptId, StartPrefix, StartStamp};
use pronto_protocol::{Frame, Operand};

/// Whether the frame is a READY, FULL or MAINTENANCE.
#[must_use]
pub fn is_status(frame: &Frame) -> bool {
    matches!(
        frame.operand,
        Operand::Ready | Operand::Full | Operand::Maintenance
    )
}

fn alter_status(frame: &mut Frame, change: impl FnOnce(&mut Status)) {
    if is_status(frame)
        && let Ok(mut status) = decode::<Status>(&frame.payload.to_bytes())
    {
        change(&mut status);
        frame.payload = encode(&status).into();
    }
}

/// A status that promises twice what is free.
pub fn boast(frame: &mut Frame) {
    alter_status(frame, |status| {
        status.free.cpu_millis = status.free.cpu_millis.saturating_mul(2).max(2000);
        status.free.memory_mib = status.free.memory_mib.saturating_mul(2).max(1024);
    });
}

/// A launcher's HELLO that is not true. `another` is a node that it would like to be.
pub fn pretend(body: &Bytes, another: (&str, NodeUuid, &[Label]), rng: &mut Rng) -> Bytes {
    let Ok(mut hello) = decode::<LauncherHello>(body) else {
        return body.clone();
    };
    let (name, uuid, labels) = another;
    if rng.per_mille(400) {
        hello.facts.labels = labels.to_vec();
        name.clone_into(&mut hello.facts.hostname);
    }
    if rng.per_mille(300) {
        let own = NodeUuid(rng.bytes());
        hello.node_uuid = *rng.choose(&[uuid, own]);
    }
    if rng.per_mille(300) {
        hello.boot_id = BootId(rng.bytes());
    }
    if rng.per_mille(300) {
        hello.term = Term(*rng.choose(&[0, 1 << 20, 1 << 32, u64::MAX]));
    }
    if rng.per_mille(200) {
        hello.mode = *rng.choose(&[Mode::Ready, Mode::Maintenance]);
    }
    if rng.per_mille(200) {
        hello.facts.allocatable.cpu_millis *= 2;
        hello.facts.allocatable.gpu_millis = vec![1000; 8];
    }
    if rng.per_mille(500) {
        hello.owners.push(OwnerSummary {
            owner: OwnerId(rng.bytes()),
            attempts: 7,
            digest: rng.next(),
            epoch: ControllerEpoch(7),
        });
        for summary in &mut hello.owners {
            summary.epoch = ControllerEpoch(*rng.choose(&[0, u64::MAX]));
            summary.attempts = *rng.choose(&[0, summary.attempts, u32::MAX]);
            summary.digest = *rng.choose(&[0, summary.digest, 1]);
        }
    }
    encode(&hello)
}

/// The version by which a report is known to be made up.
const MADE_UP: Version = Version(u64::MAX - 1);

/// A report of an attempt that its sender never had.
pub fn make_up(id: AttemptId, rng: &mut Rng) -> Frame {
    let end = match rng.below(5) {
        0 => None,
        1 => Some(EndCause::Exited { code: 0 }),
        2 => Some(EndCause::Exited { code: 77 }),
        3 => Some(EndCause::Stopped),
        _ => Some(EndCause::NodeFailed),
    };
    let report = InstanceReport {
        id,
        version: MADE_UP,
        phase: if end.is_some() {
            Phase::Ended
        } else {
            Phase::Running
        },
        end: end.map(|cause| End {
            cause,
            message: String::new(),
        }),
        age_ns: 2_000_000,
        started_after_ns: Some(1_000_000),
        ended_after_ns: Some(2_000_000),
        usage: Usage::default(),
    };
    Frame::new(Operand::InstanceChanged, encode(&report))
}

/// What a controller hears of an attempt that was made up, and from which node.
#[must_use]
pub fn made_up(frame: &Frame) -> Option<(AttemptId, String)> {
    if frame.operand != Operand::InstanceChanged {
        return None;
    }
    let mut bytes = frame.payload.to_bytes();
    let from = take::<FromNode>(&mut bytes).ok()?;
    let report: InstanceReport = decode(&bytes).ok()?;
    (report.version == MADE_UP).then_some((report.id, from.node))
}

/// A report that comes from another node, of that node's own attempt.
pub fn come_from(frame: &mut Frame, node: &str, id: AttemptId) {
    let mut bytes = frame.payload.to_bytes();
    let from = FromNode {
        node: node.to_owned(),
    };
    if take::<FromNode>(&mut bytes).is_ok()
        && let Ok(mut report) = decode::<InstanceReport>(&bytes)
    {
        report.id = id;
        frame.payload = [encode(&from), encode(&report)].concat().into();
    }
}

/// A status that keeps a little back, once the session has seen a START.
pub fn withhold(frame: &mut Frame) {
    alter_status(frame, |status| {
        let kept = u32::from(status.applied_seq.0 > 0);
        status.free.memory_mib = status.free.memory_mib.saturating_sub(kept);
    });
}

/// A status that counts more STARTs as debited than it did.
pub fn apply_up_to(frame: &mut Frame, sent: u64) {
    alter_status(frame, |status| status.applied_seq = Seq(sent));
}

/// An inventory that says to be newer than it is.
pub fn postdate(frame: &mut Frame) {
    if frame.operand == Operand::InventoryPage
        && let Ok(mut page) = decode::<Inventory>(&frame.payload.to_bytes())
    {
        page.applied_seq = Seq(page.applied_seq.0 + 1000);
        frame.payload = encode(&page).into();
    }
}

/// A lease that lasts a hundred times as long.
pub fn prolong(frame: &mut Frame) {
    if frame.operand == Operand::Lease
        && let Ok(mut lease) = decode::<Lease>(&frame.payload.to_bytes())
    {
        lease.lease_ms *= 100;
        frame.payload = encode(&lease).into();
    }
}

/// A START whose devices are those from the first on.
pub fn give_first_gpu(frame: &mut Frame) {
    let mut bytes = frame.payload.to_bytes();
    if frame.operand == Operand::Start
        && let Ok(mut stamp) = take::<StartStamp>(&mut bytes)
    {
        for (device, share) in (0..).zip(&mut stamp.gpus) {
            share.device = device;
        }
        frame.payload = [encode(&stamp), bytes].concat().into();
    }
}

/// A START that may go anywhere.
pub fn forget_constraints(frame: &mut Frame) {
    let mut bytes = frame.payload.to_bytes();
    if frame.operand == Operand::Start
        && let Ok(mut prefix) = take::<StartPrefix>(&mut bytes)
    {
        prefix.constraints.clear();
        frame.payload = [encode(&prefix), bytes].concat().into();
    }
}

/// A launcher's report of an end.
#[must_use]
pub fn end_in(frame: &Frame) -> Option<(AttemptId, End)> {
    if frame.operand != Operand::InstanceChanged {
        return None;
    }
    let report: InstanceReport = decode(&frame.payload.to_bytes()).ok()?;
    Some((report.id, report.end?))
}

/// A report to the controller that is made to be about the attempt that the controller has in mind.
pub fn make_current(frame: &mut Frame, current: impl FnOnce(InstanceId) -> Option<u32>) {
    if frame.operand != Operand::InstanceChanged {
        return;
    }
    let mut bytes = frame.payload.to_bytes();
    let Ok(from) = take::<FromNode>(&mut bytes) else {
        return;
    };
    let Ok(mut report) = decode::<InstanceReport>(&bytes) else {
        return;
    };
    if let Some(attempt) = current(report.id.instance) {
        report.id.attempt = Attempt(attempt);
        frame.payload = [encode(&from), encode(&report)].concat().into();
    }
}
