//! `pronto show`: one thing with everything about it.

use super::list::{EVENTS, ago, node_state, of_tenant, quota_pair};
use crate::args::nouns::ShowNoun;
use crate::client::{Client, path, query};
use crate::exit::{Failure, OK, Outcome};
use crate::output::{OutputArgs, fields, layout, print_list, print_value, write};
use crate::run::words;
use crate::units;
use pronto_controller::api::types as api;
use serde::Serialize;
use std::time::Duration;

/// Events that `show instance` prints for people; JSON has all that the API gives.
const EVENTS_SHOWN: usize = 20;

/// Runs it.
pub(crate) async fn run(mut client: Client, noun: ShowNoun, output: &OutputArgs) -> Outcome {
    let one = |reveal: bool, client: &Client| api::OneQuery {
        tenant: client.tenant(),
        reveal: reveal.then(|| "env".to_owned()),
    };
    match noun {
        ShowNoun::Instance { id, reveal_env } => {
            let asked = one(reveal_env, &client);
            let detail: api::InstanceDetail = client
                .get(&query(path(&["instances", &id]), &asked)?)
                .await?;
            print(&detail, output, instance)?;
        }
        ShowNoun::Workload { id, reveal_env } => {
            let asked = one(reveal_env, &client);
            let workload: api::Workload = client
                .get(&query(path(&["workloads", &id]), &asked)?)
                .await?;
            print(&workload, output, |workload| {
                let head = [
                    ("name", workload.name.clone()),
                    ("tenant", workload.tenant.clone()),
                    ("revision", workload.revision.to_string()),
                    ("updated", ago(workload.updated_at) + " ago"),
                ];
                fields(head.into_iter().chain(spec(&workload.spec)))
            })?;
        }
        ShowNoun::Node { id } => {
            let shown: api::Node = client.get(&path(&["nodes", &id])).await?;
            print(&shown, output, node)?;
        }
        ShowNoun::Tenant { id } => {
            let asked = path(&["tenants", &id]);
            let shown: api::Tenant = client.get(&query(asked, &of_tenant(&client))?).await?;
            print(&shown, output, tenant)?;
        }
        ShowNoun::Quota { id } => {
            let shown: api::Quota = client.get(&path(&["quotas", &id])).await?;
            print(&shown, output, quota)?;
        }
        ShowNoun::Cluster => {
            let shown: api::Status = client.get(&path(&["status"])).await?;
            print(&shown, output, cluster)?;
        }
    }
    Ok(OK)
}

fn print<T: Serialize>(
    value: &T,
    output: &OutputArgs,
    words: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    if output.format.is_machine() {
        return print_value(value, output.format);
    }
    if !output.columns.is_empty() {
        return print_list(value, std::slice::from_ref(value), &[], output);
    }
    write(format_args!("{}", words(value)));
    Ok(())
}

fn instance(detail: &api::InstanceDetail) -> String {
    let instance = &detail.instance;
    let end = words::remark(instance).unwrap_or_default();
    let usage = instance.usage.map_or_else(String::new, |usage| {
        format!(
            "{} cpu time, {} memory (peak {}), {} read, {} written, {} processes",
            units::show_duration(Duration::from_millis(usage.cpu_ms)),
            units::show_mib(usage.memory_mib.into()),
            units::show_mib(usage.memory_peak_mib.into()),
            units::show_bytes(usage.read_bytes),
            units::show_bytes(usage.written_bytes),
            usage.pids
        )
    });
    let attempts = format!(
        "{} ({} restarts, {} reschedules)",
        instance.attempt, instance.restarts, instance.reschedules
    );
    let head = [
        ("id", instance.id.to_string()),
        ("name", instance.name.clone().unwrap_or_default()),
        ("workload", instance.workload.clone().unwrap_or_default()),
        ("tenant", instance.tenant.clone()),
        ("state", words::state(instance)),
        ("end", end),
        ("waiting", instance.waiting.clone().unwrap_or_default()),
        ("node", instance.node.clone().unwrap_or_default()),
        ("attempt", attempts),
        (
            "submitted",
            format!(
                "{} ({} ago)",
                instance.submitted_at,
                ago(instance.submitted_at)
            ),
        ),
        ("submission", instance.submission.to_string()),
        ("usage", usage),
    ];
    let mut text = fields(head.into_iter().chain(spec(&detail.spec)));
    text += "\ntimeline\n";
    text += &timeline(&detail.timeline);
    if !detail.events.is_empty() {
        text += "\nevents\n";
        let skip = detail.events.len().saturating_sub(EVENTS_SHOWN);
        let shown: Vec<_> = EVENTS
            .iter()
            .filter(|column| matches!(column.name, "at" | "severity" | "kind" | "message"))
            .collect();
        let rows = detail.events[skip..]
            .iter()
            .map(|event| shown.iter().map(|column| (column.show)(event)).collect());
        text += &indent(&layout(Vec::new(), rows, true));
    }
    text
}

