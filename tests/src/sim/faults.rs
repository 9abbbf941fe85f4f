//! What breaks, drawn from the seed: each fault with its own end, so that a world can be healed.

use super::net::{Host, MS, Time};
use super::rng::Rng;

/// One fault.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A process dies and is started again after a while.
    Kill { host: Host, back_after: Time },
    /// A process dies in the middle of its next step's effects.
    KillInStep {
        node: u32,
        after_effects: usize,
        back_after: Time,
    },
    /// SIGSTOP for a while.
    Freeze { node: u32, time: Time },
    /// A machine loses power and boots again.
    PowerCycle { node: u32, back_after: Time },
    /// One connection breaks, between any two bytes.
    Cut,
    /// One direction between two hosts stands still for a while.
    Block { from: Host, to: Host, time: Time },
    /// The controller's disk stands still for a while.
    DiskStall { time: Time },
    /// The network is slow from now on.
    Delay { longest: Time },
}

/// Draws the next fault for a cluster of so many nodes.
pub fn draw(rng: &mut Rng, nodes: u32) -> Fault {
    let node = u32::try_from(rng.below(u64::from(nodes))).expect("below a u32");
    let short = rng.between(1, 500) * MS;
    let long = rng.between(100, 8_000) * MS;
    match rng.below(100) {
        0..12 => Fault::Kill {
            host: Host::Scheduler,
            back_after: short,
        },
        12..24 => Fault::Kill {
            host: Host::Controller,
            back_after: short,
        },
        24..36 => Fault::Kill {
            host: Host::Node(node),
            back_after: long,
        },
        36..44 => Fault::KillInStep {
            node,
            after_effects: usize::try_from(rng.below(4)).expect("small"),
            back_after: short,
        },
        44..52 => Fault::Freeze { node, time: long },
        52..56 => Fault::PowerCycle {
            node,
            back_after: long,
        },
        56..72 => Fault::Cut,
        72..88 => {
            let other = if rng.per_mille(800) {
                Host::Node(node)
            } else {
                Host::Controller
            };
            let (from, to) = if rng.per_mille(500) {
                (other, Host::Scheduler)
            } else {
                (Host::Scheduler, other)
            };
            Fault::Block {
                from,
                to,
                time: long,
            }
        }
        88..94 => Fault::DiskStall { time: short },
        _ => Fault::Delay {
            longest: rng.between(1, 200) * MS,
        },
    }
}
