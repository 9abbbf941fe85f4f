//! What Pronto's frames carry: plain structs with one encoding.
//!
//! Every payload is a struct of owned fields, encoded by [`codec`] as little-endian bincode with
//! fixed-width integers, so that byte offsets can be published in PROTOCOL.md and written by hand
//! in another language. This crate decides nothing: it holds no policy, no clock and no socket.
//!
//! Invariants:
//! - Only `codec.rs` knows bincode.
//! - Every payload that can be decoded has passed its [`codec::Payload::check`]: strings, lists and
//!   numbers are inside the limits of [`limits`].
//! - Durations travel, wall-clock times never do: two hosts' clocks are not compared.

pub mod codec;
pub mod control;
pub mod demand;
pub mod hello;
pub mod ids;
pub mod instance;
pub mod limits;
pub mod node;
pub mod place;
pub mod start;
pub mod stream;

/// The payload schema that this build writes, and the range that it reads.
///
/// A START names the schema of its body; a launcher's range is in its HELLO and is a placement
/// constraint, so that a cluster can be upgraded node by node.
pub const SCHEMA: u16 = 1;
/// The oldest payload schema that this build still reads.
pub const SCHEMA_MIN: u16 = 1;
