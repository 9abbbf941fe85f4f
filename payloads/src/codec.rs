//! The one encoding of all payloads, the only place that knows bincode.
//!
//! Layout: little-endian, integers at their full width, `bool` and `Option` tags one byte, enum
//! variants a `u32` in declaration order, strings and lists a `u64` length and their elements,
//! structs their fields in order without padding.
//!
//! Two traps of the encoding are closed here. Its limit counts memory instead of wire bytes, so
//! `MEMORY_LIMIT` is generous and the frame's own limit is the real one; and it accepts bytes
//! after the value, so [`decode`] refuses them unless the caller asked for the rest.

use crate::limits;
use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};
use bytes::{Buf, Bytes};
use std::borrow::Cow;

/// What decoding one payload may claim in memory: four times the largest frame, since a `String`
/// or a `Vec` header weighs more in memory than on the wire.
const MEMORY_LIMIT: usize = 4 << 20;

type Config = Configuration<LittleEndian, Fixint, Limit<MEMORY_LIMIT>>;
const CONFIG: Config = bincode::config::standard()
    .with_little_endian()
    .with_fixed_int_encoding()
    .with_limit::<MEMORY_LIMIT>();

/// A value that is outside of what is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not accepted: {accepted}")]
pub struct Invalid {
    /// Which field.
    pub what: Cow<'static, str>,
    /// What would be accepted there.
    pub accepted: Cow<'static, str>,
}

impl Invalid {
    /// Names a field and what it accepts.
    pub fn new(what: impl Into<Cow<'static, str>>, accepted: impl Into<Cow<'static, str>>) -> Self {
        Self {
            what: what.into(),
            accepted: accepted.into(),
        }
    }
}

/// Why bytes are not the payload that they should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Too short, a bad tag, bad UTF-8, or larger than the limit.
    #[error("malformed payload of {bytes} bytes: {source}")]
    Malformed {
        bytes: usize,
        source: bincode::error::DecodeError,
    },
    /// Bytes after the value.
    #[error("{extra} bytes after the payload's end")]
    Trailing { extra: usize },
    /// Well-formed, but a field is outside of its limits.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// A payload's own check of its fields, made on every decoding.
pub trait Payload {
    /// Whether every field is inside its limits.
    ///
    /// # Errors
    /// The first field that is not, with what it accepts.
    fn check(&self) -> Result<(), Invalid>;
}

/// Encodes a payload.
///
/// # Panics
/// Never for this crate's types: encoding to a growing buffer fails only on types whose length is
/// unknown beforehand, and there is none here.
#[must_use]
pub fn encode<T: Encode>(value: &T) -> Bytes {
    Bytes::from(bincode::encode_to_vec(value, CONFIG).expect("plain structs always encode"))
}

/// Appends a payload's bytes to a buffer.
pub fn encode_into<T: Encode>(value: &T, out: &mut Vec<u8>) {
    bincode::encode_into_std_write(value, out, CONFIG).expect("plain structs always encode");
}

/// Decodes a payload that fills the whole of `bytes`.
///
/// # Errors
/// If the bytes are malformed, trail or hold a value outside of its limits.
pub fn decode<T: Decode<()> + Payload>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, used) = decode_prefix::<T>(bytes)?;
    match bytes.len() - used {
        0 => Ok(value),
        extra => Err(DecodeError::Trailing { extra }),
    }
}

/// Decodes a value at the start of `bytes`; says how many bytes it took.
///
/// # Errors
/// If the bytes are malformed or hold a value outside of its limits.
pub fn decode_prefix<T: Decode<()> + Payload>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    let (value, used) = bincode::decode_from_slice::<T, _>(bytes, CONFIG).map_err(|source| {
        DecodeError::Malformed {
            bytes: bytes.len(),
            source,
        }
    })?;
    value.check()?;
    Ok((value, used))
}

/// Takes a value off the front of `bytes` and leaves the rest there, uncopied.
///
/// # Errors
/// As [`decode_prefix`]; `bytes` is then unchanged.
pub fn take<T: Decode<()> + Payload>(bytes: &mut Bytes) -> Result<T, DecodeError> {
    let (value, used) = decode_prefix::<T>(bytes)?;
    bytes.advance(used);
    Ok(value)
}

pub(crate) fn check_len(what: &'static str, length: usize, limit: usize) -> Result<(), Invalid> {
    if length <= limit {
        Ok(())
    } else {
        Err(Invalid::new(what, format!("at most {limit} of them")))
    }
}

pub(crate) fn check_text(what: &'static str, text: &str, limit: usize) -> Result<(), Invalid> {
    if text.len() <= limit {
        Ok(())
    } else {
        Err(Invalid::new(what, format!("at most {limit} bytes")))
    }
}

/// Checks a name: tenant, workload, instance, node, label key, resource.
///
/// # Errors
/// If it is empty, too long or has a character outside of letters, digits and `. _ - /`.
pub fn check_name(what: &'static str, name: &str) -> Result<(), Invalid> {
    let fine = !name.is_empty()
        && name.len() <= limits::NAME_BYTES
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
    if fine {
        Ok(())
    } else {
        Err(Invalid::new(
            what,
            "1 to 63 letters, digits, '.', '_', '-' or '/'",
        ))
    }
}

pub(crate) fn check_value(what: &'static str, value: &str) -> Result<(), Invalid> {
    check_text(what, value, limits::VALUE_BYTES)?;
    if value.chars().any(char::is_control) {
        return Err(Invalid::new(what, "text without control characters"));
    }
    Ok(())
}

/// A string that a system call takes: no NUL, bounded.
pub(crate) fn check_c_string(what: &'static str, text: &str) -> Result<(), Invalid> {
    check_text(what, text, limits::ARGUMENT_BYTES)?;
    if text.contains('\0') {
        return Err(Invalid::new(what, "text without a NUL character"));
    }
    Ok(())
}

pub(crate) fn check_path(what: &'static str, path: Option<&String>) -> Result<(), Invalid> {
    let Some(path) = path else { return Ok(()) };
    check_text(what, path, limits::PATH_BYTES)?;
    if path.is_empty() || path.contains('\0') {
        return Err(Invalid::new(
            what,
            "a path that is not empty and holds no NUL character",
        ));
    }
    Ok(())
}

/// Checks a name that may be absent, written as an empty string.
pub(crate) fn check_name_or_empty(what: &'static str, name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        Ok(())
    } else {
        check_name(what, name)
    }
}

pub(crate) fn check_each<T: Payload>(
    what: &'static str,
    items: &[T],
    limit: usize,
) -> Result<(), Invalid> {
    check_len(what, items.len(), limit)?;
    items.iter().try_for_each(Payload::check)
}
