//! A certificate authority for tests and what it issues, in a directory that goes away.

use pronto_protocol::transport::{Credentials, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    pub(crate) fn files(&self, uri: &str) -> TlsFiles {
        let mut params = CertificateParams::default();
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2120, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let name = uri.replace(['/', ':'], "_");
        let path = |suffix: &str| self.dir.path().join(format!("{name}{suffix}"));
        std::fs::write(path(".pem"), certificate.pem()).unwrap();
        std::fs::write(path(".key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(path(".key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        TlsFiles {
            ca: self.dir.path().join("ca.pem"),
            cert: path(".pem"),
            key: path(".key"),
            crl: None,
        }
    }

    pub(crate) fn credentials(&self, uri: &str) -> Arc<Credentials> {
        Credentials::load(&self.files(uri)).unwrap()
    }

    pub(crate) fn admin(&self) -> Arc<Credentials> {
        self.credentials("spiffe://lab/admin/root")
    }

    pub(crate) fn user(&self, tenant: &str) -> Arc<Credentials> {
        self.credentials(&format!("spiffe://lab/user/{tenant}/ada"))
    }
}
