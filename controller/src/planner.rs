//! The planner: everything that the controller decides, as one deterministic function.
//!
//! [`State::step`] takes the time and one [`Event`], changes the state and names its [`Effect`]s.
//! It knows no socket, file, clock or random source, so a whole cluster can be run in a test from
//! one seed. Persist, then execute: each effect that depends on durability is held back until the
//! commit that it depends on is acknowledged ([`Event::CommitDone`]); one that does not leaves at
//! once. What a user is told has happened is on disk.
//!
//! The straight path of an instance:
//!
//! ```text
//! Request(Submit) ─▶ policy ─▶ Commit 1 ─▶ CommitDone ─▶ Reply; START ─▶ PLACED
//!                                  ─▶ INSTANCE_CHANGED Ended ─▶ Commit 2 ─▶ CommitDone ─▶ ACK
//! ```
//!
//! Where things are: [`instance`] draws the state machine; [`queue`] says who goes first;
//! `submit` admits; `dispatch` sends STARTs and takes their answers; `inbound` decodes what comes
//! from the scheduler; `reports` takes what nodes say; `stops` ends things; `nodes` keeps the node
//! table and losses, `drains` maintenance; `reconcile` finds out where attempts are after a break,
//! `returns` takes back what was given up too early, `rollback` what a restored store does not know;
//! `requests` answers users, `ended` those who would act on what has ended; `views` shows things to them.
//!
//! Invariants (checked by [`State::check`] in tests):
//! - An attempt's number is committed before it is sent, and sent again only where it was refused.
//! - A tenant's use is the sum over its living instances, charged once each.
//! - An attempt is believed missing only by an inventory that is newer than its PLACED, and an
//!   unanswered one only when every known node has been asked since, or is fenced.
//! - No map whose order is random is ever iterated.

mod check;
mod dispatch;
mod drains;
mod ended;
pub mod event;
mod explain;
mod inbound;
pub mod instance;
mod journal;
mod living;
mod nodes;
pub mod queue;
mod reconcile;
mod reports;
mod requests;
mod returns;
mod rollback;
mod state;
mod stops;
mod submit;
mod template;
mod tenants;
#[cfg(test)]
mod tests;
pub(crate) mod views;

pub use event::{
    Actor, ActorKind, Call, Change, DrainCall, Effect, Event, LiveFilter, Located, Now, Refused,
    ReopenCall, Reply, Resolved, SessionUp, SubmitCall, Token,
};
pub use state::{Settings, State};
