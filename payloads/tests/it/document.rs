//! PROTOCOL.md says what the code does: limits, offsets, frames, the digest, the worked example.

use crate::page::{self, Definition, Type};
use crate::samples::{ID, INSTANCE, OWNER};
use pronto_payloads::codec::{encode, encode_into};
use pronto_payloads::control::Ack;
use pronto_payloads::demand::{Capacity, Demand, Runtime};
use pronto_payloads::ids::{
    Attempt, ControllerEpoch, InstanceId, Seq, SessionEpoch, Term, Version,
};
use pronto_payloads::instance::{End, EndCause, InstanceReport, Phase, Usage, digest_item};
use pronto_payloads::node::{Lease, Status};
use pronto_payloads::place::{AttemptId, StartPrefix, StartStamp};
use pronto_payloads::start::{ExecTask, StartBody, Task};
use pronto_payloads::{limits, place};
use pronto_protocol::{Frame, Operand, Purpose, Role, may_send};
use std::collections::BTreeSet;

#[test]
fn limits_are_those_of_the_code() {
    let text = page::text();
    let written: Vec<(String, usize)> = page::rows(&text, "### Limits")
        .iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[1].parse().unwrap()))
        .collect();
    let source = include_str!("../../src/limits.rs");
    let named: Vec<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next())
        .collect();
    assert_eq!(
        written
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<BTreeSet<_>>(),
        named.into_iter().collect::<BTreeSet<_>>()
    );
    for (name, value) in written {
        let expected = match name.as_str() {
            "NAME_BYTES" => limits::NAME_BYTES,
            "VALUE_BYTES" => limits::VALUE_BYTES,
            "PATH_BYTES" => limits::PATH_BYTES,
            "TEXT_BYTES" => limits::TEXT_BYTES,
            "ARGUMENT_BYTES" => limits::ARGUMENT_BYTES,
            "ARGUMENTS" => limits::ARGUMENTS,
            "ENVIRONMENT" => limits::ENVIRONMENT,
            "LABELS" => limits::LABELS,
            "RESOURCES" => limits::RESOURCES,
            "GPUS" => limits::GPUS,
            "AVOIDED_NODES" => limits::AVOIDED_NODES,
            "MOUNTS" => limits::MOUNTS,
            "USER_DATA_BYTES" => limits::USER_DATA_BYTES,
            "OWNERS" => limits::OWNERS,
            "PAGE" => limits::PAGE,
            "NODE_PAGE" => limits::NODE_PAGE,
            "PAGE_BYTES" => limits::PAGE_BYTES,
            "REASONS" => limits::REASONS,
            "STAMP_BYTES" => limits::STAMP_BYTES,
            "START_BYTES" => limits::START_BYTES,
            "FROM_NODE_BYTES" => limits::FROM_NODE_BYTES,
            other => panic!("{other} has no line here"),
        };
        assert_eq!(value, expected, "{name}");
    }
}

/// The offset column counts what the type column says, and every table is used.
#[test]
fn offsets_and_types_agree() {
    let text = page::text();
    let schema = page::schema(&text);
    let mut used = BTreeSet::new();
    for (name, definition) in &schema.types {
        let mut offset = Some(0);
        let fields: Vec<_> = match definition {
            Definition::Structure(fields) => fields.iter().collect(),
            Definition::Enum(variants) => variants.iter().flat_map(|(_, fields)| fields).collect(),
            Definition::Counter(_) | Definition::Id => Vec::new(),
        };
        for field in fields {
            let length = schema.fixed_len(&field.kind);
            let key = (name.clone(), field.name.clone().unwrap_or_default());
            if let Some(written) = schema.offsets.get(&key) {
                let expected = offset.map_or_else(|| "…".to_owned(), |at: usize| at.to_string());
                assert_eq!(written, &expected, "offset of {key:?}");
            }
            offset = offset.zip(length).map(|(at, length)| at + length);
            let mut kind = &field.kind;
            while let Type::List(inner) | Type::Optional(inner) = kind {
                kind = inner;
            }
            if let Type::Named(name) = kind {
                schema.definition(name);
                used.insert(name.clone());
            }
        }
    }
    for row in page::rows(&text, "## What each frame carries") {
        used.extend(row[2].split('`').skip(1).step_by(2).map(str::to_owned));
    }
    let all: BTreeSet<String> = schema.types.keys().cloned().collect();
    assert_eq!(
        used, all,
        "what is described is carried, and what is carried is described"
    );
}

#[test]
fn every_frame_has_its_payload_described() {
    let text = page::text();
    let pairs = [
        ("L→S", Role::Launcher, Role::Scheduler),
        ("S→L", Role::Scheduler, Role::Launcher),
        ("C→S", Role::Controller, Role::Scheduler),
        ("S→C", Role::Scheduler, Role::Controller),
    ];
    let mut described = BTreeSet::new();
    for row in page::rows(&text, "## What each frame carries") {
        for (arrow, ..) in pairs {
            if row[1] == "any" || row[1].split(", ").any(|written| written == arrow) {
                described.insert(format!("{} {arrow}", row[0]));
            }
        }
    }
    let mut permitted = BTreeSet::new();
    for &operand in Operand::ALL {
        for (arrow, from, to) in pairs {
            if [Purpose::Control, Purpose::Bulk]
                .into_iter()
                .any(|purpose| may_send(from, to, purpose, operand))
            {
                permitted.insert(format!("{operand} {arrow}"));
            }
        }
    }
    // Streams are opened from above alone; the permission table does not tell the two ends apart.
    permitted.remove("COMMAND STREAM_OPEN L→S");
    permitted.remove("COMMAND STREAM_OPEN S→C");
    assert_eq!(described, permitted);
}

