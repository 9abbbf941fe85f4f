//! `pronto drain` and `pronto restore`.

use crate::args::{DrainArgs, RestoreArgs};
use crate::client::{Client, path};
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{print_value, say, terminal};
use hyper::Method;
use pronto_controller::api::types as api;
use std::time::{Duration, Instant};

/// How often a draining node is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// After the deadline everything left is stopped; a stop takes its own grace.
const AFTER_DEADLINE: Duration = Duration::from_secs(60);

/// `pronto drain`.
pub(crate) async fn drain(mut client: Client, args: &DrainArgs) -> Outcome {
    let request = api::DrainRequest {
        deadline_ms: args.deadline,
    };
    let node = path(&["nodes", &args.name]);
    let mut shown: api::Node = client
        .send(
            Method::POST,
            &path(&["nodes", &args.name, "drain"]),
            &request,
        )
        .await?;
    let until = Instant::now() + Duration::from_millis(args.deadline) + AFTER_DEADLINE;
    let mut last = None;
    while args.wait && !shown.drain.as_ref().is_some_and(|drain| drain.done) {
        let remaining = shown.drain.as_ref().map(|drain| drain.remaining);
        if remaining != last {
            terminal::note(&format!(
                "{} instances left",
                remaining.unwrap_or(shown.instances)
            ));
            last = remaining;
        }
        if Instant::now() > until {
            let what = format!("node {} is not empty after its deadline", args.name);
            return Err(Failure::new(Exit::TimedOut, what).hint(format!(
                "pronto list instances --state live --node {}",
                args.name
            )));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        shown = client.get(&node).await?;
    }
    report(&shown, args.client.output.format, || {
        let left = shown
            .drain
            .as_ref()
            .map_or(shown.instances, |drain| drain.remaining);
        match left {
            0 => format!("node {} is drained", shown.name),
            1 => format!("node {} is draining: 1 instance left", shown.name),
            left => format!("node {} is draining: {left} instances left", shown.name),
        }
    })
}

/// `pronto restore`.
pub(crate) async fn restore(mut client: Client, args: &RestoreArgs) -> Outcome {
    let to = path(&["nodes", &args.name, "restore"]);
    let shown: api::Node = client
        .send(Method::POST, &to, &serde_json::json!({}))
        .await?;
    report(&shown, args.client.output.format, || {
        format!("node {} takes work again", shown.name)
    })
}

fn report(
    node: &api::Node,
    format: crate::output::Format,
    words: impl FnOnce() -> String,
) -> Outcome {
    if format.is_machine() {
        print_value(node, format)?;
    } else {
        say!("{}", words());
    }
    Ok(OK)
}
