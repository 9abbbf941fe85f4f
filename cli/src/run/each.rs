//! `pronto run --each`: one instance a file, its inputs brought along and its results fetched.
//!
//! A bounded number of files is under way at once, each from its submission to its results, so
//! that no instance that waits for its files can hold the room of one that has them.

use super::files::{self, Input};
use super::streams::Sink;
use super::{Wants, feed, first, follow_output, request, stop, submit, words};
use crate::args::spec::{RunArgs, SpecArgs};
use crate::client::Client;
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{tell, terminal};
use pronto_controller::api::types as api;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Files under way at once: each has two connections to the controller.
const AT_ONCE: usize = 64;
/// How often a submission is tried again that found no room.
const ROOM_INTERVAL: Duration = Duration::from_millis(250);
/// Output of one file that is kept until its turn to be printed; the rest is in its log.
const KEPT_OUTPUT_BYTES: usize = 1 << 20;

/// What all files share.
struct Plan {
    spec: SpecArgs,
    shared: Vec<Input>,
    output: Vec<String>,
    output_dir: PathBuf,
    live: Mutex<BTreeSet<Uuid>>,
    /// Submitted, or being submitted, and not ended.
    under_way: AtomicUsize,
    /// Ctrl-C was pressed: nothing more is submitted.
    stopping: AtomicBool,
}

impl Plan {
    /// Instances under way.
    fn live(&self) -> MutexGuard<'_, BTreeSet<Uuid>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be fetched of this file's instance.
    fn patterns(&self, file: &Input) -> Vec<String> {
        let patterns = self.output.iter();
        patterns
            .map(|pattern| substitute(pattern, &file.name))
            .collect()
    }
}

/// One file's end.
struct Done {
    index: usize,
    outcome: Result<(api::OutputEnd, Vec<u8>, Vec<u8>), Failure>,
}

/// Runs it.
pub(super) async fn run(client: Client, args: &RunArgs) -> Outcome {
    let files: Vec<Input> = args
        .each
        .iter()
        .map(|path| Input::new(path))
        .collect::<Result<_, _>>()?;
    let mut shared: Vec<Input> = args
        .input
        .iter()
        .map(|path| Input::new(path))
        .collect::<Result<_, _>>()?;
    shared.extend(files::script(&args.spec.command)?);
    let count = files.len();
    let plan = Arc::new(Plan {
        spec: args.spec.clone(),
        shared,
        output: args.output.clone(),
        output_dir: args.output_dir.clone(),
        live: Mutex::default(),
        under_way: AtomicUsize::new(0),
        stopping: AtomicBool::new(false),
    });
    distinct_results(&plan.output, &files)?;
    let patterns = files.iter().flat_map(|file| plan.patterns(file));
    files::prepare_results(&patterns.collect::<Vec<_>>(), &plan.output_dir)?;
    let files = Arc::new(files);
    let next = Arc::new(AtomicUsize::new(0));
    let (sender, mut receiver) = mpsc::channel(AT_ONCE);
    let mut workers = JoinSet::new();
    for _ in 0..count.min(AT_ONCE) {
        let (plan, files, next, sender) =
            (plan.clone(), files.clone(), next.clone(), sender.clone());
        let mut client = client.another();
        workers.spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(file) = files.get(index) else { return };
                let outcome = one(&mut client, &plan, file).await;
                if sender.send(Done { index, outcome }).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let bar = terminal::progress(count as u64, "files");
    let mut codes = vec![OK; count];
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            done = receiver.recv() => {
                let Some(done) = done else { break };
                let name = &files[done.index].name;
                codes[done.index] = bar.suspend(|| report(name, done.outcome));
                bar.inc(1);
                continue;
            }
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if plan.stopping.swap(true, Ordering::Relaxed) {
            tell!("pronto: detached; what was under way is still being stopped");
            return Ok(Exit::Interrupted.code());
        }
        terminal::note("stopping all that is under way; once more does not wait for its end");
        next.store(count, Ordering::Relaxed);
        for id in plan.live().clone() {
            let mut client = client.another();
            tokio::spawn(async move { stop(&mut client, id).await });
        }
    }
    bar.finish_and_clear();
    if plan.stopping.load(Ordering::Relaxed) {
        return Ok(Exit::Interrupted.code());
    }
    let failed = codes.iter().filter(|&&code| code != OK).count();
    tell!("{} of {count} files succeeded", count - failed);
    Ok(codes.into_iter().find(|&code| code != OK).unwrap_or(OK))
}

