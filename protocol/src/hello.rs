//! What the two ends say first, HELLO and WELCOME, and what a refusal carries.
//!
//! These are encoded by hand, since they must be readable before any version is agreed upon:
//! fixed fields first, then a short text, then a body that belongs to the payloads crate.
//!
//! ```text
//! HELLO    min_version u8 · max_version u8 · purpose u8 · session_epoch u64 · build (u8 + UTF-8) · body
//! WELCOME  version u8 · session_epoch u64 · incarnation u64 · term u64 · active u8 · build (u8 + UTF-8) · body
//! refusal  code u16 · text (u16 + UTF-8)      on ERROR INVALID_FRAME, UNAUTHORIZED, BUSY, UNSUPPORTED
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use crate::permissions::Purpose;

/// The longest build name that fits its length byte.
pub const MAX_BUILD_BYTES: usize = u8::MAX as usize;

/// The longest text of a refusal: a few sentences, below the 4 KiB of its operands.
pub const MAX_REFUSAL_TEXT_BYTES: usize = 1024;

/// The protocol versions that one end speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest.
    pub min: u8,
    /// The newest.
    pub max: u8,
}

impl VersionRange {
    /// What this build speaks.
    pub const SUPPORTED: Self = Self { min: 1, max: 1 };

    /// The newest version that both ends speak.
    #[must_use]
    pub fn newest_common(self, other: Self) -> Option<u8> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl std::fmt::Display for VersionRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

/// Why bytes are not a HELLO, a WELCOME or a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Fewer bytes than the fixed fields and texts need.
    #[error("{what} ends within its field {field}")]
    Short {
        /// HELLO, WELCOME, refusal.
        what: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A field has a value that means nothing.
    #[error("{what} has {field} {found}; accepted: {accepted}")]
    Value {
        /// HELLO, WELCOME, refusal.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// The value.
        found: u64,
        /// What it may be.
        accepted: &'static str,
    },
    /// A text is not UTF-8.
    #[error("{what} has a {field} that is not UTF-8")]
    Text {
        /// HELLO, WELCOME, refusal.
        what: &'static str,
        /// The field.
        field: &'static str,
    },
}

/// The first frame of the end that connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Protocol versions that it speaks.
    pub versions: VersionRange,
    /// What the session is for.
    pub purpose: Purpose,
    /// Chosen by the connecting end, never used twice by it: it names the session in later
    /// accounts.
    pub session_epoch: u64,
    /// Name and version of the program, for people. Cut at [`MAX_BUILD_BYTES`].
    pub build: String,
    /// What the payloads crate says about the peer.
    pub body: Bytes,
}

impl Hello {
    /// A HELLO with the versions that this build speaks.
    #[must_use]
    pub fn new(purpose: Purpose, session_epoch: u64, body: impl Into<Bytes>) -> Self {
        Self {
            versions: VersionRange::SUPPORTED,
            purpose,
            session_epoch,
            build: build(),
            body: body.into(),
        }
    }

    /// The payload of the frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(12 + self.build.len() + self.body.len());
        out.put_u8(self.versions.min);
        out.put_u8(self.versions.max);
        out.put_u8(self.purpose.code());
        out.put_u64_le(self.session_epoch);
        put_build(&mut out, &self.build);
        out.put_slice(&self.body);
        out.freeze()
    }

    /// Reads the payload of the frame. The body shares memory with it.
    pub fn decode(payload: &Bytes) -> Result<Self, HelloError> {
        let mut fields = Fields {
            what: "HELLO",
            rest: payload,
        };
        let min = fields.byte("min_version")?;
        let max = fields.byte("max_version")?;
        if min == 0 || max < min {
            let accepted = "1 to 255 and not below min_version";
            let found = u64::from(if min == 0 { min } else { max });
            return Err(HelloError::Value {
                what: "HELLO",
                field: "version",
                found,
                accepted,
            });
        }
        let purpose = fields.byte("purpose")?;
        let purpose = Purpose::from_code(purpose).ok_or(HelloError::Value {
            what: "HELLO",
            field: "purpose",
            found: purpose.into(),
            accepted: "0 control, 1 bulk",
        })?;
        let session_epoch = fields.u64("session_epoch")?;
        let build = fields.build()?;
        let versions = VersionRange { min, max };
        Ok(Self {
            versions,
            purpose,
            session_epoch,
            build,
            body: fields.body(payload),
        })
    }
}

