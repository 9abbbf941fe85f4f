//! The transport: TLS 1.3 on both ends, sockets, and the clock. The only part of this crate that
//! knows rustls and tokio.
//!
//! [`Credentials`] are this daemon's certificate and its CA. [`connect()`] and [`accept`] make a
//! [`Wire`], one connection for one task; [`Link`] wraps a wire for daemons with many tasks.
//! [`follow_files`] keeps credentials fresh. [`Backoff`] and [`Dialer`] say when and where to connect again; [`serve_ops`] is the small HTTPS
//! server for metrics and health; [`ports`] has the default ports.

mod backoff;
mod connect;
mod credentials;
mod follow;
mod link;
mod ops;
pub mod ports;
mod tls;
mod verify;
mod wire;

pub use backoff::{Backoff, Dialer, is_address};
pub use connect::{
    HandshakeLimiter, HandshakePermit, accept, connect, connect_tcp, listen, wall_clock,
};
pub use credentials::{Credentials, CredentialsError, TlsFiles};
pub use follow::follow_files;
pub use link::{Link, LinkClosed, LinkReceiver, LinkSender};
pub use ops::{OpsHandler, OpsReply, serve_ops};
pub use verify::{VerifyError, take_refusal};
pub use wire::{DetachedWire, Flush, Wire, WireError, alert_in_words, read_frames};
