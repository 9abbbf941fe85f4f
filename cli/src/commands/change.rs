//! `pronto create`, `update`, `delete`, `stop` and `restart`.

use super::list::{QUOTAS, of_tenant};
use crate::args::nouns::{CreateNoun, DeleteNoun, RestartNoun, StopNoun, UpdateNoun};
use crate::args::spec::{Rate, TenantPolicyArgs};
use crate::client::{Client, path, query};
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{OutputArgs, print_list, print_value, say, tell};
use crate::run::{self, words};
use crate::units;
use crate::workload_file;
use hyper::Method;
use pronto_controller::api::types as api;
use std::path::Path;
use std::time::Duration;

/// How often an ending instance is looked at by `stop --wait`.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// `pronto create`.
pub(crate) async fn create(mut client: Client, noun: CreateNoun, output: &OutputArgs) -> Outcome {
    match noun {
        CreateNoun::Instance(args) => return run::create_instances(client, &args, output).await,
        CreateNoun::Workload { file } => {
            let workload: api::Workload = client
                .send_once(
                    Method::POST,
                    &path(&["workloads"]),
                    &workload_of(&client, &file)?,
                )
                .await
                .map_err(|failure| match failure.exit {
                    Exit::Conflict => failure.hint("pronto update workload -f FILE replaces it"),
                    _ => failure,
                })?;
            if output.format.is_machine() {
                print_value(&workload, output.format)?;
            } else {
                say!(
                    "created workload {} (revision {})",
                    workload.name,
                    workload.revision
                );
            }
        }
        CreateNoun::Tenant { id, policy, quota } => {
            let request = api::CreateTenant {
                name: id,
                runtimes: policy.runtimes,
                privileged: policy.privileged,
                submit_rate_per_s: policy.submit_rate.map(|Rate(rate)| rate),
                quota: quota_changes(&quota)?,
            };
            let tenant: api::Tenant = client
                .send_once(Method::POST, &path(&["tenants"]), &request)
                .await?;
            if output.format.is_machine() {
                print_value(&tenant, output.format)?;
            } else {
                say!("created tenant {}", tenant.name);
            }
        }
    }
    Ok(OK)
}

/// `pronto update`.
pub(crate) async fn update(mut client: Client, noun: UpdateNoun, output: &OutputArgs) -> Outcome {
    match noun {
        UpdateNoun::Quota { id, limits } => {
            let changes = quota_changes(&limits)?;
            let quota: api::Quota = client
                .send(Method::PATCH, &path(&["quotas", &id]), &changes)
                .await?;
            print_list(&quota, std::slice::from_ref(&quota), QUOTAS, output)?;
        }
        UpdateNoun::Tenant {
            id,
            policy:
                TenantPolicyArgs {
                    runtimes,
                    privileged,
                    submit_rate,
                },
        } => {
            let changes = api::UpdateTenant {
                runtimes,
                privileged,
                submit_rate_per_s: submit_rate.map(|Rate(rate)| rate),
            };
            if changes == api::UpdateTenant::default() {
                return Err(Failure::usage("there is nothing to change")
                    .hint("--runtimes, --privileged or --submit-rate"));
            }
            let tenant: api::Tenant = client
                .send(Method::PATCH, &path(&["tenants", &id]), &changes)
                .await?;
            if output.format.is_machine() {
                print_value(&tenant, output.format)?;
            } else {
                say!("updated tenant {}", tenant.name);
            }
        }
        UpdateNoun::Workload { file } => {
            let request = workload_of(&client, &file)?;
            let to = path(&["workloads", &request.name]);
            let workload: api::Workload = client.send(Method::PUT, &to, &request).await?;
            if output.format.is_machine() {
                print_value(&workload, output.format)?;
            } else {
                say!(
                    "updated workload {} (revision {})",
                    workload.name,
                    workload.revision
                );
            }
        }
        UpdateNoun::Cluster {
            resume_rescheduling: _,
        } => {
            client
                .command(Method::POST, &path(&["alarms", "resume"]))
                .await?;
            say!("rescheduling goes on");
        }
    }
    Ok(OK)
}

/// `pronto delete`. Each is tried; the first failure is what the command ends with.
pub(crate) async fn delete(mut client: Client, noun: DeleteNoun) -> Outcome {
    let (kind, ids, fenced) = match noun {
        DeleteNoun::Instance { ids } => ("instances", ids, false),
        DeleteNoun::Workload { ids } => ("workloads", ids, false),
        DeleteNoun::Node { ids, fenced } => ("nodes", ids, fenced),
        DeleteNoun::Tenant { ids } => ("tenants", ids, false),
    };
    let mut first = None;
    for id in ids {
        let to = match kind {
            "nodes" => {
                let asked = api::DeleteNodeQuery {
                    fenced: fenced.then_some(true),
                };
                query(path(&[kind, &id]), &asked)?
            }
            "tenants" => path(&[kind, &id]),
            _ => query(path(&[kind, &id]), &of_tenant(&client))?,
        };
        match client.command(Method::DELETE, &to).await {
            Ok(()) => say!("{id}"),
            Err(failure) => keep_first(&mut first, failure),
        }
    }
    first.map_or(Ok(OK), Err)
}

