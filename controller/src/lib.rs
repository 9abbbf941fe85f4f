//! Policy and durable state: tenants, quotas, workloads, instances.
//!
//! A deterministic core, [`planner`], decides; [`store`] makes it durable; `shell` owns sockets,
//! threads and the clock, and does nothing clever; [`api`] is what users and the command line talk
//! to. Nothing but the shell and the API knows tokio; nothing but the store knows SQLite.

pub mod api;
pub mod numbers;
pub mod planner;
pub mod policy;
pub mod spec;
pub mod store;

/// Whether a text would be read as an id, or the tail of one.
#[must_use]
pub fn numbers_like(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}
