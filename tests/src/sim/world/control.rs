//! The controllers, and the users and administrators who ask them.

use super::*;
use pronto_controller::api::types::ErrorCode;
use pronto_controller::planner::Actor;
use pronto_controller::store::AfterStop;
use pronto_payloads::place::{Placed, Refusal, StartFailure};

/// An administrator who was told that there is no such node asks again.
const RESTORED_AGAIN_AFTER: Time = 5_000 * MS;

impl World {
    fn controller(&mut self, controller: u32) -> &mut Controller {
        &mut self.controllers[controller as usize]
    }

    pub(super) fn controller_start(&mut self, controller: u32) {
        let (now, host) = (self.now, self.controller(controller));
        if host.planner.is_some() {
            return;
        }
        host.start(now);
        self.say(format_args!("controller-{controller} starts"));
        self.controller_redials(controller);
        self.controller_step(controller, vec![PlannerEvent::Tick]);
        self.call(controller, users::create_small_tenant(), Waiting::Other);
        if !self.is_busy() {
            self.restore_nodes_of(controller);
        }
    }

    pub(super) fn controller_tick(&mut self, controller: u32, life: u64, at: Time) {
        if self.is_frozen(Host::Controller(controller)) {
            self.after(
                100 * MS,
                Happening::ControllerTick {
                    controller,
                    life,
                    at,
                },
            );
            return;
        }
        let host = self.controller(controller);
        if host.life == life && host.ticks_at == at {
            host.ticks_at = Time::MAX;
            self.controller_step(controller, vec![PlannerEvent::Tick]);
        }
    }

    pub(super) fn disk_done(&mut self, controller: u32, life: u64, last: u64) {
        if life != self.controller(controller).life {
            return;
        }
        if self.is_frozen(Host::Controller(controller)) {
            self.after(
                100 * MS,
                Happening::DiskDone {
                    controller,
                    life,
                    last,
                },
            );
            return;
        }
        let mut wishes = controller::Wishes::default();
        let plant = self.config.plant;
        self.controllers[controller as usize].committed(
            self.now,
            last,
            &mut self.rng,
            plant,
            &mut wishes,
        );
        self.grant_controller(controller, wishes);
    }

    /// Waits as the dialer says, and dials whom it says.
    fn controller_redials(&mut self, controller: u32) {
        let jitter = self.jitter();
        let host = self.controller(controller);
        let (wait, address) = host.dialer.next_attempt(jitter);
        host.target = address.parse().expect("an index");
        let life = host.life;
        self.after(
            MS + wires::time_of(wait),
            Happening::ControllerDial { controller, life },
        );
    }

    pub(super) fn controller_dial(&mut self, controller: u32, life: u64) {
        let host = &self.controllers[controller as usize];
        if host.life != life || host.planner.is_none() || host.conn.is_some() {
            return;
        }
        let me = Host::Controller(controller);
        if self.is_frozen(me) {
            self.after(100 * MS, Happening::ControllerDial { controller, life });
            return;
        }
        let target = host.target;
        let there = Host::Scheduler(target);
        if self.schedulers[target as usize].process.is_none()
            || self.is_expired(there)
            || self.is_expired(me)
        {
            self.controller_redials(controller);
            return;
        }
        let (epoch, body) = self.controllers[controller as usize].hello();
        let hello = Hello::new(Purpose::Control, epoch, body);
        let conn = self.net.open(
            self.now,
            (me, Role::Controller),
            (there, Role::Scheduler),
            &hello,
            session_config(),
        );
        self.controller(controller).conn = Some(conn);
        self.say(format_args!(
            "controller-{controller} dials scheduler-{target}, epoch {epoch}"
        ));
        self.transmit(conn);
    }

