//! An instance's end, in words and as an exit code.

use crate::exit::{Exit, own_code, signal_code};
use crate::units;
use pronto_controller::api::types as api;

/// A runtime's name as users write it.
pub(crate) const fn runtime(name: api::RuntimeName) -> &'static str {
    match name {
        api::RuntimeName::Exec => "exec",
        api::RuntimeName::Docker => "docker",
        api::RuntimeName::Qemu => "qemu",
        api::RuntimeName::Sim => "sim",
    }
}

/// The short form of an id: its random tail.
pub(crate) fn short(id: uuid::Uuid) -> String {
    let text = id.simple().to_string();
    text[text.len() - 8..].to_owned()
}

/// What an ended instance makes `pronto run` exit with.
pub(crate) fn exit_code(instance: &api::Instance) -> u8 {
    let Some(end) = &instance.end else {
        return match instance.state {
            api::InstanceState::Succeeded => 0,
            _ => Exit::NotRun.code(),
        };
    };
    match end.cause {
        api::EndReason::Exited => own_code(end.code.unwrap_or(0)),
        api::EndReason::CannotExecute => own_code(end.code.unwrap_or(127)),
        api::EndReason::Signaled => signal_code(end.signal.unwrap_or(0)),
        api::EndReason::OutOfMemory => signal_code(9),
        api::EndReason::TimedOut => Exit::TimedOut.code(),
        api::EndReason::Stopped
        | api::EndReason::LeaseExpired
        | api::EndReason::Rejected
        | api::EndReason::NodeFailed
        | api::EndReason::NodeLost
        | api::EndReason::PendingTimeout
        | api::EndReason::Cancelled => Exit::NotRun.code(),
    }
}

/// What a bare exit code would not say; nothing where it says all.
pub(crate) fn remark(instance: &api::Instance) -> Option<String> {
    let end = instance.end.as_ref()?;
    let words = match end.cause {
        api::EndReason::Exited => {
            return (!end.message.is_empty()).then(|| end.message.clone());
        }
        api::EndReason::Signaled => format!("ended by signal {}", end.signal.unwrap_or(0)),
        api::EndReason::OutOfMemory => "out of memory".to_owned(),
        api::EndReason::TimedOut => "its time limit was reached".to_owned(),
        api::EndReason::Stopped => "stopped".to_owned(),
        api::EndReason::LeaseExpired => "ended because its node was cut off".to_owned(),
        api::EndReason::CannotExecute => "can't be executed".to_owned(),
        api::EndReason::Rejected => "no node would take it".to_owned(),
        api::EndReason::NodeFailed => "its node failed it".to_owned(),
        api::EndReason::NodeLost => "its node was lost".to_owned(),
        api::EndReason::PendingTimeout => "not placed within its pending timeout".to_owned(),
        api::EndReason::Cancelled => "cancelled before it was placed".to_owned(),
    };
    Some(if end.message.starts_with(&words) {
        end.message.clone()
    } else if end.message.is_empty() {
        words
    } else {
        format!("{words}: {}", end.message)
    })
}

/// How an instance stands, for tables: `failed (exit 7)`, `running`, `pending (stopping)`.
pub(crate) fn state(instance: &api::Instance) -> String {
    let name = instance.state.name();
    match &instance.end {
        Some(end) => match (end.cause, end.code) {
            (api::EndReason::Exited, Some(0)) => name.to_owned(),
            (api::EndReason::Exited, Some(code)) => format!("{name} (exit {code})"),
            (api::EndReason::Signaled, _) => {
                format!("{name} (signal {})", end.signal.unwrap_or(0))
            }
            (api::EndReason::OutOfMemory, _) => {
                format!("{name} ({})", remark(instance).unwrap_or_default())
            }
            (api::EndReason::TimedOut, _) => format!("{name} (timed out)"),
            (api::EndReason::CannotExecute, code) => {
                format!("{name} (can't be executed, {})", code.unwrap_or(127))
            }
            _ => name.to_owned(),
        },
        None if instance.stopping => format!("{name} (stopping)"),
        None => name.to_owned(),
    }
}

/// A demand in one line: `0.1 cpu 64M 0.5 gpu`.
pub(crate) fn demand(demand: &api::DemandSpec) -> String {
    let mut words = format!(
        "{} cpu {}",
        units::show_millis(demand.cpu_millis.into()),
        units::show_mib(demand.memory_mib.into())
    );
    if demand.disk_mib > 0 {
        words += &format!(" {} disk", units::show_mib(demand.disk_mib.into()));
    }
    if demand.gpus > 0 {
        words += &format!(" {} gpu", demand.gpus);
    } else if demand.gpu_millis > 0 {
        words += &format!(" {} gpu", units::show_millis(demand.gpu_millis.into()));
    }
    for (name, count) in &demand.resources {
        words += &format!(" {count} {name}");
    }
    words
}

/// Constraints in one line: `node=n1 zone=a`.
pub(crate) fn constraints(constraints: &[api::ConstraintSpec]) -> String {
    let words: Vec<String> = constraints
        .iter()
        .map(|constraint| match constraint {
            api::ConstraintSpec::Node(node) => format!("node={node}"),
            api::ConstraintSpec::Label(label) => format!("{}={}", label.key, label.value),
        })
        .collect();
    words.join(" ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ended instance, as the API would describe it.
    pub(crate) fn ended(end: serde_json::Value, state: &str) -> api::Instance {
        serde_json::from_value(serde_json::json!({
            "id": "01940000-0000-7000-8000-0123456789ab",
            "tenant": "default",
            "submission": "01940000-0000-7000-8000-000000000000",
            "state": state,
            "runtime": "exec",
            "demand": {},
            "priority": 0,
            "attempt": 1,
            "restarts": 0,
            "reschedules": 0,
            "submitted_at": "2026-11-22T05:00:00Z",
            "end": end,
        }))
        .unwrap()
    }

    #[test]
    fn ends_become_exit_codes() {
        for (end, code) in [
            (serde_json::json!({"cause": "exited", "code": 7}), 7),
            (serde_json::json!({"cause": "signaled", "signal": 15}), 143),
            (serde_json::json!({"cause": "out_of_memory"}), 137),
            (serde_json::json!({"cause": "timed_out"}), 124),
            (
                serde_json::json!({"cause": "cannot_execute", "code": 126}),
                126,
            ),
            (serde_json::json!({"cause": "node_lost"}), 120),
        ] {
            assert_eq!(exit_code(&ended(end.clone(), "failed")), code, "{end}");
        }
    }

    #[test]
    fn a_kill_for_memory_is_told_in_words() {
        let end =
            serde_json::json!({"cause": "out_of_memory", "message": "limit 64 MiB, peak 64 MiB"});
        let instance = ended(end, "failed");
        assert_eq!(
            remark(&instance).unwrap(),
            "out of memory: limit 64 MiB, peak 64 MiB"
        );
        assert_eq!(
            state(&instance),
            "failed (out of memory: limit 64 MiB, peak 64 MiB)"
        );
        let own = ended(serde_json::json!({"cause": "exited", "code": 7}), "failed");
        assert_eq!(remark(&own), None, "its own code says it");
        assert_eq!(state(&own), "failed (exit 7)");
    }

    #[test]
    fn ids_are_shortened_from_their_random_tail() {
        let instance = ended(
            serde_json::json!({"cause": "exited", "code": 0}),
            "succeeded",
        );
        assert_eq!(short(instance.id), "456789ab");
    }
}
