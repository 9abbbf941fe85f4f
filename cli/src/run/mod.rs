//! `pronto run` and `pronto create instance`: submit, follow, end as the workload ended.
//!
//! A submission carries an id of ours, so an outage of the controller neither loses nor doubles
//! it. Output is followed on one connection; what else must be asked meanwhile (a hint on why it
//! waits, a stop at Ctrl-C, standard input) goes over another, opened when it is first needed.

pub(crate) mod each;
pub(crate) mod files;
pub(crate) mod spec;
pub(crate) mod stdin;
pub(crate) mod streams;
pub(crate) mod words;

use crate::args::spec::{CreateInstanceArgs, RunArgs, SpecArgs};
use crate::client::{Client, path, query};
use crate::commands::{hint, unless_interrupted};
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{Format, OutputArgs, print_value, say, tell, terminal};
use crate::units;
use files::Remote;
use hyper::Method;
use pronto_controller::api::types as api;
use std::time::{Duration, Instant};
use streams::{Sink, copy_output};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// A person who has waited this long for a start is told why.
const HINT_AFTER: Duration = Duration::from_secs(1);
/// And again so often, if the reason has changed.
const HINT_EVERY: Duration = Duration::from_secs(5);
/// How often the progress of a submission is asked for: a cheap count at the controller.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How often an instance is looked at whose start something here waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How often an instance is looked at whose files may have to be brought again.
const FEED_INTERVAL: Duration = Duration::from_secs(1);
/// Files that no attempt of an instance takes for so long are given up.
const FEED_LIMIT: Duration = Duration::from_secs(30);
/// A stop must be on record within this time before we leave.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Results stay on the node so long for us to fetch them.
const KEEP_OUTPUTS_MS: u64 = 10 * 60 * 1000;
/// What a shell exits with where there is no such command.
const NOT_FOUND: u8 = 127;
/// Failed instances that are named after a batch.
const NAMED_FAILURES: u32 = 5;

/// `pronto run`.
pub(crate) async fn run(mut client: Client, args: &RunArgs) -> Outcome {
    if !args.each.is_empty() {
        return each::run(client, args).await;
    }
    let inputs = files::inputs(&args.input, &args.spec.command)?;
    files::prepare_results(&args.output, &args.output_dir)?;
    let wants = Wants {
        inputs: u32::try_from(inputs.len()).map_err(|_| Failure::usage("too many inputs"))?,
        outputs: !args.output.is_empty(),
        stdin: args.interactive,
    };
    let request = request(&mut client, &args.spec, 1, wants).await?;
    let admitted = submit(&mut client, &request).await?;
    let id = first(&admitted)?;
    let mut beside = client.another();
    if args.detach {
        if let Err(failure) = feed(&mut beside, id, &inputs, true).await {
            stop(&mut beside, id).await;
            return Err(failure);
        }
        print_admitted(&admitted, args.client.output.format)?;
        return Ok(OK);
    }
    if args.interactive {
        let client = client.another();
        tokio::spawn(stdin::send(client, id));
    }
    let followed = tokio::select! {
        followed = follow(&mut client, id, Sink::own()) => match followed {
            // As a process here would be, whose reader went away.
            Err(failure) if failure.is_reader_gone() => Err(failure),
            other => Ok(other?),
        },
        Err(failure) = feed(&mut beside, id, &inputs, false) => Err(failure),
    };
    let followed = match followed {
        Ok(followed) => followed,
        Err(failure) => {
            stop(&mut beside, id).await;
            return Err(failure);
        }
    };
    let Some((end, interrupted)) = followed else {
        return Ok(Exit::Interrupted.code());
    };
    if args.client.output.format == Format::Json {
        // The descriptors carry the workload's output; its record goes where errors go.
        tell!(
            "{}",
            serde_json::to_string(&end).map_err(anyhow::Error::from)?
        );
    }
    if words::exit_code(&end.instance) == NOT_FOUND
        && inputs.is_empty()
        && let Some(script) = files::script(&args.spec.command)?
    {
        let path = script.path.display();
        tell!("hint: {path} is a file here and not on the node; --input {path} brings it along");
    }
    let fetching = files::fetch_matches(&mut beside, id, &args.output, &args.output_dir);
    let whole = unless_interrupted(fetching).await?;
    Ok(match conclude(&end, interrupted) {
        OK if !whole => Exit::No.code(),
        code => code,
    })
}

