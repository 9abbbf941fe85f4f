//! Frames in words, for the trace: what each says of which attempt.

use bytes::Bytes;
use pronto_payloads::codec::{decode, take};
use pronto_payloads::control::{Ack, FromNode, Stop, ToNode};
use pronto_payloads::demand::Constraint;
use pronto_payloads::instance::{InstanceReport, Inventory};
use pronto_payloads::node::{NodeConnected, NodeDisconnected, Status};
use pronto_payloads::place::{AttemptId, Placed, StartFailure, StartPrefix, StartStamp};
use pronto_protocol::{Frame, Operand, Role};

/// An attempt's short name.
#[must_use]
pub fn attempt(id: &AttemptId) -> String {
    format!("{}/{}", id.instance.short(), id.attempt.0)
}

/// What a frame says, as somebody of the role `to` hears it from somebody of the role `from`.
#[must_use]
pub fn frame(from: Role, to: Role, frame: &Frame) -> String {
    let said = said(from, to, frame).unwrap_or_default();
    format!("{} #{:x}{said}", frame.operand, frame.correlation)
}

fn said(from: Role, to: Role, frame: &Frame) -> Option<String> {
    let mut bytes = frame.payload.to_bytes();
    match frame.operand {
        Operand::Start => {
            let stamp = if to == Role::Launcher {
                let stamp = take::<StartStamp>(&mut bytes).ok()?;
                format!(" session {} seq {}", stamp.session_epoch, stamp.seq)
            } else {
                String::new()
            };
            let prefix = take::<StartPrefix>(&mut bytes).ok()?;
            Some(format!(
                "{stamp} {} of {} millis, {} MiB{}",
                attempt(&prefix.id),
                prefix.demand.cpu_millis,
                prefix.demand.memory_mib,
                further_needs(&prefix)
            ))
        }
        Operand::Placed => {
            let placed: Placed = decode(&bytes).ok()?;
            Some(format!(
                " {} on {} session {} seq {}",
                attempt(&placed.id),
                placed.node,
                placed.session_epoch,
                placed.seq
            ))
        }
        Operand::StartFailure => {
            let failure: StartFailure = decode(&bytes).ok()?;
            Some(format!(
                " {}: {:?}, generation {}",
                attempt(&failure.id),
                failure.refusal,
                failure.generation
            ))
        }
        Operand::InstanceChanged => {
            let node = source(from, &mut bytes)?;
            let report: InstanceReport = decode(&bytes).ok()?;
            Some(format!("{node} {}", report_in_words(&report)))
        }
        Operand::InventoryPage => {
            let node = source(from, &mut bytes)?;
            let page: Inventory = decode(&bytes).ok()?;
            let entries: Vec<_> = page.entries.iter().map(report_in_words).collect();
            Some(format!(
                "{node} session {} applied {}: {}",
                page.session_epoch,
                page.applied_seq,
                entries.join(", ")
            ))
        }
        Operand::Stop => {
            let node = target(to, &mut bytes)?;
            let stop: Stop = decode(&bytes).ok()?;
            Some(format!(
                "{node} {} up to attempt {}",
                stop.instance.short(),
                stop.attempt
            ))
        }
        Operand::Ack => {
            let node = target(to, &mut bytes)?;
            let ack: Ack = decode(&bytes).ok()?;
            Some(format!("{node} {}", attempt(&ack.id)))
        }
        Operand::Ready | Operand::Full | Operand::Maintenance => {
            let status: Status = decode(&bytes).ok()?;
            Some(format!(
                " applied {}: {} millis, {} MiB",
                status.applied_seq, status.free.cpu_millis, status.free.memory_mib
            ))
        }
        Operand::NodeConnected => {
            let said: NodeConnected = decode(&bytes).ok()?;
            Some(format!(" {} session {}", said.node, said.session_epoch))
        }
        Operand::NodeDisconnected => {
            let said: NodeDisconnected = decode(&bytes).ok()?;
            Some(format!(
                " {} session {}: {}",
                said.node, said.session_epoch, said.reason
            ))
        }
        _ => None,
    }
}

/// What else a START asks for, if it does.
fn further_needs(prefix: &StartPrefix) -> String {
    let demand = &prefix.demand;
    let mut text = String::new();
    if demand.disk_mib > 0 {
        text.push_str(&format!(", {} MiB of disk", demand.disk_mib));
    }
    let (devices, each) = demand.gpu_shape();
    if devices > 0 {
        text.push_str(&format!(", {devices} GPUs of {each} millis"));
    }
    for resource in &demand.resources {
        text.push_str(&format!(", {} {}", resource.count, resource.name));
    }
    for constraint in &prefix.constraints {
        match constraint {
            Constraint::Node(name) => text.push_str(&format!(", on {name}")),
            Constraint::Label { key, value } => text.push_str(&format!(", {key}={value}")),
        }
    }
    text
}

/// Of what comes through the scheduler: from which node.
fn source(from: Role, bytes: &mut Bytes) -> Option<String> {
    if from != Role::Scheduler {
        return Some(String::new());
    }
    let from = take::<FromNode>(bytes).ok()?;
    Some(format!(" of {}", from.node))
}

/// Of what goes through the scheduler: to which node.
fn target(to: Role, bytes: &mut Bytes) -> Option<String> {
    if to != Role::Scheduler {
        return Some(String::new());
    }
    let to = take::<ToNode>(bytes).ok()?;
    Some(format!(" for {}", to.node))
}

fn report_in_words(report: &InstanceReport) -> String {
    let mut text = format!("{} {:?}", attempt(&report.id), report.phase);
    if let Some(end) = &report.end {
        text.push_str(&format!(" {:?}", end.cause));
        if !end.message.is_empty() {
            text.push_str(&format!(" ({})", end.message));
        }
    }
    text
}
