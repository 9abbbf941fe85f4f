//! Pronto's wire protocol: frames, roles and permissions, sessions, and their mutual-TLS transport.
//!
//! Everything outside [`transport`] is sans-I/O: bytes in, frames out, no socket, no clock, no
//! random source. What the frames carry is opaque here and belongs to the payloads crate.
//! PROTOCOL.md specifies all of it; tests hold the page and the code together.

pub mod codec;
pub mod frame;
pub mod header;
pub mod hello;
pub mod identity;
pub mod operand;
mod outbox;
pub mod permissions;
mod quiet;
pub mod session;
pub mod transport;

pub use codec::{Decoder, FrameCodec};
pub use frame::{Frame, Payload};
pub use header::{Flags, FrameError, HEADER_BYTES, HEADER_VERSION, Header, Kind};
pub use hello::{Hello, HelloError, Refusal, RefusalCode, VersionRange, Welcome};
pub use identity::{Identity, IdentityError, Role};
pub use operand::{MAX_PAYLOAD_BYTES, Operand, OperandSet};
pub use permissions::{Purpose, may_send};
pub use quiet::Quiet;
pub use session::{SendError, Session, SessionConfig, SessionError, Timeouts};