/// Submits; where a quota or a rate limit leaves no room, once there is some again.
async fn submit_in_turn(
    client: &mut Client,
    plan: &Plan,
    request: &api::SubmitRequest,
) -> Result<api::SubmitResponse, Failure> {
    loop {
        plan.under_way.fetch_add(1, Ordering::Relaxed);
        let failure = match submit(client, request).await {
            Ok(admitted) => return Ok(admitted),
            Err(failure) => failure,
        };
        let others = plan.under_way.fetch_sub(1, Ordering::Relaxed) - 1;
        let passes = match failure.code() {
            Some(api::ErrorCode::RateLimited) => true,
            // What is full of others' work may stay so; what is full of ours does not.
            Some(api::ErrorCode::QuotaExceeded) => others > 0,
            _ => false,
        };
        if !passes || plan.stopping.load(Ordering::Relaxed) {
            return Err(failure);
        }
        tokio::time::sleep(ROOM_INTERVAL).await;
    }
}

async fn one(
    client: &mut Client,
    plan: &Plan,
    file: &Input,
) -> Result<(api::OutputEnd, Vec<u8>, Vec<u8>), Failure> {
    let mut spec = plan.spec.clone();
    spec.command = spec
        .command
        .iter()
        .map(|word| substitute(word, &file.name))
        .collect();
    spec.name = spec.name.map(|name| substitute(&name, &file.name));
    let mut inputs = plan.shared.clone();
    inputs.push(file.clone());
    let inputs = files::distinct(inputs)?;
    let wants = Wants {
        inputs: u32::try_from(inputs.len()).map_err(|_| Failure::usage("too many inputs"))?,
        outputs: !plan.output.is_empty(),
        stdin: false,
    };
    let request = request(client, &spec, 1, wants).await?;
    let id = first(&submit_in_turn(client, plan, &request).await?)?;
    plan.live().insert(id);
    let mut beside = client.another();
    let outcome = if plan.stopping.load(Ordering::Relaxed) {
        stop(&mut beside, id).await;
        Err(Failure::new(Exit::Interrupted, "interrupted"))
    } else {
        let mut feeder = client.another();
        tokio::select! {
            results = results(client, &mut beside, plan, file, id) => results,
            Err(failure) = feed(&mut feeder, id, &inputs, false) => {
                // It would wait for its files in vain.
                stop(&mut feeder, id).await;
                Err(failure)
            }
        }
    };
    plan.live().remove(&id);
    plan.under_way.fetch_sub(1, Ordering::Relaxed);
    outcome
}

/// Follows an instance that has its files to its end, and fetches what it made.
async fn results(
    client: &mut Client,
    beside: &mut Client,
    plan: &Plan,
    file: &Input,
    id: Uuid,
) -> Result<(api::OutputEnd, Vec<u8>, Vec<u8>), Failure> {
    let (stdout, stderr) = (Kept::default(), Kept::default());
    let sink = Sink::new(Box::new(stdout.clone()), Box::new(stderr.clone()));
    let end = follow_output(client, id, sink).await?;
    if end.instance.state == api::InstanceState::Succeeded {
        let whole =
            files::fetch_matches(beside, id, &plan.patterns(file), &plan.output_dir).await?;
        if !whole {
            return Err(Failure::new(
                Exit::No,
                "not all results that were asked for are there",
            ));
        }
    }
    Ok((end, stdout.take(), stderr.take()))
}

fn report(name: &str, outcome: Result<(api::OutputEnd, Vec<u8>, Vec<u8>), Failure>) -> u8 {
    match outcome {
        Ok((end, stdout, stderr)) => {
            if let Err(error) = std::io::stdout().lock().write_all(&stdout) {
                crate::output::stdout_failed(&error);
            }
            // Nobody can be told that stderr is closed.
            let _ = std::io::stderr().lock().write_all(&stderr);
            let code = words::exit_code(&end.instance);
            if code != OK {
                let id = words::short(end.instance.id);
                tell!(
                    "pronto: {name}: instance {id} {}",
                    words::state(&end.instance)
                );
            }
            code
        }
        Err(failure) => {
            tell!("pronto: {name}: {}", failure.words());
            failure.exit.code().max(Exit::No.code())
        }
    }
}

