//! How a guest ended: pure, from what its emulator, its console and its monitor said.

use super::console::Console;
use crate::supervisor::StopCause;
use pronto_payloads::instance::{End, EndCause};
use serde_json::Value;

/// Why a guest's machine went off, as the monitor's SHUTDOWN event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// The guest powered itself off.
    PowerOff,
    /// It reset its machine, which ends it as well.
    Reset,
    /// Its kernel panicked, and said so to the machine.
    Panic,
    /// We did it.
    Host,
}

impl Shutdown {
    /// From the data of the event.
    pub(super) fn of(data: &Value) -> Self {
        match data["reason"].as_str() {
            Some("guest-reset" | "subsystem-reset") => Self::Reset,
            Some("guest-panic") => Self::Panic,
            Some("guest-shutdown") => Self::PowerOff,
            _ if data["guest"] == Value::Bool(true) => Self::PowerOff,
            _ => Self::Host,
        }
    }
}

/// All that is known when the emulator is gone.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    /// The end of the emulator's process.
    pub(super) process: End,
    /// We were ending it, for this reason.
    pub(super) stopped: Option<StopCause>,
    /// Unknown if nobody listened, as while the launcher was restarted.
    pub(super) shutdown: Option<Shutdown>,
    pub(super) console: &'a mut Console,
    /// The emulator's own last words.
    pub(super) words: &'a str,
}

/// The end of the attempt.
pub(super) fn of(evidence: Evidence<'_>) -> End {
    let Evidence {
        process,
        stopped,
        shutdown,
        console,
        words,
    } = evidence;
    if let Some(cause) = stopped {
        return End {
            cause: cause.end_cause(),
            message: process.message,
        };
    }
    let exited = |code, message: &str| End {
        cause: EndCause::Exited { code },
        message: message.to_owned(),
    };
    match process.cause {
        EndCause::Exited { code: 0 } => match (console.exit_code(), shutdown) {
            (Some(code), _) => exited(code, ""),
            (None, Some(Shutdown::Panic)) => exited(1, "the guest's kernel panicked"),
            (None, _) if console.panicked() => exited(1, "the guest's kernel panicked"),
            (None, Some(Shutdown::Reset)) => {
                exited(1, "the guest reset its machine and said no PRONTO_EXIT=")
            }
            (None, Some(Shutdown::Host)) => exited(1, "the emulator was ended from outside"),
            (None, Some(Shutdown::PowerOff) | None) => exited(0, ""),
        },
        EndCause::Exited { code } => {
            let cause = if says_node(words) {
                EndCause::Rejected
            } else if console.spoke() {
                EndCause::Exited { code }
            } else {
                // It would not even begin: a kernel that is none, an image that it can't read.
                EndCause::CannotExecute { code: 126 }
            };
            let message = words.trim().to_owned();
            End { cause, message }
        }
        cause => End {
            cause,
            message: process.message,
        },
    }
}

/// Whether the emulator complains about the node rather than about what it was given.
fn says_node(words: &str) -> bool {
    [
        "Could not set up host forwarding rule",
        "Cannot allocate memory",
        "No space left",
    ]
    .iter()
    .any(|part| words.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn end(
        process: EndCause,
        stopped: Option<StopCause>,
        shutdown: Option<Shutdown>,
        console: &str,
        words: &str,
    ) -> EndCause {
        let mut reader = Console::default();
        reader.feed(console.as_bytes());
        let process = End {
            cause: process,
            message: String::new(),
        };
        of(Evidence {
            process,
            stopped,
            shutdown,
            console: &mut reader,
            words,
        })
        .cause
    }

    const OFF: EndCause = EndCause::Exited { code: 0 };

    fn code(code: i32) -> EndCause {
        EndCause::Exited { code }
    }

    #[test]
    fn a_guest_that_powers_off_has_succeeded_unless_it_says_otherwise() {
        assert_eq!(end(OFF, None, None, "hello\n", ""), code(0));
        assert_eq!(end(OFF, None, Some(Shutdown::PowerOff), "", ""), code(0));
        assert_eq!(
            end(OFF, None, Some(Shutdown::PowerOff), "PRONTO_EXIT=7\n", ""),
            code(7)
        );
        assert_eq!(
            end(OFF, None, Some(Shutdown::Reset), "PRONTO_EXIT=0\n", ""),
            code(0)
        );
    }

    #[test]
    fn panics_and_resets_have_not() {
        assert_eq!(end(OFF, None, Some(Shutdown::Reset), "", ""), code(1));
        assert_eq!(end(OFF, None, Some(Shutdown::Panic), "", ""), code(1));
        assert_eq!(
            end(OFF, None, None, "[1.0] Kernel panic - not syncing\n", ""),
            code(1)
        );
    }

    #[test]
    fn our_own_cause_wins_and_the_emulators_words_are_understood() {
        let asked = Some(StopCause::Asked);
        assert_eq!(
            end(OFF, asked, None, "PRONTO_EXIT=3\n", ""),
            EndCause::Stopped
        );
        let taken = "qemu: -netdev user: Could not set up host forwarding rule 'tcp::80-:80'";
        assert_eq!(end(code(1), None, None, "", taken), EndCause::Rejected);
        let broken = "qemu: could not load kernel '/k': Exec format error";
        assert_eq!(
            end(code(1), None, None, "", broken),
            EndCause::CannotExecute { code: 126 }
        );
        assert_eq!(end(code(1), None, None, "boot\n", "whatever"), code(1));
        let memory = EndCause::OutOfMemory {
            limit_mib: 1,
            peak_mib: 1,
        };
        assert_eq!(end(memory.clone(), None, None, "", ""), memory);
    }

    #[test]
    fn the_monitors_reasons_are_read() {
        let of =
            |reason: &str, guest: bool| Shutdown::of(&json!({"guest": guest, "reason": reason}));
        assert_eq!(of("guest-shutdown", true), Shutdown::PowerOff);
        assert_eq!(of("guest-reset", true), Shutdown::Reset);
        assert_eq!(of("guest-panic", true), Shutdown::Panic);
        assert_eq!(of("host-qmp-quit", false), Shutdown::Host);
        assert_eq!(Shutdown::of(&json!({"guest": true})), Shutdown::PowerOff);
    }
}
