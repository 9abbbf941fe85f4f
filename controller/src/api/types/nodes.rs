//! Nodes, events, explanations and the controller's own state.

use super::spec::{ConstraintSpec, DemandSpec, RuntimeName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Where a node stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum NodeStateName {
    Ready,
    Full,
    Maintenance,
    /// In maintenance, and its work is being moved away.
    Draining,
    /// Not connected, for less than `lost_after`.
    Offline,
    /// Not connected for longer.
    Lost,
}

/// What a node has or what is free of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapacityView {
    pub cpu_millis: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    /// Thousandths of each device.
    pub gpu_millis: Vec<u16>,
    pub resources: BTreeMap<String, u32>,
}

/// Measured load, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeLoadView {
    pub load1_hundredths: u32,
    pub cpu_used_millis: u32,
    pub cpu_total_millis: u32,
    pub memory_used_mib: u32,
    pub memory_total_mib: u32,
    pub disk_used_mib: u32,
    pub disk_total_mib: u32,
    pub uptime_s: u64,
    pub instances: u32,
}

/// One compute node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    pub name: String,
    pub state: NodeStateName,
    /// Why it is full or offline, in words; may be empty.
    pub reason: String,
    pub hostname: String,
    pub address: String,
    pub allocatable: CapacityView,
    /// What placement may still promise; absent until its first statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available: Option<CapacityView>,
    pub labels: BTreeMap<String, String>,
    pub runtimes: Vec<RuntimeName>,
    pub isolation: String,
    pub acceleration: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<NodeLoadView>,
    /// Living instances of this controller on it.
    pub instances: u32,
    pub session_epoch: u64,
    /// For how long it has not been connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnected_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Attempts on it that this controller's store does not know; administrators only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<Uuid>,
}

/// Nodes by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    pub nodes: Vec<Node>,
}

/// A drain under way, or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// When what is left will be stopped or moved.
    #[schema(value_type = String, format = DateTime)]
    pub deadline_at: Timestamp,
    /// Living instances left.
    pub remaining: u32,
    pub done: bool,
}

/// Puts a node into maintenance and moves its work away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DrainRequest {
    /// Work that may be restarted is moved at once; the rest may go on until then. Default one
    /// hour; 0: everything at once.
    pub deadline_ms: u64,
}

impl Default for DrainRequest {
    fn default() -> Self {
        Self {
            deadline_ms: 3_600_000,
        }
    }
}

/// The query of a node's deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteNodeQuery {
    /// The administrator swears that nothing runs there any more (power off, disk wiped): what
    /// was on it is lost at once, also work that must never run twice.
    pub fenced: Option<bool>,
}

/// Filters and paging of a list of events. Newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListEvents {
    pub tenant: Option<String>,
    pub instance: Option<Uuid>,
    pub node: Option<String>,
    /// A kind, such as `node_lost`; or a prefix that ends in `*`.
    pub kind: Option<String>,
    /// 1 to 1000, default 100.
    pub limit: Option<u32>,
    /// The `next` of the page before.
    pub after: Option<u64>,
    /// Answer with server-sent events: what happens from now on.
    pub follow: Option<bool>,
}

/// One line of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventRecord {
    /// Rises; 0 for one that has not been numbered yet.
    pub number: u64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Snake case, such as `instance_stopped_by_user`.
    pub kind: String,
    pub severity: Severity,
    /// Who: `user/TENANT/NAME`, `admin/NAME`, `node/NAME` or `controller`.
    pub actor: String,
    /// From where: an address; empty if it was the controller itself.
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    pub instance: Option<Uuid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// In words.
    pub message: String,
}

/// How urgent an event is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    /// Somebody must act.
    Alarm,
}

/// One page of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    pub events: Vec<EventRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// Would this fit? Either an instance or a demand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExplainRequest {
    /// An id, a short id or a name.
    pub instance: Option<String>,
    pub tenant: Option<String>,
    pub runtime: Option<RuntimeName>,
    pub demand: Option<DemandSpec>,
    pub constraints: Vec<ConstraintSpec>,
}

/// Whether it would fit, and if not, why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainResponse {
    /// Connected nodes.
    pub nodes: u32,
    /// Nodes that would take it now.
    pub fits: u32,
    /// Where it would be placed; administrators only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// For the nodes that would not, most frequent first.
    pub reasons: Vec<ExplainReason>,
    /// Why the tenant's policy or quota would refuse it, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// For an instance: why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
}

/// A reason and how many nodes it holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainReason {
    pub nodes: u32,
    /// Stable for scripts: `maintenance`, `reports_full`, `queue_full`, `backed_off`, `schema`,
    /// `runtime`, `not_this_node`, `label`, `too_small`, `lacks`; `offline` and `unknown_node` tell of
    /// the node that was asked for, which is not among the connected ones.
    pub reason: String,
    /// In words: `40 nodes lack memory`.
    pub text: String,
}

/// The controller and what it is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    /// The store's id.
    pub owner: Uuid,
    /// Raised at each start.
    pub epoch: u64,
    pub uptime_ms: u64,
    pub scheduler: SchedulerStatus,
    /// Living instances of all tenants (a user's: its own) by state.
    pub instances: BTreeMap<String, u64>,
    pub pending_classes: u32,
    pub nodes_connected: u32,
    pub nodes_known: u32,
    /// Rescheduling is suspended: too many nodes vanished together.
    pub rescheduling_suspended: bool,
    /// What somebody must look at, in words; administrators only.
    pub alarms: Vec<String>,
    pub store: StoreStatus,
}

/// The session to the scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SchedulerStatus {
    pub connected: bool,
    /// Its address; administrators only.
    pub address: String,
    pub active: bool,
    pub term: u64,
}

/// The store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    pub schema: u32,
    pub commits: u64,
    /// The last commit's duration.
    pub last_commit_ns: u64,
    /// The disk refused a write for lack of room; submissions are refused.
    pub full: bool,
}
