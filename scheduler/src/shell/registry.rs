//! Who is connected, for people: the one thing about sessions that another thread reads.
//!
//! The frame thread writes when a session comes or goes; the ops port reads it whenever somebody
//! asks. Placement never looks here.

use crate::core::SessionId;
use dashmap::DashMap;
use pronto_protocol::transport::Wire;
use pronto_protocol::{Hello, Purpose, Role};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

/// Lines of `/sessions`: more than a person reads, and no more than an ops reply should hold.
const LINES: usize = 20_000;

/// Who is connected.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry(Arc<DashMap<SessionId, Entry>>);

#[derive(Debug)]
struct Entry {
    role: Role,
    name: String,
    purpose: Purpose,
    address: SocketAddr,
    session_epoch: u64,
    build: String,
    since: Instant,
}

impl Registry {
    pub(crate) fn insert(&self, session: SessionId, wire: &Wire, hello: &Hello) {
        let entry = Entry {
            role: wire.peer().role(),
            name: wire.peer().name().to_owned(),
            purpose: hello.purpose,
            address: wire.peer_address(),
            session_epoch: hello.session_epoch,
            // It is the peer's text and ends up on somebody's terminal.
            build: hello.build.chars().filter(|c| !c.is_control()).collect(),
            since: Instant::now(),
        };
        self.0.insert(session, entry);
    }

    pub(crate) fn remove(&self, session: SessionId) {
        self.0.remove(&session);
    }

    /// Sessions of a role and purpose.
    pub(crate) fn count(&self, role: Role, purpose: Purpose) -> usize {
        self.0
            .iter()
            .filter(|entry| (entry.role, entry.purpose) == (role, purpose))
            .count()
    }

    /// One line a session, by role and name.
    pub(crate) fn table(&self) -> String {
        let mut lines: Vec<String> = self
            .0
            .iter()
            .take(LINES)
            .map(|entry| line(&entry))
            .collect();
        lines.sort_unstable();
        let mut text = String::from("role name purpose address epoch seconds build\n");
        text.extend(lines);
        text
    }
}

fn line(entry: &Entry) -> String {
    let Entry {
        role,
        name,
        purpose,
        address,
        session_epoch,
        build,
        since,
    } = entry;
    let seconds = since.elapsed().as_secs();
    let mut line = String::new();
    // Writing to a string does not fail.
    let _written = writeln!(
        line,
        "{role} {name} {purpose} {address} {session_epoch} {seconds} {build}"
    );
    line
}
