//! What a launcher says of its node: facts at HELLO, capacity in READY, statistics for people.

use crate::codec::{Invalid, Payload, check_each, check_len, check_name, check_text, check_value};
use crate::demand::{Capacity, Runtime};
use crate::ids::{NodeUuid, Seq, SessionEpoch, Term};
use crate::instance::InstanceUsage;
use crate::limits;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// A label of a node.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
pub struct Label {
    pub key: String,
    pub value: String,
}

impl Payload for Label {
    fn check(&self) -> Result<(), Invalid> {
        check_name("label key", &self.key)?;
        check_value("label value", &self.value)
    }
}

/// What does not change while a session lasts.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct NodeFacts {
    pub hostname: String,
    /// Where its published ports are reached; may be empty.
    pub address: String,
    /// All that it could give if nothing ran.
    pub allocatable: Capacity,
    /// Sorted by key. Among them without configuration: `arch`, `kernel`, `cpu.model`, `cores`,
    /// `gpu.model`, `hostname`.
    pub labels: Vec<Label>,
    pub runtimes: Vec<Runtime>,
    pub schema_min: u16,
    pub schema_max: u16,
    /// What enforces limits: `cgroup2`, `cgroup1` or `rlimit`.
    pub isolation: String,
    /// Virtual machines: `kvm`, `tcg` or empty.
    pub acceleration: String,
}

impl Payload for NodeFacts {
    fn check(&self) -> Result<(), Invalid> {
        check_value("hostname", &self.hostname)?;
        check_value("address", &self.address)?;
        self.allocatable.check()?;
        check_each("labels", &self.labels, limits::LABELS)?;
        if self
            .labels
            .windows(2)
            .any(|pair| pair[0].key >= pair[1].key)
        {
            return Err(Invalid::new("labels", "distinct keys in ascending order"));
        }
        check_len("runtimes", self.runtimes.len(), Runtime::ALL.len())?;
        if self.schema_min > self.schema_max {
            return Err(Invalid::new("schema_min", "at most schema_max"));
        }
        check_value("isolation", &self.isolation)?;
        check_value("acceleration", &self.acceleration)
    }
}

/// STATUS READY, FULL, MAINTENANCE or OFFLINE: exact capacity, snapshotted when the frame is
/// encoded.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Status {
    pub session_epoch: SessionEpoch,
    /// All STARTs of the session up to this one are debited in `free`, rejected ones included.
    pub applied_seq: Seq,
    /// Allocatable less the demands in the durable ledger.
    pub free: Capacity,
    /// Runtimes offered now: an engine may go away and come back.
    pub runtimes: Vec<Runtime>,
    /// Why FULL, for people; empty otherwise.
    pub reason: String,
}

impl Payload for Status {
    fn check(&self) -> Result<(), Invalid> {
        self.free.check()?;
        check_len("runtimes", self.runtimes.len(), Runtime::ALL.len())?;
        check_text("reason", &self.reason, limits::TEXT_BYTES)
    }
}

/// REPLY LEASE: the answer to a status that asked for one (frame flag WANT_REPLY).
///
/// The lease runs from the moment at which the launcher **sent** that status.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lease {
    pub term: Term,
    pub lease_ms: u64,
    /// Owners whose own grant to the scheduler is fresh: only their `stop-after` work is renewed.
    pub owners: Vec<crate::ids::OwnerId>,
}

impl Payload for Lease {
    fn check(&self) -> Result<(), Invalid> {
        check_len("owners", self.owners.len(), limits::OWNERS)
    }
}

/// Measured load of a node: for people, never for placement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Load average over a minute, in hundredths.
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

/// EVENT STATS, launcher to scheduler, every second by default. A later one replaces an earlier
/// one that has not been passed on.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Stats {
    pub load: NodeLoad,
    pub usages: Vec<InstanceUsage>,
}

impl Payload for Stats {
    fn check(&self) -> Result<(), Invalid> {
        check_each("usages", &self.usages, limits::PAGE)
    }
}

/// What the scheduler knows of a node's readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Ready,
    Full,
    Maintenance,
    Offline,
}

/// One node in a batch of statistics, as the scheduler passes it to a controller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeStats {
    pub node: String,
    pub state: NodeState,
    /// What placement may still promise: reported less reserved.
    pub available: Capacity,
    /// Runtimes offered now.
    pub runtimes: Vec<Runtime>,
    /// Why FULL, for people; empty otherwise.
    pub reason: String,
    pub load: NodeLoad,
    /// Only the receiving owner's instances.
    pub usages: Vec<InstanceUsage>,
}

impl Payload for NodeStats {
    fn check(&self) -> Result<(), Invalid> {
        check_name("node", &self.node)?;
        self.available.check()?;
        check_len("runtimes", self.runtimes.len(), Runtime::ALL.len())?;
        check_text("reason", &self.reason, limits::TEXT_BYTES)?;
        check_each("usages", &self.usages, limits::PAGE)
    }
}

/// EVENT STATS, scheduler to controller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StatsBatch {
    pub generation: crate::ids::Generation,
    pub nodes: Vec<NodeStats>,
}

impl Payload for StatsBatch {
    fn check(&self) -> Result<(), Invalid> {
        check_each("nodes", &self.nodes, limits::NODE_PAGE)
    }
}

/// EVENT NODE_CONNECTED, and one entry of a REPLY NODES.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeConnected {
    /// The name in the launcher's certificate.
    pub node: String,
    pub node_uuid: NodeUuid,
    pub boot_id: crate::ids::BootId,
    pub session_epoch: SessionEpoch,
    pub state: NodeState,
    /// How many attempts it keeps for the receiving owner.
    pub attempts: u32,
    /// The sum of their [`crate::instance::digest_item`].
    pub digest: u64,
    pub facts: NodeFacts,
}

impl Payload for NodeConnected {
    fn check(&self) -> Result<(), Invalid> {
        check_name("node", &self.node)?;
        self.facts.check()
    }
}

/// EVENT NODE_DISCONNECTED.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeDisconnected {
    pub node: String,
    pub session_epoch: SessionEpoch,
    /// It said OFFLINE before it went.
    pub orderly: bool,
    pub reason: String,
}

impl Payload for NodeDisconnected {
    fn check(&self) -> Result<(), Invalid> {
        check_name("node", &self.node)?;
        check_text("reason", &self.reason, limits::TEXT_BYTES)
    }
}

/// REPLY NODES: one page of all connected nodes; the last has the frame flag LAST.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Nodes {
    pub nodes: Vec<NodeConnected>,
}

impl Payload for Nodes {
    fn check(&self) -> Result<(), Invalid> {
        check_each("nodes", &self.nodes, limits::NODE_PAGE)
    }
}
