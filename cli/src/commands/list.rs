//! `pronto list`.

use crate::args::nouns::{ListEventsArgs, ListInstancesArgs, ListNoun};
use crate::client::{Client, path, query};
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{Column, Format, OutputArgs, column, print_list, say, tell, wide};
use crate::run::words;
use crate::units;
use jiff::Timestamp;
use pronto_controller::api::types as api;
use serde::Serialize;
use std::time::Duration;

/// The API's own largest page.
const PAGE: u32 = 1000;

/// Instances in a list, unless it says.
const SHOWN: u32 = 100;

/// Runs it.
pub(crate) async fn run(mut client: Client, noun: ListNoun, output: &OutputArgs) -> Outcome {
    match noun {
        ListNoun::Instances(args) if args.watch => watch_instances(client, &args, output).await?,
        ListNoun::Instances(args) => list_instances(client, &args, output).await?,
        ListNoun::Events(args) => list_events(client, &args, output).await?,
        ListNoun::Workloads => {
            let list: api::WorkloadList = client
                .get(&query(path(&["workloads"]), &of_tenant(&client))?)
                .await?;
            print_list(&list, &list.workloads, WORKLOADS, output)?;
        }
        ListNoun::Nodes => {
            let list: api::NodeList = client.get(&path(&["nodes"])).await?;
            print_list(&list, &list.nodes, NODES, output)?;
            let status: api::Status = client.get(&path(&["status"])).await?;
            if !status.scheduler.connected {
                tell!("no scheduler is connected: this is what was known last");
            }
        }
        ListNoun::Tenants => {
            let list: api::TenantList = client.get(&path(&["tenants"])).await?;
            print_list(&list, &list.tenants, TENANTS, output)?;
        }
        ListNoun::Quotas => {
            let list: api::QuotaList = client.get(&path(&["quotas"])).await?;
            print_list(&list, &list.quotas, QUOTAS, output)?;
        }
    }
    Ok(OK)
}

/// The query of routes that take a tenant and nothing else.
#[derive(Serialize)]
pub(super) struct OfTenant {
    tenant: Option<String>,
}

/// The tenant that was chosen, as a query.
pub(super) fn of_tenant(client: &Client) -> OfTenant {
    OfTenant {
        tenant: client.tenant(),
    }
}

fn instances_query(client: &Client, args: &ListInstancesArgs) -> api::ListInstances {
    let labels: Vec<String> = args
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    api::ListInstances {
        tenant: client.tenant(),
        state: args.state.clone(),
        node: args.node.clone(),
        workload: args.workload.clone(),
        name: args.name.clone(),
        label: (!labels.is_empty()).then(|| labels.join(",")),
        submission: args.submission,
        ..api::ListInstances::default()
    }
}

/// The ids of a submission's living instances.
pub(super) async fn living(
    client: &mut Client,
    submission: uuid::Uuid,
) -> Result<Vec<String>, Failure> {
    let asked = api::ListInstances {
        tenant: client.tenant(),
        submission: Some(submission),
        state: Some("live".to_owned()),
        ..api::ListInstances::default()
    };
    let list = pages(client, asked, u32::MAX).await?;
    if list.instances.is_empty() {
        // All of it has ended, or there never was one.
        let to = path(&["submissions", &submission.to_string()]);
        let _known: api::Submission = client.get(&to).await?;
    }
    let ids = list.instances.iter();
    Ok(ids.map(|instance| instance.id.to_string()).collect())
}

async fn list_instances(
    mut client: Client,
    args: &ListInstancesArgs,
    output: &OutputArgs,
) -> Result<(), Failure> {
    let wanted = match args.limit {
        _ if args.all => u32::MAX,
        limit => limit.unwrap_or(SHOWN),
    };
    let asked = instances_query(&client, args);
    let list = pages(&mut client, asked, wanted).await?;
    print_list(&list, &list.instances, INSTANCES, output)?;
    if list.next.is_some() && args.limit.is_none() && !output.format.is_machine() {
        // On stderr also in a pipe: what counts the lines must not take a page for all.
        tell!("there are more: --limit N or --all shows them");
    }
    Ok(())
}