    pub(super) fn controller_hears(
        &mut self,
        controller: u32,
        conn: ConnId,
        arrivals: Vec<Arrival>,
    ) {
        if self.controller(controller).conn != Some(conn) {
            return;
        }
        let mut events = Vec::new();
        let mut cut_off = None;
        for arrival in arrivals {
            match arrival {
                Arrival::Welcome(welcome) => {
                    let body = match decode::<SchedulerWelcome>(&welcome.body) {
                        Ok(body) => body,
                        Err(error) => {
                            let text = format!("WELCOME can't be decoded: {error}, {welcome:?}");
                            return self.oracle.violate(text);
                        }
                    };
                    let host = self.controller(controller);
                    host.welcomed = true;
                    host.dialer.succeeded();
                    events.push(PlannerEvent::SessionUp(PlannerSessionUp {
                        address: host.target.to_string(),
                        term: Term(welcome.term),
                        active: welcome.active,
                        welcome: body,
                    }));
                }
                Arrival::Frame(mut frame) => {
                    if self.config.plant == Some(Plant::ForgetsAttemptCheck) {
                        let host = self.controller(controller);
                        sabotage::make_current(&mut frame, |id| host.durable_attempt(id));
                    }
                    if self.is_traced() {
                        let said = describe::frame(Role::Scheduler, Role::Controller, &frame);
                        self.say(format_args!("controller-{controller} <- {said}"));
                    }
                    self.note_answer(conn, &frame);
                    if let Some((id, liar)) = sabotage::made_up(&frame) {
                        // Where nobody knows better, and about what came to them meanwhile, liars are
                        // believed; that is known and left out.
                        let is_there = self.answers.node_of(&id) == Some(&liar);
                        if is_there || self.controller(controller).believes_anybody(id) {
                            continue;
                        }
                        if self.config.plant == Some(Plant::BelievesLiars)
                            && let Some((id, node)) = self.oracle.where_runs(id.instance)
                        {
                            sabotage::come_from(&mut frame, &format!("node-{node}"), id);
                        }
                    }
                    events.push(PlannerEvent::Frame(frame));
                }
                Arrival::Closed(reason) => cut_off = Some(reason),
                Arrival::Hello(_) => unreachable!("a client gets no HELLO"),
            }
        }
        self.controller_step(controller, events);
        if let Some(reason) = cut_off {
            self.controller_cut_off(controller, &reason);
        }
    }

    fn note_answer(&mut self, conn: ConnId, frame: &pronto_protocol::Frame) {
        let bytes = frame.payload.to_bytes();
        let judged = match frame.operand {
            Operand::StartFailure => decode::<StartFailure>(&bytes).map(|failure| {
                self.oracle.hears_refusal(failure.id);
                if failure.refusal == Refusal::CloudFull {
                    self.tally.count("cloud full");
                }
                self.answers.answered(conn, frame.correlation, failure.id)
            }),
            Operand::Placed => decode::<Placed>(&bytes).map(|placed| {
                let answers = &mut self.answers;
                let judged = answers.answered(conn, frame.correlation, placed.id);
                judged.and_then(|()| answers.placed(&placed))
            }),
            _ => return,
        };
        match judged {
            Ok(Ok(())) => {}
            Ok(Err(text)) => self.oracle.violate(text),
            Err(error) => self.oracle.violate(format!("{}: {error}", frame.operand)),
        }
    }

    pub(super) fn controller_cut_off(&mut self, controller: u32, reason: &str) {
        let Some(conn) = self.controller(controller).conn.take() else {
            return;
        };
        self.answers.closed(conn);
        self.say(format_args!("controller-{controller} is cut off: {reason}"));
        if std::mem::take(&mut self.controller(controller).welcomed) {
            let reason = reason.to_owned();
            self.controller_step(controller, vec![PlannerEvent::SessionDown { reason }]);
        }
        self.controller_redials(controller);
    }