/// `pronto stop`.
pub(crate) async fn stop(mut client: Client, noun: StopNoun) -> Outcome {
    let StopNoun::Instance {
        ids,
        submission,
        grace,
        wait,
    } = noun;
    let ids = match submission {
        Some(submission) => super::list::living(&mut client, submission).await?,
        None => ids,
    };
    let request = api::StopRequest { grace_ms: grace };
    let mut stopped = Vec::new();
    let mut first = None;
    for id in ids {
        let to = query(path(&["instances", &id, "stop"]), &of_tenant(&client))?;
        match client
            .send::<api::Instance>(Method::POST, &to, &request)
            .await
        {
            Ok(instance) => {
                say!("{}", words::short(instance.id));
                stopped.push(instance.id);
            }
            Err(failure) => keep_first(&mut first, failure),
        }
    }
    if wait {
        for id in stopped {
            wait_for_end(&mut client, id).await?;
        }
    }
    first.map_or(Ok(OK), Err)
}

async fn wait_for_end(client: &mut Client, id: uuid::Uuid) -> Result<(), Failure> {
    loop {
        match client
            .get::<api::InstanceDetail>(&path(&["instances", &id.to_string()]))
            .await
        {
            Ok(detail) if detail.instance.state.is_end() => return Ok(()),
            Ok(_) => tokio::time::sleep(LOOK_INTERVAL).await,
            // Deleted meanwhile: it has ended for sure.
            Err(failure) if failure.exit == Exit::NotFound => return Ok(()),
            Err(failure) => return Err(failure),
        }
    }
}

/// `pronto restart`.
pub(crate) async fn restart(mut client: Client, noun: RestartNoun) -> Outcome {
    let RestartNoun::Instance { ids, grace } = noun;
    let request = api::RestartRequest { grace_ms: grace };
    let mut first = None;
    for id in ids {
        let to = query(path(&["instances", &id, "restart"]), &of_tenant(&client))?;
        match client
            .send_once::<api::Instance>(Method::POST, &to, &request)
            .await
        {
            Ok(instance) => say!("{}", words::short(instance.id)),
            Err(failure) => keep_first(&mut first, failure),
        }
    }
    first.map_or(Ok(OK), Err)
}

/// Says a failure that does not end the command; the first decides how it ends.
fn keep_first(first: &mut Option<Failure>, failure: Failure) {
    match first {
        Some(_) => tell!("{failure}"),
        None => *first = Some(failure),
    }
}

fn workload_of(client: &Client, file: &Path) -> Result<api::CreateWorkload, Failure> {
    let parsed = workload_file::read(file)?;
    let name = parsed.name.ok_or_else(|| {
        Failure::usage(format!("{}:1:1: a workload needs a name", file.display()))
            .hint("name: my-workload")
    })?;
    Ok(api::CreateWorkload {
        name,
        tenant: client.tenant(),
        spec: parsed.spec,
    })
}

/// `cpus=8 memory=16G instances=none`.
fn quota_changes(limits: &[(String, String)]) -> Result<api::UpdateQuota, Failure> {
    let mut changes = api::UpdateQuota::default();
    for (key, value) in limits {
        let limit = |parse: fn(&str) -> Result<u64, String>| match value.as_str() {
            "none" => Ok(None),
            text => parse(text).map(Some).map_err(|accepted| {
                Failure::usage(format!("{key}={value} is not valid; {accepted}, or none"))
            }),
        };
        match key.as_str() {
            "instances" => changes.instances = Some(limit(whole)?),
            "cpus" | "cpu" => {
                changes.cpu_millis = Some(limit(|text| units::cpu_millis(text).map(u64::from))?)
            }
            "memory" => changes.memory_mib = Some(limit(mib)?),
            "disk" => changes.disk_mib = Some(limit(mib)?),
            "gpus" | "gpu" => changes.gpu_millis = Some(limit(gpu_millis)?),
            _ => {
                return Err(Failure::usage(format!("there is no quota '{key}'"))
                    .hint("accepted: instances, cpus, memory, disk, gpus"));
            }
        }
    }
    Ok(changes)
}

fn whole(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "accepted: a whole number".to_owned())
}

/// A quota is summed over a cluster and may exceed what one demand can say.
fn mib(text: &str) -> Result<u64, String> {
    if let Ok(mib) = text.parse::<u64>() {
        return Ok(mib);
    }
    units::bytes(text).map(|bytes| bytes >> 20)
}

fn gpu_millis(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(devices) => devices
            .checked_mul(1000)
            .ok_or_else(|| "accepted: fewer GPUs".to_owned()),
        Err(_) => {
            units::gpus(text).map(|gpus| u64::from(gpus.devices) * 1000 + u64::from(gpus.millis))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(pairs: &[(&str, &str)]) -> Result<api::UpdateQuota, Failure> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        quota_changes(&pairs)
    }

    #[test]
    fn quotas_are_given_in_peoples_units() {
        let quota = changes(&[
            ("instances", "100"),
            ("cpus", "1.5"),
            ("memory", "16G"),
            ("disk", "none"),
            ("gpus", "100"),
        ])
        .unwrap();
        assert_eq!(quota.instances, Some(Some(100)));
        assert_eq!(quota.cpu_millis, Some(Some(1500)));
        assert_eq!(quota.memory_mib, Some(Some(16_384)));
        assert_eq!(quota.disk_mib, Some(None));
        assert_eq!(quota.gpu_millis, Some(Some(100_000)));
    }

    #[test]
    fn an_unknown_quota_is_named_with_the_known_ones() {
        let text = changes(&[("core", "1")]).unwrap_err().to_string();
        assert!(text.contains("'core'") && text.contains("cpus"), "{text}");
        assert!(changes(&[("memory", "lots")]).is_err());
    }
}
