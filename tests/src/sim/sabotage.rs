//! Frames that say something else than the core wrote: how liars lie, and how planted bugs act.

use pronto_payloads::codec::{decode, encode, take};
use pronto_payloads::control::FromNode;
use pronto_payloads::ids::{Attempt, InstanceId, Seq};
use pronto_payloads::instance::{End, InstanceReport, Inventory};
use pronto_payloads::node::{Lease, Status};
use pronto_payloads::place::{AttemptId, StartPrefix, StartStamp};
use pronto_protocol::{Frame, Operand};

/// Whether the frame is a READY, FULL or MAINTENANCE.
fn is_status(frame: &Frame) -> bool {
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
