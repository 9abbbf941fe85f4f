//! Commands about instances and nodes, and the small answers to them.
//!
//! A command for a node begins with the node's name, so that the scheduler routes it by decoding
//! [`ToNode`] alone and forwards what stands behind. What comes from a node goes up with
//! [`FromNode`] in front, written by the scheduler from the certificate of the sender.

use crate::codec::{Invalid, Payload, check_name, check_text};
use crate::hello::Mode;
use crate::ids::{Attempt, InstanceId, OwnerId, Term, Version};
use crate::limits;
use crate::place::AttemptId;
use bincode::{Decode, Encode};

/// In front of STOP, DELETE, SET_MODE, INVENTORY, ACK and STREAM_OPEN from a controller; taken off
/// by the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ToNode {
    pub node: String,
}

impl Payload for ToNode {
    fn check(&self) -> Result<(), Invalid> {
        check_name("node", &self.node)
    }
}

/// In front of INSTANCE_CHANGED, INVENTORY, DONE, STOP_FAILURE and DELETE_FAILURE to a controller;
/// put there by the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FromNode {
    pub node: String,
}

impl Payload for FromNode {
    fn check(&self) -> Result<(), Invalid> {
        check_name("node", &self.node)
    }
}

/// COMMAND STOP: ends every attempt of the instance up to this one, heard of or not. Repeated by
/// the controller until DONE or the attempt's end is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Stop {
    pub owner: OwnerId,
    pub instance: InstanceId,
    /// This attempt and all before it.
    pub attempt: Attempt,
    /// Between SIGTERM and SIGKILL; absent: what the START said.
    pub grace_ms: Option<u64>,
}

impl Payload for Stop {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// COMMAND DELETE: forgets an ended instance, its logs and its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Delete {
    pub owner: OwnerId,
    pub instance: InstanceId,
}

impl Payload for Delete {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// COMMAND SET_MODE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SetMode {
    pub mode: Mode,
}

impl Payload for SetMode {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// COMMAND INVENTORY: send all that you keep for this owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PullInventory {
    pub owner: OwnerId,
}

impl Payload for PullInventory {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// COMMAND ACK: this version of the attempt's state is committed; an ended one may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ack {
    pub id: AttemptId,
    pub version: Version,
}

impl Payload for Ack {
    fn check(&self) -> Result<(), Invalid> {
        self.id.check()
    }
}

/// COMMAND ACTIVATE, controller to scheduler: be the active one, with this term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Activate {
    pub term: Term,
    /// Placements wait until nine tenths of these are connected, or five seconds.
    pub expected_nodes: u32,
}

impl Payload for Activate {
    fn check(&self) -> Result<(), Invalid> {
        if self.term.0 == 0 {
            Err(Invalid::new("term", "a number from 1"))
        } else {
            Ok(())
        }
    }
}

/// COMMAND GRANT, controller to scheduler: you may renew my leases for so long, counted from when
/// you ask for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Grant {
    pub grant_ms: u64,
}

impl Payload for Grant {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// ERROR STOP_FAILURE and DELETE_FAILURE: what was wrong and what is accepted, in words. The errors
/// of the session itself (INVALID_FRAME, UNAUTHORIZED, BUSY, UNSUPPORTED) carry the protocol's own
/// refusal, a code and a text.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Failure {
    pub text: String,
}

impl Payload for Failure {
    fn check(&self) -> Result<(), Invalid> {
        check_text("text", &self.text, limits::TEXT_BYTES)
    }
}
