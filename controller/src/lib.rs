//! Policy and durable state: tenants, quotas, workloads, instances.
//!
//! A deterministic core, [`planner`], decides; [`store`] makes it durable; the shell ([`Controller`], [`run`]) owns sockets,
//! threads and the clock, and does nothing clever; [`api`] is what users and the command line talk
//! to. Nothing but the shell and the API knows tokio; nothing but the store knows SQLite.

pub mod api;
mod config;
pub mod numbers;
pub mod planner;
pub mod policy;
mod shares;
mod shell;
pub mod spec;
pub mod store;
mod streams;

pub use config::{ConfigError, ControllerConfig};
pub use shell::{Controller, run};

/// Whether a text would be read as an id, or the tail of one.
#[must_use]
pub fn numbers_like(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}