    pub(super) fn controller_step(&mut self, controller: u32, events: Vec<PlannerEvent>) {
        let mut wishes = controller::Wishes::default();
        let plant = self.config.plant;
        self.controllers[controller as usize].step(
            self.now,
            events,
            &mut self.rng,
            plant,
            &mut wishes,
        );
        self.grant_controller(controller, wishes);
        let now = self.now;
        let host = self.controller(controller);
        let Some(planner) = host.planner.as_ref() else {
            return;
        };
        let at = u64::try_from(planner.next_tick_ns())
            .unwrap_or(0)
            .max(now + 1);
        if at < host.ticks_at {
            host.ticks_at = at;
            let life = host.life;
            self.at(
                at,
                Happening::ControllerTick {
                    controller,
                    life,
                    at,
                },
            );
        }
    }

    pub(super) fn grant_controller(&mut self, controller: u32, wishes: controller::Wishes) {
        if let Some((delay, last)) = wishes.commit_done {
            let life = self.controller(controller).life;
            self.after(
                delay,
                Happening::DiskDone {
                    controller,
                    life,
                    last,
                },
            );
        }
        for answer in wishes.replies {
            self.answered(controller, answer);
        }
        let Some(conn) = self.controller(controller).conn else {
            return;
        };
        // Its shell has nobody to send to before WELCOME.
        let send = if self.controller(controller).welcomed {
            wishes.send
        } else {
            Vec::new()
        };
        for mut frame in send {
            if self.config.plant == Some(Plant::ForgetsConstraints) {
                sabotage::forget_constraints(&mut frame);
            }
            let mut start = None;
            if self.config.plant == Some(Plant::LosesAcks) && frame.operand == Operand::Ack {
                continue;
            }
            if frame.operand == Operand::Start
                && let Ok((prefix, _)) = decode_prefix::<StartPrefix>(&frame.payload.to_bytes())
            {
                start = Some(prefix.id);
                let host = self.controller(controller);
                let durable = host.durable_attempt(prefix.id.instance);
                self.oracle.sends(prefix.id, durable);
            }
            match self.net.queue(conn, Side::Client, &frame) {
                Ok(()) => {
                    if let Some(id) = start {
                        self.answers.asked(conn, frame.correlation, id);
                    }
                }
                Err(pronto_protocol::SendError::Closed) => {}
                Err(pronto_protocol::SendError::Full { .. }) => {
                    self.close(conn, Side::Client);
                    self.controller_cut_off(controller, "its own queue is full");
                    return;
                }
                Err(other) => {
                    self.oracle
                        .violate(format!("the controller sends what it may not: {other}"));
                    return;
                }
            }
        }
        self.transmit(conn);
        if let Some(reason) = wishes.drop_session {
            self.close(conn, Side::Client);
            self.controller_cut_off(controller, &reason);
        }
    }

    pub(super) fn call(&mut self, controller: u32, call: Call, waiting: Waiting) {
        self.call_as(users::admin(), controller, call, waiting);
    }

    fn call_as(&mut self, actor: Actor, controller: u32, call: Call, waiting: Waiting) {
        if self.controller(controller).planner.is_none()
            || self.is_frozen(Host::Controller(controller))
        {
            return;
        }
        match (&call, &waiting) {
            (_, Waiting::Rebuff { .. }) => {}
            (Call::Stop { id, then, .. }, _) if *then == AfterStop::Restart => {
                self.oracle.restarts(*id);
            }
            (Call::Stop { id, .. }, _) => {
                self.oracle.asked_to_stop.insert(*id);
            }
            (Call::Reopen(reopen), _) => self.oracle.restarts(reopen.id),
            (Call::Drain(_), _) => self.oracle.drained = true,
            _ => {}
        }
        let token = Token(self.next_token);
        self.next_token += 1;
        self.waiting.insert(token, (controller, waiting));
        let actor = if self.config.plant == Some(Plant::ForgetsScope) {
            users::admin()
        } else {
            actor
        };
        let event = PlannerEvent::Request {
            token,
            actor,
            call: Box::new(call),
        };
        self.controller_step(controller, vec![event]);
    }

