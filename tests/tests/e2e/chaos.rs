//! Chaos on a real network: daemons killed and stopped, hosts cut off, one fault after the other,
//! while clients submit; and what is left at the end.
//!
//! `PRONTO_CHAOS_SECONDS` says for how long (60), `PRONTO_CHAOS_SEED` with which faults (7). The order
//! and kind of the faults follow from the seed; the machine's timing does not.

use crate::cluster::wait_until;
use crate::network::Cut;
use crate::rig::{Plan, Rig, launcher, scheduler};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LAUNCHERS: usize = 5;
/// Of the launchers, those whose link to the schedulers can be slow.
const RELAYED: usize = 2;
const CLIENTS: usize = 2;

/// Draws of one seed: splitmix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// One fault, from its beginning to its end.
#[derive(Clone, Debug)]
enum Fault {
    /// SIGKILL; started again afterwards.
    Kill(String),
    /// SIGSTOP; SIGCONT afterwards.
    Stop(String),
    Cut(String, Cut),
    /// The relay's links take so much longer, each way.
    Slow(Duration),
}

impl Fault {
    fn draw(draws: &mut Draws, rig: &Rig) -> (Self, Duration) {
        let node = launcher(1 + usize::try_from(draws.below(LAUNCHERS as u64)).expect("small"));
        let victim = match draws.below(4) {
            0 => scheduler(1),
            1 => scheduler(2),
            2 => "controller".to_owned(),
            _ => node.clone(),
        };
        match draws.below(7) {
            0..=2 => (Self::Kill(victim), draws.millis(100, 2_000)),
            // One stop in four outlasts leases and sessions.
            3 if draws.below(4) == 0 => (Self::Stop(victim), draws.millis(10_500, 13_000)),
            3 => (Self::Stop(victim), draws.millis(200, 4_000)),
            4 => (Self::Cut(node, Cut::Cable), draws.millis(500, 6_000)),
            5 => {
                let how = if draws.below(2) == 0 {
                    Cut::Deaf
                } else {
                    Cut::Mute
                };
                (Self::Cut(node, how), draws.millis(500, 6_000))
            }
            // It has no port of its own towards a scheduler.
            _ if rig.is_relayed(&node) => (
                Self::Slow(draws.millis(10, 1_500)),
                draws.millis(500, 6_000),
            ),
            _ => (
                Self::Cut(node, Cut::From("scheduler-1")),
                draws.millis(500, 6_000),
            ),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Stop(_) => "stop",
            Self::Cut(_, Cut::Cable) => "cable pulled",
            Self::Cut(_, Cut::Deaf | Cut::Mute) => "dropped one way",
            Self::Cut(_, Cut::From(_)) => "cut off from one scheduler",
            Self::Slow(_) => "slow link",
        }
    }

    fn begin(&self, rig: &mut Rig) {
        match self {
            Self::Kill(name) => rig.kill(name),
            Self::Stop(name) => rig.signal(name, "STOP"),
            Self::Cut(host, how) => rig.network().cut(host, *how),
            Self::Slow(delay) => rig.relay().delay(*delay),
        }
    }

    fn end(&self, rig: &mut Rig) {
        match self {
            Self::Kill(name) => rig.start(name),
            Self::Stop(name) => rig.signal(name, "CONT"),
            Self::Cut(host, how) => rig.network().mend(host, *how),
            Self::Slow(_) => rig.relay().delay(Duration::ZERO),
        }
    }
}

/// Ends the clients when it is dropped.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().expect("a number"))
}

/// One line that a workload wrote: it began or it came to its end.
#[derive(Debug)]
struct Line {
    begins: bool,
    instance: String,
    attempt: u32,
}

fn lines(path: &str) -> Vec<Line> {
    let text = std::fs::read_to_string(path).expect("the evidence is readable");
    let parse = |line: &str| {
        let mut words = line.split(' ');
        Some(Line {
            begins: words.next()? == "begin",
            instance: words.next()?.to_owned(),
            attempt: words.next()?.parse().ok()?,
        })
    };
    text.lines()
        .map(|line| parse(line).unwrap_or_else(|| panic!("a line of evidence: {line:?}")))
        .collect()
}