/// The answer of the end that listened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version that the session speaks from now on.
    pub version: u8,
    /// HELLO's session epoch, back.
    pub session_epoch: u64,
    /// Random at each start of the listening daemon: the same number means the same memory.
    pub incarnation: u64,
    /// The term in which it was last active.
    pub term: u64,
    /// Whether it is the active one or a standby.
    pub active: bool,
    /// Name and version of the program, for people. Cut at [`MAX_BUILD_BYTES`].
    pub build: String,
    /// What the payloads crate adds.
    pub body: Bytes,
}

impl Welcome {
    /// A WELCOME; the session fills in version and session epoch when it is sent.
    #[must_use]
    pub fn new(incarnation: u64, term: u64, active: bool, body: impl Into<Bytes>) -> Self {
        Self {
            version: 0,
            session_epoch: 0,
            incarnation,
            term,
            active,
            build: build(),
            body: body.into(),
        }
    }

    /// The payload of the frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(27 + self.build.len() + self.body.len());
        out.put_u8(self.version);
        out.put_u64_le(self.session_epoch);
        out.put_u64_le(self.incarnation);
        out.put_u64_le(self.term);
        out.put_u8(self.active.into());
        put_build(&mut out, &self.build);
        out.put_slice(&self.body);
        out.freeze()
    }

    /// Reads the payload of the frame. The body shares memory with it.
    pub fn decode(payload: &Bytes) -> Result<Self, HelloError> {
        let mut fields = Fields {
            what: "WELCOME",
            rest: payload,
        };
        let version = fields.byte("version")?;
        let session_epoch = fields.u64("session_epoch")?;
        let incarnation = fields.u64("incarnation")?;
        let term = fields.u64("term")?;
        let active = match fields.byte("active")? {
            0 => false,
            1 => true,
            other => {
                return Err(HelloError::Value {
                    what: "WELCOME",
                    field: "active",
                    found: other.into(),
                    accepted: "0 standby, 1 active",
                });
            }
        };
        let build = fields.build()?;
        let body = fields.body(payload);
        Ok(Self {
            version,
            session_epoch,
            incarnation,
            term,
            active,
            build,
            body,
        })
    }
}

/// Why a frame or a session was refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RefusalCode {
    /// A reason that this build does not know, or that has no code of its own.
    Other = 0,
    /// The bytes are not a frame.
    MalformedFrame = 1,
    /// The frame is sound and its payload is not.
    MalformedPayload = 2,
    /// A frame came where the session's state has no place for it.
    OutOfPlace = 3,
    /// The role may not send this.
    NotPermitted = 4,
    /// The two ends have no protocol version in common.
    NoCommonVersion = 5,
    /// Another node is known by that name, or the name is not the certificate's.
    NameTaken = 6,
    /// A limit on connections, streams or memory is reached; try again later.
    LimitReached = 7,
    /// The daemon is ending.
    ShuttingDown = 8,
    /// The peer's certificate has expired or has been revoked during the session.
    CertificateInvalid = 9,
    /// Nothing was heard, or nothing could be sent, for too long.
    TimedOut = 10,
}

impl RefusalCode {
    /// All codes.
    pub const ALL: [Self; 11] = [
        Self::Other,
        Self::MalformedFrame,
        Self::MalformedPayload,
        Self::OutOfPlace,
        Self::NotPermitted,
        Self::NoCommonVersion,
        Self::NameTaken,
        Self::LimitReached,
        Self::ShuttingDown,
        Self::CertificateInvalid,
        Self::TimedOut,
    ];

    fn from_code(code: u16) -> Self {
        Self::ALL
            .into_iter()
            .find(|known| *known as u16 == code)
            .unwrap_or(Self::Other)
    }
}

/// Payload of ERROR INVALID_FRAME, UNAUTHORIZED, BUSY and UNSUPPORTED.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what is wrong and what is accepted. Cut at [`MAX_REFUSAL_TEXT_BYTES`].
    pub text: String,
}

