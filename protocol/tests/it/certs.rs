//! A certificate authority for tests and the files that it issues, in a directory that goes away.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pronto_protocol::transport::{Credentials, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

/// What a certificate may differ in from a good one.
pub(crate) struct Order<'a> {
    pub(crate) uris: &'a [&'a str],
    pub(crate) years: (i32, i32),
    pub(crate) serial: u64,
}

impl Default for Order<'_> {
    fn default() -> Self {
        Self {
            uris: &[],
            years: (2020, 2120),
            serial: 1,
        }
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir =
            std::env::temp_dir().join(format!("pronto-protocol-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, format!("test CA {number}"));
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        std::fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes certificate and key under a name, in place of what is there.
    pub(crate) fn issue(&self, name: &str, order: &Order<'_>) -> TlsFiles {
        let mut params = CertificateParams::default();
        for uri in order.uris {
            params
                .subject_alt_names
                .push(SanType::URI((*uri).try_into().unwrap()));
        }
        params.not_before = date_time_ymd(order.years.0, 1, 1);
        params.not_after = date_time_ymd(order.years.1, 1, 1);
        params.serial_number = Some(SerialNumber::from(order.serial));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |suffix: &str| self.dir.join(format!("{name}{suffix}"));
        std::fs::write(path(".pem"), certificate.pem()).unwrap();
        std::fs::write(path(".key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(path(".key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        TlsFiles {
            ca: self.dir.join("ca.pem"),
            cert: path(".pem"),
            key: path(".key"),
            crl: None,
        }
    }

    /// Credentials of a good certificate with this URI.
    pub(crate) fn credentials(&self, uri: &str) -> Arc<Credentials> {
        let name = uri.replace(['/', ':'], "_");
        let order = Order {
            uris: &[uri],
            ..Order::default()
        };
        Credentials::load(&self.issue(&name, &order)).unwrap()
    }

    /// Writes a revocation list over these serial numbers.
    pub(crate) fn revoke(&self, serials: &[u64]) -> PathBuf {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: date_time_ymd(2020, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.dir.join("crl.pem");
        std::fs::write(&path, list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        path
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _gone_anyway = std::fs::remove_dir_all(&self.dir);
    }
}
