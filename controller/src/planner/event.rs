//! Everything that can reach the planner, and everything that it can ask for.

use crate::api::types::ConstraintSpec;
use crate::api::types::{
    CreateTenant, CreateWorkload, DemandSpec, ErrorBody, ErrorCode, ExplainResponse, Instance,
    InstanceState, Node, Quota, RuntimeName, Spec, SpecOverrides, Status, Submission,
    SubmitResponse, Tenant, TimelineStep, UpdateQuota, UpdateTenant, Workload,
};
use crate::store::{AfterStop, Batch, EventRow, Past};
use pronto_payloads::hello::SchedulerWelcome;
use pronto_payloads::ids::{InstanceId, Term};
use pronto_protocol::frame::Frame;
use std::sync::Arc;
use uuid::Uuid;

/// The time, as it is given to the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Of a clock that never goes back, from any origin; negative times are before it.
    pub mono_ns: i64,
    /// Of the wall clock, for people.
    pub unix_ms: u64,
}

/// Names a request, for its reply. Chosen by the shell, unique while the request is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    pub kind: ActorKind,
    /// The name in the certificate.
    pub name: String,
    /// The address that it asks from.
    pub source: String,
}

/// In which capacity somebody asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActorKind {
    Admin,
    /// Of this tenant, and sees nothing else.
    User(Arc<str>),
}

impl Actor {
    /// The tenant beyond which it sees nothing; absent: it sees all.
    #[must_use]
    pub const fn scope(&self) -> Option<&Arc<str>> {
        match &self.kind {
            ActorKind::Admin => None,
            ActorKind::User(tenant) => Some(tenant),
        }
    }

    /// As the audit trail names it.
    #[must_use]
    pub fn title(&self) -> String {
        match &self.kind {
            ActorKind::Admin => format!("admin/{}", self.name),
            ActorKind::User(tenant) => format!("user/{tenant}/{}", self.name),
        }
    }
}

/// The closed list of what can wake the planner.
#[derive(Clone, Debug)]
pub enum Event {
    /// A user or an administrator wants something.
    Request {
        token: Token,
        actor: Actor,
        call: Box<Call>,
    },
    /// A scheduler has answered HELLO with WELCOME.
    SessionUp(SessionUp),
    /// The session to the scheduler is gone.
    SessionDown { reason: String },
    /// A frame came from the scheduler.
    Frame(Frame),
    /// All batches up to this number are durable.
    CommitDone {
        number: u64,
        /// The disk is full: the admissions among them were left out.
        admissions_refused: bool,
        took_ns: u64,
    },
    /// The answer to [`Effect::Lookup`].
    LookedUp { lookup: u64, past: Past },
    /// Time has passed.
    Tick,
}

/// What a WELCOME said.
#[derive(Clone, Debug)]
pub struct SessionUp {
    pub address: String,
    pub term: Term,
    pub active: bool,
    pub welcome: SchedulerWelcome,
}

/// What can be asked of the planner.
#[derive(Clone, Debug)]
pub enum Call {
    Submit(Box<SubmitCall>),
    /// Finds living instances by id, suffix or name.
    Resolve {
        text: String,
        tenant: Option<String>,
    },
    /// Where a living instance is.
    Locate(InstanceId),
    /// Somebody runs a command in an instance, or reads or writes a file of it: for the record.
    Enter {
        id: InstanceId,
        kind: &'static str,
        message: String,
    },
    /// A living instance, its spec and its timeline.
    Show(InstanceId),
    /// Living instances.
    List(LiveFilter),
    Submission(Uuid),
    Stop {
        id: InstanceId,
        grace_ms: Option<u64>,
        then: AfterStop,
    },
    /// A tombstone for an instance that has ended.
    Forget {
        id: InstanceId,
        tenant: Arc<str>,
        seq: u64,
        node: Option<Arc<str>>,
        /// [`Reply::Ended`].
        as_of: u64,
    },
    /// A new attempt of an instance that has ended.
    Reopen(Box<ReopenCall>),
    Tenants,
    Tenant(String),
    CreateTenant(CreateTenant),
    UpdateTenant(String, UpdateTenant),
    DeleteTenant(String),
    UpdateQuota(String, UpdateQuota),
    Workloads(Option<String>),
    Workload {
        tenant: Option<String>,
        name: String,
    },
    /// `replace`: it must exist already.
    PutWorkload {
        workload: Box<CreateWorkload>,
        replace: bool,
    },
    DeleteWorkload {
        tenant: Option<String>,
        name: String,
    },
    Nodes,
    Node(String),
    Drain(DrainCall),
    Restore(String),
    DeleteNode {
        node: String,
        fenced: bool,
    },
    Explain {
        runtime: RuntimeName,
        demand: DemandSpec,
        constraints: Vec<ConstraintSpec>,
        tenant: Option<String>,
        instance: Option<InstanceId>,
    },
    Status,
    ResumeRescheduling,
}