#[test]
fn the_digest_is_the_published_one() {
    let text = page::text();
    let rows = page::rows(&text, "## The digest");
    let mut sum = 0_u64;
    for row in &rows[..2] {
        let instance: [u8; 16] =
            std::array::from_fn(|at| u8::from_str_radix(&row[0][2 * at..2 * at + 2], 16).unwrap());
        let id = AttemptId {
            owner: OWNER,
            instance: InstanceId(instance),
            attempt: Attempt(row[1].parse().unwrap()),
        };
        let phase = match row[2] {
            "0" => Phase::Received,
            "2" => Phase::Running,
            _ => Phase::Ended,
        };
        assert_eq!(format!("{:016x}", digest_item(&id, phase)), row[3]);
        sum = sum.wrapping_add(digest_item(&id, phase));
    }
    assert_eq!(format!("{sum:016x}"), rows[2][3]);
}

fn wire(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    pronto_protocol::codec::encode(frame, &mut bytes).unwrap();
    bytes
}

#[test]
fn the_worked_example_is_what_the_code_sends() {
    let text = page::text();
    let ready = Status {
        session_epoch: SessionEpoch(5),
        applied_seq: Seq(0),
        free: Capacity {
            cpu_millis: 4000,
            memory_mib: 8192,
            disk_mib: 65_536,
            gpu_millis: vec![1000],
            resources: Vec::new(),
        },
        runtimes: vec![Runtime::Exec],
        reason: String::new(),
    };
    let frame = Frame::request(Operand::Ready, 7, encode(&ready));
    assert_eq!(wire(&frame), page::example(&text, "STATUS READY"));

    let lease = Lease {
        term: Term(3),
        lease_ms: 10_000,
        owners: Vec::new(),
    };
    let frame = Frame::answer(Operand::Lease, 7, encode(&lease));
    assert_eq!(wire(&frame), page::example(&text, "REPLY LEASE"));

    let stamp = StartStamp {
        session_epoch: SessionEpoch(5),
        seq: Seq(1),
        term: Term(3),
        gpus: Vec::new(),
    };
    let prefix = StartPrefix {
        id: ID,
        controller_epoch: ControllerEpoch(2),
        body_schema: pronto_payloads::SCHEMA,
        runtime: Runtime::Exec,
        demand: Demand {
            cpu_millis: 100,
            memory_mib: 64,
            ..Demand::default()
        },
        constraints: Vec::new(),
        prefer: None,
        avoid: Vec::new(),
    };
    let body = StartBody {
        name: "hi".into(),
        stop_grace_ms: 10_000,
        ..StartBody::new(
            "default",
            Task::Exec(ExecTask {
                command: vec!["echo".into(), "hi".into()],
                ..ExecTask::default()
            }),
        )
    };
    let mut start = Vec::new();
    encode_into(&stamp, &mut start);
    encode_into(&prefix, &mut start);
    encode_into(&body, &mut start);
    let frame = Frame::new(Operand::Start, start);
    assert_eq!(wire(&frame), page::example(&text, "COMMAND START"));

    let report = InstanceReport {
        id: ID,
        version: Version(2),
        phase: Phase::Ended,
        end: Some(End {
            cause: EndCause::Exited { code: 0 },
            message: String::new(),
        }),
        age_ns: 3_000_000,
        started_after_ns: Some(1_000_000),
        ended_after_ns: Some(3_000_000),
        usage: Usage {
            cpu_ms: 1,
            memory_peak_mib: 2,
            ..Usage::default()
        },
    };
    let frame = Frame::new(Operand::InstanceChanged, encode(&report));
    assert_eq!(wire(&frame), page::example(&text, "EVENT INSTANCE_CHANGED"));

    let ack = Ack {
        id: ID,
        version: Version(2),
    };
    let frame = Frame::new(Operand::Ack, encode(&ack));
    assert_eq!(wire(&frame), page::example(&text, "COMMAND ACK"));
    assert_eq!(ID.instance, INSTANCE);
}

/// Whatever a scheduler accepts it can forward: the largest stamp fits in front.
#[test]
fn the_largest_start_can_be_forwarded() {
    let stamp = StartStamp {
        session_epoch: SessionEpoch(u64::MAX),
        seq: Seq(u64::MAX),
        term: Term(u64::MAX),
        gpus: vec![
            place::GpuShare {
                device: 31,
                millis: 1000
            };
            limits::GPUS
        ],
    };
    assert_eq!(encode(&stamp).len(), limits::STAMP_BYTES);
    assert_eq!(
        limits::START_BYTES + limits::STAMP_BYTES,
        Operand::Start.max_payload_bytes()
    );
}
