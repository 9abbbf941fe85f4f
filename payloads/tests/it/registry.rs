//! Every payload type by name, so that one test can speak of all of them.

use pronto_payloads::codec::{DecodeError, decode, encode};
use pronto_payloads::{control, demand, hello, instance, node, place, start, stream};

/// What a decoded payload looks like without its type.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// Its `Debug` form.
    pub(crate) text: String,
    /// Encoded again.
    pub(crate) bytes: Vec<u8>,
}

/// A payload type.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) decode: fn(&[u8]) -> Result<Decoded, DecodeError>,
}

macro_rules! entries {
    ($($module:ident::{$($name:ident),+ $(,)?})+) => {
        &[$($(Entry {
            name: stringify!($name),
            decode: |bytes| {
                let value: $module::$name = decode(bytes)?;
                let text = format!("{value:?}");
                Ok(Decoded { text, bytes: encode(&value).to_vec() })
            },
        },)+)+]
    };
}

/// All types that implement [`Payload`]; a golden test compares this list with the sources.
pub(crate) const ENTRIES: &[Entry] = entries! {
    control::{
        Ack, Activate, Delete, Failure, FromNode, Grant, PullInventory, SetMode, Stop, ToNode,
    }
    demand::{Capacity, Constraint, Demand}
    hello::{BulkHello, ControllerHello, LauncherHello, OwnerSummary, SchedulerWelcome}
    instance::{InstanceReport, InstanceUsage, Inventory}
    node::{
        Label, Lease, NodeConnected, NodeDisconnected, NodeFacts, NodeStats, Nodes, Stats,
        StatsBatch, Status,
    }
    place::{
        AttemptId, CapacityGrown, CountedReason, Explain, Explanation, Placed, StartFailure,
        StartPrefix, StartStamp,
    }
    start::{EnvVar, StartBody, Task}
    stream::{StreamCredit, StreamEnd, StreamOpen}
};