/// As many instances as are wanted, page by page.
async fn pages(
    client: &mut Client,
    mut asked: api::ListInstances,
    mut wanted: u32,
) -> Result<api::InstanceList, Failure> {
    let mut list = api::InstanceList {
        instances: Vec::new(),
        next: None,
    };
    while wanted > 0 {
        asked.limit = Some(wanted.min(PAGE));
        asked.after = list.next.take();
        let page: api::InstanceList = client.get(&query(path(&["instances"]), &asked)?).await?;
        wanted = wanted.saturating_sub(u32::try_from(page.instances.len()).unwrap_or(u32::MAX));
        list.instances.extend(page.instances);
        list.next = page.next;
        if list.next.is_none() {
            break;
        }
    }
    Ok(list)
}

async fn watch_instances(
    mut client: Client,
    args: &ListInstancesArgs,
    output: &OutputArgs,
) -> Result<(), Failure> {
    let mut asked = instances_query(&client, args);
    asked.watch = Some(true);
    let mut events = client.events(&query(path(&["instances"]), &asked)?).await?;
    while let Some(instance) = events.next::<api::Instance>("instance").await? {
        if output.format == Format::Json {
            say!(
                "{}",
                serde_json::to_string(&instance).map_err(anyhow::Error::from)?
            );
        } else {
            let args = OutputArgs {
                no_header: true,
                ..output.clone()
            };
            print_list(&instance, std::slice::from_ref(&instance), INSTANCES, &args)?;
        }
    }
    Err(Failure::new(
        Exit::Unreachable,
        "the controller closed the stream",
    ))
}

async fn list_events(
    mut client: Client,
    args: &ListEventsArgs,
    output: &OutputArgs,
) -> Result<(), Failure> {
    let mut asked = api::ListEvents {
        tenant: client.tenant(),
        instance: args.instance,
        node: args.node.clone(),
        kind: args.kind.clone(),
        ..api::ListEvents::default()
    };
    if args.follow {
        asked.follow = Some(true);
        let mut events = client.events(&query(path(&["events"]), &asked)?).await?;
        while let Some(event) = events.next::<api::EventRecord>("event").await? {
            if output.format == Format::Json {
                say!(
                    "{}",
                    serde_json::to_string(&event).map_err(anyhow::Error::from)?
                );
            } else {
                let args = OutputArgs {
                    no_header: true,
                    ..output.clone()
                };
                print_list(&event, std::slice::from_ref(&event), EVENTS, &args)?;
            }
        }
        return Err(Failure::new(
            Exit::Unreachable,
            "the controller closed the stream",
        ));
    }
    let mut wanted = args.limit;
    let mut list = api::EventList {
        events: Vec::new(),
        next: None,
    };
    while wanted > 0 {
        asked.limit = Some(wanted.min(PAGE));
        asked.after = list.next.take();
        let page: api::EventList = client.get(&query(path(&["events"]), &asked)?).await?;
        wanted = wanted.saturating_sub(u32::try_from(page.events.len()).unwrap_or(u32::MAX));
        list.events.extend(page.events);
        list.next = page.next;
        if list.next.is_none() {
            break;
        }
    }
    if !output.format.is_machine() {
        // The latest stands where the eye is: at the end.
        list.events.reverse();
    }
    print_list(&list, &list.events, EVENTS, output)
}

/// How long ago, for tables.
pub(super) fn ago(at: Timestamp) -> String {
    let span = Timestamp::now().duration_since(at);
    units::show_duration(Duration::try_from(span).unwrap_or_default())
}

fn ran(instance: &api::Instance) -> String {
    let Some(started) = instance.started_at else {
        return String::new();
    };
    let until = instance.ended_at.unwrap_or_else(Timestamp::now);
    units::show_duration(Duration::try_from(until.duration_since(started)).unwrap_or_default())
}

