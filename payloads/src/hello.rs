//! The bodies of HELLO and WELCOME: what each role says of itself behind the protocol's own part.

use crate::codec::{Invalid, Payload, check_each};
use crate::ids::{BootId, ControllerEpoch, NodeUuid, OwnerId, Term};
use crate::limits;
use crate::node::NodeFacts;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// What a launcher keeps for one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OwnerSummary {
    pub owner: OwnerId,
    pub attempts: u32,
    /// The wrapping sum of [`crate::instance::digest_item`] over them.
    pub digest: u64,
    /// The highest epoch of this owner that the launcher has seen.
    pub epoch: ControllerEpoch,
}

impl Payload for OwnerSummary {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// A node's mode, persisted by its launcher and asserted again by the controller that has drained it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Ready,
    Maintenance,
}

/// A launcher's HELLO on a control session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LauncherHello {
    pub node_uuid: NodeUuid,
    pub boot_id: BootId,
    /// The highest term of a scheduler that it has seen.
    pub term: Term,
    pub mode: Mode,
    pub facts: NodeFacts,
    pub owners: Vec<OwnerSummary>,
}

impl Payload for LauncherHello {
    fn check(&self) -> Result<(), Invalid> {
        self.facts.check()?;
        check_each("owners", &self.owners, limits::OWNERS)
    }
}

/// A controller's HELLO on a control session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ControllerHello {
    pub owner: OwnerId,
    pub epoch: ControllerEpoch,
}

impl Payload for ControllerHello {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// The HELLO of a bulk session: it belongs to the control session of the same certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BulkHello {
    /// A controller's owner; absent for a launcher.
    pub owner: Option<OwnerId>,
}

impl Payload for BulkHello {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// The body of WELCOME, to launchers and controllers alike.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SchedulerWelcome {
    /// Statistics are wanted this often.
    pub stats_interval_ms: u64,
    /// A lease lasts this long.
    pub lease_ms: u64,
    /// STARTs that a controller may have unanswered.
    pub start_window: u32,
    /// To a controller: the highest epoch of its owner that any connected launcher has reported.
    pub owner_epoch: ControllerEpoch,
    /// Nodes connected now.
    pub nodes: u32,
}

impl Payload for SchedulerWelcome {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}
