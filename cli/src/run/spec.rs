//! From flags to what the API takes: a whole spec, or the changes to a workload's.

use crate::args::spec::{DemandArgs, SpecArgs, TaskArgs};
use crate::exit::{Exit, Failure};
use crate::run::words;
use crate::workload_file;
use anyhow::Context;
use pronto_controller::api::types as api;
use std::collections::BTreeMap;
use std::path::Path;

/// The spec of an ad-hoc instance: a workload file's, or the defaults, and the flags over it.
pub(crate) fn ad_hoc(args: &SpecArgs) -> Result<api::Spec, Failure> {
    let mut spec = match &args.file {
        Some(file) => workload_file::read(file)?.spec,
        None => api::Spec::new(empty_task(chosen_runtime(args))),
    };
    if let Some(runtime) = args.demand.runtime
        && runtime != runtime_of(&spec.task)
    {
        let of_file = words::runtime(runtime_of(&spec.task));
        return Err(Failure::usage(format!(
            "--runtime {} does not go with the file's runtime {of_file}",
            words::runtime(runtime)
        )));
    }
    apply_task(args, &mut spec.task)?;
    check_task(&spec.task)?;
    apply_demand(&args.demand, &mut spec.demand);
    spec.constraints.extend(constraints(&args.demand));
    spec.env.extend(environment(&args.task.env)?);
    let terms = &args.terms;
    spec.labels.extend(terms.labels.iter().cloned());
    if let Some(restart) = &terms.restart {
        spec.restart = restart.clone();
    }
    if let Some(limit) = terms.reschedule {
        spec.reschedule.limit = limit;
    }
    if let Some(on_disconnect) = terms.on_disconnect {
        spec.on_disconnect = on_disconnect;
    }
    spec.priority = terms.priority.unwrap_or(spec.priority);
    spec.timeout_ms = terms.timeout.or(spec.timeout_ms);
    spec.pending_timeout_ms = terms.pending_timeout.or(spec.pending_timeout_ms);
    spec.stop_grace_ms = terms.stop_grace.unwrap_or(spec.stop_grace_ms);
    spec.log_cap_bytes = terms.log_cap.or(spec.log_cap_bytes);
    spec.hard_cpu |= terms.hard_cpu;
    spec.privileged |= terms.privileged;
    Ok(spec)
}

/// What the flags change in a workload. `workload` is asked for only if a part of its task or its
/// demand changes, since those travel whole.
pub(crate) fn overrides(
    args: &SpecArgs,
    workload: Option<&api::Spec>,
) -> Result<api::SpecOverrides, Failure> {
    let terms = &args.terms;
    for (set, flag) in [
        (terms.privileged, "--privileged"),
        (terms.hard_cpu, "--hard-cpu"),
        (terms.log_cap.is_some(), "--log-cap"),
    ] {
        if set {
            return Err(
                Failure::usage(format!("{flag} can't change a workload for one time"))
                    .hint("set it in the workload: `pronto update workload -f FILE`"),
            );
        }
    }
    let mut overrides = api::SpecOverrides {
        constraints: constraints(&args.demand),
        env: environment(&args.task.env)?,
        labels: terms.labels.iter().cloned().collect(),
        restart: terms.restart.clone(),
        reschedule: terms.reschedule.map(|limit| api::ReschedulePolicy {
            limit,
            ..api::ReschedulePolicy::default()
        }),
        on_disconnect: terms.on_disconnect,
        priority: terms.priority,
        pending_timeout_ms: terms.pending_timeout,
        timeout_ms: terms.timeout,
        stop_grace_ms: terms.stop_grace,
        ..api::SpecOverrides::default()
    };
    if let Some(workload) = workload {
        if changes_task(args) {
            let mut task = workload.task.clone();
            apply_task(args, &mut task)?;
            overrides.task = Some(task);
        }
        if changes_demand(&args.demand) {
            let mut demand = workload.demand.clone();
            apply_demand(&args.demand, &mut demand);
            overrides.demand = Some(demand);
        }
    }
    Ok(overrides)
}