impl Refusal {
    /// A refusal with its reason in words.
    #[must_use]
    pub fn new(code: RefusalCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// The payload of the frame.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let text = cut(&self.text, MAX_REFUSAL_TEXT_BYTES);
        let mut out = BytesMut::with_capacity(4 + text.len());
        out.put_u16_le(self.code as u16);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "cut to 1024 bytes just above"
        )]
        out.put_u16_le(text.len() as u16);
        out.put_slice(text.as_bytes());
        out.freeze()
    }

    /// Reads the payload of the frame.
    pub fn decode(payload: &[u8]) -> Result<Self, HelloError> {
        let mut fields = Fields {
            what: "refusal",
            rest: payload,
        };
        let code = RefusalCode::from_code(fields.u16("code")?);
        let len = fields.u16("text length")?;
        let text = fields.text("text", len.into())?;
        if !fields.rest.is_empty() {
            return Err(HelloError::Value {
                what: "refusal",
                field: "trailing bytes",
                found: fields.rest.len() as u64,
                accepted: "none",
            });
        }
        Ok(Self { code, text })
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The text is the peer's and may stand in a log line.
        self.text
            .chars()
            .try_for_each(|c| std::fmt::Write::write_char(f, if c.is_control() { '?' } else { c }))
    }
}

fn build() -> String {
    concat!("pronto/", env!("CARGO_PKG_VERSION")).to_owned()
}

fn put_build(out: &mut BytesMut, build: &str) {
    let build = cut(build, MAX_BUILD_BYTES);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "cut to 255 bytes just above"
    )]
    out.put_u8(build.len() as u8);
    out.put_slice(build.as_bytes());
}

fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// Reads fields off the front of a payload.
struct Fields<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl Fields<'_> {
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], HelloError> {
        let (now, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(HelloError::Short {
                what: self.what,
                field,
            })?;
        self.rest = rest;
        Ok(*now)
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, HelloError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, HelloError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, HelloError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn text(&mut self, field: &'static str, len: usize) -> Result<String, HelloError> {
        let what = self.what;
        let (text, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(HelloError::Short { what, field })?;
        self.rest = rest;
        match std::str::from_utf8(text) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(HelloError::Text { what, field }),
        }
    }

    fn build(&mut self) -> Result<String, HelloError> {
        let len = self.byte("build length")?;
        self.text("build", len.into())
    }

    fn body(&self, payload: &Bytes) -> Bytes {
        payload.slice(payload.len() - self.rest.len()..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_golden_bytes() {
        let hello = Hello {
            versions: VersionRange { min: 1, max: 2 },
            purpose: Purpose::Bulk,
            session_epoch: 7,
            build: "x/1".into(),
            body: Bytes::from_static(b"body"),
        };
        let bytes = hello.encode();
        assert_eq!(&bytes[..], b"\x01\x02\x01\x07\0\0\0\0\0\0\0\x03x/1body");
        assert_eq!(Hello::decode(&bytes), Ok(hello));
        for len in 0..15 {
            assert!(Hello::decode(&bytes.slice(..len)).is_err(), "{len}");
        }
    }

    #[test]
    fn welcome_golden_bytes() {
        let welcome = Welcome {
            version: 1,
            session_epoch: 7,
            incarnation: 8,
            term: 9,
            active: true,
            build: "x/1".into(),
            body: Bytes::new(),
        };
        let bytes = welcome.encode();
        let golden = b"\x01\x07\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x01\x03x/1";
        assert_eq!(&bytes[..], golden);
        assert_eq!(Welcome::decode(&bytes), Ok(welcome));
        for len in 0..golden.len() {
            assert!(Welcome::decode(&bytes.slice(..len)).is_err(), "{len}");
        }
    }

    #[test]
    fn refusals_lead_back_and_are_cut() {
        for code in RefusalCode::ALL {
            let refusal = Refusal::new(code, "no");
            assert_eq!(Refusal::decode(&refusal.encode()), Ok(refusal));
        }
        let long = Refusal::new(RefusalCode::Other, "ö".repeat(2000));
        assert_eq!(Refusal::decode(&long.encode()).unwrap().text.len(), 1024);
        assert!(Refusal::decode(b"\x01\0\x05\0ab").is_err());
        assert!(Refusal::decode(b"\x01\0\x01\0ab").is_err());
    }

    #[test]
    fn the_newest_common_version_is_chosen() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(1, 3).newest_common(range(2, 5)), Some(3));
        assert_eq!(range(1, 1).newest_common(range(1, 2)), Some(1));
        assert_eq!(range(1, 1).newest_common(range(2, 3)), None);
    }
}
