//! Golden bytes: `golden.txt` beside this folder holds what each sample looks like on the wire.
//!
//! A deliberate change of the format is written there with `PRONTO_BLESS=1`; the diff is then the
//! change of the protocol, and calls for a new schema number.

use crate::page::{self, Definition};
use crate::reference::Reference;
use crate::registry::{ENTRIES, Entry};
use crate::samples::{self, Sample};
use std::collections::BTreeSet;
use std::fmt::Write;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");

fn entry(name: &str) -> &'static Entry {
    ENTRIES
        .iter()
        .find(|entry| entry.name == name)
        .unwrap_or_else(|| panic!("no payload is called {name}"))
}

/// Bytes on one line of the file.
const LINE_BYTES: usize = 48;

fn render(samples: &[Sample]) -> String {
    let mut out = String::from(
        "Golden bytes of every payload, in hexadecimal. PROTOCOL.md says what they mean.\n",
    );
    for sample in samples {
        write!(out, "\n{}", sample.name).unwrap();
        if !sample.label.is_empty() {
            write!(out, ": {}", sample.label).unwrap();
        }
        out.push('\n');
        for line in sample.bytes.chunks(LINE_BYTES) {
            out.push_str("  ");
            line.iter()
                .for_each(|byte| write!(out, "{byte:02x}").unwrap());
            out.push('\n');
        }
    }
    out
}

/// The type's name and the bytes of each vector in the file.
fn recorded() -> Vec<(String, Vec<u8>)> {
    let text = std::fs::read_to_string(PATH).expect("golden.txt is part of the crate");
    let mut vectors: Vec<(String, Vec<u8>)> = Vec::new();
    for line in text.lines().skip(1).filter(|line| !line.is_empty()) {
        match (line.strip_prefix("  "), vectors.last_mut()) {
            (Some(hex), Some((_, bytes))) => bytes.extend((0..hex.len()).step_by(2).map(|at| {
                u8::from_str_radix(&hex[at..at + 2], 16).expect("two hexadecimal digits")
            })),
            _ => {
                let name = line.split(':').next().unwrap_or(line);
                vectors.push((name.to_owned(), Vec::new()));
            }
        }
    }
    vectors
}

#[test]
fn samples_encode_to_the_recorded_bytes() {
    let now = render(&samples::all());
    if std::env::var_os("PRONTO_BLESS").is_some() {
        std::fs::write(PATH, &now).unwrap();
    }
    let recorded = std::fs::read_to_string(PATH).unwrap();
    let difference = now
        .lines()
        .zip(recorded.lines())
        .find(|(now, then)| now != then);
    assert_eq!(difference, None, "the wire format has changed");
    assert_eq!(now.len(), recorded.len(), "a sample was added or removed");
}

#[test]
fn recorded_bytes_decode_to_the_samples_in_both_implementations() {
    let page = page::text();
    let schema = page::schema(&page);
    let mut reference = Reference::new(&schema);
    let recorded = recorded();
    let samples = samples::all();
    assert_eq!(recorded.len(), samples.len());
    for ((name, bytes), sample) in recorded.iter().zip(&samples) {
        assert_eq!(name, sample.name);
        let decoded = (entry(name).decode)(bytes).expect(name);
        assert_eq!(decoded.text, sample.text);
        assert_eq!(&decoded.bytes, bytes);
        assert_eq!(reference.decode(name, bytes), sample.text);
    }
    let all: BTreeSet<(String, String)> = schema
        .types
        .iter()
        .filter_map(|(name, definition)| match definition {
            Definition::Enum(variants) => Some((name, variants)),
            _ => None,
        })
        .flat_map(|(name, variants)| {
            variants
                .iter()
                .map(|(variant, _)| (name.clone(), variant.clone()))
        })
        .collect();
    assert_eq!(
        reference.met, all,
        "each variant of each enum has a golden vector"
    );
}

#[test]
fn every_payload_type_has_a_golden_vector() {
    let mut types = BTreeSet::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for line in source.lines() {
            if let Some(rest) = line.strip_prefix("impl Payload for ") {
                types.insert(rest.trim_end_matches(" {").to_owned());
            }
        }
    }
    let registered: BTreeSet<String> = ENTRIES.iter().map(|entry| entry.name.to_owned()).collect();
    assert_eq!(registered, types, "registry.rs names every payload type");
    let covered: BTreeSet<String> = recorded().into_iter().map(|(name, _)| name).collect();
    assert_eq!(covered, types, "golden.txt has every payload type");
}

#[test]
fn a_byte_more_or_less_is_refused() {
    for sample in samples::all() {
        let decode = entry(sample.name).decode;
        let mut longer = sample.bytes.clone();
        longer.push(0);
        let refused = decode(&longer).expect_err(sample.name).to_string();
        assert_eq!(
            refused, "1 bytes after the payload's end",
            "{}",
            sample.name
        );
        for length in 0..sample.bytes.len() {
            assert!(
                decode(&sample.bytes[..length]).is_err(),
                "{} of {length} bytes",
                sample.name
            );
        }
    }
}
