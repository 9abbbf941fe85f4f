//! A certificate authority for tests and the files that it issues, in a directory that goes away.

use pronto_protocol::transport::{Credentials, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.path().join("ca.crt"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    /// Certificate and key of `spiffe://test/<role>/<name>`, in files of that name.
    pub(crate) fn issue(&self, role: &str, name: &str) -> TlsFiles {
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://test/{role}/{name}");
        params
            .subject_alt_names
            .push(SanType::URI(uri.as_str().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |suffix: &str| self.path().join(format!("{name}.{suffix}"));
        std::fs::write(path("crt"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        TlsFiles {
            ca: self.path().join("ca.crt"),
            cert: path("crt"),
            key: path("key"),
            crl: None,
        }
    }

    pub(crate) fn credentials(&self, role: &str, name: &str) -> Arc<Credentials> {
        Credentials::load(&self.issue(role, name)).unwrap()
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.directory.path()
    }
}
