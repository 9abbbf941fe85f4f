//! What breaks, drawn from the seed: each fault with its own end, so that a world can be healed.

use super::net::{Host, MS, Time};
use super::rng::Rng;

/// What a launcher with a valid certificate lies about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It promises more than it has.
    Capacity,
    /// It comes back as another machine: with labels, a data directory, a boot, a term and a past
    /// that are not its own.
    Itself,
    /// It reports instances that went elsewhere after they had been on it.
    Others,
}

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
    Freeze { host: Host, time: Time },
    /// A machine loses power and boots again; an administrator may say meanwhile that it is gone.
    PowerCycle {
        node: u32,
        back_after: Time,
        fenced: bool,
    },
    /// One connection breaks, between any two bytes.
    Cut,
    /// One direction between two hosts stands still for a while.
    Block { from: Host, to: Host, time: Time },
    /// A host reaches nobody, and nobody reaches it, for a while.
    Isolate { host: Host, time: Time },
    /// A controller's disk stands still for a while.
    DiskStall { controller: u32, time: Time },
    /// A copy of a controller's store is made.
    Backup { controller: u32 },
    /// A controller's store is replaced by the last copy that was made of it.
    Restore { controller: u32, back_after: Time },
    /// The network is slow from now on.
    Delay { longest: Time },
    /// A host reads late for a while.
    Slow { host: Host, by: Time, time: Time },
    /// A node lies for a while.
    Lie { node: u32, time: Time, about: Lie },
    /// A node says everything twice now and then, for a while.
    Stutter { node: u32, time: Time },
    /// A node can start nothing for a while, and has room for everything.
    BlackHole { node: u32, time: Time },
    /// A controller's wall clock is set.
    WallClock { controller: u32, to: u64 },
    /// A host's certificate is not valid any more, until a new one is there.
    Expire { host: Host, time: Time },
}

impl Fault {
    /// A controller's store is put back twice to what it was early on, in a run of the usual length.
    #[must_use]
    pub fn restores() -> Vec<(Time, Self)> {
        let restore = || Self::Restore {
            controller: 0,
            back_after: 200 * MS,
        };
        vec![
            (3_000 * MS, Self::Backup { controller: 0 }),
            (8_000 * MS, restore()),
            (14_000 * MS, restore()),
        ]
    }
}

/// Who may be broken.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    pub schedulers: u32,
    pub controllers: u32,
    pub nodes: u32,
}

/// Draws the next fault for a cluster.
pub fn draw(rng: &mut Rng, cast: Cast) -> Fault {
    let one_of = |rng: &mut Rng, count: u32| {
        u32::try_from(rng.below(u64::from(count))).expect("below a u32")
    };
    let node = one_of(rng, cast.nodes);
    let controller = one_of(rng, cast.controllers);
    let scheduler = Host::Scheduler(one_of(rng, cast.schedulers));
    let short = rng.between(1, 500) * MS;
    let long = match rng.below(8) {
        // Leases, grants and graces run out meanwhile.
        0 => rng.between(8_000, 16_000) * MS,
        _ => rng.between(100, 8_000) * MS,
    };
    let any = match rng.below(4) {
        0 => scheduler,
        1 => Host::Controller(controller),
        _ => Host::Node(node),
    };
    match rng.below(120) {
        0..12 => Fault::Kill {
            host: scheduler,
            // Long enough, now and then, that everybody goes to the other.
            back_after: if rng.per_mille(250) { long } else { short },
        },
        12..24 => Fault::Kill {
            host: Host::Controller(controller),
            back_after: short,
        },
        24..36 => Fault::Kill {
            host: Host::Node(node),
            // Longer than any fence takes, now and then.
            back_after: if rng.per_mille(250) { 2 * long } else { long },
        },
        36..44 => Fault::KillInStep {
            node,
            after_effects: usize::try_from(rng.below(4)).expect("small"),
            back_after: short,
        },
        44..54 => Fault::Freeze {
            host: any,
            time: long,
        },
        54..58 => Fault::PowerCycle {
            node,
            back_after: long,
            fenced: rng.per_mille(300),
        },
        58..72 => Fault::Cut,
        72..85 => {
            let other = if rng.per_mille(800) {
                Host::Node(node)
            } else {
                Host::Controller(controller)
            };
            let (from, to) = if rng.per_mille(500) {
                (other, scheduler)
            } else {
                (scheduler, other)
            };
            Fault::Block {
                from,
                to,
                time: long,
            }
        }
        85..88 => Fault::Isolate {
            host: any,
            time: 2 * long,
        },
        88..94 => Fault::DiskStall {
            controller,
            time: short,
        },
        94..98 => Fault::Delay {
            longest: rng.between(1, 200) * MS,
        },
        98..104 => Fault::Slow {
            host: any,
            by: short,
            time: long,
        },
        104..108 => Fault::Lie {
            node,
            time: long,
            about: match long / MS % 3 {
                0 => Lie::Capacity,
                1 => Lie::Itself,
                _ => Lie::Others,
            },
        },
        108..111 => Fault::Stutter { node, time: long },
        111..113 => Fault::BlackHole { node, time: long },
        113..115 => Fault::WallClock {
            controller,
            to: rng.between(1_700_000_000_000, 1_900_000_000_000),
        },
        _ => Fault::Expire {
            host: any,
            time: long,
        },
    }
}
