//! Why a connection ended, or did not come about.

use std::io;
use std::time::Duration;

use rustls::AlertDescription;

use crate::session::{SendError, SessionError};
use crate::transport::verify::VerifyError;

/// Why a connection ended, or did not come about.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// An address can't be resolved.
    #[error("can't resolve address '{address}': {source}")]
    Resolve {
        /// As it was given.
        address: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// Nobody answers at an address.
    #[error("can't connect to {address}: {source}")]
    Connect {
        /// As it was given.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The socket failed.
    #[error("connection failed: {0}")]
    Io(#[from] io::Error),
    /// TLS failed.
    #[error("TLS failed: {0}")]
    Tls(rustls::Error),
    /// The peer has ended the TLS connection with an alert.
    #[error("peer ended TLS with {0:?}: {words}", words = alert_in_words(*.0))]
    Alert(AlertDescription),
    /// The peer's certificate is not acceptable.
    #[error("TLS failed: {0}")]
    Peer(#[from] VerifyError),
    /// The protocol was broken, a time limit passed, or one end refused the other.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Our own first frame could not be queued.
    #[error("can't begin a session: {0}")]
    Begin(#[from] SendError),
    /// The peer has closed the connection.
    #[error("peer closed the connection{}", if *.clean { "" } else { " without saying goodbye" })]
    Closed {
        /// Whether it said so in TLS first.
        clean: bool,
    },
    /// It had said nothing yet, and a newcomer needed its place.
    #[error("it had said nothing, and its place was needed")]
    Displaced,
    /// A step took too long.
    #[error("{what} not done within {limit:?}")]
    Timeout {
        /// Which step.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
}

impl From<rustls::Error> for WireError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::Alert(alert),
            error => Self::Tls(error),
        }
    }
}

/// What an alert means for whose certificate it is about.
#[must_use]
pub fn alert_in_words(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => "our certificate was not issued by the peer's CA",
        AlertDescription::CertificateExpired => "our certificate has expired",
        AlertDescription::CertificateRevoked => "our certificate has been revoked",
        AlertDescription::CertificateRequired => "we presented no certificate",
        AlertDescription::AccessDenied => {
            "our certificate's role or cluster is not the one that the peer accepts"
        }
        _ => "the peer gives no reason",
    }
}

impl WireError {
    /// Whether the peer, or we, refused by rule: trying again soon will not help.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Tls(_)
                | Self::Alert(_)
                | Self::Peer(_)
                | Self::Session(SessionError::Refused { .. } | SessionError::RefusedPeer { .. })
        )
    }
}