    fn answered(&mut self, controller: u32, answer: Answer) {
        let (token, reply) = match answer {
            Answer::Reply { token, reply } => (token, reply),
            Answer::Changed(change) => {
                self.say(format_args!(
                    "instance {} is {}",
                    change.id.short(),
                    change.state.name()
                ));
                return;
            }
            _ => return,
        };
        let waiting = self.waiting.remove(&token).map(|(_, waiting)| waiting);
        match (waiting, reply) {
            (Some(Waiting::Submit { tenant, spec }), Ok(Reply::Submitted(submitted))) => {
                self.say(format_args!(
                    "user has {} instances of {tenant}",
                    submitted.instances.len()
                ));
                for id in submitted.instances {
                    let host = self.controller(controller);
                    if host.durable_attempt(id.into()).is_none() && host.end_of(id.into()).is_none()
                    {
                        self.oracle.violate(format!(
                            "invariant 3: {id} was acknowledged and is not on disk"
                        ));
                    }
                    let promise = Acknowledged {
                        controller,
                        tenant: tenant.clone(),
                        stop: false,
                        deleted: false,
                        spec: Arc::clone(&spec),
                    };
                    self.oracle.acknowledged.insert(id.into(), promise);
                }
            }
            (Some(Waiting::Stop { id, delete }), Ok(_)) => {
                self.oracle.stops(id, delete);
            }
            (Some(Waiting::Restart { id }), Ok(Reply::Ended { as_of })) => {
                self.restart_ended(controller, id, as_of);
            }
            (Some(Waiting::Rebuff { tenant, rebuff }), reply) => {
                self.tally.count("intruder rebuffed");
                if !rebuff.is(&reply, tenant) {
                    self.oracle.violate(format!(
                        "invariant 4: somebody of {tenant} was to be told {rebuff:?}: {reply:?}"
                    ));
                }
            }
            (Some(Waiting::Submit { .. }), Err(refused)) => {
                self.say(format_args!("user is refused: {}", refused.body.message));
                if refused.body.code == ErrorCode::QuotaExceeded {
                    self.tally.count("quota exceeded");
                }
            }
            // A node that was deleted is not known until it comes back, drained as it was.
            (Some(Waiting::Restore { node }), Err(refused))
                if refused.body.code == ErrorCode::NotFound && !self.is_busy() =>
            {
                let again = Happening::Restore { controller, node };
                self.after(RESTORED_AGAIN_AFTER, again);
            }
            _ => {}
        }
    }

    pub(super) fn user(&mut self) {
        if !self.is_busy() {
            return;
        }
        let every = self.config.user_every;
        let delay = self.rng.between(1, 2 * every);
        self.after(delay, Happening::User);
        let controller = self.rng.below(u64::from(self.config.controllers));
        let controller = u32::try_from(controller).expect("below a u32");
        match self.rng.below(110) {
            0..70 => {
                let now_ns = i64::try_from(self.now).expect("a simulation is short");
                let nodes: Option<Vec<_>> = self.config.equipped.then(|| {
                    let nodes = self.nodes.iter();
                    nodes.map(|node| node.equipment.clone()).collect()
                });
                let submit = users::submit(&mut self.rng, now_ns, nodes.as_deref());
                self.submit(controller, submit);
            }
            70..90 => {
                let known = self.known_to(controller);
                if let Some((id, call)) = users::stop(&mut self.rng, &known) {
                    let delete = matches!(
                        call,
                        Call::Stop {
                            then: AfterStop::Delete,
                            ..
                        }
                    );
                    self.say(format_args!("user stops {}", id.short()));
                    self.tally
                        .count(if delete { "stop and delete" } else { "stop" });
                    let user = users::user(&self.oracle.acknowledged[&id].tenant);
                    self.call_as(user, controller, call, Waiting::Stop { id, delete });
                }
            }
            90..95 => {
                let index = self.rng.below(self.nodes.len() as u64);
                let name = format!("node-{index}");
                self.say(format_args!("admin drains {name}"));
                self.tally.count("drain");
                let call = users::drain(&mut self.rng, name);
                self.call(controller, call, Waiting::Other);
            }
            100..104 => self.restart_something(controller),
            104..110 => self.intrude(controller),
            _ => {
                let index = self.rng.below(self.nodes.len() as u64);
                let name = format!("node-{index}");
                self.say(format_args!("admin restores {name}"));
                self.call(controller, Call::Restore(name), Waiting::Other);
            }
        }
    }

