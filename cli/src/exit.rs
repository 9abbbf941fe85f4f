//! What `pronto` exits with: the one list of codes, and the failure that carries one.
//!
//! A workload's own code always passes through `run` and `exec` unchanged. Pronto's own failures
//! take codes from 119 upward, where programs seldom have any, so that a script can tell "my job
//! failed" from "my job was never tried". Nothing else in this crate names a number.

use crate::output::tell;
use pronto_controller::api::types::ErrorCode;
use std::fmt;
use std::process::ExitCode;

/// Why `pronto` itself did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Exit {
    /// A negative answer to a question: `explain` found no fit, `demo` lost something.
    No,
    /// Flags, arguments, a file or a setting that make no sense.
    Usage,
    /// What is named exists already, or is in a state that does not allow this.
    Conflict,
    /// The instance never ran or its node was lost: expired, cancelled, stopped, `node_lost`.
    NotRun,
    /// What is named does not exist.
    NotFound,
    /// No controller could be reached, or none answered.
    Unreachable,
    /// A policy said no: quota, permission, rate limit.
    Refused,
    /// A limit in time was reached: a workload's `--timeout`, a drain's deadline.
    TimedOut,
    /// Anything else that went wrong in Pronto.
    Failed,
    /// Ctrl-C.
    Interrupted,
}

impl Exit {
    /// Every code with its meaning, in the order in which the manual shows them.
    pub(crate) const TABLE: [(Self, &str); 10] = [
        (
            Self::No,
            "the answer is no: no fit, not all that were created succeeded, a result that was asked for is not there",
        ),
        (
            Self::Usage,
            "usage: a flag, an argument, a file or a setting makes no sense",
        ),
        (
            Self::Conflict,
            "conflict: it exists already, or its state does not allow this",
        ),
        (
            Self::NotRun,
            "the workload did not end by itself: stopped, expired, or its node was lost",
        ),
        (Self::NotFound, "what was named does not exist"),
        (Self::Unreachable, "no controller could be reached"),
        (
            Self::Refused,
            "refused by policy: a quota, a permission or a rate limit",
        ),
        (
            Self::TimedOut,
            "a time limit was reached: a workload's --timeout, a drain's deadline",
        ),
        (Self::Failed, "Pronto failed"),
        (
            Self::Interrupted,
            "interrupted with Ctrl-C; `cp`, `bench` and `demo` that SIGTERM ends: 143",
        ),
    ];

    /// The number.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::No => 1,
            Self::Usage => 2,
            Self::Conflict => 119,
            Self::NotRun => 120,
            Self::NotFound => 121,
            Self::Unreachable => 122,
            Self::Refused => 123,
            Self::TimedOut => 124,
            Self::Failed => 125,
            Self::Interrupted => 130,
        }
    }
}

/// What a process dies of whose reader went away.
pub(crate) const SIGPIPE: i32 = 13;

/// The exit code of a workload that a signal ended.
pub(crate) fn signal_code(signal: i32) -> u8 {
    u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX)
}

/// The exit code of a workload's own status: what wait(2) has room for.
pub(crate) const fn own_code(code: i32) -> u8 {
    code.to_le_bytes()[0]
}

/// The text of `pronto help exit-codes` and of the manual page.
pub(crate) fn table() -> String {
    let mut text = String::from(
        "Exit codes\n\n\
         \x20   0  success\n\
         \x20   *  `run` and `exec`: the workload's own code, unchanged\n\
         \x20 126  `run`: the command can't be executed\n\
         \x20 127  `run`: the command does not exist\n\
         \x20128+n `run`: signal n ended the workload (137: SIGKILL, or out of memory, said in words)\n\n\
         Pronto's own\n\n",
    );
    for (exit, meaning) in Exit::TABLE {
        text.push_str(&format!(" {:>4}  {meaning}\n", exit.code()));
    }
    text
}

/// A failure: its exit code, what is wrong, and what to do next.
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    what: anyhow::Error,
    hint: Option<String>,
    passing: bool,
    /// It ends as this signal would end it, without a word.
    signal: Option<i32>,
    /// What a controller refused it with.
    code: Option<ErrorCode>,
}

