//! Instance ids that lead back to the row they belong to, so that no index of ids is needed.
//!
//! The store numbers instances from 1 in the order of their admission (`seq`). An id is a UUIDv7
//! whose last 32 bits are that number, encrypted by a small Feistel network under the store's own
//! key; the 42 random bits before them are drawn once a submission. So the id of each instance of
//! a submission can be computed, a short form (the last eight hex digits) finds its row by
//! arithmetic, and ids still look random.
//!
//! ```text
//! bits  48 unix_ms | 4 version | 12 nonce (high) | 2 variant | 30 nonce (low) | 32 E(seq)
//! ```
//!
//! An id that was looked up is always compared with the computed one as a whole: the number alone
//! proves nothing, since a store that was restored from a backup gives numbers out again.

use pronto_payloads::ids::InstanceId;

/// Random bits of a submission's ids.
pub const NONCE_BITS: u32 = 42;
/// A shorter suffix would name thousands of instances, and take as many looks.
pub const SUFFIX_MIN_DIGITS: usize = 6;
const TAIL_DIGITS: usize = 8;
const ROUNDS: u32 = 4;

/// The store's way of making ids.
#[derive(Clone, Copy, Debug)]
pub struct IdScheme {
    key: u64,
}

impl IdScheme {
    /// The scheme of a store with this key.
    #[must_use]
    pub const fn new(key: u64) -> Self {
        Self { key }
    }

    fn round(self, half: u16, round: u32) -> u16 {
        let mut mix = self.key ^ (u64::from(half) << 32) ^ u64::from(round);
        // The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
        mix = (mix ^ (mix >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mix = (mix ^ (mix >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low16(mix >> 31)
    }

    fn encrypt(self, number: u32) -> u32 {
        let (mut left, mut right) = (low16(u64::from(number) >> 16), low16(u64::from(number)));
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ self.round(right, round));
        }
        (u32::from(left) << 16) | u32::from(right)
    }

    fn decrypt(self, tail: u32) -> u32 {
        let (mut left, mut right) = (low16(u64::from(tail) >> 16), low16(u64::from(tail)));
        for round in (0..ROUNDS).rev() {
            (left, right) = (right ^ self.round(left, round), left);
        }
        (u32::from(left) << 16) | u32::from(right)
    }

    /// The id of an instance.
    #[must_use]
    pub fn id(self, unix_ms: u64, nonce: u64, seq: u64) -> InstanceId {
        let nonce = nonce & ((1 << NONCE_BITS) - 1);
        let high = (unix_ms << 16) | 0x7000 | (nonce >> 30);
        let low =
            (0b10 << 62) | ((nonce & ((1 << 30) - 1)) << 32) | u64::from(self.encrypt(low32(seq)));
        InstanceId(((u128::from(high) << 64) | u128::from(low)).to_be_bytes())
    }

    /// The number that an id stands for, if it is one of this store: the latest one up to `newest`
    /// with its 32 bits. 0 where there is none.
    #[must_use]
    pub fn seq(self, id: InstanceId, newest: u64) -> u64 {
        let [.., a, b, c, d] = id.0;
        widen(self.decrypt(u32::from_be_bytes([a, b, c, d])), newest)
    }

    /// Every number between `oldest` and `newest` whose id may end in this suffix of hex digits
    /// (dashes are passed over). `None`: not such a suffix.
    #[must_use]
    pub fn candidates(self, suffix: &str, oldest: u64, newest: u64) -> Option<Vec<u64>> {
        let digits: String = suffix.chars().filter(|&c| c != '-').collect();
        let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        if !hex || digits.len() < SUFFIX_MIN_DIGITS || digits.len() > 32 {
            return None;
        }
        let tail = &digits[digits.len().saturating_sub(TAIL_DIGITS)..];
        let known_bits = 4 * u32::try_from(tail.len()).ok()?;
        let low = u32::from_str_radix(tail, 16).ok()?;
        let unknown = 1_u64 << (32 - known_bits);
        let mut found = Vec::new();
        for high in 0..unknown {
            let tail = low32((high << known_bits) | u64::from(low));
            let seq = widen(self.decrypt(tail), newest);
            if seq >= oldest.max(1) && seq <= newest {
                found.push(seq);
            }
        }
        found.sort_unstable();
        Some(found)
    }
}

/// When an instance was admitted, as its id says.
#[must_use]
pub fn admitted_unix_ms(id: InstanceId) -> u64 {
    u64::try_from(u128::from_be_bytes(id.0) >> 80).unwrap_or(u64::MAX)
}

/// Whether an id ends in a suffix that [`IdScheme::candidates`] accepted.
#[must_use]
pub fn ends_in(id: InstanceId, suffix: &str) -> bool {
    let digits: String = suffix
        .chars()
        .filter(|&c| c != '-')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    id.uuid().simple().to_string().ends_with(&digits)
}

/// The largest number up to `newest` with these low 32 bits; 0 if there is none.
fn widen(low: u32, newest: u64) -> u64 {
    let base = newest & !u64::from(u32::MAX);
    let here = base | u64::from(low);
    if here <= newest {
        here
    } else {
        here.saturating_sub(1 << 32)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low bits are what is wanted"
)]
const fn low16(value: u64) -> u16 {
    value as u16
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low bits are what is wanted"
)]
const fn low32(value: u64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_number() {
        let scheme = IdScheme::new(0x1234_5678_9abc_def0);
        for seq in [
            1,
            2,
            77,
            65_536,
            4_294_967_295,
            4_294_967_296,
            5_000_000_000,
        ] {
            let id = scheme.id(1_790_000_000_000, 0x3ff_ffff_ffff, seq);
            assert_eq!(id.uuid().get_version_num(), 7);
            assert_eq!(admitted_unix_ms(id), 1_790_000_000_000);
            assert_eq!(scheme.seq(id, seq), seq);
            assert_eq!(scheme.seq(id, seq + 1000), seq);
        }
    }

    #[test]
    fn a_short_suffix_finds_its_instance_among_many() {
        let scheme = IdScheme::new(42);
        let id = scheme.id(1_790_000_000_000, 99, 123_456);
        let text = id.uuid().simple().to_string();
        for digits in [6, 7, 8, 12, 32] {
            let suffix = &text[32 - digits..];
            let found = scheme.candidates(suffix, 1, 200_000).unwrap();
            assert!(found.contains(&123_456), "{suffix}");
            assert!(ends_in(id, suffix));
            if digits >= 8 {
                assert_eq!(found, [123_456]);
            }
        }
        assert_eq!(scheme.candidates("abcde", 1, 9), None);
        assert_eq!(scheme.candidates("uvwxyz", 1, 9), None);
    }
}