    /// What a controller has acknowledged.
    fn known_to(&self, controller: u32) -> Vec<InstanceId> {
        let acknowledged = self.oracle.acknowledged.iter();
        let known = acknowledged.filter(|(_, promise)| promise.controller == controller);
        known.map(|(id, _)| *id).collect()
    }

    /// A user wants another attempt, of what lives or of what has ended.
    fn restart_something(&mut self, controller: u32) {
        let known = self.known_to(controller);
        if known.is_empty() {
            return;
        }
        let id = *self.rng.choose(&known);
        self.say(format_args!("user restarts {}", id.short()));
        self.tally.count("restart");
        let call = Call::Stop {
            id,
            grace_ms: None,
            then: AfterStop::Restart,
        };
        let user = users::user(&self.oracle.acknowledged[&id].tenant);
        self.call_as(user, controller, call, Waiting::Restart { id });
    }

    /// What was to be restarted had ended: the store is read first, and the planner asked then.
    /// Meanwhile others may do the same.
    fn restart_ended(&mut self, controller: u32, id: InstanceId, as_of: u64) {
        let Some(call) = self.controller(controller).past(id, as_of) else {
            return;
        };
        let tenant = Arc::clone(&call.submission.tenant);
        let mut wishes = vec![Call::Reopen(Box::new(call.clone()))];
        if self.rng.per_mille(500) {
            wishes.push(Call::Reopen(Box::new(call.clone())));
        }
        if self.rng.per_mille(100) {
            wishes.push(Call::Forget {
                id,
                tenant: Arc::clone(&tenant),
                seq: call.seq,
                node: call.end.node.clone(),
                as_of,
            });
        }
        for call in wishes {
            let delay = self.rng.between(0, 80 * MS);
            let wish = Happening::Wish {
                controller,
                tenant: Arc::clone(&tenant),
                call: Box::new(call),
            };
            self.after(delay, wish);
        }
    }

    pub(super) fn wish(&mut self, controller: u32, tenant: &str, call: Call) {
        self.tally.count(match call {
            Call::Forget { .. } => "delete after the end",
            _ => "restart after the end",
        });
        self.call_as(users::user(tenant), controller, call, Waiting::Other);
    }

    /// Somebody of one tenant tries what is another's.
    fn intrude(&mut self, controller: u32) {
        let known = self.known_to(controller);
        if known.is_empty() {
            return;
        }
        let id = *self.rng.choose(&known);
        let theirs = self.oracle.acknowledged[&id].tenant.clone();
        let tenant = users::other_tenant(&theirs);
        let (mut call, rebuff) = users::intrude(&mut self.rng, id, &theirs);
        if let Call::Submit(submit) = &mut call {
            submit.tenant = Some(theirs);
        } else if rebuff == Rebuff::NotLiving
            && let Some(past) = self.controller(controller).past(id, 0)
        {
            let waiting = Waiting::Rebuff {
                tenant,
                rebuff: Rebuff::NotFound,
            };
            let call = Call::Reopen(Box::new(past));
            return self.call_as(users::user(tenant), controller, call, waiting);
        }
        let waiting = Waiting::Rebuff { tenant, rebuff };
        self.call_as(users::user(tenant), controller, call, waiting);
    }

    pub(super) fn submit(&mut self, controller: u32, submit: SubmitCall) {
        let tenant = submit.tenant.clone().unwrap_or_default();
        self.say(format_args!("user submits {} for {tenant}", submit.count));
        self.tally.count("submission");
        let spec = submit.spec.clone().expect("users write no workloads");
        let spec = Arc::new(spec);
        let user = users::user(&tenant);
        let waiting = Waiting::Submit { tenant, spec };
        self.call_as(user, controller, Call::Submit(Box::new(submit)), waiting);
    }
}