/// Whether the workload itself must be known to make the overrides.
pub(crate) fn needs_workload(args: &SpecArgs) -> bool {
    changes_task(args) || changes_demand(&args.demand)
}

fn changes_demand(args: &DemandArgs) -> bool {
    args.cpus.is_some()
        || args.memory.is_some()
        || args.disk.is_some()
        || args.gpus.is_some()
        || !args.resources.is_empty()
}

fn changes_task(args: &SpecArgs) -> bool {
    !args.command.is_empty()
        || args.demand.runtime.is_some()
        || task_flags(&args.task).iter().any(|(set, ..)| *set)
}

/// The demand of flags alone, for `explain`.
pub(crate) fn demand(args: &DemandArgs) -> api::DemandSpec {
    let mut demand = api::DemandSpec::default();
    apply_demand(args, &mut demand);
    demand
}

fn apply_demand(args: &DemandArgs, demand: &mut api::DemandSpec) {
    demand.cpu_millis = args.cpus.unwrap_or(demand.cpu_millis);
    demand.memory_mib = args.memory.unwrap_or(demand.memory_mib);
    demand.disk_mib = args.disk.unwrap_or(demand.disk_mib);
    if let Some(gpus) = args.gpus {
        (demand.gpus, demand.gpu_millis) = (gpus.devices, gpus.millis);
    }
    for resource in &args.resources {
        demand
            .resources
            .insert(resource.name.clone(), resource.count);
    }
}

/// The constraints of flags.
pub(crate) fn constraints(args: &DemandArgs) -> Vec<api::ConstraintSpec> {
    let labels = args.constraints.iter().map(|(key, value)| {
        api::ConstraintSpec::Label(api::LabelSpec {
            key: key.clone(),
            value: value.clone(),
        })
    });
    args.node
        .iter()
        .cloned()
        .map(api::ConstraintSpec::Node)
        .chain(labels)
        .collect()
}

fn environment(pairs: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut environment = BTreeMap::new();
    for pair in pairs {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => match std::env::var(pair) {
                Ok(value) => (pair.as_str(), value),
                Err(_) => {
                    return Err(Failure::usage(format!("--env {pair}: it is not set here"))
                        .hint("give --env KEY=VALUE, or set it"));
                }
            },
        };
        if name.is_empty() {
            return Err(Failure::usage(format!(
                "--env {pair}: accepted: KEY=VALUE or KEY"
            )));
        }
        environment.insert(name.to_owned(), value);
    }
    Ok(environment)
}

fn chosen_runtime(args: &SpecArgs) -> api::RuntimeName {
    args.demand.runtime.unwrap_or({
        if args.task.kernel.is_some() {
            api::RuntimeName::Qemu
        } else if args.task.image.is_some() {
            api::RuntimeName::Docker
        } else {
            api::RuntimeName::Exec
        }
    })
}

fn empty_task(runtime: api::RuntimeName) -> api::TaskSpec {
    match runtime {
        api::RuntimeName::Exec => api::TaskSpec::Exec(api::ExecSpec::default()),
        api::RuntimeName::Docker => api::TaskSpec::Docker(api::DockerSpec::default()),
        api::RuntimeName::Qemu => api::TaskSpec::Qemu(api::QemuSpec::default()),
        api::RuntimeName::Sim => api::TaskSpec::Sim(api::SimSpec::default()),
    }
}

/// A task's runtime.
pub(crate) const fn runtime_of(task: &api::TaskSpec) -> api::RuntimeName {
    match task {
        api::TaskSpec::Exec(_) => api::RuntimeName::Exec,
        api::TaskSpec::Docker(_) => api::RuntimeName::Docker,
        api::TaskSpec::Qemu(_) => api::RuntimeName::Qemu,
        api::TaskSpec::Sim(_) => api::RuntimeName::Sim,
    }
}

const EXEC: &[api::RuntimeName] = &[api::RuntimeName::Exec];
const DOCKER: &[api::RuntimeName] = &[api::RuntimeName::Docker];
const QEMU: &[api::RuntimeName] = &[api::RuntimeName::Qemu];
const SIM: &[api::RuntimeName] = &[api::RuntimeName::Sim];
const PROCESS: &[api::RuntimeName] = &[api::RuntimeName::Exec, api::RuntimeName::Docker];
const IMAGE: &[api::RuntimeName] = &[api::RuntimeName::Docker, api::RuntimeName::Qemu];

