//! `pronto logs`, `exec` and `cp`.

use super::unless_interrupted;
use crate::args::{CpArgs, ExecArgs, LogsArgs};
use crate::client::{Client, frames, path, query};
use crate::exit::{Exit, Failure, OK, Outcome, own_code};
use crate::output::say;
use crate::run::files::{self, Remote};
use crate::run::follow_path;
use crate::run::stdin;
use crate::run::streams::{Sink, copy_output};
use pronto_controller::api::types as api;

/// `pronto logs`.
pub(crate) async fn logs(mut client: Client, args: &LogsArgs) -> Outcome {
    let asked = api::OutputQuery {
        follow: args.follow.then_some(true),
        stdout: args.stderr.then_some(false),
        stderr: args.stdout.then_some(false),
        since_ms: args.since,
        tail_bytes: args.tail,
        attempt: args.attempt,
        tenant: client.tenant(),
    };
    let to = query(path(&["instances", &args.instance, "output"]), &asked)?;
    let end = if args.follow && args.tail.is_none() && args.since.is_none() {
        follow_path(&mut client, &to, Sink::own()).await?
    } else {
        let mut frames = client.open(&to).await?;
        copy_output(&mut frames, &mut Sink::own()).await?
    };
    match end.problem {
        None => Ok(OK),
        Some(problem) => Err(Failure::new(Exit::Failed, problem)
            .hint("a log is kept for a time after the end, on the instance's node")),
    }
}

/// `pronto exec`.
pub(crate) async fn exec(mut client: Client, args: &ExecArgs) -> Outcome {
    let to = query(
        path(&["instances", &args.instance, "exec"]),
        &api::OneQuery {
            tenant: client.tenant(),
            reveal: None,
        },
    )?;
    let request = api::ExecRequest {
        command: args.command.clone(),
    };
    let mut frames = if args.interactive {
        client.open_both(&to, &request, stdin::body).await?
    } else {
        client.open_with(&to, &request).await?
    };
    let mut sink = Sink::own();
    while let Some((channel, bytes)) = frames.next().await? {
        if channel != api::CHANNEL_END {
            sink.write(channel, &bytes)?;
            continue;
        }
        let end: api::ExecEnd = frames::end(&bytes)?;
        return match (end.code, end.problem) {
            (Some(code), None) => Ok(own_code(code)),
            (_, problem) => {
                let what = problem.unwrap_or_else(|| "the command's end is unknown".to_owned());
                Err(Failure::new(Exit::Failed, what))
            }
        };
    }
    Err(Failure::new(
        Exit::Unreachable,
        "the stream ended before the command did",
    ))
}

/// `pronto cp`.
pub(crate) async fn cp(mut client: Client, args: &CpArgs) -> Outcome {
    let sides = (Remote::parse(&args.source), Remote::parse(&args.target));
    match sides {
        (Some(source), None) => {
            let target = args.target.as_ref();
            let fetching = files::fetch(&mut client, &source, target);
            // Who does not read holds our only thread: there a signal must end us by itself.
            let bytes = if files::is_stream(target) {
                fetching.await?
            } else {
                unless_interrupted(fetching).await?
            };
            if args.target != "-" {
                let path = files::place(&source, target)?;
                say!("{} ({bytes} bytes)", path.display());
            }
        }
        (None, Some(target)) => {
            let end = files::bring(&mut client, args.source.as_ref(), &target, false).await?;
            say!("{} ({} bytes)", args.target, end.bytes);
        }
        (Some(_), Some(_)) => {
            return Err(Failure::usage("one side must be a file here")
                .hint("copy it here first: pronto cp INSTANCE:PATH ."));
        }
        (None, None) => {
            return Err(Failure::usage("one side must be INSTANCE:PATH")
                .hint("pronto cp INSTANCE:PATH . or pronto cp FILE INSTANCE:PATH"));
        }
    }
    Ok(OK)
}
