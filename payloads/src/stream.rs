//! Bulk streams: logs, commands inside an instance, files in and out.
//!
//! They travel on bulk sessions, never beside STARTs. A stream is named by the correlation id of
//! its STREAM_OPEN, chosen by the opener and unique in its session; the scheduler maps it to one of
//! its own towards the launcher. Data flows both ways as STREAM_DATA, whose payload is one byte of
//! [`Channel`] and raw bytes; each direction ends with STREAM_END. A sender may have no more bytes
//! under way than the final reader has granted, the opening credit included; nobody in between
//! buffers more than that.

use crate::codec::{Invalid, Payload, check_c_string, check_len, check_path, check_text};
use crate::ids::{Attempt, InstanceId, OwnerId};
use crate::limits;
use bincode::{Decode, Encode};

/// What a final reader grants at first, and at most has outstanding.
pub const CREDIT_BYTES: u32 = 256 * 1024;
/// Raw bytes in one STREAM_DATA: a frame stays small beside the credit.
pub const CHUNK_BYTES: usize = 32 * 1024;

/// The first byte of a STREAM_DATA payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Input towards the instance.
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// A file's bytes.
    File = 3,
}

impl Channel {
    /// The channel with this code.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Stdin),
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            3 => Some(Self::File),
            _ => None,
        }
    }
}

/// COMMAND STREAM_OPEN, behind [`crate::control::ToNode`] when a controller sends it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StreamOpen {
    pub owner: OwnerId,
    pub instance: InstanceId,
    pub request: StreamRequest,
    /// Bytes that the opener is ready to receive.
    pub credit_bytes: u32,
}

/// What a stream is for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StreamRequest {
    Logs(LogsRequest),
    /// A command inside a running instance.
    Exec {
        command: Vec<String>,
    },
    /// The live standard input of an instance that was started with one. Data flows down.
    Stdin,
    /// A file of the instance's directory. Data flows up.
    CopyOut {
        path: String,
    },
    /// A file into the instance's directory. Data flows down; `input` counts for `await_inputs`.
    CopyIn {
        path: String,
        mode: u32,
        bytes: u64,
        input: bool,
    },
    /// The paths that match a pattern, one a line on [`Channel::Stdout`].
    List {
        pattern: String,
    },
}

/// Which log lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct LogsRequest {
    /// Go on until the instance has ended and all of its log is sent.
    pub follow: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Only what was written in this last time.
    pub since_ms: Option<u64>,
    /// Only the last so many bytes.
    pub tail_bytes: Option<u64>,
    /// The log of this attempt; absent: of the newest that the node knows.
    pub attempt: Option<Attempt>,
}

/// COMMAND STREAM_CREDIT: so many more bytes may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StreamCredit {
    pub bytes: u32,
}

/// EVENT STREAM_END: the sender's direction has ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StreamEnd {
    /// All was sent. `code` is an exec's exit code; `sha256` of a file's bytes is 32 bytes long.
    Complete { code: Option<i32>, sha256: Vec<u8> },
    /// It could not be, with the reason in words.
    Failed { kind: StreamFailure, text: String },
}

/// Kinds of stream failures that a caller tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum StreamFailure {
    /// No such instance on this node, or its log or file is gone.
    NotFound,
    /// The node is not connected, or its bulk session broke.
    Unreachable,
    /// Too many streams at once.
    Busy,
    /// The runtime can't do it, or the request is malformed.
    Unsupported,
    /// Reading, writing or executing failed.
    Failed,
}

impl Payload for StreamOpen {
    fn check(&self) -> Result<(), Invalid> {
        match &self.request {
            StreamRequest::Exec { command } => {
                if command.first().is_none_or(String::is_empty) {
                    return Err(Invalid::new("command", "a program and its arguments"));
                }
                check_len("arguments", command.len(), limits::ARGUMENTS)?;
                command
                    .iter()
                    .try_for_each(|argument| check_c_string("argument", argument))
            }
            StreamRequest::CopyOut { path }
            | StreamRequest::CopyIn { path, .. }
            | StreamRequest::List { pattern: path } => check_path("path", Some(path)),
            StreamRequest::Logs(_) | StreamRequest::Stdin => Ok(()),
        }
    }
}

impl Payload for StreamCredit {
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

impl Payload for StreamEnd {
    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Complete { sha256, .. } if sha256.is_empty() || sha256.len() == 32 => Ok(()),
            Self::Complete { .. } => Err(Invalid::new("sha256", "32 bytes, or none")),
            Self::Failed { text, .. } => check_text("text", text, limits::TEXT_BYTES),
        }
    }
}