/// Each flag that only some runtimes know: whether it is set, its name, and which those are.
fn task_flags(task: &TaskArgs) -> [(bool, &'static str, &'static [api::RuntimeName]); 15] {
    [
        (task.image.is_some(), "--image", IMAGE),
        (task.workdir.is_some(), "--workdir", PROCESS),
        (task.user.is_some(), "--user", PROCESS),
        (task.pids_limit.is_some(), "--pids-limit", PROCESS),
        (task.private_tmp, "--private-tmp", EXEC),
        (task.require_hard_limits, "--require-hard-limits", EXEC),
        (!task.ports.is_empty(), "--publish", IMAGE),
        (!task.mounts.is_empty(), "--mount", DOCKER),
        (task.kernel.is_some(), "--kernel", QEMU),
        (task.initrd.is_some(), "--initrd", QEMU),
        (task.append.is_some(), "--append", QEMU),
        (task.user_data.is_some(), "--user-data", QEMU),
        (task.meta_data.is_some(), "--meta-data", QEMU),
        (task.run_for.is_some(), "--run-for", SIM),
        (task.exit_code.is_some(), "--exit-code", SIM),
    ]
}

fn apply_task(args: &SpecArgs, task: &mut api::TaskSpec) -> Result<(), Failure> {
    let runtime = runtime_of(task);
    let stray = |flag: &str, of: &[api::RuntimeName]| {
        let of: Vec<&str> = of.iter().map(|&name| words::runtime(name)).collect();
        let name = words::runtime(runtime);
        Failure::usage(format!(
            "{flag} means nothing to runtime {name}; it is for {}",
            of.join(", ")
        ))
    };
    for (set, flag, of) in task_flags(&args.task) {
        if set && !of.contains(&runtime) {
            return Err(stray(flag, of));
        }
    }
    if !args.command.is_empty() && !PROCESS.contains(&runtime) {
        return Err(stray("a command", PROCESS));
    }
    let flags = &args.task;
    match task {
        api::TaskSpec::Exec(exec) => {
            replace(&mut exec.command, &args.command);
            set(&mut exec.workdir, flags.workdir.as_ref());
            set(&mut exec.user, flags.user.as_ref());
            set(&mut exec.pids_limit, flags.pids_limit.as_ref());
            exec.private_tmp |= flags.private_tmp;
            exec.require_hard_limits |= flags.require_hard_limits;
        }
        api::TaskSpec::Docker(docker) => {
            if let Some(image) = &flags.image {
                docker.image.clone_from(image);
            }
            replace(&mut docker.command, &args.command);
            set(&mut docker.workdir, flags.workdir.as_ref());
            set(&mut docker.user, flags.user.as_ref());
            set(&mut docker.pids_limit, flags.pids_limit.as_ref());
            replace(&mut docker.mounts, &flags.mounts);
            replace(&mut docker.ports, &flags.ports);
        }
        api::TaskSpec::Qemu(qemu) => {
            set(&mut qemu.image, flags.image.as_ref());
            set(&mut qemu.kernel, flags.kernel.as_ref());
            set(&mut qemu.initrd, flags.initrd.as_ref());
            if let Some(append) = &flags.append {
                qemu.append.clone_from(append);
            }
            set(
                &mut qemu.user_data,
                data(flags.user_data.as_deref())?.as_ref(),
            );
            set(
                &mut qemu.meta_data,
                data(flags.meta_data.as_deref())?.as_ref(),
            );
            replace(&mut qemu.ports, &flags.ports);
        }
        api::TaskSpec::Sim(sim) => {
            sim.run_ms = flags.run_for.unwrap_or(sim.run_ms);
            sim.exit_code = flags.exit_code.unwrap_or(sim.exit_code);
        }
    }
    Ok(())
}

