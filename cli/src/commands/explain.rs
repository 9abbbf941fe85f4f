//! `pronto explain`, and the hint on a waiting instance.

use crate::args::ExplainArgs;
use crate::client::{Client, path, query};
use crate::exit::{Exit, Failure, OK, Outcome};
use crate::output::{print_value, say, write};
use crate::run::spec;
use hyper::Method;
use pronto_controller::api::types as api;

/// Reasons in a hint; the rest is for `pronto explain`.
const REASONS_IN_HINT: usize = 3;

/// Runs it: exit code 0 if it would fit now, 1 if not.
pub(crate) async fn run(mut client: Client, args: &ExplainArgs) -> Outcome {
    let request = match &args.instance {
        Some(instance) => of_instance(&client, instance),
        None => api::ExplainRequest {
            tenant: client.tenant(),
            runtime: args.demand.runtime,
            demand: Some(spec::demand(&args.demand)),
            constraints: spec::constraints(&args.demand),
            ..api::ExplainRequest::default()
        },
    };
    let answer: api::ExplainResponse = client
        .send(Method::POST, &path(&["explain"]), &request)
        .await?;
    if let Some(instance) = &args.instance
        && !args.client.output.format.is_machine()
        && answer.waiting.is_none()
    {
        let to = query(
            path(&["instances", instance]),
            &super::list::of_tenant(&client),
        )?;
        let detail: api::InstanceDetail = client.get(&to).await?;
        let node = detail.instance.node.as_deref().unwrap_or("a node");
        say!(
            "it waits for nothing: it is {} on {node}",
            detail.instance.state.name()
        );
        return Ok(OK);
    }
    if args.client.output.format.is_machine() {
        print_value(&answer, args.client.output.format)?;
    } else {
        write(format_args!("{}", words(&answer)));
    }
    Ok(if answer.fits > 0 && answer.policy.is_none() {
        OK
    } else {
        Exit::No.code()
    })
}

fn of_instance(client: &Client, instance: &str) -> api::ExplainRequest {
    api::ExplainRequest {
        instance: Some(instance.to_owned()),
        tenant: client.tenant(),
        ..api::ExplainRequest::default()
    }
}

/// Why an instance waits, in one line.
pub(crate) async fn hint(client: &mut Client, instance: uuid::Uuid) -> Result<String, Failure> {
    let request = of_instance(client, &instance.to_string());
    let answer: api::ExplainResponse = client
        .send(Method::POST, &path(&["explain"]), &request)
        .await?;
    if let Some(waiting) = answer.waiting.filter(|_| answer.reasons.is_empty()) {
        return Ok(waiting);
    }
    let reasons: Vec<&str> = answer
        .reasons
        .iter()
        .take(REASONS_IN_HINT)
        .map(|reason| reason.text.as_str())
        .collect();
    Ok(if answer.fits > 0 {
        format!("{} of {} nodes would take it", answer.fits, answer.nodes)
    } else if answer.nodes == 0 {
        "no node is connected".to_owned()
    } else {
        format!(
            "none of {} nodes has room: {}",
            answer.nodes,
            reasons.join("; ")
        )
    })
}

fn words(answer: &api::ExplainResponse) -> String {
    let mut text = match (answer.fits, &answer.node) {
        (0, _) => format!("does not fit on any of {} nodes\n", answer.nodes),
        (fits, Some(node)) => {
            format!(
                "fits on {fits} of {} nodes; it would go to {node}\n",
                answer.nodes
            )
        }
        (fits, None) => format!("fits on {fits} of {} nodes\n", answer.nodes),
    };
    for reason in &answer.reasons {
        text += &format!("  {}\n", reason.text);
    }
    if let Some(policy) = &answer.policy {
        text += &format!("policy refuses it: {policy}\n");
    }
    if let Some(waiting) = &answer.waiting {
        text += &format!("it waits: {waiting}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed() {
        let answer = api::ExplainResponse {
            nodes: 43,
            fits: 0,
            node: None,
            reasons: vec![api::ExplainReason {
                nodes: 40,
                reason: "lacks".into(),
                text: "40 nodes lack memory".into(),
            }],
            policy: None,
            waiting: None,
        };
        assert_eq!(
            words(&answer),
            "does not fit on any of 43 nodes\n  40 nodes lack memory\n"
        );
    }
}