/// Stops an instance that we leave. What led to it is the failure that counts.
pub(crate) async fn stop(client: &mut Client, id: Uuid) {
    let to = path(&["instances", &id.to_string(), "stop"]);
    let request = api::StopRequest::default();
    let stopped = client.send::<api::Instance>(Method::POST, &to, &request);
    if let Err(failure) = stopped.await {
        tell!("{failure}");
    }
}

/// The exit code of a followed instance, its remark said.
fn conclude(end: &api::OutputEnd, interrupted: bool) -> u8 {
    if let Some(problem) = &end.problem {
        tell!("pronto: some output is missing: {problem}");
    }
    let stopped = end.instance.end.as_ref().is_some_and(|end| {
        matches!(
            end.cause,
            api::EndReason::Stopped | api::EndReason::Cancelled
        )
    });
    if interrupted && stopped {
        return Exit::Interrupted.code();
    }
    if let Some(remark) = words::remark(&end.instance) {
        tell!(
            "pronto: instance {}: {remark}",
            words::short(end.instance.id)
        );
    }
    words::exit_code(&end.instance)
}

/// What a submission asks for beyond its flags.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wants {
    pub(crate) inputs: u32,
    pub(crate) outputs: bool,
    pub(crate) stdin: bool,
}

/// The submission that these flags mean.
pub(crate) async fn request(
    client: &mut Client,
    args: &SpecArgs,
    count: u32,
    wants: Wants,
) -> Result<api::SubmitRequest, Failure> {
    if let Some(name) = &args.name {
        units::check_instance_name(name, count).map_err(|accepted| {
            Failure::usage(format!("--name '{name}' is not valid; {accepted}"))
        })?;
    }
    let keep_outputs_ms = if wants.outputs { KEEP_OUTPUTS_MS } else { 0 };
    let mut request = api::SubmitRequest {
        request_id: Some(Uuid::now_v7()),
        tenant: client.tenant(),
        name: args.name.clone(),
        count,
        workload: args.workload.clone(),
        spec: None,
        overrides: api::SpecOverrides::default(),
    };
    if let Some(workload) = &args.workload {
        let base = if spec::needs_workload(args) {
            let asked = api::OneQuery {
                tenant: client.tenant(),
                reveal: None,
            };
            let shown: api::Workload = client
                .get(&query(path(&["workloads", workload]), &asked)?)
                .await?;
            Some(shown.spec)
        } else {
            None
        };
        request.overrides = spec::overrides(args, base.as_ref())?;
        request.overrides.await_inputs = (wants.inputs > 0).then_some(wants.inputs);
        request.overrides.stdin = wants.stdin.then_some(true);
        request.overrides.keep_outputs_ms = wants.outputs.then_some(keep_outputs_ms);
    } else {
        let mut spec = spec::ad_hoc(args)?;
        spec.await_inputs = wants.inputs;
        spec.stdin = wants.stdin;
        spec.keep_outputs_ms = spec.keep_outputs_ms.max(keep_outputs_ms);
        request.spec = Some(spec);
    }
    Ok(request)
}

/// Submits: what this returns is on the controller's disk.
pub(crate) async fn submit(
    client: &mut Client,
    request: &api::SubmitRequest,
) -> Result<api::SubmitResponse, Failure> {
    client
        .send(Method::POST, &path(&["instances"]), request)
        .await
}

pub(crate) fn first(admitted: &api::SubmitResponse) -> Result<Uuid, Failure> {
    let first = admitted.instances.first().copied();
    first.ok_or_else(|| Failure::new(Exit::Failed, "the controller admitted nothing"))
}

fn print_admitted(admitted: &api::SubmitResponse, format: Format) -> Result<(), Failure> {
    if format.is_machine() {
        return print_value(admitted, format);
    }
    for id in &admitted.instances {
        say!("{id}");
    }
    Ok(())
}

