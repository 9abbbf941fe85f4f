//! A simulated launcher: it keeps a ledger, reports from it, and runs nothing.

use super::{Notes, node_name, session_config};
use bytes::Bytes;
use pronto_payloads::codec::{encode, take};
use pronto_payloads::demand::{Capacity, Runtime};
use pronto_payloads::hello::{LauncherHello, Mode};
use pronto_payloads::ids::{BootId, NodeUuid, Seq, SessionEpoch, Term};
use pronto_payloads::node::{NodeFacts, Status};
use pronto_payloads::place::{StartPrefix, StartStamp};
use pronto_payloads::{SCHEMA, SCHEMA_MIN};
use pronto_protocol::transport::{Credentials, connect};
use pronto_protocol::{Flags, Frame, Hello, Operand, Purpose, Role};
use pronto_scheduler::replay::TraceNode;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Sessions are looked after this often.
const TICK: Duration = Duration::from_secs(1);

/// A launcher that keeps a ledger and runs nothing.
pub(super) struct Launcher {
    name: String,
    uuid: [u8; 16],
    node: TraceNode,
    notes: Rc<Notes>,
}

impl Launcher {
    pub(super) fn new(number: usize, node: &TraceNode, notes: Rc<Notes>) -> Self {
        let mut uuid = [0x5; 16];
        uuid[..8].copy_from_slice(&(number as u64).to_le_bytes());
        Self {
            name: node_name(number),
            uuid,
            node: node.clone(),
            notes,
        }
    }

    fn hello(&self) -> Hello {
        let mut labels = self.node.labels.clone();
        labels.sort();
        let body = LauncherHello {
            node_uuid: NodeUuid(self.uuid),
            boot_id: BootId(self.uuid),
            term: Term(0),
            mode: Mode::Ready,
            facts: NodeFacts {
                hostname: self.name.clone(),
                address: String::new(),
                allocatable: self.node.capacity.clone(),
                labels,
                runtimes: vec![Runtime::Sim],
                schema_min: SCHEMA_MIN,
                schema_max: SCHEMA,
                isolation: "none".to_owned(),
                acceleration: String::new(),
            },
            owners: Vec::new(),
        };
        Hello::new(Purpose::Control, 1, encode(&body))
    }

    /// Connects and lives until it is aborted; an end before that is a failure.
    pub(super) async fn live(
        self,
        address: &str,
        credentials: &Credentials,
        permit: Option<tokio::sync::SemaphorePermit<'_>>,
    ) -> anyhow::Result<()> {
        let config = session_config();
        let mut wire =
            connect(address, credentials, Role::Scheduler, &self.hello(), config).await?;
        let mut ledger = Ledger {
            free: self.node.capacity.clone(),
            applied: 0,
        };
        wire.queue(&Frame::new(Operand::Ready, ledger.status()).with_flags(Flags::WANT_REPLY))?;
        wire.flush().await?;
        drop(permit);
        self.notes.connected.set(self.notes.connected.get() + 1);
        let mut frames = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                outcome = wire.read_frames(&mut frames) => outcome?,
                _ = tick.tick() => {
                    wire.tick(Instant::now())?;
                    // The status that renews the lease, as each launcher sends one a second.
                    let status = Frame::new(Operand::Ready, ledger.status());
                    wire.queue(&status.with_flags(Flags::WANT_REPLY))?;
                }
            }
            let mut changed = false;
            for frame in frames.drain(..) {
                if frame.operand == Operand::Start {
                    self.start(frame, &mut ledger)?;
                    changed = true;
                }
            }
            if changed {
                wire.queue(&Frame::new(Operand::Ready, ledger.status()))?;
            }
            wire.flush().await?;
            if changed {
                self.notes.reported.notify_waiters();
            }
        }
    }

    fn start(&self, frame: Frame, ledger: &mut Ledger) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut bytes = frame.payload.into_bytes();
        let stamp: StartStamp = take(&mut bytes)?;
        let prefix: StartPrefix = take(&mut bytes)?;
        let mut received = self.notes.received.borrow_mut();
        received.entry(prefix.id.instance).or_insert((now, 0)).1 += 1;
        if !ledger.debit(&stamp, &prefix) {
            self.notes
                .broken_promises
                .set(self.notes.broken_promises.get() + 1);
        }
        Ok(())
    }
}

/// What a simulated node has promised.
struct Ledger {
    free: Capacity,
    applied: u64,
}

impl Ledger {
    fn status(&self) -> Bytes {
        encode(&Status {
            session_epoch: SessionEpoch(1),
            applied_seq: Seq(self.applied),
            free: self.free.clone(),
            runtimes: vec![Runtime::Sim],
            reason: String::new(),
        })
    }

    /// Takes a START off; `false` if there was not so much, or it came out of order.
    fn debit(&mut self, stamp: &StartStamp, prefix: &StartPrefix) -> bool {
        let in_order = stamp.seq.0 == self.applied + 1;
        self.applied = stamp.seq.0;
        let demand = &prefix.demand;
        let mut fits = in_order && stamp.gpus.len() == usize::from(demand.gpu_shape().0);
        let mut sub = |free: &mut u32, asked: u32| match free.checked_sub(asked) {
            Some(left) => *free = left,
            None => fits = false,
        };
        sub(&mut self.free.cpu_millis, demand.cpu_millis);
        sub(&mut self.free.memory_mib, demand.memory_mib);
        sub(&mut self.free.disk_mib, demand.disk_mib);
        for share in &stamp.gpus {
            let device = self.free.gpu_millis.get_mut(usize::from(share.device));
            match device.and_then(|free| Some((free.checked_sub(share.millis)?, free))) {
                Some((left, free)) => *free = left,
                None => fits = false,
            }
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::super::OWNER;
    use super::*;
    use pronto_payloads::demand::Demand;
    use pronto_payloads::ids::{Attempt, ControllerEpoch, InstanceId};
    use pronto_payloads::place::AttemptId;
    use pronto_payloads::place::GpuShare;

    #[test]
    fn a_ledger_notices_what_it_does_not_have() {
        let mut ledger = Ledger {
            free: Capacity {
                cpu_millis: 1000,
                gpu_millis: vec![1000],
                ..Capacity::default()
            },
            applied: 0,
        };
        let stamp = |seq, millis| StartStamp {
            session_epoch: SessionEpoch(1),
            seq: Seq(seq),
            term: Term(1),
            gpus: vec![GpuShare { device: 0, millis }],
        };
        let prefix = StartPrefix {
            id: AttemptId {
                owner: OWNER,
                instance: InstanceId([1; 16]),
                attempt: Attempt(1),
            },
            controller_epoch: ControllerEpoch(1),
            body_schema: SCHEMA,
            runtime: Runtime::Sim,
            demand: Demand {
                cpu_millis: 400,
                gpu_millis: 600,
                ..Demand::default()
            },
            constraints: Vec::new(),
            prefer: None,
            avoid: Vec::new(),
        };
        assert!(ledger.debit(&stamp(1, 600), &prefix));
        assert!(
            !ledger.debit(&stamp(2, 600), &prefix),
            "the device has 400 left"
        );
        assert!(!ledger.debit(&stamp(4, 100), &prefix), "out of order");
    }
}