/// Results meet in one directory: two files may not have one that is called the same.
fn distinct_results(patterns: &[String], files: &[Input]) -> Result<(), Failure> {
    let plain = |pattern: &&String| !pattern.contains(['*', '?', '[']);
    for pattern in patterns.iter().filter(plain) {
        let mut seen = std::collections::HashMap::new();
        for file in files {
            let result = substitute(pattern, &file.name);
            if let Some(other) = seen.insert(result.clone(), &file.path) {
                let (other, path) = (other.display(), file.path.display());
                return Err(Failure::usage(format!(
                    "the results of {other} and {path} would both be called {result}"
                ))
                .hint("{stem} and {name} in --output stand for the file's own name"));
            }
        }
    }
    Ok(())
}

/// `{}` and `{name}` become the file's name, `{stem}` the name without its extension.
fn substitute(text: &str, name: &str) -> String {
    let stem = Path::new(name)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or(name);
    let words = [("{stem}", stem), ("{name}", name), ("{}", name)];
    let mut made = String::new();
    let mut rest = text;
    // From left to right, once: a name may have braces itself.
    while let Some(at) = rest.find('{') {
        made.push_str(&rest[..at]);
        rest = &rest[at..];
        let (placeholder, word) = words
            .into_iter()
            .find(|(placeholder, _)| rest.starts_with(placeholder))
            .unwrap_or(("{", "{"));
        made.push_str(word);
        rest = &rest[placeholder.len()..];
    }
    made + rest
}

/// Output in memory, cut where it is too long.
#[derive(Clone, Default)]
struct Kept(Arc<std::sync::Mutex<Vec<u8>>>);

impl Kept {
    fn take(&self) -> Vec<u8> {
        match self.0.lock() {
            Ok(mut bytes) => std::mem::take(&mut bytes),
            // A writer that panicked has left whole bytes all the same.
            Err(poisoned) => std::mem::take(&mut poisoned.into_inner()),
        }
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut kept = self
            .0
            .lock()
            .map_err(|_| std::io::Error::other("poisoned"))?;
        let room = KEPT_OUTPUT_BYTES.saturating_sub(kept.len());
        if room > 0 && room < bytes.len() {
            kept.extend_from_slice(&bytes[..room]);
            kept.extend_from_slice(b"\n[pronto: the rest is in the instance's log]\n");
        } else if room >= bytes.len() {
            kept.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_in() {
        assert_eq!(substitute("{stem}.out", "a.b.txt"), "a.b.out");
        assert_eq!(substitute("x-{}-{name}", "f"), "x-f-f");
        assert_eq!(substitute("{stem}.{x", "{}.txt"), "{}.{x");
    }

    #[test]
    fn results_of_one_name_are_refused() {
        let files: Vec<Input> = ["Cargo.toml", "src/main.rs"]
            .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
            .map(|path| Input::new(&path).unwrap())
            .into();
        let check = |pattern: &str| distinct_results(&[pattern.to_owned()], &files);
        assert!(check("{stem}.out").is_ok() && check("*.out").is_ok());
        let refused = check("same.out").unwrap_err().to_string();
        assert!(
            refused.contains("Cargo.toml") && refused.contains("main.rs"),
            "{refused}"
        );
    }

    #[test]
    fn kept_output_is_cut_with_a_word() {
        let mut kept = Kept::default();
        kept.write_all(&vec![b'x'; KEPT_OUTPUT_BYTES - 1]).unwrap();
        kept.write_all(b"yyyy").unwrap();
        kept.write_all(b"zzzz").unwrap();
        let bytes = kept.take();
        let tail = String::from_utf8_lossy(&bytes[KEPT_OUTPUT_BYTES - 2..]).into_owned();
        assert!(
            tail.starts_with("xy\n[pronto") && !tail.contains('z'),
            "{tail}"
        );
    }
}
