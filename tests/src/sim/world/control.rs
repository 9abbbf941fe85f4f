//! The controller, and the users and administrators who ask it.

use super::*;

impl World {
    pub(super) fn controller_dial(&mut self, life: u64) {
        if self.controller.life != life
            || self.controller.planner.is_none()
            || self.controller.conn.is_some()
        {
            return;
        }
        let waits = self.scheduler.is_none()
            || self.is_frozen(Host::Controller)
            || self.is_expired(Host::Scheduler)
            || self.is_expired(Host::Controller);
        if waits {
            let delay = self.rng.between(20, 200) * MS;
            self.after(delay, Happening::ControllerDial { life });
            return;
        }
        let (epoch, body) = self.controller.hello();
        let hello = Hello::new(Purpose::Control, epoch, body);
        let from = (Host::Controller, Role::Controller);
        let to = (Host::Scheduler, Role::Scheduler);
        let conn = self.net.open(self.now, from, to, &hello, session_config());
        self.controller.conn = Some(conn);
        self.say(format_args!("controller dials, epoch {epoch}"));
        self.transmit(conn);
    }

    pub(super) fn controller_hears(&mut self, conn: ConnId, arrivals: Vec<Arrival>) {
        if self.controller.conn != Some(conn) {
            return;
        }
        let mut events = Vec::new();
        let mut cut_off = None;
        for arrival in arrivals {
            match arrival {
                Arrival::Welcome(welcome) => {
                    let Ok(body) = decode::<SchedulerWelcome>(&welcome.body) else {
                        self.oracle.violate("WELCOME can't be decoded".to_owned());
                        return;
                    };
                    self.controller.welcomed = true;
                    events.push(PlannerEvent::SessionUp(PlannerSessionUp {
                        address: "scheduler".to_owned(),
                        term: Term(welcome.term),
                        active: welcome.active,
                        welcome: body,
                    }));
                }
                Arrival::Frame(mut frame) => {
                    if self.config.plant == Some(Plant::ForgetsAttemptCheck) {
                        sabotage::make_current(&mut frame, |id| {
                            self.controller.durable_attempt(id)
                        });
                    }
                    let said = describe::frame(Role::Scheduler, Role::Controller, &frame);
                    self.say(format_args!("controller <- {said}"));
                    events.push(PlannerEvent::Frame(frame));
                }
                Arrival::Closed(reason) => cut_off = Some(reason),
                Arrival::Hello(_) => unreachable!("a client gets no HELLO"),
            }
        }
        self.controller_step(events);
        if let Some(reason) = cut_off {
            self.controller_cut_off(&reason);
        }
    }

    pub(super) fn controller_cut_off(&mut self, reason: &str) {
        if self.controller.conn.take().is_none() {
            return;
        }
        self.say(format_args!("controller is cut off: {reason}"));
        if std::mem::take(&mut self.controller.welcomed) {
            self.controller_step(vec![PlannerEvent::SessionDown {
                reason: reason.to_owned(),
            }]);
        }
        let life = self.controller.life;
        let delay = self.rng.between(10, 300) * MS;
        self.after(delay, Happening::ControllerDial { life });
    }

    pub(super) fn controller_step(&mut self, events: Vec<PlannerEvent>) {
        let mut wishes = controller::Wishes::default();
        let plant = self.config.plant;
        self.controller
            .step(self.now, events, &mut self.rng, plant, &mut wishes);
        self.grant_controller(wishes);
        let Some(planner) = self.controller.planner.as_ref() else {
            return;
        };
        let at = u64::try_from(planner.next_tick_ns())
            .unwrap_or(0)
            .max(self.now + 1);
        if at < self.controller.ticks_at {
            self.controller.ticks_at = at;
            let life = self.controller.life;
            self.at(at, Happening::ControllerTick { life, at });
        }
    }

