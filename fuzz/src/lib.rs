//! Fuzzers of everything that a peer's bytes reach first: frames, payloads, the handshake; and of
//! what users and files bring in: HTTP bodies, cluster traces, workload files.
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run payloads -- -max_total_time=60
//! ```
//!
//! `corpus/` keeps a sample of what they have found to reach something new, and each finding of theirs;
//! ordinary tests run all of it. More seeds come from the golden vectors, if wanted
//! (`PRONTO_SEED_CORPUS=1 cargo test -p pronto-payloads --test it seeds`).
//!
//! This crate stands outside of the workspace, since libFuzzer is of no use to anything else.

mod outer;
#[path = "../../payloads/tests/it/registry.rs"]
mod registry;
mod targets;

// The command line's reading of workload files, which is in no library.
#[allow(dead_code, reason = "the command line uses the rest of it")]
#[path = "../../cli/src/exit.rs"]
mod exit;
#[path = "../../cli/src/short_forms.rs"]
mod short_forms;
#[allow(dead_code, reason = "the command line uses the rest of it")]
#[path = "../../cli/src/units.rs"]
mod units;
#[allow(dead_code, reason = "the command line uses the rest of it")]
#[path = "../../cli/src/run/words.rs"]
mod words;
#[allow(dead_code, reason = "the command line uses the rest of it")]
#[path = "../../cli/src/workload_file.rs"]
mod workload_file;
mod run {
    pub(crate) use crate::words;
}

/// Runs one input through the target of this name.
///
/// # Panics
/// If an expectation of the target is violated, or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = targets::TARGETS
        .into_iter()
        .chain(outer::OUTER)
        .chain([("workload_file", written as fn(&[u8]))])
        .find(|(known, _)| *known == name)
        .expect("each binary names a target");
    target(data);
}

/// Whatever is in a file, it is a workload that can be judged, or an error that names the file.
fn written(data: &[u8]) {
    match workload_file::parse(&String::from_utf8_lossy(data), "job.yaml") {
        Ok(parsed) => outer::judge(&parsed.spec),
        Err(failure) => {
            let said = failure.to_string();
            assert!(said.contains("job.yaml"), "{said}");
        }
    }
}