/// The steps of a start, each with its offset and its delta: a slow start explains itself.
pub(crate) fn timeline(steps: &[api::TimelineStep]) -> String {
    let rows = steps.iter().map(|step| {
        let delta = match step.delta_ns {
            0 => String::new(),
            delta => format!("+{}", units::show_duration(Duration::from_nanos(delta))),
        };
        vec![
            step_name(step.step).to_owned(),
            units::show_duration(Duration::from_nanos(step.offset_ns)),
            delta,
        ]
    });
    indent(&layout(
        vec!["STEP".into(), "AT".into(), "DELTA".into()],
        rows,
        false,
    ))
}

const fn step_name(step: api::Step) -> &'static str {
    match step {
        api::Step::Submitted => "submitted",
        api::Step::Admitted => "admitted",
        api::Step::Committed => "committed",
        api::Step::Dispatched => "dispatched",
        api::Step::Placed => "placed",
        api::Step::Received => "received",
        api::Step::Started => "started",
        api::Step::Ended => "ended",
        api::Step::EndReported => "end reported",
        api::Step::EndCommitted => "end committed",
    }
}

fn spec(spec: &api::Spec) -> Vec<(&'static str, String)> {
    let command = |command: &[String]| command.join(" ");
    let task = match &spec.task {
        api::TaskSpec::Exec(task) => command(&task.command),
        api::TaskSpec::Docker(task) => format!("{} {}", task.image, command(&task.command)),
        api::TaskSpec::Qemu(task) => task
            .image
            .clone()
            .or_else(|| task.kernel.clone())
            .unwrap_or_default(),
        api::TaskSpec::Sim(task) => {
            let time = units::show_duration(Duration::from_millis(task.run_ms));
            format!("nothing for {time}, exit code {}", task.exit_code)
        }
    };
    let pairs = |pairs: &std::collections::BTreeMap<String, String>| {
        pairs
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let limit = |limit: Option<u64>| {
        limit.map_or_else(String::new, |ms| {
            units::show_duration(Duration::from_millis(ms))
        })
    };
    let restart = match (spec.restart.mode, spec.restart.limit) {
        (api::RestartMode::Never, _) => "never".to_owned(),
        (api::RestartMode::OnFailure, limit) => limited("on failure", limit),
        (api::RestartMode::Always, limit) => limited("always", limit),
    };
    let on_disconnect = match spec.on_disconnect {
        api::OnDisconnectSpec::Keep => "keep".to_owned(),
        api::OnDisconnectSpec::StopAfterMs(ms) => {
            format!(
                "stop after {}",
                units::show_duration(Duration::from_millis(ms))
            )
        }
    };
    vec![
        (
            "runtime",
            words::runtime(crate::run::spec::runtime_of(&spec.task)).to_owned(),
        ),
        ("command", task),
        ("demand", words::demand(&spec.demand)),
        ("constraints", words::constraints(&spec.constraints)),
        ("env", pairs(&spec.env)),
        ("labels", pairs(&spec.labels)),
        (
            "priority",
            if spec.priority == 0 {
                String::new()
            } else {
                spec.priority.to_string()
            },
        ),
        ("restart", restart),
        ("on disconnect", on_disconnect),
        ("timeout", limit(spec.timeout_ms)),
        ("pending timeout", limit(spec.pending_timeout_ms)),
    ]
}

fn limited(mode: &str, limit: Option<u32>) -> String {
    limit.map_or_else(
        || mode.to_owned(),
        |limit| format!("{mode}, at most {limit} times"),
    )
}

fn node(node: &api::Node) -> String {
    let capacity = |capacity: &api::CapacityView| {
        let mut words = format!(
            "{} cpu, {} memory, {} disk",
            units::show_millis(capacity.cpu_millis.into()),
            units::show_mib(capacity.memory_mib.into()),
            units::show_mib(capacity.disk_mib.into())
        );
        if !capacity.gpu_millis.is_empty() {
            let devices: Vec<String> = capacity
                .gpu_millis
                .iter()
                .map(|&millis| units::show_millis(millis.into()))
                .collect();
            words += &format!(", gpus {}", devices.join(" "));
        }
        for (name, count) in &capacity.resources {
            words += &format!(", {count} {name}");
        }
        words
    };
    let load = node.load.as_ref().map_or_else(String::new, |load| {
        format!(
            "{}.{:02} load, {}/{} cpu, {}/{} memory, {}/{} disk used, up {}",
            load.load1_hundredths / 100,
            load.load1_hundredths % 100,
            units::show_millis(load.cpu_used_millis.into()),
            units::show_millis(load.cpu_total_millis.into()),
            units::show_mib(load.memory_used_mib.into()),
            units::show_mib(load.memory_total_mib.into()),
            units::show_mib(load.disk_used_mib.into()),
            units::show_mib(load.disk_total_mib.into()),
            units::show_duration(Duration::from_secs(load.uptime_s))
        )
    });
    let drain = node.drain.as_ref().map_or_else(String::new, |drain| {
        if drain.done {
            "done".to_owned()
        } else {
            format!(
                "{} instances left, until {}",
                drain.remaining, drain.deadline_at
            )
        }
    });
    let runtimes: Vec<_> = node
        .runtimes
        .iter()
        .map(|&name| words::runtime(name))
        .collect();
    let mut text = fields([
        ("name", node.name.clone()),
        ("state", node_state(node.state).to_owned()),
        ("reason", node.reason.clone()),
        ("hostname", node.hostname.clone()),
        ("address", node.address.clone()),
        ("allocatable", capacity(&node.allocatable)),
        (
            "available",
            node.available.as_ref().map(capacity).unwrap_or_default(),
        ),
        ("load", load),
        ("instances", node.instances.to_string()),
        ("runtimes", runtimes.join(" ")),
        ("isolation", node.isolation.clone()),
        ("acceleration", node.acceleration.clone()),
        ("session", node.session_epoch.to_string()),
        (
            "away for",
            node.disconnected_ms
                .map(|ms| units::show_duration(Duration::from_millis(ms)))
                .unwrap_or_default(),
        ),
        ("drain", drain),
        (
            "quarantined",
            node.quarantined
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" "),
        ),
    ]);
    text += "\nlabels\n";
    text += &indent(&fields(
        node.labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone())),
    ));
    text
}

