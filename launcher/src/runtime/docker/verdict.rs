//! What the engine's words mean: pure, from errors and states to ends and usage.
//!
//! The line that matters is whose fault it is. A missing image or command is the user's and fails
//! anywhere; a taken port or a full disk is the node's, and another may do better.

use super::engine::words;
use crate::moment::Moment;
use bollard::errors::Error;
use bollard::models::{ContainerState, ContainerStatsResponse};
use pronto_payloads::demand::Demand;
use pronto_payloads::instance::{End, EndCause, Usage};

const MIB: u64 = 1024 * 1024;
/// What the engine says of a container that was never started.
const NEVER: &str = "0001-01-01T00:00:00Z";
/// Exit codes above this are a shell's or the engine's way to name a signal.
const SIGNAL_BASE: i64 = 128;

fn end(cause: EndCause, message: String) -> End {
    let limit = pronto_payloads::limits::TEXT_BYTES;
    let mut message = message;
    if message.len() > limit {
        let cut = (0..=limit - 3)
            .rev()
            .find(|&at| message.is_char_boundary(at))
            .unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    End { cause, message }
}

/// The node can't, for this reason.
pub(super) fn rejected(message: impl Into<String>) -> End {
    end(EndCause::Rejected, message.into())
}

/// An image that is not to be had.
pub(super) fn no_image(image: &str, error: &Error) -> End {
    let said = words(error);
    let message = format!("image {image} is not on the node and can't be pulled: {said}");
    let nowhere = [
        "manifest unknown",
        "not found",
        "does not exist",
        "access denied",
        "invalid",
    ]
    .iter()
    .any(|known| said.contains(known));
    if nowhere {
        end(EndCause::CannotExecute { code: 127 }, message)
    } else {
        // A registry that does not answer, a full disk.
        end(EndCause::Rejected, message)
    }
}

/// The engine would not make the container.
pub(super) fn not_created(error: &Error) -> End {
    let said = words(error);
    let users = [
        "invalid",
        "must be",
        "Range of CPUs",
        "unable to find user",
        "not a valid",
        "cannot be",
        "No command specified",
        "bind source path does not exist",
    ];
    if users.iter().any(|known| said.contains(known)) {
        end(
            EndCause::CannotExecute { code: 126 },
            format!("the engine refuses the container: {said}"),
        )
    } else {
        rejected(format!("the engine can't make the container: {said}"))
    }
}

/// The engine made the container and could not start it.
pub(super) fn not_started(error: &Error, state: Option<&ContainerState>) -> End {
    let said = words(error);
    // The part behind the runtime's own chain of prefixes is what a person needs.
    let short = said
        .rsplit("starting container process caused: ")
        .next()
        .unwrap_or(&said);
    let code = state.and_then(|state| state.exit_code).unwrap_or_default();
    let not_found = ["no such file or directory", "executable file not found"];
    if said.contains("unable to find user") || said.contains("no matching entries in passwd") {
        end(EndCause::CannotExecute { code: 126 }, short.to_owned())
    } else if said.contains("exec") && (code == 127 || not_found.iter().any(|k| said.contains(k))) {
        end(EndCause::CannotExecute { code: 127 }, short.to_owned())
    } else if said.contains("exec") && (code == 126 || said.contains("permission denied")) {
        end(EndCause::CannotExecute { code: 126 }, short.to_owned())
    } else if said.contains("port is already allocated") || said.contains("address already in use")
    {
        rejected(format!(
            "a port that it publishes is taken on the node: {short}"
        ))
    } else {
        rejected(format!("the engine can't start the container: {short}"))
    }
}

/// Whether the container ever ran.
pub(super) fn was_started(state: &ContainerState) -> bool {
    state
        .started_at
        .as_deref()
        .is_some_and(|at| !at.is_empty() && at != NEVER)
}

/// How a container that has ended has ended.
pub(super) fn of_state(state: &ContainerState, demand: &Demand, usage: &Usage) -> End {
    let code = state.exit_code.unwrap_or_default();
    if state.oom_killed == Some(true) && code != 0 {
        let limit_mib = demand.memory_mib;
        // It was at its limit, whatever the last measurement saw.
        let peak_mib = usage.memory_peak_mib.max(limit_mib);
        return end(
            EndCause::OutOfMemory {
                limit_mib,
                peak_mib,
            },
            String::new(),
        );
    }
    let error = state.error.clone().unwrap_or_default();
    let message = if error.is_empty() && code > SIGNAL_BASE && code <= SIGNAL_BASE + 64 {
        format!("as if killed by signal {}", code - SIGNAL_BASE)
    } else {
        error
    };
    let code = i32::try_from(code).unwrap_or(i32::MAX);
    end(EndCause::Exited { code }, message)
}

/// A wall-clock time of the engine as a moment; the present where it can't be read. `now` and
/// `unix_ns` are the same instant by both clocks.
pub(super) fn moment_of(text: Option<&str>, now: Moment, unix_ns: i128) -> Moment {
    let parsed = text.and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let age_ns = parsed.map_or(0, |at| unix_ns - at.as_nanosecond());
    Moment(now.0.saturating_sub(u64::try_from(age_ns).unwrap_or(0)))
}

/// A measurement, on top of the peak known before: version 2 control groups may not tell one.
pub(super) fn usage_of(stats: &ContainerStatsResponse, before: &Usage) -> Usage {
    let to_u32 = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let memory = stats.memory_stats.as_ref();
    let counter = |name: &str| {
        memory
            .and_then(|memory| memory.stats.as_ref()?.get(name).copied())
            .unwrap_or_default()
    };
    // As `docker stats`: without the file pages that the kernel can drop at once.
    let cached = counter("total_inactive_file").max(counter("inactive_file"));
    let used = memory
        .and_then(|memory| memory.usage)
        .unwrap_or_default()
        .saturating_sub(cached);
    let peak = memory
        .and_then(|memory| memory.max_usage)
        .unwrap_or_default()
        .max(used);
    let cpu = stats
        .cpu_stats
        .as_ref()
        .and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage);
    let entries = stats
        .blkio_stats
        .as_ref()
        .and_then(|io| io.io_service_bytes_recursive.as_deref())
        .unwrap_or_default();
    let bytes = |kind: &str| {
        entries
            .iter()
            .filter(|entry| {
                entry
                    .op
                    .as_deref()
                    .is_some_and(|op| op.eq_ignore_ascii_case(kind))
            })
            .filter_map(|entry| entry.value)
            .sum()
    };
    Usage {
        cpu_ms: cpu.unwrap_or_default() / 1_000_000,
        memory_mib: to_u32(used.div_ceil(MIB)),
        memory_peak_mib: to_u32(peak.div_ceil(MIB)).max(before.memory_peak_mib),
        read_bytes: bytes("read"),
        written_bytes: bytes("write"),
        pids: to_u32(
            stats
                .pids_stats
                .as_ref()
                .and_then(|pids| pids.current)
                .unwrap_or_default(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(message: &str) -> Error {
        Error::DockerResponseServerError {
            status_code: 400,
            message: message.to_owned(),
        }
    }

    #[test]
    fn the_users_mistakes_are_told_from_the_nodes_troubles() {
        let missing = "OCI runtime create failed: runc create failed: unable to start container \
            process: exec: \"nope\": executable file not found in $PATH: unknown";
        let denied = "OCI runtime create failed: starting container process caused: exec: \
            \"/etc\": permission denied: unknown";
        let taken = "driver failed programming external connectivity on endpoint x: Bind for \
            0.0.0.0:80 failed: port is already allocated";
        let cause = |message| not_started(&said(message), None).cause;
        assert_eq!(cause(missing), EndCause::CannotExecute { code: 127 });
        assert_eq!(cause(denied), EndCause::CannotExecute { code: 126 });
        assert_eq!(cause(taken), EndCause::Rejected);
        assert_eq!(cause("no space left on device"), EndCause::Rejected);
        let image = |message| no_image("x", &said(message)).cause;
        let denied = "pull access denied for x, repository does not exist or may require login";
        assert_eq!(image(denied), EndCause::CannotExecute { code: 127 });
        assert_eq!(image("dial tcp: connection refused"), EndCause::Rejected);
    }

    #[test]
    fn memory_and_signals_are_told_in_words() {
        let demand = Demand {
            memory_mib: 64,
            ..Demand::default()
        };
        let state = |code, oom_killed| ContainerState {
            exit_code: Some(code),
            oom_killed: Some(oom_killed),
            ..ContainerState::default()
        };
        let of = |state| of_state(&state, &demand, &Usage::default());
        assert_eq!(
            of(state(137, true)).cause,
            EndCause::OutOfMemory {
                limit_mib: 64,
                peak_mib: 64
            }
        );
        assert_eq!(
            of(state(0, true)).cause,
            EndCause::Exited { code: 0 },
            "a child's end only"
        );
        let killed = of(state(137, false));
        assert_eq!(killed.cause, EndCause::Exited { code: 137 });
        assert_eq!(killed.message, "as if killed by signal 9");
    }

    #[test]
    fn long_words_are_cut_to_what_a_report_carries() {
        let end = rejected("ä".repeat(5000));
        assert!(end.message.len() <= pronto_payloads::limits::TEXT_BYTES);
    }

    #[test]
    fn a_time_of_the_engine_becomes_a_moment() {
        let now = Moment(10_000_000_000);
        let at = |text| moment_of(Some(text), now, 1_700_000_005_000_000_000);
        // 1,700,000,000 s.
        assert_eq!(at("2023-11-14T22:13:20Z"), Moment(5_000_000_000));
        assert_eq!(at("garbage"), now);
        assert_eq!(at("2024-11-14T22:13:20Z"), now, "a clock that was set back");
    }
}
