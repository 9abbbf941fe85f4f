//! Is this certificate genuine, and whose is it? Asked at each handshake, and again of long sessions.
//!
//! A peer's chain must lead to the cluster's CA, be valid now and not revoked; its one SPIFFE URI
//! must name our cluster; and the end that connects also demands the role it meant to reach. DNS
//! names play no part, so an address may change without a new certificate. Signatures of the
//! handshake are checked by rustls with the provider's algorithms. Invariant: an [`Identity`] is
//! returned only after the chain has been verified.

use std::cell::Cell;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use crate::identity::{Identity, IdentityError, Role};

/// Why a peer's certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The peer sent none.
    #[error("peer presented no certificate")]
    Missing,
    /// Its validity has ended.
    #[error("certificate of {whose} has expired")]
    Expired {
        /// The identity that it states.
        whose: String,
    },
    /// Its validity has not begun.
    #[error("certificate of {whose} is not valid yet (or this machine's clock is behind)")]
    NotYetValid {
        /// The identity that it states.
        whose: String,
    },
    /// It is on the revocation list.
    #[error("certificate of {whose} has been revoked")]
    Revoked {
        /// The identity that it states.
        whose: String,
    },
    /// Our CA did not sign it.
    #[error("certificate of {whose} was not issued by this cluster's CA")]
    UnknownIssuer {
        /// The identity that it states.
        whose: String,
    },
    /// Anything else that makes a chain invalid.
    #[error("certificate of {whose} is invalid: {reason}")]
    Invalid {
        /// The identity that it states.
        whose: String,
        /// What webpki says.
        reason: String,
    },
    /// It is genuine and names nobody.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It is genuine and belongs to another cluster.
    #[error("{peer} is not of cluster '{accepted}'")]
    WrongCluster {
        /// Who it is.
        peer: String,
        /// Our cluster.
        accepted: String,
    },
    /// It is genuine and not the daemon that we meant to reach.
    #[error("{peer} is not a {accepted}")]
    WrongRole {
        /// Who it is.
        peer: String,
        /// The role that was expected.
        accepted: Role,
    },
}

impl VerifyError {
    fn from_webpki(error: webpki::Error, certificate: &CertificateDer<'_>) -> Self {
        // Unverified, so for the text of the refusal alone.
        let whose = Identity::from_certificate(certificate).map_or_else(
            |_| "an unnamed peer".to_owned(),
            |identity| identity.to_string(),
        );
        match error {
            webpki::Error::CertExpired { .. } => Self::Expired { whose },
            webpki::Error::CertNotValidYet { .. } => Self::NotYetValid { whose },
            webpki::Error::CertRevoked => Self::Revoked { whose },
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                Self::UnknownIssuer { whose }
            }
            other => Self::Invalid {
                whose,
                reason: other.to_string(),
            },
        }
    }
}

impl From<VerifyError> for rustls::Error {
    /// Chooses the alert that tells the peer most; the words stay with us, see
    /// `take_refusal`.
    fn from(error: VerifyError) -> Self {
        let certificate_error = match &error {
            VerifyError::Expired { .. } => CertificateError::Expired,
            VerifyError::NotYetValid { .. } => CertificateError::NotValidYet,
            VerifyError::Revoked { .. } => CertificateError::Revoked,
            VerifyError::UnknownIssuer { .. } => CertificateError::UnknownIssuer,
            _ => CertificateError::ApplicationVerificationFailure,
        };
        REFUSAL.set(Some(error));
        Self::InvalidCertificate(certificate_error)
    }
}

thread_local! {
    /// rustls' errors have room either for the right alert or for our words. A verifier runs
    /// within one synchronous call of its connection, so the words wait here for that call's end.
    static REFUSAL: Cell<Option<VerifyError>> = const { Cell::new(None) };
}

/// Why a verifier has refused since the last call on this thread. To be called before a step of a
/// handshake, to forget, or right after it failed, to learn.
#[must_use]
pub fn take_refusal() -> Option<VerifyError> {
    REFUSAL.take()
}

/// What certificates are judged by.
#[derive(Debug)]
pub(crate) struct Trust {
    pub(crate) roots: Vec<TrustAnchor<'static>>,
    pub(crate) crls: Vec<CertRevocationList<'static>>,
    pub(crate) cluster: String,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    /// The identity of a chain whose first certificate is the peer's.
    pub(crate) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Identity, VerifyError> {
        let (end_entity, intermediates) = chain.split_first().ok_or(VerifyError::Missing)?;
        let refused = |error| VerifyError::from_webpki(error, end_entity);
        let certificate = EndEntityCert::try_from(end_entity).map_err(refused)?;
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        // A list speaks for its own issuer alone: while a CA is being replaced, the other one's
        // certificates have no list yet.
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .build()
        });
        certificate
            .verify_for_usage(
                self.algorithms.all,
                &self.roots,
                intermediates,
                now,
                usage,
                revocation,
                None,
            )
            .map_err(refused)?;
        let identity = Identity::from_certificate(end_entity)?;
        if identity.cluster() != self.cluster {
            let (peer, accepted) = (identity.to_string(), self.cluster.clone());
            return Err(VerifyError::WrongCluster { peer, accepted });
        }
        Ok(identity)
    }
}

/// Judges whoever connects to us: any role of the cluster, which the session then examines.
#[derive(Debug)]
pub(crate) struct AnyPeer(pub(crate) Arc<Trust>);

/// Judges whom we connected to: this role and no other.
#[derive(Debug)]
pub(crate) struct PeerOfRole(pub(crate) Arc<Trust>, pub(crate) Role);

fn chain<'a>(
    end_entity: &CertificateDer<'a>,
    intermediates: &[CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    std::iter::once(end_entity)
        .chain(intermediates)
        .cloned()
        .collect()
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is never negotiated".into())
}

impl ClientCertVerifier for AnyPeer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify(
            &chain(end_entity, intermediates),
            now,
            KeyUsage::client_auth(),
        )?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PeerOfRole {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = chain(end_entity, intermediates);
        let identity = self.0.verify(&chain, now, KeyUsage::server_auth())?;
        if identity.role() != self.1 {
            let (peer, accepted) = (identity.to_string(), self.1);
            return Err(VerifyError::WrongRole { peer, accepted }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}