/// An admission, with what only the shell can give.
#[derive(Clone, Debug)]
pub struct SubmitCall {
    pub tenant: Option<String>,
    pub request: Uuid,
    /// Of the request's content.
    pub digest: u64,
    pub name: Option<String>,
    pub count: u32,
    pub workload: Option<String>,
    pub spec: Option<Spec>,
    pub overrides: SpecOverrides,
    /// When the request was read.
    pub received_ns: i64,
    /// Random; see [`crate::numbers`].
    pub nonce: u64,
}

/// An ended instance as it was read from the store.
#[derive(Clone, Debug)]
pub struct ReopenCall {
    pub id: InstanceId,
    pub seq: u64,
    pub submission: crate::store::SubmissionRow,
    pub spec: crate::store::SpecRow,
    pub end: crate::store::EndRow,
    /// The ended instances of its submission by state, itself included.
    pub ended: Vec<(InstanceState, u32)>,
    /// [`Reply::Ended`].
    pub as_of: u64,
}

/// A drain and its deadline.
#[derive(Clone, Debug)]
pub struct DrainCall {
    pub node: String,
    pub deadline_ms: u64,
}

/// Which living instances.
#[derive(Clone, Debug, Default)]
pub struct LiveFilter {
    pub tenant: Option<String>,
    /// Empty: all.
    pub states: Vec<InstanceState>,
    pub node: Option<String>,
    pub workload: Option<String>,
    pub name: Option<String>,
    pub labels: Vec<(String, String)>,
    pub submission: Option<Uuid>,
    /// Only those numbered below.
    pub before: Option<u64>,
    pub limit: usize,
}

/// What the planner answers.
#[derive(Clone, Debug)]
pub enum Reply {
    Done,
    Submitted(SubmitResponse),
    Resolved(Resolved),
    Located(Located),
    Shown {
        instance: Box<Instance>,
        spec: Arc<Spec>,
        timeline: Vec<TimelineStep>,
    },
    Listed(Vec<(u64, Instance)>),
    Instance(Box<Instance>),
    /// It is not alive; it may be in the store.
    NotLiving,
    /// What was to be stopped is not alive. What is read of it in the store from now on has all that
    /// was done to ended instances up to this number.
    Ended {
        as_of: u64,
    },
    Submission(Submission),
    Tenants(Vec<Tenant>),
    Tenant(Box<Tenant>),
    Quota(Quota),
    Workloads(Vec<Workload>),
    Workload(Box<Workload>),
    Nodes(Vec<Node>),
    Node(Box<Node>),
    Explained(ExplainResponse),
    Status(Box<Status>),
}

/// What a short form of an id may mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    pub living: Vec<InstanceId>,
    /// Numbers of ended instances whose ids may match; the store knows.
    pub past: Vec<u64>,
}

/// Where an instance is.
#[derive(Clone, Debug)]
pub struct Located {
    pub seq: u64,
    pub state: InstanceState,
    /// Its node, once it is placed.
    pub node: Option<Arc<str>>,
    pub attempt: u32,
    /// The attempt before, and where it was, as far as this process knows.
    pub previous: Option<(u32, Arc<str>)>,
}

/// Why a request is not granted.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    pub body: ErrorBody,
    pub retry_after_ms: Option<u64>,
}

impl Refused {
    /// A refusal in words.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            body: ErrorBody {
                code,
                message: message.into(),
                hint: None,
                details: None,
            },
            retry_after_ms: None,
        }
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    /// With facts for scripts.
    #[must_use]
    pub fn details(mut self, details: serde_json::Value) -> Self {
        self.body.details = Some(details);
        self
    }

    /// With a time after which to ask again.
    #[must_use]
    pub const fn retry_after(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// It does not exist, or is somebody else's: the two are told alike.
    #[must_use]
    pub fn not_found(what: &str, name: &str) -> Self {
        Self::new(ErrorCode::NotFound, format!("no {what} {name}"))
    }
}

/// The closed list of what the planner can ask of its shell, to be done in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Make it durable, then answer with [`Event::CommitDone`].
    Commit(Batch),
    /// Send it to the scheduler.
    Send(Frame),
    Reply {
        token: Token,
        reply: Result<Reply, Refused>,
    },
    /// An instance has changed: for those who watch it.
    Changed(Change),
    /// A line of the audit trail is durable: for those who follow it.
    Recorded(EventRow),
    /// Look an instance of the past up in the store, then answer with [`Event::LookedUp`].
    Lookup { lookup: u64, id: InstanceId },
    /// Give the session to the scheduler up and try the next.
    DropSession { reason: String },
    /// For the operator's log.
    Warn(String),
}

/// An instance has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub id: InstanceId,
    pub seq: u64,
    pub tenant: Arc<str>,
    pub submission: Uuid,
    /// With this all of its submission has ended.
    pub submission_ended: bool,
    pub state: InstanceState,
    /// Its node, once it is placed.
    pub node: Option<Arc<str>>,
    /// For an end state: when it was on disk, since the submission.
    pub end_committed_ns: Option<u64>,
}
