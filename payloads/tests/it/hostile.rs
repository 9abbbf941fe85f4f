//! Bytes that no honest peer sends: they are refused with words, and cost no more than the limit.

use crate::allocation::peak_bytes_of;
use crate::page::{self, Schema, Type};
use crate::reference::Choices;
use crate::registry::ENTRIES;
use crate::samples;
use pronto_payloads::codec::{DecodeError, take};
use pronto_payloads::place::{AttemptId, StartPrefix, StartStamp};
use proptest::prelude::*;
use std::sync::LazyLock;

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| page::schema(&page::text()));

/// What decoding may hold at once: the decoder's own limit of 4 MiB, and small change for the
/// text and the bytes that a test makes of the value.
const PEAK_BYTES: usize = (4 << 20) + (64 << 10);

fn well_formed(name: &str, choices: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    SCHEMA.generate(
        &Type::Named(name.to_owned()),
        &mut Choices(choices),
        &mut bytes,
    );
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What the page calls well-formed is never malformed to the decoder; it is refused only for
    /// its limits, and what is accepted is encoded to the same bytes.
    #[test]
    fn well_formed_bytes_round_trip(choices in prop::collection::vec(any::<u8>(), 0..600)) {
        for entry in ENTRIES {
            let bytes = well_formed(entry.name, &choices);
            match (entry.decode)(&bytes) {
                Ok(decoded) => prop_assert_eq!(decoded.bytes, bytes, "{}", entry.name),
                Err(DecodeError::Invalid(_)) => {}
                Err(other) => prop_assert!(false, "{}: {}", entry.name, other),
            }
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for entry in ENTRIES {
            let (_, peak) = peak_bytes_of(|| (entry.decode)(&bytes));
            prop_assert!(peak <= PEAK_BYTES, "{} held {} bytes", entry.name, peak);
        }
    }

    #[test]
    fn mutated_golden_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        for sample in samples::all() {
            let mut bytes = sample.bytes;
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let entry = ENTRIES.iter().find(|entry| entry.name == sample.name).unwrap();
            for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                let (result, peak) = peak_bytes_of(|| (entry.decode)(bytes));
                prop_assert!(peak <= PEAK_BYTES, "{} held {} bytes", sample.name, peak);
                if let Ok(decoded) = result {
                    prop_assert_eq!(&decoded.bytes[..], bytes);
                }
            }
        }
    }
}

/// The property above says nothing if nearly everything is refused.
#[test]
fn well_formed_bytes_are_often_accepted_and_sometimes_refused() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for entry in ENTRIES {
        let accepted = (0..400)
            .filter(|_| {
                let choices: Vec<u8> = (0..400)
                    .map(|_| {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        random.to_le_bytes()[5]
                    })
                    .collect();
                (entry.decode)(&well_formed(entry.name, &choices)).is_ok()
            })
            .count();
        assert!(
            accepted >= 8,
            "{} was accepted {accepted} times of 400",
            entry.name
        );
    }
}

/// Each length in each golden vector is replaced by huge ones: a refusal, and no allocation of it.
#[test]
fn a_huge_length_allocates_nothing() {
    for sample in samples::all() {
        let entry = ENTRIES
            .iter()
            .find(|entry| entry.name == sample.name)
            .unwrap();
        for at in 0..sample.bytes.len().saturating_sub(7) {
            for length in [
                u64::MAX,
                u64::MAX / 2,
                1 << 40,
                1 << 32,
                1 << 24,
                (4 << 20) - 64,
            ] {
                let mut bytes = sample.bytes.clone();
                bytes[at..at + 8].copy_from_slice(&length.to_le_bytes());
                let (_, peak) = peak_bytes_of(|| (entry.decode)(&bytes));
                assert!(peak <= PEAK_BYTES, "{} held {peak} bytes", sample.name);
            }
        }
    }
}

/// A START as the launcher reads it; what stands behind a broken piece stays unread.
#[test]
fn taking_one_piece_leaves_the_next() {
    let samples = samples::all();
    let piece = |name| {
        &samples
            .iter()
            .find(|sample| sample.name == name)
            .unwrap()
            .bytes
    };
    let whole = [&piece("StartStamp")[..], piece("StartPrefix"), b"opaque"].concat();
    let mut bytes = bytes::Bytes::from(whole.clone());
    let stamp: StartStamp = take(&mut bytes).unwrap();
    assert_eq!(stamp.seq.0, 1);
    let prefix: StartPrefix = take(&mut bytes).unwrap();
    assert_eq!(prefix.id, samples::ID);
    assert_eq!(&bytes[..], b"opaque");
    take::<AttemptId>(&mut bytes).unwrap_err();
    assert_eq!(&bytes[..], b"opaque", "unchanged by a failure");
}
