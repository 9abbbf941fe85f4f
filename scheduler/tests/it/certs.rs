//! A certificate authority for tests and the files that it issues, in a directory that goes away.

use pronto_protocol::transport::{Credentials, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Ca {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pronto-scheduler-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        std::fs::write(directory.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    /// Writes the list of those whose certificates are revoked, in one step.
    pub(crate) fn revoke(&self, revoked: &[&str]) -> PathBuf {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|who| RevokedCertParams {
                    serial_number: serial_of(who),
                    revocation_time: date_time_ymd(2020, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let (path, new) = (
            self.directory.join("crl.pem"),
            self.directory.join("crl.new"),
        );
        std::fs::write(&new, list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    }

    /// Certificate and key of `spiffe://test/<who>`.
    pub(crate) fn issue(&self, who: &str) -> TlsFiles {
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://test/{who}");
        params
            .subject_alt_names
            .push(SanType::URI(uri.as_str().try_into().unwrap()));
        params.serial_number = Some(serial_of(who));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |suffix: &str| self.directory.join(who.replace('/', "-") + suffix);
        std::fs::write(path(".pem"), certificate.pem()).unwrap();
        std::fs::write(path(".key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(path(".key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        TlsFiles {
            ca: self.directory.join("ca.pem"),
            cert: path(".pem"),
            key: path(".key"),
            crl: None,
        }
    }

    pub(crate) fn credentials(&self, who: &str) -> Arc<Credentials> {
        Credentials::load(&self.issue(who)).unwrap()
    }
}

/// A number for a name: its own bytes, so that a test can name whom it revokes.
fn serial_of(who: &str) -> SerialNumber {
    SerialNumber::from(who.as_bytes().iter().copied().take(16).collect::<Vec<u8>>())
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _gone_anyway = std::fs::remove_dir_all(&self.directory);
    }
}
