//! The replay's controller: it sends a trace's STARTs and notes what became of each.

use super::rig::Server;
use super::{Notes, OWNER, gpu_millis, session_config};
use crate::output::terminal;
use anyhow::{Context, bail};
use pronto_payloads::SCHEMA;
use pronto_payloads::codec::{decode, encode, encode_into};
use pronto_payloads::control::Activate;
use pronto_payloads::demand::Runtime;
use pronto_payloads::hello::ControllerHello;
use pronto_payloads::ids::{Attempt, ControllerEpoch, InstanceId, Term};
use pronto_payloads::place::{AttemptId, StartFailure, StartPrefix};
use pronto_payloads::start::{SimTask, StartBody, Task};
use pronto_protocol::transport::{Credentials, TlsFiles, Wire, connect, read_frames};
use pronto_protocol::{Frame, Hello, Operand, Purpose, Role};
use pronto_scheduler::replay::{Rng, Trace, TraceTask};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A trace whose tasks ask for nothing would never fill a cluster.
const MOST_STARTS: u64 = 1_000_000;

/// What became of the STARTs, as the controller saw it.
pub(super) struct Sent {
    pub(super) count: u64,
    /// When it was sent, and which task of the trace it is.
    pub(super) placed: HashMap<InstanceId, (Instant, usize)>,
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) unanswered: u64,
    pub(super) took: Duration,
}

/// The controller's end.
pub(super) struct Controller {
    wire: RefCell<Wire>,
    notes: Rc<Notes>,
}

impl Controller {
    pub(super) async fn connect(
        server: &Server,
        files: &TlsFiles,
        nodes: usize,
        notes: Rc<Notes>,
    ) -> anyhow::Result<Self> {
        let credentials = Credentials::load(files)?;
        let hello = ControllerHello {
            owner: OWNER,
            epoch: ControllerEpoch(1),
        };
        let hello = Hello::new(Purpose::Control, 1, encode(&hello));
        let wire = connect(
            &server.address,
            &credentials,
            Role::Scheduler,
            &hello,
            session_config(),
        )
        .await
        .context("the controller can't connect")?;
        let controller = Self {
            wire: RefCell::new(wire),
            notes,
        };
        let expected_nodes = u32::try_from(nodes).context("too many nodes")?;
        let activate = encode(&Activate {
            term: Term(1),
            expected_nodes,
        });
        let answer = controller
            .ask(Frame::request(Operand::Activate, u64::MAX, activate))
            .await?;
        if answer.operand != Operand::Done {
            bail!("ACTIVATE was answered with {}", answer.operand);
        }
        Ok(controller)
    }

    /// Sends a frame and waits for the answer of its correlation.
    async fn ask(&self, frame: Frame) -> anyhow::Result<Frame> {
        {
            let mut wire = self.wire.borrow_mut();
            wire.queue(&frame)?;
            wire.try_flush()?;
        }
        let mut frames = Vec::new();
        loop {
            let outcome = read_frames(&self.wire, &mut frames).await;
            if let Some(answer) = frames
                .drain(..)
                .find(|answer| answer.correlation == frame.correlation)
            {
                return Ok(answer);
            }
            outcome?;
        }
    }

    /// Sends STARTs, one at a time, until all GPUs have been asked for once.
    pub(super) async fn send_all(&mut self, trace: &Trace, seed: u64) -> anyhow::Result<Sent> {
        let gpus: u64 = trace
            .nodes
            .iter()
            .map(|node| gpu_millis(&node.capacity))
            .sum();
        // A cluster without GPUs is filled by its CPUs instead.
        let (capacity, asked): (u64, fn(&TraceTask) -> u64) = if gpus > 0 {
            (gpus, |task| task.demand.gpu_total_millis().into())
        } else {
            let cpus = trace
                .nodes
                .iter()
                .map(|node| u64::from(node.capacity.cpu_millis))
                .sum();
            (cpus, |task| task.demand.cpu_millis.into())
        };
        let mut rng = Rng::new(seed);
        let mut order: Vec<usize> = (0..trace.tasks.len()).collect();
        rng.shuffle(&mut order);
        let body = body();
        let mut sent = Sent {
            count: 0,
            placed: HashMap::new(),
            refused: BTreeMap::new(),
            unanswered: 0,
            took: Duration::ZERO,
        };
        let bar = terminal::progress(100, "trace");
        let begun = Instant::now();
        let mut arrived = 0;
        while arrived < capacity && sent.count < MOST_STARTS {
            let index = usize::try_from(sent.count).unwrap_or(usize::MAX);
            let task = match order.get(index) {
                Some(&task) => task,
                None => rng.below(trace.tasks.len()),
            };
            sent.count += 1;
            arrived += asked(&trace.tasks[task]);
            bar.set_position(arrived * 100 / capacity.max(1));
            self.start(sent.count, task, &trace.tasks[task], &body, &mut sent)
                .await?;
        }
        sent.took = begun.elapsed();
        bar.finish_and_clear();
        Ok(sent)
    }

    async fn start(
        &self,
        number: u64,
        index: usize,
        task: &TraceTask,
        body: &[u8],
        sent: &mut Sent,
    ) -> anyhow::Result<()> {
        let instance = InstanceId(u128::from(number).to_be_bytes());
        let prefix = StartPrefix {
            id: AttemptId {
                owner: OWNER,
                instance,
                attempt: Attempt(1),
            },
            controller_epoch: ControllerEpoch(1),
            body_schema: SCHEMA,
            runtime: Runtime::Sim,
            demand: task.demand.clone(),
            constraints: task.constraints.clone(),
            prefer: None,
            avoid: Vec::new(),
        };
        let mut payload = Vec::with_capacity(512);
        encode_into(&prefix, &mut payload);
        payload.extend_from_slice(body);
        let at = Instant::now();
        let answer = self
            .ask(Frame::request(Operand::Start, number, payload))
            .await?;
        match answer.operand {
            Operand::Placed => {
                sent.placed.insert(instance, (at, index));
                self.notes.reported(instance).await;
            }
            Operand::StartFailure => {
                let failure: StartFailure = decode(&answer.payload.into_bytes())?;
                let reason = serde_json::to_value(failure.refusal)?;
                let reason = reason.as_str().unwrap_or("unknown").replace('_', " ");
                *sent.refused.entry(reason).or_default() += 1;
            }
            _ => sent.unanswered += 1,
        }
        Ok(())
    }
}

/// What the launchers would run: nothing.
fn body() -> Vec<u8> {
    let body = StartBody::new(
        "demo",
        Task::Sim(SimTask {
            run_ms: 0,
            exit_code: 0,
        }),
    );
    encode(&body).to_vec()
}
