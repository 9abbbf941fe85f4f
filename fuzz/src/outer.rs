//! What users and files bring in: the bodies of HTTP requests, cluster traces. A violated
//! expectation panics.
//!
//! The same functions run as an ordinary test (`tests/tests/inputs`), over seeds and a bounded
//! number of mutations of them, where no fuzzer is installed.

use pronto_controller::api::types as api;
use pronto_controller::spec;
use pronto_payloads::codec;
use pronto_payloads::start::StartBody;
use pronto_scheduler::replay::Trace;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// A fuzzer's name and what it runs.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All fuzzers of this module.
pub(crate) const OUTER: [Target; 2] = [("bodies", bodies), ("trace", trace)];

/// Kinds of bodies that the first byte chooses among.
pub(crate) const BODIES: u8 = 9;

/// The first byte chooses a request. What parses means the same when it is written and read again;
/// a spec that is accepted can be started: every launcher can read what is sent of it.
pub(crate) fn bodies(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else {
        return;
    };
    match choice % BODIES {
        0 => {
            if let Some(request) = read::<api::SubmitRequest>(body) {
                if let Some(name) = &request.name {
                    let _refused = spec::check_instance_name(name, request.count);
                }
                if let Some(given) = &request.spec {
                    judge(given);
                    judge(&spec::overridden(given, &request.overrides));
                }
            }
        }
        1 => {
            if let Some(request) = read::<api::CreateWorkload>(body) {
                judge(&request.spec);
            }
        }
        2 => drop(read::<api::ExplainRequest>(body)),
        3 => drop(read::<api::StopRequest>(body)),
        4 => drop(read::<api::RestartRequest>(body)),
        5 => drop(read::<api::DrainRequest>(body)),
        6 => drop(read::<api::CreateTenant>(body)),
        7 => drop(read::<api::UpdateTenant>(body)),
        _ => drop(read::<api::UpdateQuota>(body)),
    }
}

/// As the API reads a body.
fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(body: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(body).ok()?;
    let written = serde_json::to_vec(&value).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(value, again);
    Some(value)
}

/// A spec that is accepted can be started, and its environment is not shown.
pub(crate) fn judge(given: &api::Spec) {
    let redacted = spec::redacted(given);
    assert!(redacted.env.values().all(|value| value == "***"));
    if spec::check(given).is_err() {
        return;
    }
    let body = spec::start_body("tenant", Some("workload"), "name", given);
    let bytes = codec::encode(&body);
    let read: StartBody =
        codec::decode(&bytes).expect("an accepted spec can be read by a launcher");
    assert_eq!(read, body);
    let demand = codec::encode(&spec::demand(&given.demand));
    codec::decode::<pronto_payloads::demand::Demand>(&demand).expect("so can its demand");
}

/// Two files, parted by a zero byte. Whatever is in them, there is a trace or an error that names
/// one of them.
pub(crate) fn trace(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (nodes, tasks) = text.split_once('\0').unwrap_or((&text, ""));
    match Trace::parse(("nodes.csv", nodes), ("tasks.csv", tasks)) {
        Ok(trace) => {
            assert!(!trace.nodes.is_empty() && !trace.tasks.is_empty());
            for task in &trace.tasks {
                if let Some(times) = &task.times {
                    assert!(times.arrival_s.is_finite() && times.duration_s.is_finite());
                }
            }
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("nodes.csv") || text.contains("tasks.csv"),
                "{text}"
            );
        }
    }
}
