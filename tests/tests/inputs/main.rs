//! The fuzzers of what users and files bring in, as an ordinary test: seeds, every input that the
//! corpora keep, and mutations of both, always the same ones.
//!
//! `PRONTO_FUZZ_EXECUTIONS` says how many mutations of each target (20,000). A failure prints the
//! input, which belongs into `fuzz/corpus/<target>/` from then on.

#[path = "../../../fuzz/src/kept.rs"]
mod kept;
#[path = "../../../fuzz/src/outer.rs"]
mod outer;

use std::panic::{AssertUnwindSafe, catch_unwind};

const SUBMIT: &str = r#"{"request_id":"0192b3c4-0000-7000-8000-000000000000","name":"web","count":3,
"spec":{"task":{"runtime":"exec","command":["sh","-c","true"]},"demand":{"cpu_millis":100,"memory_mib":64},
"env":{"TOKEN":"s3cret"},"labels":{"team":"web"},"priority":5,"timeout_ms":60000}}"#;
const FROM_WORKLOAD: &str = r#"{"workload":"thumbs","overrides":{"env":{"A":"b"},"priority":-7,
"on_disconnect":{"stop_after_ms":3000},"stop_grace_ms":5}}"#;
const TRACE: &str = "name,cpu_millis,memory_mib,gpus,labels\nn1,64000,262144,2,gpu.model=T4\n\0\
arrival_s,duration_s,cpu_millis,memory_mib,gpus,gpu_millis\n0.5,10,1000,2048,0,500\n";
const OPENB: &str = "sn,cpu_milli,memory_mib,gpu,model\nopenb-0,64000,262144,2,P100\n\0\
name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\nopenb-p-0,12000,16384,1,1000,P100|T4\n";

/// Inputs that each mean something to the target, so that mutations get far.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let body = |choice: u8, text: &str| [&[choice], text.as_bytes()].concat();
    match target {
        "bodies" => vec![
            body(0, SUBMIT),
            body(0, FROM_WORKLOAD),
            body(
                1,
                r#"{"name":"w","spec":{"task":{"runtime":"docker","image":"busybox","command":["true"]}}}"#,
            ),
            body(
                1,
                r#"{"name":"v","spec":{"task":{"runtime":"qemu","image":"/img/debian.qcow2"}}}"#,
            ),
            body(
                2,
                r#"{"runtime":"exec","demand":{"cpu_millis":500,"gpus":1},"constraints":[]}"#,
            ),
            body(3, r#"{"grace_ms":500}"#),
            body(4, "{}"),
            body(5, r#"{"deadline_ms":60000}"#),
            body(
                6,
                r#"{"name":"lab","runtimes":["exec"],"submit_rate_per_s":5}"#,
            ),
            body(7, r#"{"privileged":true}"#),
            body(8, r#"{"cpu_millis":4000}"#),
        ],
        "trace" => vec![TRACE.into(), OPENB.into()],
        _ => Vec::new(),
    }
}

/// splitmix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).expect("small")).expect("small")
    }
}

/// Pieces of the languages spoken here, and values at the edges of types.
const WORDS: [&str; 24] = [
    "0",
    "-1",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "-0.0",
    "NaN",
    "inf",
    "4294967295",
    "4294967296",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"\\u0000\"",
    ",",
    "\n",
    "\0",
    "\"",
    "9999999999",
    "0.0000001",
    "\u{fffd}",
    "|",
];

fn mutated(draws: &mut Draws, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = seeds[draws.below(seeds.len())].clone();
    for _ in 0..=draws.below(6) {
        let at = draws.below(input.len() + 1);
        match draws.below(6) {
            0 => {
                let byte = u8::try_from(draws.below(256)).expect("a byte");
                input.insert(at, byte);
            }
            1 => drop(input.drain(at..(at + 1 + draws.below(9)).min(input.len()))),
            2 => {
                let word = WORDS[draws.below(WORDS.len())].bytes();
                input.splice(at..at, word);
            }
            // A number or a name is replaced whole.
            3 => {
                let rest = &input[at..];
                let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
                let from = at + rest.iter().position(is_word).unwrap_or(rest.len());
                let length = input[from..]
                    .iter()
                    .take_while(|byte| is_word(byte))
                    .count();
                let word = WORDS[draws.below(WORDS.len())].bytes();
                input.splice(from..from + length, word);
            }
            // Something of another seed.
            4 => {
                let other = &seeds[draws.below(seeds.len())];
                let from = draws.below(other.len());
                let until = (from + draws.below(40)).min(other.len());
                input.splice(at..at, other[from..until].iter().copied());
            }
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << draws.below(8);
                }
            }
        }
    }
    input
}

#[test]
fn seeds_and_mutations_pass_every_target() {
    let executions: u32 = std::env::var("PRONTO_FUZZ_EXECUTIONS")
        .map_or(20_000, |text| text.parse().expect("a number"));
    for (name, target) in outer::OUTER {
        let seeds = [seeds(name), kept::kept(name)].concat();
        let mut draws = Draws(1);
        let mutations = (0..executions).map(|_| mutated(&mut draws, &seeds));
        for input in seeds.iter().cloned().chain(mutations) {
            let outcome = catch_unwind(AssertUnwindSafe(|| target(&input)));
            assert!(
                outcome.is_ok(),
                "{name} fails with {:?}",
                String::from_utf8_lossy(&input)
            );
        }
    }
}

/// The seeds mean what they are meant to mean, or mutations of them would be noise.
#[test]
fn seeds_are_understood() {
    use pronto_controller::api::types as api;
    let submit: api::SubmitRequest = serde_json::from_str(SUBMIT).expect("a submission");
    pronto_controller::spec::check(&submit.spec.expect("a spec")).expect("an acceptable one");
    serde_json::from_str::<api::SubmitRequest>(FROM_WORKLOAD).expect("a submission");
    for seed in seeds("bodies") {
        let text = String::from_utf8_lossy(&seed[1..]).into_owned();
        let error = match seed[0] {
            1 => serde_json::from_str::<api::CreateWorkload>(&text).err(),
            2 => serde_json::from_str::<api::ExplainRequest>(&text).err(),
            3 => serde_json::from_str::<api::StopRequest>(&text).err(),
            4 => serde_json::from_str::<api::RestartRequest>(&text).err(),
            5 => serde_json::from_str::<api::DrainRequest>(&text).err(),
            6 => serde_json::from_str::<api::CreateTenant>(&text).err(),
            7 => serde_json::from_str::<api::UpdateTenant>(&text).err(),
            8 => serde_json::from_str::<api::UpdateQuota>(&text).err(),
            _ => None,
        };
        assert!(error.is_none(), "{text}: {error:?}");
    }
    for text in [TRACE, OPENB] {
        let (nodes, tasks) = text.split_once('\0').expect("two files");
        let trace = pronto_scheduler::replay::Trace::parse(("n", nodes), ("t", tasks));
        assert_eq!(trace.expect("a trace").tasks.len(), 1);
    }
}