/// The columns of instances.
pub(super) const INSTANCES: &[Column<api::Instance>] = &[
    column("id", |instance| words::short(instance.id)),
    column("name", |instance| instance.name.clone().unwrap_or_default()),
    column("workload", |instance| {
        instance.workload.clone().unwrap_or_default()
    }),
    column("state", words::state),
    column("node", |instance| instance.node.clone().unwrap_or_default()),
    column("age", |instance| ago(instance.submitted_at)),
    column("ran", ran),
    wide("tenant", |instance| instance.tenant.clone()),
    wide("runtime", |instance| {
        words::runtime(instance.runtime).to_owned()
    }),
    wide("demand", |instance| words::demand(&instance.demand)),
    wide("constraints", |instance| {
        words::constraints(&instance.constraints)
    }),
    wide("attempt", |instance| instance.attempt.to_string()),
    wide("cpu", |instance| {
        instance.usage.map_or_else(String::new, |usage| {
            units::show_duration(Duration::from_millis(usage.cpu_ms))
        })
    }),
    wide("memory", |instance| {
        instance.usage.map_or_else(String::new, |usage| {
            units::show_mib(usage.memory_mib.into())
        })
    }),
    wide("peak", |instance| {
        instance.usage.map_or_else(String::new, |usage| {
            units::show_mib(usage.memory_peak_mib.into())
        })
    }),
    wide("read", |instance| {
        instance
            .usage
            .map_or_else(String::new, |usage| units::show_bytes(usage.read_bytes))
    }),
    wide("written", |instance| {
        instance
            .usage
            .map_or_else(String::new, |usage| units::show_bytes(usage.written_bytes))
    }),
    wide("pids", |instance| {
        instance
            .usage
            .map_or_else(String::new, |usage| usage.pids.to_string())
    }),
    wide("waiting", |instance| {
        instance.waiting.clone().unwrap_or_default()
    }),
];

const WORKLOADS: &[Column<api::Workload>] = &[
    column("name", |workload| workload.name.clone()),
    column("runtime", |workload| {
        words::runtime(crate::run::spec::runtime_of(&workload.spec.task)).to_owned()
    }),
    column("demand", |workload| words::demand(&workload.spec.demand)),
    column("revision", |workload| workload.revision.to_string()),
    column("updated", |workload| ago(workload.updated_at) + " ago"),
    wide("tenant", |workload| workload.tenant.clone()),
    wide("constraints", |workload| {
        words::constraints(&workload.spec.constraints)
    }),
];

const NODES: &[Column<api::Node>] = &[
    column("name", |node| node.name.clone()),
    column("state", |node| node_state(node.state).to_owned()),
    column("instances", |node| node.instances.to_string()),
    column("cpu", |node| {
        shares(node, |capacity| {
            units::show_millis(capacity.cpu_millis.into())
        })
    }),
    column("memory", |node| {
        shares(node, |capacity| units::show_mib(capacity.memory_mib.into()))
    }),
    column("disk", |node| {
        shares(node, |capacity| units::show_mib(capacity.disk_mib.into()))
    }),
    column("gpu", |node| {
        if node.allocatable.gpu_millis.is_empty() {
            return String::new();
        }
        shares(node, |capacity| {
            units::show_millis(
                capacity
                    .gpu_millis
                    .iter()
                    .map(|&millis| u64::from(millis))
                    .sum(),
            )
        })
    }),
    column("load", |node| {
        node.load.as_ref().map_or_else(String::new, |load| {
            format!(
                "{}.{:02}",
                load.load1_hundredths / 100,
                load.load1_hundredths % 100
            )
        })
    }),
    column("runtimes", |node| {
        node.runtimes
            .iter()
            .map(|&name| words::runtime(name))
            .collect::<Vec<_>>()
            .join(",")
    }),
    wide("isolation", |node| node.isolation.clone()),
    wide("acceleration", |node| node.acceleration.clone()),
    wide("address", |node| node.address.clone()),
    wide("reason", |node| node.reason.clone()),
];