fn tenant(tenant: &api::Tenant) -> String {
    let runtimes: Vec<_> = tenant
        .runtimes
        .iter()
        .map(|&name| words::runtime(name))
        .collect();
    let rate = tenant.submit_rate_per_s;
    fields([
        ("name", tenant.name.clone()),
        ("runtimes", runtimes.join(" ")),
        (
            "privileged",
            if tenant.privileged { "yes" } else { "no" }.to_owned(),
        ),
        (
            "submit rate",
            rate.map_or_else(|| "no limit".to_owned(), |rate| format!("{rate}/s")),
        ),
        ("created", format!("{} ago", ago(tenant.created_at))),
    ]) + "\n"
        + &quota(&tenant.quota)
}

fn quota(quota: &api::Quota) -> String {
    let names = ["instances", "cpu", "memory", "disk", "gpu"];
    let rows = names.iter().enumerate().map(|(index, name)| {
        let pair = quota_pair(quota, index);
        let (used, limit) = pair.split_once('/').unwrap_or((&pair, ""));
        vec![(*name).to_owned(), used.to_owned(), limit.to_owned()]
    });
    layout(
        vec!["QUOTA".into(), "USED".into(), "LIMIT".into()],
        rows,
        false,
    )
}

fn cluster(status: &api::Status) -> String {
    let scheduler = match (status.scheduler.connected, status.scheduler.active) {
        (true, true) => format!("active, term {}", status.scheduler.term),
        (true, false) => "connected, not active".to_owned(),
        (false, _) => "not connected".to_owned(),
    };
    let instances: Vec<String> = status
        .instances
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let mut text = fields([
        ("version", status.version.clone()),
        ("owner", status.owner.to_string()),
        ("epoch", status.epoch.to_string()),
        (
            "up",
            units::show_duration(Duration::from_millis(status.uptime_ms)),
        ),
        ("scheduler", scheduler),
        ("scheduler address", status.scheduler.address.clone()),
        (
            "nodes",
            format!(
                "{} of {} connected",
                status.nodes_connected, status.nodes_known
            ),
        ),
        (
            "instances",
            if instances.is_empty() {
                "none".into()
            } else {
                instances.join(", ")
            },
        ),
        ("pending classes", status.pending_classes.to_string()),
        (
            "store",
            format!(
                "schema {}, {} commits, the last took {}{}",
                status.store.schema,
                status.store.commits,
                units::show_duration(Duration::from_nanos(status.store.last_commit_ns)),
                if status.store.full {
                    ", THE DISK IS FULL"
                } else {
                    ""
                }
            ),
        ),
    ]);
    if status.rescheduling_suspended {
        text += "\nrescheduling is suspended: `pronto update cluster --resume-rescheduling`\n";
    }
    for alarm in &status.alarms {
        text += &format!("ALARM  {alarm}\n");
    }
    text
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_shows_each_step_with_its_delta() {
        let step = |step, offset_ns, delta_ns| api::TimelineStep {
            step,
            offset_ns,
            delta_ns,
        };
        let text = timeline(&[
            step(api::Step::Submitted, 0, 0),
            step(api::Step::Committed, 8_200_000, 8_200_000),
            step(api::Step::Placed, 8_700_000, 500_000),
        ]);
        assert_eq!(
            text,
            "  STEP       AT     DELTA\n  submitted  0s\n  committed  8.2ms  +8.2ms\n  placed     8.7ms  +500µs\n"
        );
    }

    #[test]
    fn a_quota_without_a_limit_says_so() {
        let text = quota(&api::Quota {
            tenant: "t".into(),
            limits: api::QuotaLimits {
                instances: Some(10),
                ..api::QuotaLimits::default()
            },
            used: api::QuotaUse {
                instances: 3,
                cpu_millis: 500,
                ..api::QuotaUse::default()
            },
        });
        assert!(
            text.contains("instances  3     10\n") && text.contains("cpu        0.5   no limit"),
            "{text}"
        );
    }
}
