//! Instances, submissions and the streams of an instance.

use super::EventRecord;
use super::spec::{ConstraintSpec, DemandSpec, RuntimeName, Spec, SpecOverrides};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// One instance, or several alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitRequest {
    /// Chosen by the client. The same id again returns the first answer, and starts nothing;
    /// with another body it is a conflict. Absent: the controller chooses one.
    #[serde(default)]
    pub request_id: Option<Uuid>,
    /// An administrator may submit for any tenant, a user for its own. Absent: the user's own,
    /// an administrator's `default`.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Unique among the tenant's living instances. With a `count` above one, `-1`, `-2` … follow.
    #[serde(default)]
    pub name: Option<String>,
    /// 1 to 100,000. All are admitted or none.
    #[serde(default = "one")]
    pub count: u32,
    /// A workload of the tenant; excludes `spec`.
    #[serde(default)]
    pub workload: Option<String>,
    /// What to run; excludes `workload`.
    #[serde(default)]
    pub spec: Option<Spec>,
    /// Changes to the workload's spec; only with `workload`.
    #[serde(default)]
    pub overrides: SpecOverrides,
}

const fn one() -> u32 {
    1
}

impl SubmitRequest {
    /// One ad-hoc instance under the caller's own tenant.
    #[must_use]
    pub fn ad_hoc(request_id: Uuid, spec: Spec) -> Self {
        Self {
            request_id: Some(request_id),
            tenant: None,
            name: None,
            count: 1,
            workload: None,
            spec: Some(spec),
            overrides: SpecOverrides::default(),
        }
    }
}

/// What was admitted, committed to disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SubmitResponse {
    /// The request id: names the submission.
    pub submission: Uuid,
    pub tenant: String,
    /// In order of submission.
    #[schema(value_type = Vec<Uuid>)]
    pub instances: Vec<Uuid>,
    /// This request id was seen before; nothing new was started.
    pub repeated: bool,
    /// How long the admission's commit to disk took.
    pub commit_ns: u64,
}

/// Where an instance stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Waiting for room, for its turn or for a back-off.
    Pending,
    /// A START is under way to the scheduler.
    Placing,
    /// On its way to a node, or being prepared there.
    Starting,
    Running,
    Succeeded,
    Failed,
    Stopped,
    NodeLost,
    Expired,
    Cancelled,
}

impl InstanceState {
    /// All states, living ones first.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Placing,
        Self::Starting,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Stopped,
        Self::NodeLost,
        Self::Expired,
        Self::Cancelled,
    ];

    /// Whether it is an end state.
    #[must_use]
    pub const fn is_end(self) -> bool {
        !matches!(
            self,
            Self::Pending | Self::Placing | Self::Starting | Self::Running
        )
    }

    /// As in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Placing => "placing",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::NodeLost => "node_lost",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    #[schema(value_type = Uuid)]
    pub id: Uuid,
    pub tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    pub submission: Uuid,
    pub state: InstanceState,
    /// A stop was asked for and has not been confirmed.
    #[serde(default)]
    pub stopping: bool,
    pub runtime: RuntimeName,
    pub demand: DemandSpec,
    #[serde(default)]
    pub constraints: Vec<ConstraintSpec>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub priority: i16,
    /// The current attempt, from 1: a new number for each that may run beside or after another.
    pub attempt: u32,
    /// Restarts by policy or by a user.
    pub restarts: u32,
    /// New attempts for the node's fault.
    pub reschedules: u32,
    /// Where the current attempt is, or the last one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why it waits, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    pub submitted_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<EndRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageView>,
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndRecord {
    pub cause: EndReason,
    /// The workload's own exit code, where it had one (126 and 127 as a shell has them).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// In words, for the tenant.
    #[serde(default)]
    pub message: String,
}

/// Why an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    Exited,
    Signaled,
    OutOfMemory,
    TimedOut,
    Stopped,
    LeaseExpired,
    CannotExecute,
    /// No node would take it.
    Rejected,
    NodeFailed,
    NodeLost,
    /// Its pending timeout ran out.
    PendingTimeout,
    /// Cancelled before it was placed.
    Cancelled,
}

/// What an instance has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageView {
    pub cpu_ms: u64,
    pub memory_mib: u32,
    pub memory_peak_mib: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub pids: u32,
}

/// One instance with everything about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceDetail {
    pub instance: Instance,
    /// Environment values are `***` unless `?reveal=env` was asked by the owner.
    pub spec: Spec,
    pub timeline: Vec<TimelineStep>,
    /// Its latest events, oldest first.
    pub events: Vec<EventRecord>,
}

