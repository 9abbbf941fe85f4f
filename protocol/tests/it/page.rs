//! PROTOCOL.md says what the code does: each table and the worked example are checked.

use pronto_protocol::transport::ports;
use pronto_protocol::{
    Decoder, Flags, Frame, Hello, MAX_PAYLOAD_BYTES, Operand, Purpose, Refusal, RefusalCode, Role,
    SessionConfig, Timeouts, VersionRange, codec, may_send,
};

const PAGE: &str = include_str!("../../../PROTOCOL.md");

fn assert_on_page(line: &str) {
    assert!(PAGE.contains(line), "PROTOCOL.md lacks: {line}");
}

#[test]
fn every_operand_has_its_row() {
    let mut table = String::new();
    for operand in Operand::ALL {
        let limit = operand.max_payload_bytes();
        let limit = if limit >= 1024 {
            format!("{} KiB", limit / 1024)
        } else {
            format!("{limit} B")
        };
        let kind = operand.kind();
        table += &format!(
            "| {kind} {} | {} {} | {limit} | {} |\n",
            kind.code(),
            operand.name(),
            operand.code(),
            operand.limit_reason()
        );
    }
    assert_on_page(&table);
    assert_on_page(&format!(
        "No payload is longer than {} KiB",
        MAX_PAYLOAD_BYTES / 1024
    ));
}

#[test]
fn the_permissions_are_the_tables() {
    let mut table = String::new();
    let mark = |from, to, purpose, operand| {
        if may_send(from, to, purpose, operand) {
            "yes"
        } else {
            "·"
        }
    };
    for operand in Operand::ALL {
        table += &format!("| {operand} |");
        for purpose in [Purpose::Control, Purpose::Bulk] {
            for (from, to) in [
                (Role::Launcher, Role::Scheduler),
                (Role::Scheduler, Role::Launcher),
                (Role::Controller, Role::Scheduler),
                (Role::Scheduler, Role::Controller),
            ] {
                table += &format!(" {} |", mark(from, to, purpose, *operand));
            }
        }
        table.push('\n');
    }
    assert_on_page(&table);
}

#[test]
fn codes_of_refusals_ports_and_times_are_the_pages() {
    for code in RefusalCode::ALL {
        assert_on_page(&format!("| {} | {code:?} |", code as u16));
    }
    for (what, port) in [
        ("scheduler, frames", ports::SCHEDULER_FRAMES),
        ("scheduler, ops", ports::SCHEDULER_OPS),
        ("launcher, ops", ports::LAUNCHER_OPS),
        ("controller, API", ports::CONTROLLER_API),
    ] {
        assert_on_page(&format!("| {what} | {port} |"));
    }
    let times = Timeouts::DEFAULT;
    assert_on_page(&format!("| handshake | {} s |", times.handshake.as_secs()));
    assert_on_page(&format!("| keepalive | {} s |", times.keepalive.as_secs()));
    assert_on_page(&format!("| idle | {} s |", times.idle.as_secs()));
    assert_on_page(&format!("| stall | {} s |", times.stall.as_secs()));
    let queue = SessionConfig::DEFAULT_QUEUE_LIMIT_BYTES / 1024 / 1024;
    assert_on_page(&format!("at most {queue} MiB wait"));
}

/// The hex of the example that a heading names: between it and the end of its code block, the
/// part of each line before `|`.
fn example(heading: &str) -> Vec<u8> {
    let (_, behind) = PAGE
        .split_once(heading)
        .unwrap_or_else(|| panic!("no {heading}"));
    let (_, block) = behind.split_once("```hex\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    block
        .lines()
        .flat_map(|line| line.split('|').next().unwrap().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

#[test]
fn the_worked_examples_are_these_frames() {
    let hello = Hello {
        versions: VersionRange { min: 1, max: 1 },
        purpose: Purpose::Control,
        session_epoch: 0x1122_3344_5566_7788,
        build: "demo/1".into(),
        body: bytes::Bytes::new(),
    };
    let ping = Frame {
        flags: Flags::NONE,
        ..Frame::request(Operand::Ping, 7, b"hi".to_vec())
    };
    let refusal = Refusal::new(RefusalCode::NotPermitted, "no");
    let refused = Frame::new(Operand::Unauthorized, refusal.encode()).with_flags(Flags::LAST);
    for (heading, frame) in [
        (
            "### Example: HELLO",
            Frame::new(Operand::Hello, hello.encode()),
        ),
        ("### Example: PING", ping),
        ("### Example: UNAUTHORIZED", refused),
    ] {
        let mut bytes = Vec::new();
        codec::encode(&frame, &mut bytes).unwrap();
        assert_eq!(example(heading), bytes, "{heading}: should be {bytes:02x?}");
        let mut frames = Vec::new();
        Decoder::new().feed(&bytes, &mut frames).unwrap();
        assert_eq!(frames, [frame]);
    }
}
