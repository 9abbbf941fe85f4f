//! Fuzzers of everything that a peer's bytes reach first: frames, payloads, the handshake; and of
//! what users and files bring in: HTTP bodies, cluster traces.
//!
//! ```text
//! PRONTO_SEED_CORPUS=1 cargo test -p pronto-payloads --test it seeds    # from the golden vectors
//! RUSTC_BOOTSTRAP=1 cargo fuzz run payloads -- -max_total_time=60
//! ```
//!
//! This crate stands outside of the workspace, since libFuzzer is of no use to anything else.

#[path = "../../payloads/tests/it/registry.rs"]
mod registry;
mod outer;
mod targets;

/// Runs one input through the target of this name.
///
/// # Panics
/// If an expectation of the target is violated, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = targets::TARGETS
        .into_iter()
        .chain(outer::OUTER)
        .find(|(known, _)| *known == name)
        .expect("each binary names a target");
    target(data);
}
