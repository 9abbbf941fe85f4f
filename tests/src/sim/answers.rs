//! Rule 1 on the wire: each START of a controller is answered once, in its turn, and truly.
//!
//! What is counted here is what crosses the network, beside the daemons' own books: a START that a
//! session carries, its PLACED or START_FAILURE on the same session, and the START that reaches the
//! launcher which PLACED named. A session that ends takes its unanswered STARTs with it.

use super::net::ConnId;
use pronto_payloads::place::{AttemptId, Placed};
use std::collections::{BTreeMap, VecDeque};

/// A START of some session of a launcher.
type Place = (String, u64, u64);

/// What was asked, and what was answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// STARTs that wait for their answer, by correlation, oldest first.
    waiting: BTreeMap<ConnId, VecDeque<(u64, AttemptId)>>,
    /// What was said to be where, or has come there.
    places: BTreeMap<Place, AttemptId>,
    nodes: BTreeMap<AttemptId, String>,
}

impl Answers {
    /// A controller has sent a START.
    pub fn asked(&mut self, conn: ConnId, correlation: u64, id: AttemptId) {
        let waiting = self.waiting.entry(conn).or_default();
        waiting.push_back((correlation, id));
    }

    /// A controller hears an answer; about nothing that can be named if its START was malformed.
    ///
    /// # Errors
    /// If it is not that of the oldest START which waits for one.
    pub fn answered(
        &mut self,
        conn: ConnId,
        correlation: u64,
        id: AttemptId,
    ) -> Result<(), String> {
        let oldest = self.waiting.get_mut(&conn).and_then(VecDeque::pop_front);
        match oldest {
            Some((asked, of)) if asked == correlation && (of == id || id.attempt.0 == 0) => Ok(()),
            other => Err(format!(
                "rule 1: #{correlation:x} answers {id:?}, and {other:x?} was to be answered"
            )),
        }
    }

    /// A controller hears where its START went.
    ///
    /// # Errors
    /// If something else is there.
    pub fn placed(&mut self, placed: &Placed) -> Result<(), String> {
        let place = (placed.node.clone(), placed.session_epoch.0, placed.seq.0);
        self.is_at(place, placed.id)
    }

    /// A START has come to its launcher.
    ///
    /// # Errors
    /// If something else was said to be there.
    pub fn arrived(
        &mut self,
        node: &str,
        epoch: u64,
        seq: u64,
        id: AttemptId,
    ) -> Result<(), String> {
        self.is_at((node.to_owned(), epoch, seq), id)
    }

    fn is_at(&mut self, place: Place, id: AttemptId) -> Result<(), String> {
        self.nodes.insert(id, place.0.clone());
        let there = *self.places.entry(place.clone()).or_insert(id);
        if there == id {
            return Ok(());
        }
        let (node, epoch, seq) = place;
        Err(format!(
            "rule 1: START {seq} of session {epoch} of {node} is {there:?}, and also {id:?}"
        ))
    }

    /// Where an attempt was placed, as far as anybody was told.
    #[must_use]
    pub fn node_of(&self, id: &AttemptId) -> Option<&String> {
        self.nodes.get(id)
    }

    /// A session has ended.
    pub fn closed(&mut self, conn: ConnId) {
        self.waiting.remove(&conn);
    }

    /// How many STARTs of a session wait for their answer.
    #[must_use]
    pub fn waiting(&self, conn: ConnId) -> usize {
        self.waiting.get(&conn).map_or(0, VecDeque::len)
    }
}
