//! What the core knows of one connected controller.

use super::leases::GrantState;
use super::outlet::SessionId;
use super::streams::Uncredited;
use crate::table::NodeIndex;
use pronto_payloads::ids::{ControllerEpoch, Generation, OwnerId};

/// One connected controller.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) session: SessionId,
    /// The name in its certificate.
    pub(crate) name: String,
    pub(crate) owner: OwnerId,
    pub(crate) epoch: ControllerEpoch,
    /// The term that its WELCOME told.
    pub(crate) told_term: u64,
    /// It does not read its answers: STARTs are refused, statistics coalesce until it does.
    pub(crate) brimming: bool,
    /// The generation of the first refusal since the last CAPACITY.
    pub(crate) refused_at: Option<Generation>,
    pub(crate) grant: GrantState,
    pub(crate) listing: Option<Listing>,
    pub(crate) bulk: Option<SessionId>,
    pub(crate) streams: usize,
    pub(crate) uncredited: Uncredited,
}

/// A REPLY NODES under way: page by page, so that 10,000 nodes stall nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listing {
    pub(crate) correlation: u64,
    /// The last node that was sent.
    pub(crate) after: Option<NodeIndex>,
}

impl Controller {
    pub(crate) fn has_pages_to_send(&self) -> bool {
        self.listing.is_some() && !self.brimming
    }
}
