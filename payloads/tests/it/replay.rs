//! The fuzzers' functions over seeds, the inputs that the corpora keep and mutations of both,
//! deterministic, without a fuzzer.

use crate::kept::kept;
use crate::registry::ENTRIES;
use crate::samples;
use crate::targets::TARGETS;
use pronto_payloads::hello::ControllerHello;
use pronto_payloads::ids::ControllerEpoch;
use pronto_payloads::{codec, stream};
use pronto_protocol::{Flags, Frame, Hello, Operand, Purpose, Welcome};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

fn on_the_wire(frames: &[Frame]) -> Vec<u8> {
    // The targets' first byte: the length of the pieces in which the rest arrives, less one.
    let mut bytes = vec![19];
    for frame in frames {
        pronto_protocol::codec::encode(frame, &mut bytes).expect("small frames");
    }
    bytes
}

/// Seeds of one target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let samples = samples::all();
    let bytes_of = |name: &str| {
        samples
            .iter()
            .find(|sample| sample.name == name)
            .expect("a sample of it")
            .bytes
            .clone()
    };
    if target == "payloads" {
        return samples
            .iter()
            .map(|sample| {
                let index = ENTRIES
                    .iter()
                    .position(|entry| entry.name == sample.name)
                    .unwrap();
                let choice = u8::try_from(index).expect("fewer than 256 payload types");
                [&[choice], &sample.bytes[..]].concat()
            })
            .collect();
    }
    let launcher = Hello::new(Purpose::Control, 5, bytes_of("LauncherHello"));
    let status = Frame::request(Operand::Ready, 7, bytes_of("Status"));
    let report = Frame::new(Operand::InstanceChanged, bytes_of("InstanceReport"));
    let controller = codec::encode(&ControllerHello {
        owner: samples::OWNER,
        epoch: ControllerEpoch(2),
    });
    let start = [bytes_of("StartPrefix"), bytes_of("StartBody")].concat();
    let bulk = Hello::new(Purpose::Bulk, 6, bytes_of("BulkHello"));
    let data = [&[stream::Channel::Stdout as u8], &b"out\n"[..]].concat();
    let mut welcome = Welcome::new(11, 3, true, bytes_of("SchedulerWelcome"));
    (welcome.version, welcome.session_epoch) = (1, 5);
    let stamped = [bytes_of("StartStamp"), start.clone()].concat();
    vec![
        on_the_wire(&[
            Frame::new(Operand::Hello, launcher.encode()),
            status.clone(),
            report.clone(),
            Frame::request(Operand::Ping, 1, b"8 bytes.".to_vec()),
        ]),
        on_the_wire(&[
            Frame::new(
                Operand::Hello,
                Hello::new(Purpose::Control, 9, controller).encode(),
            ),
            Frame::request(Operand::Start, 1, start),
            Frame::request(Operand::Explain, 2, bytes_of("Explain")),
        ]),
        on_the_wire(&[
            Frame::new(Operand::Hello, bulk.encode()),
            Frame::new(Operand::StreamData, data).with_flags(Flags::LAST),
        ]),
        on_the_wire(&[
            Frame::new(Operand::Welcome, welcome.encode()),
            Frame::answer(Operand::Lease, 7, bytes_of("Lease")),
            Frame::new(Operand::Start, stamped),
        ]),
        on_the_wire(&[status, report]),
        Vec::new(),
    ]
}

/// Writes the seeds into the corpora, if asked to.
#[test]
fn seeds_pass_every_target() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| target(seed));
        kept(name).iter().for_each(|input| target(input));
        if std::env::var_os("PRONTO_SEED_CORPUS").is_some() {
            let folder = format!("{}/../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::create_dir_all(&folder).unwrap();
            for (index, seed) in seeds.iter().enumerate() {
                std::fs::write(format!("{folder}/golden-{index:03}"), seed).unwrap();
            }
        }
    }
}

/// Some thousand mutations of the seeds, always the same ones.
#[test]
fn mutated_seeds_pass_every_target() {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..4_u8);
    let changes = prop::collection::vec(change, 1..8);
    for (name, target) in TARGETS {
        let seeds = [seeds(name), kept(name)].concat();
        let config = Config {
            cases: 2000,
            failure_persistence: None,
            ..Config::default()
        };
        let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let picked = (any::<prop::sample::Index>(), changes.clone());
        TestRunner::new_with_rng(config, random)
            .run(&picked, |(seed, changes)| {
                let mut bytes = seed.get(&seeds).clone();
                for (at, byte, kind) in changes {
                    let at = at.index(bytes.len() + 1);
                    match kind {
                        0 => bytes.insert(at, byte),
                        1 => bytes.truncate(at),
                        2 => drop(bytes.drain(at..(at + usize::from(byte)).min(bytes.len()))),
                        _ => bytes.get_mut(at).into_iter().for_each(|old| *old = byte),
                    }
                }
                target(&bytes);
                Ok(())
            })
            .unwrap();
    }
}
