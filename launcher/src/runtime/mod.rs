//! What runs workloads: one trait, and beside each other what implements it.
//!
//! A runtime executes and observes. It decides nothing: which attempt runs when, what an end is
//! worth and what is reported is the supervisor's. It keeps no books that the supervisor needs.
//!
//! - `docker`: containers of an engine;
//! - `exec`: processes, owned by the shim;
//! - `qemu`: virtual machines;
//! - `sim`: nothing, for a time.

pub mod docker;
pub mod exec;
pub mod qemu;
mod set;
pub mod sim;

pub use set::Runtimes;

use crate::moment::Moment;
use crate::supervisor::{Event, Job, StopCause};
pub use pronto_payloads::demand::Runtime as Kind;
use pronto_payloads::ids::OwnerId;
use pronto_payloads::instance::InstanceUsage;
use pronto_payloads::place::AttemptId;
use pronto_payloads::stream::StreamFailure;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// A future of a trait method.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where runtimes tell what happened. Cloned freely; never blocks.
///
/// It is unbounded because its readers' bound is elsewhere: an attempt causes at most five events
/// in its life, and attempts are bounded by the ledger.
#[derive(Clone, Debug)]
pub struct Events(mpsc::UnboundedSender<Event>);

impl Events {
    /// A sender and what the main loop reads.
    #[must_use]
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Tells the supervisor. Silently nothing once the launcher is ending.
    pub fn tell(&self, event: Event) {
        // A closed channel means that the process ends; the next one adopts.
        let _ = self.0.send(event);
    }
}

/// What [`Runtime::prepare`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It is ready: no event follows.
    Now,
    /// `Prepared` or `Failed` follows.
    Later,
}

/// Why something about a running instance could not be done, for a stream's end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    /// For programs.
    pub kind: StreamFailure,
    /// For people.
    pub text: String,
}

impl Refused {
    /// A refusal with its reason.
    pub fn new(kind: StreamFailure, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }

    /// This runtime can't do that.
    #[must_use]
    pub fn unsupported(runtime: Kind, what: &str) -> Self {
        Self::new(
            StreamFailure::Unsupported,
            format!("runtime {} can't {what}", runtime.name()),
        )
    }
}

/// A command that runs inside an instance. Dropping it ends the command.
pub struct ExecSession {
    /// What the command reads. A shutdown says that it is complete; the command reads no end of one
    /// that is dropped without.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// What it writes.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// What it complains.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// Its exit code, 128 + n for signal n.
    pub exit: BoxFuture<'static, Result<i32, Refused>>,
}

impl fmt::Debug for ExecSession {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ExecSession")
            .finish_non_exhaustive()
    }
}

/// One way to run workloads.
///
/// # Who calls what when
///
/// The shell's executor thread calls `prepare`, `start`, `stop`, `fence`, `remove` and `adopt`, one
/// at a time and in the supervisor's order, outside of any async context (a runtime that needs
/// tokio holds a `Handle`). These methods return quickly: they may make a directory or write to a
/// socket's buffer, never wait for an engine, a guest or a lock that is held across such a wait.
/// What takes longer goes on in a task of the runtime's own, which keeps the order of the calls
/// **for each attempt**. The outcome comes as events.
///
/// For one attempt:
///
/// ```text
/// adopt?  or  prepare ──▶ Prepared ──▶ start ──▶ Started ──▶ Ended ──▶ Emptied   then: remove
///                   └────▶ Failed        └─────▶ Failed
/// ```
///
/// - `prepare` is called once, after the attempt's directory and record are on disk. It makes all
///   that a start needs (directories, image, overlay, container) and runs nothing of the user's. The
///   directory of [`Runtime::files`] is there when `prepare` returns: inputs are copied into it.
/// - `start` is called at most once, after `Prepared` (or `Readiness::Now`).
/// - `stop` may come at any time after `prepare`, and more than once, also after the end. If
///   nothing was started, the answer is `Failed` with the stop's cause; otherwise the workload is
///   ended, gently first and by force after the grace, and `Ended` and `Emptied` follow.
/// - `Ended` says that the main process, container or guest has ended; `Emptied` that nothing of
///   it is left on the node and its resources are free. Both come exactly once. Files stay.
/// - `Failed` replaces all that would follow, and means that nothing of it is left.
/// - `remove` comes after `Emptied` or `Failed`, when the attempt's directory is about to go
///   (acknowledged and aged, or deleted): what the runtime keeps elsewhere goes now.
/// - After a restart of the launcher, `adopt` is called once with every attempt of this runtime
///   that has not been reported as empty, before anything else. For each, one `Adopted` follows.
///   Of what still runs, `Ended` and `Emptied` follow as if it had been started by this process.
///   An engine that does not answer yet delays `Adopted`; it does not make an attempt `Lost`.
/// - When the engine goes away and comes back, the runtime says so with its own offer (see
///   [`Offers`]) and adopts by itself; the supervisor notices nothing but the offer.
///
/// Output is written by the runtime to the attempt's directory through [`crate::logs::LogWriter`]
/// until `Emptied`; whoever follows a log reads until then and once more after.
///
/// The async methods are called from tokio tasks at any time between `Started` and `Emptied` and
/// may race with the end; they answer `NotFound` then.
pub trait Runtime: Send + Sync + fmt::Debug {
    /// Which one it is.
    fn kind(&self) -> Kind;