impl Failure {
    /// A failure of this kind with its reason.
    pub(crate) fn new(exit: Exit, what: impl fmt::Display) -> Self {
        Self::caused(exit, anyhow::anyhow!("{what}"))
    }

    /// A usage failure.
    pub(crate) fn usage(what: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, what)
    }

    /// A failure of this kind with all its causes.
    pub(crate) fn caused(exit: Exit, what: anyhow::Error) -> Self {
        Self {
            exit,
            what,
            hint: None,
            passing: exit == Exit::Unreachable,
            signal: None,
            code: None,
        }
    }

    /// A refusal of a controller's.
    pub(crate) fn refusal(exit: Exit, code: ErrorCode, what: impl fmt::Display) -> Self {
        Self {
            code: Some(code),
            ..Self::new(exit, what)
        }
    }

    /// What a controller refused it with, if one did.
    pub(crate) const fn code(&self) -> Option<ErrorCode> {
        self.code
    }

    /// Output that could not be written.
    pub(crate) fn of_output(error: std::io::Error) -> Self {
        let reader_gone = error.kind() == std::io::ErrorKind::BrokenPipe;
        let what = anyhow::Error::from(error).context("can't write the output");
        Self {
            signal: reader_gone.then_some(SIGPIPE),
            ..Self::caused(Exit::Failed, what)
        }
    }

    /// Work that this signal interrupted.
    pub(crate) fn of_signal(signal: i32) -> Self {
        Self {
            signal: Some(signal),
            ..Self::new(Exit::Interrupted, "interrupted")
        }
    }

    /// The same failure, with what to do next.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same failure, of something that comes back by itself: a daemon that is started again.
    pub(crate) fn passing(mut self) -> Self {
        self.passing = true;
        self
    }

    /// Whether the same may work in a moment.
    pub(crate) const fn may_pass(&self) -> bool {
        self.passing
    }

    /// Whether nobody reads our output any more.
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.signal == Some(SIGPIPE)
    }

    /// Says it on stderr.
    pub(crate) fn report(&self) -> ExitCode {
        if let Some(signal) = self.signal {
            return ExitCode::from(signal_code(signal));
        }
        tell!("{self}");
        ExitCode::from(self.exit.code())
    }
}

impl Failure {
    /// What is wrong, for a line that says itself whose words these are.
    pub(crate) fn words(&self) -> String {
        told_once(&self.what)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pronto: {}", self.what)?;
        for cause in causes(&self.what) {
            write!(f, "\n  because: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// The causes of an error that its text has not said already: libraries repeat their source's text
/// in their own.
fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut said = error.to_string();
    let mut news = Vec::new();
    for cause in error.chain().skip(1) {
        let text = cause.to_string().trim_end().to_owned();
        if !said.contains(&text) {
            said.push_str(&text);
            news.push(text);
        }
    }
    news
}

/// An error and its causes in one line.
pub(crate) fn told_once(error: &anyhow::Error) -> String {
    let mut words = vec![error.to_string()];
    words.extend(causes(error));
    words.join(": ")
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.exit)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(what: anyhow::Error) -> Self {
        Self::caused(Exit::Failed, what)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::caused(Exit::Failed, error.into())
    }
}

/// What a command ends with: the process's exit code.
pub(crate) type Outcome = Result<u8, Failure>;

/// Success.
pub(crate) const OK: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_code_is_its_own_and_is_documented() {
        let codes: HashSet<u8> = Exit::TABLE.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes.len(), Exit::TABLE.len());
        assert!(
            !codes.contains(&126) && !codes.contains(&127),
            "a workload's own"
        );
        for (exit, _) in Exit::TABLE {
            assert!(table().contains(&format!(" {}  ", exit.code())), "{exit:?}");
        }
    }

    #[test]
    fn a_workload_that_a_signal_ended_exits_above_128() {
        assert_eq!(signal_code(9), 137);
        assert_eq!(own_code(7), 7);
        assert_eq!(own_code(-1), 255);
    }

    #[test]
    fn causes_are_said_once_and_a_hint_comes_last() {
        let inner = anyhow::anyhow!("file not there").context("can't read x: file not there");
        let text = Failure::caused(Exit::Failed, inner)
            .hint("make it")
            .to_string();
        assert_eq!(text, "pronto: can't read x: file not there\nhint: make it");
    }
}