/// Nothing acknowledged is lost and nothing runs twice, whatever is killed, stopped or cut off.
#[test]
fn nothing_is_lost_and_nothing_runs_twice_whatever_fails() {
    let seconds = setting("PRONTO_CHAOS_SECONDS", 60);
    let seed = setting("PRONTO_CHAOS_SEED", 7);
    eprintln!("chaos for {seconds} s from seed {seed}");
    let mut rig = Rig::new(
        "chaos",
        Plan {
            schedulers: 2,
            launchers: LAUNCHERS,
            network: true,
            relayed: RELAYED,
            controller: "lost_after_ms = 3000".to_owned(),
            ..Plan::default()
        },
    );
    let evidence = rig.path("evidence");
    std::fs::write(&evidence, "").expect("a file");
    rig.start_all();
    rig.await_ready(LAUNCHERS);
    let script = format!(
        "echo begin $PRONTO_INSTANCE $PRONTO_ATTEMPT >> {evidence}; sleep 0.3; \
         echo end $PRONTO_INSTANCE $PRONTO_ATTEMPT >> {evidence}"
    );
    let client = rig.client();
    let over = AtomicBool::new(false);
    let mut faults = BTreeMap::<&str, u32>::new();
    let acknowledged: BTreeMap<String, bool> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (client, script, over) = (&client, &script, &over);
                scope.spawn(move || {
                    let mut mine = BTreeMap::new();
                    let fenced = number % 2 == 1;
                    let policy = if fenced { "stop-after:1s" } else { "keep" };
                    while !over.load(Ordering::Acquire) {
                        let output = client.run(&[
                            "create",
                            "instance",
                            "--count",
                            "5",
                            "--cpus",
                            "0.02",
                            "--memory",
                            "8M",
                            "--on-disconnect",
                            policy,
                            "--reschedule",
                            "20",
                            "--detach",
                            "-o",
                            "json",
                            "--",
                            "sh",
                            "-c",
                            script,
                        ]);
                        if let Ok(said) =
                            serde_json::from_slice::<serde_json::Value>(&output.stdout)
                            && output.status.success()
                        {
                            let ids = said["instances"].as_array().cloned().unwrap_or_default();
                            let ids = ids.iter().filter_map(|one| {
                                one.as_str()
                                    .or_else(|| one["id"].as_str())
                                    .map(str::to_owned)
                            });
                            mine.extend(ids.map(|id| (id, fenced)));
                        }
                        std::thread::sleep(Duration::from_millis(500));
                    }
                    mine
                })
            })
            .collect();
        // Also when a fault can't be made: the clients would go on, and the test never end.
        let _over = Over(&over);
        let mut draws = Draws(seed);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            let (fault, lasts) = Fault::draw(&mut draws, &rig);
            eprintln!("{fault:?} for {lasts:?}");
            *faults.entry(fault.name()).or_default() += 1;
            fault.begin(&mut rig);
            std::thread::sleep(lasts);
            fault.end(&mut rig);
            std::thread::sleep(draws.millis(100, 1_000));
        }
        over.store(true, Ordering::Release);
        let joined = clients
            .into_iter()
            .flat_map(|one| one.join().expect("a client"));
        joined.collect()
    });
    rig.await_ready(LAUNCHERS);
    let mut last = BTreeMap::new();
    wait_until("every instance is in an end state", || {
        let Some(list) = client.all_instances() else {
            return false;
        };
        last = list;
        let done = [
            "succeeded",
            "failed",
            "stopped",
            "node_lost",
            "expired",
            "cancelled",
        ];
        !last.is_empty() && last.values().all(|state| done.contains(&state.as_str()))
    });
    let lines = lines(&evidence);
    let lost: Vec<_> = acknowledged
        .keys()
        .filter(|id| !last.contains_key(*id))
        .collect();
    let mut begun = BTreeSet::new();
    let mut twice = Vec::new();
    let mut attempts = BTreeMap::<&str, BTreeSet<u32>>::new();
    for line in lines.iter().filter(|line| line.begins) {
        if !begun.insert((&line.instance, line.attempt)) {
            twice.push(line);
        }
        attempts
            .entry(&line.instance)
            .or_default()
            .insert(line.attempt);
    }
    // With stop-after, an attempt that has a successor never comes to its own end beside it.
    let mut beside = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let fenced = acknowledged.get(&line.instance).copied().unwrap_or(false);
        let overtaken = lines[..index].iter().any(|earlier| {
            earlier.begins && earlier.instance == line.instance && earlier.attempt > line.attempt
        });
        if fenced && overtaken {
            beside.push(line);
        }
    }
    let never_ran: Vec<_> = last
        .iter()
        .filter(|(id, state)| *state == "succeeded" && !attempts.contains_key(id.as_str()))
        .collect();
    let again = attempts
        .values()
        .filter(|attempts| attempts.len() > 1)
        .count();
    let mut states = BTreeMap::<&str, usize>::new();
    for state in last.values() {
        *states.entry(state).or_default() += 1;
    }
    eprintln!(
        "faults {faults:?}; acknowledged {}, known {} {states:?}; attempts {}, of {again} \
         instances more than one; lost {}, ran twice {}, stop-after beside its successor {}",
        acknowledged.len(),
        last.len(),
        begun.len(),
        lost.len(),
        twice.len(),
        beside.len(),
    );
    assert!(
        !acknowledged.is_empty(),
        "the clients came through at times"
    );
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert!(twice.is_empty(), "an attempt ran twice: {twice:?}");
    assert!(beside.is_empty(), "two attempts at once: {beside:?}");
    assert!(
        never_ran.is_empty(),
        "succeeded without having run: {never_ran:?}"
    );
    for instance in attempts.keys() {
        assert!(
            last.contains_key(*instance),
            "{instance} ran, and nobody knows it"
        );
    }
}