    /// Whether its work ends by itself `stop-after` its lease, even when this process is dead.
    fn fences(&self) -> bool {
        false
    }

    /// Makes ready what a start needs.
    fn prepare(&self, job: &Arc<Job>) -> Readiness;

    /// Starts it. `fence_at`: when it must be ended unless [`Runtime::fence`] moves that.
    fn start(&self, job: &Arc<Job>, fence_at: Option<Moment>);

    /// Ends it.
    fn stop(&self, id: AttemptId, cause: StopCause, grace_ms: u64);

    /// The lease of this owner's work lasts until then: each of its `stop-after` attempts is to be
    /// ended its own time after that.
    fn fence(&self, owner: OwnerId, lease_until: Moment) {
        let _ = (owner, lease_until);
    }

    /// Drops what is kept outside of the attempt's directory.
    fn remove(&self, id: AttemptId) {
        let _ = id;
    }

    /// Finds what became of attempts that an earlier process was given.
    fn adopt(&self, jobs: Vec<Arc<Job>>);

    /// Usage of what runs now.
    fn usages(&self) -> BoxFuture<'_, Vec<InstanceUsage>>;

    /// Runs a command inside a running instance, as its user, in its limits.
    fn exec(
        &self,
        id: AttemptId,
        command: Vec<String>,
    ) -> BoxFuture<'_, Result<ExecSession, Refused>> {
        let _ = (id, command);
        let refused = Refused::unsupported(self.kind(), "run a command inside an instance");
        Box::pin(async move { Err(refused) })
    }

    /// The live standard input of an instance whose START asked for one. A shutdown says
    /// that it is complete; processes read no end of one that is dropped without.
    fn stdin(
        &self,
        id: AttemptId,
    ) -> BoxFuture<'_, Result<Box<dyn AsyncWrite + Send + Unpin>, Refused>> {
        let _ = id;
        let refused = Refused::unsupported(self.kind(), "feed standard input");
        Box::pin(async move { Err(refused) })
    }

    /// The directory of the node in which the instance's relative paths lie, and the user and
    /// group that own what is copied there. Absent: files can't be copied.
    fn files(&self, job: &Job) -> Option<FileRoot>;
}

/// Where an instance's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRoot {
    /// The directory; nothing outside of it is read or written for relative paths.
    pub path: PathBuf,
    /// User id and group id of new files; absent: this process's own.
    pub owner: Option<(u32, u32)>,
}

/// Which runtimes are offered now, told to the supervisor when it changes.
///
/// Each runtime that can lose its engine holds a clone and calls [`Offers::set`].
#[derive(Clone, Debug)]
pub struct Offers {
    offered: Arc<std::sync::Mutex<Vec<Kind>>>,
    events: Events,
}

impl Offers {
    /// Offers these at first.
    #[must_use]
    pub fn new(offered: Vec<Kind>, events: Events) -> Self {
        Self {
            offered: Arc::new(std::sync::Mutex::new(offered)),
            events,
        }
    }

    /// Offers a runtime or takes the offer back.
    pub fn set(&self, kind: Kind, offered: bool) {
        let mut list = self
            .offered
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if list.contains(&kind) == offered {
            return;
        }
        if offered {
            list.push(kind);
        } else {
            list.retain(|other| *other != kind);
        }
        self.events.tell(Event::OfferChanged(list.clone()));
    }

    /// What is offered now.
    #[must_use]
    pub fn now(&self) -> Vec<Kind> {
        self.offered
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}