/// The steps of a start, in their order.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The request was read.
    Submitted,
    /// Policy admitted it.
    Admitted,
    /// The admission is on disk.
    Committed,
    /// The START of the last attempt was sent.
    Dispatched,
    /// The scheduler answered with a node.
    Placed,
    /// The node has it (computed from its own durations).
    Received,
    Started,
    /// Its end was seen by the node.
    Ended,
    /// The end reached the controller.
    EndReported,
    /// The end is on disk; told by the output that was followed to it.
    EndCommitted,
}

/// One step of the last attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimelineStep {
    pub step: Step,
    /// Since `submitted`.
    pub offset_ns: u64,
    /// Since the step before.
    pub delta_ns: u64,
}

/// Filters and paging of a list of instances. Newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListInstances {
    /// Administrators only; a user sees its own tenant's.
    pub tenant: Option<String>,
    /// Comma-separated states; `live` and `ended` name groups.
    pub state: Option<String>,
    pub node: Option<String>,
    pub workload: Option<String>,
    pub name: Option<String>,
    /// `KEY=VALUE`, several comma-separated; all must hold.
    pub label: Option<String>,
    /// Only those of this submission.
    pub submission: Option<Uuid>,
    /// 1 to 1000, default 100.
    pub limit: Option<u32>,
    /// The `next` of the page before.
    pub after: Option<String>,
    /// Answer with server-sent events: what matches now, then every change.
    pub watch: Option<bool>,
}

/// One page of instances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceList {
    pub instances: Vec<Instance>,
    /// Give it as `after` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The progress of one submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Submission {
    pub submission: Uuid,
    pub tenant: String,
    pub count: u32,
    /// Every state that at least one instance is in.
    pub states: BTreeMap<String, u32>,
    /// How many are in an end state.
    pub ended: u32,
    /// Attempts beyond the first, over all of its instances that live.
    pub retries: u32,
    #[schema(value_type = String, format = DateTime)]
    pub submitted_at: Timestamp,
}

/// Ends an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StopRequest {
    /// Between SIGTERM and SIGKILL; absent: what its spec says; 0: kill at once.
    pub grace_ms: Option<u64>,
}

/// A new attempt of an instance that runs or has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RestartRequest {
    pub grace_ms: Option<u64>,
}

/// Which output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OutputQuery {
    /// Go on until the instance has ended; the last frame then has its end.
    pub follow: Option<bool>,
    /// Default true.
    pub stdout: Option<bool>,
    /// Default true.
    pub stderr: Option<bool>,
    pub since_ms: Option<u64>,
    pub tail_bytes: Option<u64>,
    /// The kept log of this attempt, which is not followed. Default: of the last, and with
    /// `follow=true` of each from there on.
    pub attempt: Option<u32>,
    pub tenant: Option<String>,
}

/// The last frame of an output stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutputEnd {
    /// As it stands now; in an end state if the output was followed.
    pub instance: Instance,
    pub timeline: Vec<TimelineStep>,
    /// The output could not be read, or not to its end, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A command inside a running instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    pub command: Vec<String>,
}

/// The last frame of an exec stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecEnd {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Which file to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FileQuery {
    /// Relative to the instance's directory.
    pub path: String,
    #[serde(default)]
    pub tenant: Option<String>,
}

/// Which file to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PutFileQuery {
    /// Relative to the instance's directory.
    pub path: String,
    /// Permission bits, decimal; default 420 (0644).
    #[serde(default)]
    pub mode: Option<u32>,
    /// Counts for `await_inputs`.
    #[serde(default)]
    pub input: Option<bool>,
    #[serde(default)]
    pub tenant: Option<String>,
}

/// The last frame of a file's stream, and the answer to a PUT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileEnd {
    pub bytes: u64,
    /// In hex.
    pub sha256: String,
    /// Of an answer to a PUT: which attempt of the instance has the file. Another begins without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Which files to list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListingQuery {
    /// A glob relative to the instance's directory; default `*`.
    #[serde(default)]
    pub pattern: Option<String>,
    #[serde(default)]
    pub tenant: Option<String>,
}

/// Paths that match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileListing {
    pub paths: Vec<String>,
}

/// The query of a submission's progress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SubmissionQuery {
    /// Answer as soon as all of it has ended, and after so many milliseconds at the latest, at most
    /// 30,000. [default: 0, at once]
    pub wait_ms: Option<u64>,
}

/// The query of a route about one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OneQuery {
    /// Administrators: look a short id or a name up in this tenant.
    pub tenant: Option<String>,
    /// `env`: show environment values; only their owner may.
    pub reveal: Option<String>,
}