    pub(super) fn grant_controller(&mut self, wishes: controller::Wishes) {
        if let Some((delay, last)) = wishes.commit_done {
            let life = self.controller.life;
            self.after(delay, Happening::DiskDone { life, last });
        }
        for answer in wishes.replies {
            self.answered(answer);
        }
        let Some(conn) = self.controller.conn else {
            return;
        };
        for frame in &wishes.send {
            if frame.operand == Operand::Start
                && let Ok((prefix, _)) = decode_prefix::<StartPrefix>(&frame.payload.to_bytes())
            {
                let durable = self.controller.durable_attempt(prefix.id.instance);
                self.oracle.starts(prefix.id, durable);
            }
            match self.net.queue(conn, Side::Client, frame) {
                Ok(()) | Err(pronto_protocol::SendError::Closed) => {}
                Err(pronto_protocol::SendError::Full { .. }) => {
                    self.close(conn, Side::Client);
                    self.controller_cut_off("its own queue is full");
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
            self.controller_cut_off(&reason);
        }
    }

    pub(super) fn call(&mut self, call: Call, waiting: Waiting) {
        if self.controller.planner.is_none() || self.is_frozen(Host::Controller) {
            return;
        }
        match &call {
            Call::Stop { id, .. } => {
                self.oracle.asked_to_stop.insert(*id);
            }
            Call::Drain(_) => self.oracle.drained = true,
            _ => {}
        }
        let token = Token(self.next_token);
        self.next_token += 1;
        self.waiting.insert(token, waiting);
        let event = PlannerEvent::Request {
            token,
            actor: users::admin(),
            call: Box::new(call),
        };
        self.controller_step(vec![event]);
    }

    pub(super) fn answered(&mut self, answer: Answer) {
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
        let waiting = self.waiting.remove(&token);
        match (waiting, reply) {
            (Some(Waiting::Submit { tenant, expires }), Ok(Reply::Submitted(submitted))) => {
                self.say(format_args!(
                    "user has {} instances of {tenant}",
                    submitted.instances.len()
                ));
                for id in submitted.instances {
                    if self.controller.durable_attempt(id.into()).is_none()
                        && self.controller.end_of(id.into()).is_none()
                    {
                        self.oracle.violate(format!(
                            "invariant 3: {id} was acknowledged and is not on disk"
                        ));
                    }
                    let promise = Acknowledged {
                        tenant: tenant.clone(),
                        stop: false,
                        deleted: false,
                        expires,
                    };
                    self.oracle.acknowledged.insert(id.into(), promise);
                }
            }
            (Some(Waiting::Stop { id, delete }), Ok(_)) => {
                if let Some(promise) = self.oracle.acknowledged.get_mut(&id) {
                    promise.stop = true;
                    promise.deleted |= delete;
                }
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
        match self.rng.below(100) {
            0..70 => {
                let now_ns = i64::try_from(self.now).expect("a simulation is short");
                let submit = users::submit(&mut self.rng, now_ns);
                let tenant = submit.tenant.clone().unwrap_or_default();
                self.say(format_args!("user submits {} for {tenant}", submit.count));
                let expires = submit
                    .spec
                    .as_ref()
                    .is_some_and(|spec| spec.pending_timeout_ms.is_some());
                let waiting = Waiting::Submit { tenant, expires };
                self.call(Call::Submit(Box::new(submit)), waiting);
            }
            70..90 => {
                let known: Vec<_> = self.oracle.acknowledged.keys().copied().collect();
                if let Some((id, call)) = users::stop(&mut self.rng, &known) {
                    let delete = matches!(
                        call,
                        Call::Stop {
                            then: pronto_controller::store::AfterStop::Delete,
                            ..
                        }
                    );
                    self.say(format_args!("user stops {}", id.short()));
                    self.call(call, Waiting::Stop { id, delete });
                }
            }
            90..95 => {
                let index = self.rng.below(self.nodes.len() as u64);
                let name = format!("node-{index}");
                self.say(format_args!("admin drains {name}"));
                let call = users::drain(&mut self.rng, name);
                self.call(call, Waiting::Other);
            }
            _ => {
                let index = self.rng.below(self.nodes.len() as u64);
                let name = format!("node-{index}");
                self.say(format_args!("admin restores {name}"));
                self.call(Call::Restore(name), Waiting::Other);
            }
        }
    }
}
