//! EXPLAIN: a question of a user's that the scheduler answers, with what policy and queue add.

use super::dispatch::Topic;
use super::event::{Actor, Refused, Reply, Token};
use super::state::State;
use crate::api::types::{ErrorCode, ExplainReason, ExplainResponse, RuntimeName};
use crate::{policy, spec};
use pronto_payloads::codec::{Payload, encode};
use pronto_payloads::demand::Constraint;
use pronto_payloads::ids::InstanceId;
use pronto_payloads::place::{Explain, Explanation, Reason};
use pronto_protocol::frame::Frame;
use pronto_protocol::operand::Operand;

/// EXPLAINs that may be open at once: each costs the scheduler a walk over its nodes.
const MAX_EXPLAINS: usize = 64;

/// An EXPLAIN whose answer is to come.
#[derive(Debug)]
pub(crate) struct OpenExplain {
    token: Token,
    admin: bool,
    policy: Option<String>,
    waiting: Option<String>,
    /// What the scheduler can't say: it knows the nodes that are there.
    absent: Option<ExplainReason>,
}

impl State {
    pub(crate) fn explain(
        &mut self,
        token: Token,
        actor: &Actor,
        mut explain: Explain,
        tenant: Option<&str>,
        instance: Option<InstanceId>,
    ) -> Result<Option<Reply>, Refused> {
        let mut waiting = None;
        let mut refusal = None;
        if let Some(id) = instance {
            let Some(slot) = self.visible(actor, id) else {
                return Ok(Some(Reply::NotLiving));
            };
            let class = &self.template(slot).class;
            explain.demand = class.demand.clone();
            explain.constraints.clone_from(&class.constraints);
            explain.runtime = class.runtime;
            waiting = self.waiting_text(slot);
        } else {
            explain
                .check()
                .map_err(|error| super::submit::invalid(&error))?;
            let tenant = self.tenant_of(actor, tenant)?;
            let entry = &self.tenants[tenant as usize];
            let ask = policy::Ask {
                runtime: RuntimeName::from_wire(explain.runtime),
                privileged: false,
                count: 1,
                each: spec::quota_use(&explain.demand),
            };
            refusal = policy::admit(&entry.name, &entry.policy, &entry.used, &ask)
                .err()
                .map(|rejection| rejection.to_string());
        }
        if !self.link.up {
            return Err(Refused::new(
                ErrorCode::SchedulerUnreachable,
                "no scheduler is connected",
            ));
        }
        if self.link.explains.len() >= MAX_EXPLAINS {
            return Err(Refused::new(
                ErrorCode::Busy,
                "too many explanations are asked for at once",
            )
            .retry_after(200));
        }
        let number = self.link.next_explain;
        self.link.next_explain += 1;
        self.link.explains.insert(
            number,
            OpenExplain {
                token,
                admin: actor.scope().is_none(),
                policy: refusal,
                waiting,
                absent: self.absent_node(&explain.constraints),
            },
        );
        self.send(Frame::request(
            Operand::Explain,
            Topic::Explain(number).correlation(),
            encode(&explain),
        ));
        Ok(None)
    }

    pub(crate) fn on_explanation(&mut self, correlation: u64, explanation: Explanation) {
        let Some(Topic::Explain(number)) = Topic::of(correlation) else {
            return;
        };
        let Some(open) = self.link.explains.remove(&number) else {
            return;
        };
        let counted = explanation.reasons.into_iter();
        let counted = counted.map(|counted| reason_view(counted.nodes, &counted.reason));
        let reasons = open.absent.into_iter().chain(counted).collect();
        let response = ExplainResponse {
            nodes: explanation.nodes,
            fits: explanation.fits,
            node: explanation.node.filter(|_| open.admin),
            reasons,
            policy: open.policy,
            waiting: open.waiting,
        };
        self.reply(open.token, Ok(Reply::Explained(response)));
    }

    /// The node that was asked for, if it is not connected.
    fn absent_node(&self, constraints: &[Constraint]) -> Option<ExplainReason> {
        let name = constraints.iter().find_map(|constraint| match constraint {
            Constraint::Node(name) => Some(name),
            Constraint::Label { .. } => None,
        })?;
        let Some(index) = self.nodes.find(name) else {
            return Some(ExplainReason {
                nodes: 0,
                reason: "unknown_node".to_owned(),
                text: format!("no node is called {name}"),
            });
        };
        (!self.nodes.is_connected(index)).then(|| ExplainReason {
            nodes: 1,
            reason: "offline".to_owned(),
            text: format!("node {name} is offline"),
        })
    }

    pub(crate) fn explain_failed(&mut self, number: u64, text: &str) {
        if let Some(open) = self.link.explains.remove(&number) {
            let refused = Refused::new(ErrorCode::SchedulerUnreachable, text);
            self.reply(open.token, Err(refused));
        }
    }

    pub(crate) fn fail_explains(&mut self) {
        let mut open: Vec<u64> = self.link.explains.keys().copied().collect();
        open.sort_unstable();
        for number in open {
            self.explain_failed(number, "the session to the scheduler broke");
        }
    }
}

fn reason_view(nodes: u32, reason: &Reason) -> ExplainReason {
    let (name, verb) = match reason {
        Reason::Maintenance => ("maintenance", "in maintenance".to_owned()),
        Reason::ReportsFull => ("reports_full", "full by their own report".to_owned()),
        Reason::QueueFull => ("queue_full", "slow to take commands".to_owned()),
        Reason::BackedOff => ("backed_off", "backed off after failures".to_owned()),
        Reason::Schema => ("schema", "of another version".to_owned()),
        Reason::Runtime { name } => ("runtime", format!("without the runtime {name}")),
        Reason::NotThisNode => ("not_this_node", "not the one that was asked for".to_owned()),
        Reason::Label { key, value } => ("label", format!("without the label {key}={value}")),
        Reason::TooSmall { dimension } => ("too_small", format!("too small in {dimension}")),
        Reason::Lacks { dimension } => ("lacks", format!("short of {dimension} now")),
    };
    let noun = if nodes == 1 { "node" } else { "nodes" };
    ExplainReason {
        nodes,
        reason: name.to_owned(),
        text: format!("{nodes} {noun} {verb}"),
    }
}