/// Free of all: `1.5/2`.
fn shares(node: &api::Node, show: impl Fn(&api::CapacityView) -> String) -> String {
    match &node.available {
        Some(available) => format!("{}/{}", show(available), show(&node.allocatable)),
        None => format!("?/{}", show(&node.allocatable)),
    }
}

/// A node's state, as in JSON.
pub(super) const fn node_state(state: api::NodeStateName) -> &'static str {
    match state {
        api::NodeStateName::Ready => "ready",
        api::NodeStateName::Full => "full",
        api::NodeStateName::Maintenance => "maintenance",
        api::NodeStateName::Draining => "draining",
        api::NodeStateName::Offline => "offline",
        api::NodeStateName::Lost => "lost",
    }
}

const TENANTS: &[Column<api::Tenant>] = &[
    column("name", |tenant| tenant.name.clone()),
    column("runtimes", |tenant| {
        tenant
            .runtimes
            .iter()
            .map(|&name| words::runtime(name))
            .collect::<Vec<_>>()
            .join(",")
    }),
    column("privileged", |tenant| {
        if tenant.privileged { "yes" } else { "no" }.to_owned()
    }),
    column("rate", |tenant| {
        tenant
            .submit_rate_per_s
            .map_or_else(|| "no limit".to_owned(), |rate| format!("{rate}/s"))
    }),
    column("instances", |tenant| quota_pair(&tenant.quota, 0)),
    column("age", |tenant| ago(tenant.created_at)),
];

/// The columns of quotas.
pub(super) const QUOTAS: &[Column<api::Quota>] = &[
    column("tenant", |quota| quota.tenant.clone()),
    column("instances", |quota| quota_pair(quota, 0)),
    column("cpu", |quota| quota_pair(quota, 1)),
    column("memory", |quota| quota_pair(quota, 2)),
    column("disk", |quota| quota_pair(quota, 3)),
    column("gpu", |quota| quota_pair(quota, 4)),
];

/// Used of limit, for one dimension: `3/100`, `0.5/no limit`.
pub(super) fn quota_pair(quota: &api::Quota, dimension: usize) -> String {
    let (limits, used) = (&quota.limits, &quota.used);
    let show = |used: u64, limit: Option<u64>, show: fn(u64) -> String| {
        format!(
            "{}/{}",
            show(used),
            limit.map_or_else(|| "no limit".to_owned(), show)
        )
    };
    match dimension {
        0 => show(used.instances, limits.instances, |number| {
            number.to_string()
        }),
        1 => show(used.cpu_millis, limits.cpu_millis, units::show_millis),
        2 => show(used.memory_mib, limits.memory_mib, units::show_mib),
        3 => show(used.disk_mib, limits.disk_mib, units::show_mib),
        _ => show(used.gpu_millis, limits.gpu_millis, units::show_millis),
    }
}

/// The columns of events.
pub(super) const EVENTS: &[Column<api::EventRecord>] = &[
    column("at", |event| {
        event.at.strftime("%Y-%m-%d %H:%M:%S").to_string()
    }),
    column("severity", |event| {
        match event.severity {
            api::Severity::Info => "info",
            api::Severity::Warning => "warning",
            api::Severity::Alarm => "ALARM",
        }
        .to_owned()
    }),
    column("kind", |event| event.kind.clone()),
    column("instance", |event| {
        event.instance.map(words::short).unwrap_or_default()
    }),
    column("node", |event| event.node.clone().unwrap_or_default()),
    column("message", |event| event.message.clone()),
    wide("actor", |event| event.actor.clone()),
    wide("source", |event| event.source.clone()),
    wide("tenant", |event| event.tenant.clone().unwrap_or_default()),
    wide("number", |event| event.number.to_string()),
];