/// Follows an instance's output to its end. Ctrl-C stops the instance, a second one leaves it:
/// then there is no end. The flag says whether it was stopped so.
async fn follow(
    client: &mut Client,
    id: Uuid,
    sink: Sink,
) -> Result<Option<(api::OutputEnd, bool)>, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut beside = client.another();
    let mut stopping: Option<JoinHandle<()>> = None;
    let output = follow_output(client, id, sink);
    tokio::pin!(output);
    let mut hint_at = tokio::time::Instant::now()
        + if terminal::watched() {
            HINT_AFTER
        } else {
            HINT_EVERY
        };
    let mut hinted = None;
    loop {
        tokio::select! {
            end = &mut output => return Ok(Some((end?, stopping.is_some()))),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = tokio::time::sleep_until(hint_at), if hinted.is_none() || terminal::watched() => {
                hint_waiting(&mut beside, id, &mut hinted).await;
                hint_at = tokio::time::Instant::now() + HINT_EVERY;
                continue;
            }
        }
        if let Some(stopping) = stopping {
            // The second signal may be right behind the first: what asked for the stop must arrive.
            let _late = tokio::time::timeout(STOP_LIMIT, stopping).await;
            tell!("pronto: detached; {id} is still being stopped");
            return Ok(None);
        }
        terminal::note("stopping it; once more does not wait for its end");
        let mut client = beside.another();
        stopping = Some(tokio::spawn(async move { stop(&mut client, id).await }));
    }
}

/// The output from its beginning to its end, however often the connection breaks.
pub(crate) async fn follow_output(
    client: &mut Client,
    id: Uuid,
    sink: Sink,
) -> Result<api::OutputEnd, Failure> {
    let asked = api::OutputQuery {
        follow: Some(true),
        ..api::OutputQuery::default()
    };
    let to = query(path(&["instances", &id.to_string(), "output"]), &asked)?;
    follow_path(client, &to, sink).await
}