fn check_task(task: &api::TaskSpec) -> Result<(), Failure> {
    match task {
        api::TaskSpec::Exec(exec) if exec.command.is_empty() => {
            Err(Failure::usage("there is no command to run")
                .hint("pronto run [FLAGS] -- COMMAND [ARGUMENTS], or --workload NAME"))
        }
        api::TaskSpec::Docker(docker) if docker.image.is_empty() => {
            Err(Failure::usage("runtime docker needs an image").hint("--image busybox"))
        }
        api::TaskSpec::Qemu(qemu) if qemu.image.is_none() && qemu.kernel.is_none() => {
            Err(Failure::usage("runtime qemu needs an image or a kernel")
                .hint("--kernel PATH --initrd PATH, or --image PATH, as they are on the node"))
        }
        _ => Ok(()),
    }
}

fn set<T: Clone>(field: &mut Option<T>, flag: Option<&T>) {
    if let Some(value) = flag {
        *field = Some(value.clone());
    }
}

fn replace<T: Clone>(field: &mut Vec<T>, flag: &[T]) {
    if !flag.is_empty() {
        *field = flag.to_vec();
    }
}

fn data(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let Some(file) = file else { return Ok(None) };
    std::fs::read_to_string(file)
        .with_context(|| format!("can't read {}", file.display()))
        .map(Some)
        .map_err(|error| Failure::caused(Exit::Usage, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn flags(line: &str) -> SpecArgs {
        let words = ["pronto", "run"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(run) => run.spec,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_a_tenth_of_a_core_and_64_mib() {
        let spec = ad_hoc(&flags("-- true")).unwrap();
        assert_eq!((spec.demand.cpu_millis, spec.demand.memory_mib), (100, 64));
        let api::TaskSpec::Exec(exec) = spec.task else {
            panic!()
        };
        assert_eq!(exec.command, ["true"]);
    }

    #[test]
    fn flags_become_a_spec() {
        let spec = ad_hoc(&flags(
            "--cpus 0.01 --memory 16M --gpus 0.5 --constraint zone=a --node n1 --label t=x \
             --env A=b --timeout 5s --priority -2 --on-disconnect stop-after:3s -- sh -c x",
        ))
        .unwrap();
        assert_eq!((spec.demand.cpu_millis, spec.demand.memory_mib), (10, 16));
        assert_eq!((spec.demand.gpus, spec.demand.gpu_millis), (0, 500));
        assert_eq!(words::constraints(&spec.constraints), "node=n1 zone=a");
        assert_eq!(spec.env["A"], "b");
        assert_eq!((spec.timeout_ms, spec.priority), (Some(5000), -2));
        assert_eq!(spec.on_disconnect, api::OnDisconnectSpec::StopAfterMs(3000));
    }

    #[test]
    fn an_image_means_docker_and_a_kernel_means_qemu() {
        let docker = ad_hoc(&flags("--image busybox")).unwrap();
        assert_eq!(runtime_of(&docker.task), api::RuntimeName::Docker);
        let qemu = ad_hoc(&flags("--kernel /k --image /i")).unwrap();
        assert_eq!(runtime_of(&qemu.task), api::RuntimeName::Qemu);
    }

    #[test]
    fn flags_that_mean_nothing_are_refused_by_name() {
        let text = ad_hoc(&flags("--kernel /k --runtime exec -- ls"))
            .unwrap_err()
            .to_string();
        assert!(text.contains("--kernel") && text.contains("qemu"), "{text}");
        let text = ad_hoc(&flags("--runtime sim -- ls"))
            .unwrap_err()
            .to_string();
        assert!(text.contains("a command"), "{text}");
        assert_eq!(ad_hoc(&flags("")).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn changes_to_a_workload_keep_the_rest_of_its_demand() {
        let base = ad_hoc(&flags("--cpus 2 --memory 1G -- ls")).unwrap();
        let args = flags("--workload w --memory 2G");
        assert!(needs_workload(&args));
        let overrides = overrides(&args, Some(&base)).unwrap();
        let demand = overrides.demand.unwrap();
        assert_eq!((demand.cpu_millis, demand.memory_mib), (2000, 2048));
        assert_eq!(overrides.task, None);
        assert!(!needs_workload(&flags("--workload w --priority 3")));
    }
}