/// The same of an output that is named by its path.
pub(crate) async fn follow_path(
    client: &mut Client,
    to: &str,
    mut sink: Sink,
) -> Result<api::OutputEnd, Failure> {
    let mut again = false;
    let mut wait = LOOK_INTERVAL;
    loop {
        let mut frames = client.open(to).await?;
        match copy_output(&mut frames, &mut sink).await {
            // A log that could not be read may be readable now that nobody writes it any more.
            Ok(end) if end.instance.state.is_end() && (end.problem.is_none() || again) => {
                client.take_back(frames).await;
                return Ok(end);
            }
            // Its node was away for a moment, or the log with it: the instance goes on.
            Ok(end) => again = end.instance.state.is_end(),
            Err(failure) if failure.exit == Exit::Unreachable => {}
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(HINT_AFTER);
        sink.rewind();
    }
}

/// Says why an instance waits, if it does and that is news. A hint is worth no failure.
async fn hint_waiting(client: &mut Client, id: Uuid, hinted: &mut Option<String>) {
    let shown = client
        .get::<api::InstanceDetail>(&path(&["instances", &id.to_string()]))
        .await;
    let Ok(detail) = shown else { return };
    if detail.instance.state != api::InstanceState::Pending {
        return;
    }
    if let Ok(words) = hint(client, id).await
        && hinted.as_ref() != Some(&words)
    {
        // Also in a script, once: what waits for ever must not do so in silence.
        tell!("pronto: {} waits: {words}", words::short(id));
        *hinted = Some(words);
    }
}

/// Brings files to an instance, to each of its attempts once: one that a node has refused, or lost,
/// begins again without them, and what an attempt has it may have changed. Returns when it has ended; with `once`, when it runs.
pub(crate) async fn feed(
    client: &mut Client,
    id: Uuid,
    inputs: &[files::Input],
    once: bool,
) -> Result<(), Failure> {
    let to = path(&["instances", &id.to_string()]);
    let mut pause = LOOK_INTERVAL;
    let (mut failing, mut served) = (None, None);
    while !inputs.is_empty() {
        let instance = client.get::<api::InstanceDetail>(&to).await?.instance;
        let state = instance.state;
        if state.is_end() || (once && state == api::InstanceState::Running) {
            break;
        }
        if state != api::InstanceState::Running && served != Some(instance.attempt) {
            match bring_all(client, id, inputs).await {
                Ok(attempt) => (failing, served) = (None, attempt),
                // It waits for a place still.
                Err(failure)
                    if failure.exit == Exit::Conflict && state != api::InstanceState::Starting => {}
                // The attempt that it was brought to is over: the next look tells.
                Err(failure) if is_of_an_attempt(&failure) => {
                    let since = *failing.get_or_insert_with(Instant::now);
                    if since.elapsed() > FEED_LIMIT {
                        return Err(failure);
                    }
                }
                Err(failure) => return Err(failure),
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(FEED_INTERVAL);
    }
    Ok(())
}

/// Brings all of them; says which attempt has them, if one has them all.
async fn bring_all(
    client: &mut Client,
    id: Uuid,
    inputs: &[files::Input],
) -> Result<Option<u32>, Failure> {
    let mut attempts = std::collections::BTreeSet::new();
    for input in inputs {
        let target = Remote {
            instance: id.to_string(),
            path: input.name.clone(),
        };
        let end = files::bring(client, &input.path, &target, true).await?;
        attempts.insert(end.attempt);
    }
    let first = attempts.first().copied().flatten();
    Ok(first.filter(|_| attempts.len() == 1))
}

fn is_of_an_attempt(failure: &Failure) -> bool {
    matches!(failure.exit, Exit::Conflict | Exit::NotFound) || failure.may_pass()
}

/// Waits until an instance has reached a state; `false` if it ended or went past it.
async fn wait_until(
    client: &mut Client,
    id: Uuid,
    reached: impl Fn(api::InstanceState) -> bool,
) -> Result<bool, Failure> {
    let to = path(&["instances", &id.to_string()]);
    loop {
        let state = client.get::<api::InstanceDetail>(&to).await?.instance.state;
        if reached(state) {
            return Ok(true);
        }
        if state.is_end() {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// `pronto create instance`.
pub(crate) async fn create_instances(
    mut client: Client,
    args: &CreateInstanceArgs,
    output: &OutputArgs,
) -> Outcome {
    let request = request(&mut client, &args.spec, args.count, Wants::default()).await?;
    let admitted = submit(&mut client, &request).await?;
    if args.detach {
        print_admitted(&admitted, output.format)?;
        return Ok(OK);
    }
    let Some(last) = wait_for_submission(&mut client, &admitted).await? else {
        tell!(
            "pronto: detached; it goes on as submission {}",
            admitted.submission
        );
        return Ok(Exit::Interrupted.code());
    };
    let succeeded = last
        .states
        .get(api::InstanceState::Succeeded.name())
        .copied()
        .unwrap_or(0);
    if output.format.is_machine() {
        print_value(&last, output.format)?;
    } else {
        let states: Vec<String> = last
            .states
            .iter()
            .map(|(state, count)| format!("{count} {state}"))
            .collect();
        say!("{}", states.join(", "));
        if succeeded < last.count {
            name_failures(&mut client, &admitted).await?;
        }
    }
    Ok(if succeeded == last.count {
        OK
    } else {
        Exit::No.code()
    })
}

/// Watches a submission to its end with a progress bar. Ctrl-C leaves it: then there is no end.
async fn wait_for_submission(
    client: &mut Client,
    admitted: &api::SubmitResponse,
) -> Result<Option<api::Submission>, Failure> {
    let bar = terminal::progress(admitted.instances.len() as u64, "ended");
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut wait = LOOK_INTERVAL;
    loop {
        let progress = tokio::select! {
            progress = progress_after(client, admitted.submission, wait) => progress?,
            _ = interrupt.recv() => {
                bar.abandon();
                return Ok(None);
            }
        };
        bar.set_position(progress.ended.into());
        let running = progress
            .states
            .get(api::InstanceState::Running.name())
            .copied()
            .unwrap_or(0);
        bar.set_message(format!("({running} running)"));
        if progress.ended >= progress.count {
            bar.finish_and_clear();
            return Ok(Some(progress));
        }
        wait = (wait * 2).min(PROGRESS_INTERVAL);
    }
}

/// How far a submission is after this time, or as soon as it has ended.
pub(crate) async fn progress_after(
    client: &mut Client,
    submission: Uuid,
    wait: Duration,
) -> Result<api::Submission, Failure> {
    let asked = api::SubmissionQuery {
        wait_ms: u64::try_from(wait.as_millis()).ok(),
    };
    let to = path(&["submissions", &submission.to_string()]);
    client.get(&query(to, &asked)?).await
}

async fn name_failures(client: &mut Client, admitted: &api::SubmitResponse) -> Result<(), Failure> {
    let asked = api::ListInstances {
        tenant: Some(admitted.tenant.clone()),
        submission: Some(admitted.submission),
        state: Some("failed,stopped,node_lost,expired,cancelled".to_owned()),
        limit: Some(NAMED_FAILURES),
        ..api::ListInstances::default()
    };
    let list: api::InstanceList = client.get(&query(path(&["instances"]), &asked)?).await?;
    for instance in &list.instances {
        let remark = words::remark(instance)
            .map(|remark| format!(": {remark}"))
            .unwrap_or_default();
        tell!(
            "  {} {}{remark}",
            words::short(instance.id),
            words::state(instance)
        );
    }
    if list.next.is_some() {
        let submission = admitted.submission;
        tell!("  … pronto list instances --submission {submission} --state failed");
    }
    Ok(())
}
