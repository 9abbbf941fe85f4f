//! This daemon's certificate and key, the cluster's CA, and the TLS configurations made of them.
//!
//! Files are read at start and again at [`Credentials::reload`]; a reload that fails leaves what
//! was loaded in force, and one that succeeds is used by the next handshake while open sessions go
//! on. The cryptographic provider is passed explicitly: a second one in the process would make
//! rustls panic. Session tickets and resumption are off, since a resumed session would skip the
//! check of the client's certificate.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use serde::Deserialize;
use webpki::{CertRevocationList, KeyUsage, OwnedCertRevocationList};

use crate::identity::{Identity, IdentityError, Role};
use crate::transport::verify::{AnyPeer, PeerOfRole, Trust, VerifyError};

/// No PEM file of ours is longer: a bundle of CAs or a list of some ten thousand revocations.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Where the credentials are, as it stands in a daemon's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The cluster's CA certificates, PEM; several while a CA is being replaced.
    pub ca: PathBuf,
    /// Our certificate and what leads from it to the CA, PEM.
    pub cert: PathBuf,
    /// Our private key, PEM, readable by its owner alone.
    pub key: PathBuf,
    /// Revoked certificates, PEM.
    #[serde(default)]
    pub crl: Option<PathBuf>,
}

/// Why credentials can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file can't be read.
    #[error("{what} file {}: {source}", .path.display())]
    Read {
        /// Which of the files.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file is of an absurd size.
    #[error("{what} file {} has {len_bytes} bytes; accepted: at most {MAX_FILE_BYTES}", .path.display())]
    TooLong {
        /// Which of the files.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Its length.
        len_bytes: u64,
    },
    /// A file does not hold what it should.
    #[error("{what} file {} {problem}; accepted: {accepted}", .path.display())]
    Content {
        /// Which of the files.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What is accepted.
        accepted: &'static str,
    },
    /// Others than its owner may read the key.
    #[error("key file {} has mode {mode:04o}: anybody may read it; run: chmod 600 {}", .path.display(), .path.display())]
    KeyMode {
        /// Its path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Key and certificate are not a pair.
    #[error("key file {} is not the key of certificate file {}", .key.display(), .cert.display())]
    KeyMismatch {
        /// The key's path.
        key: PathBuf,
        /// The certificate's path.
        cert: PathBuf,
    },
    /// The certificate states no identity.
    #[error("certificate file {}: {source}", .path.display())]
    Identity {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
    /// The certificate would be refused by every peer.
    #[error("certificate file {} would be refused by its peers: {source}", .path.display())]
    Refused {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: VerifyError,
    },
    /// A reload would make the daemon somebody else.
    #[error("certificate file {} now names {found}, this daemon runs as {running}; restart it instead", .path.display())]
    IdentityChanged {
        /// Its path.
        path: PathBuf,
        /// Who the file says we are.
        found: Box<Identity>,
        /// Who we are.
        running: Box<Identity>,
    },
    /// rustls refuses to work with it.
    #[error("certificate file {} can't be used for TLS: {source}", .path.display())]
    Tls {
        /// The certificate's path.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// Everything that was made of the files at one time.
#[derive(Debug)]
struct Loaded {
    identity: Identity,
    not_after: UnixTime,
    trust: Arc<Trust>,
    resolver: Arc<SingleCertAndKey>,
    frames: Arc<ServerConfig>,
}

/// Credentials that can be reloaded while in use.
#[derive(Debug)]
pub struct Credentials {
    files: TlsFiles,
    current: ArcSwap<Loaded>,
    reloads: AtomicU64,
}

impl Credentials {
    /// Reads and checks the files.
    pub fn load(files: &TlsFiles) -> Result<Arc<Self>, CredentialsError> {
        let loaded = Loaded::read(files)?;
        Ok(Arc::new(Self {
            files: files.clone(),
            current: ArcSwap::from_pointee(loaded),
            reloads: AtomicU64::new(0),
        }))
    }

    /// Reads the files again. On an error what was loaded before stays in force.
    pub fn reload(&self) -> Result<(), CredentialsError> {
        let loaded = Loaded::read(&self.files)?;
        let running = self.identity();
        if loaded.identity != running {
            return Err(CredentialsError::IdentityChanged {
                path: self.files.cert.clone(),
                found: Box::new(loaded.identity),
                running: Box::new(running),
            });
        }
        self.current.store(Arc::new(loaded));
        self.reloads.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// How many times they were read anew: who has judged a peer by fewer has to judge it again.
    #[must_use]
    pub fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::Acquire)
    }

    /// The files that these were read from.
    #[must_use]
    pub const fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// Who we are.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.current.load().identity.clone()
    }

    /// When our own certificate expires.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.current.load().not_after
    }

    /// For a listener: peers of any role of this cluster pass, with a certificate.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.current.load().frames.clone()
    }

    /// The same for a listener that negotiates an application protocol (`h2`, `http/1.1`).
    #[must_use]
    pub fn server_config_with_alpn(&self, protocols: &[&str]) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.current.load().frames);
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }

    /// For connecting to a daemon of this role; any other peer is refused in the handshake.
    #[must_use]
    pub fn client_config(&self, expected: Role) -> Arc<ClientConfig> {
        self.client_config_with_alpn(expected, &[])
    }

    /// The same, negotiating an application protocol (`h2`, `http/1.1`).
    #[must_use]
    pub fn client_config_with_alpn(&self, expected: Role, protocols: &[&str]) -> Arc<ClientConfig> {
        let loaded = self.current.load();
        let verifier = Arc::new(PeerOfRole(loaded.trust.clone(), expected));
        let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider below has suites for TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(loaded.resolver.clone());
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }

    /// Who presented this chain, judged by what is loaded now: expiry, CA, revocation, cluster.
    ///
    /// For re-checking long sessions, and for HTTPS servers that want to know their client.
    pub fn verify_client(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Identity, VerifyError> {
        self.current
            .load()
            .trust
            .verify(chain, now, KeyUsage::client_auth())
    }

    /// The same for the end that we connected to.
    pub fn verify_server(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Identity, VerifyError> {
        self.current
            .load()
            .trust
            .verify(chain, now, KeyUsage::server_auth())
    }
}

/// aws-lc-rs, AES-128 first: a fifth cheaper a byte than AES-256, and no weaker link in TLS 1.3.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
});

impl Loaded {
    fn read(files: &TlsFiles) -> Result<Self, CredentialsError> {
        let ca: Vec<CertificateDer<'static>> = read_pem("ca", &files.ca, "PEM certificates")?;
        let chain: Vec<CertificateDer<'static>> =
            read_pem("certificate", &files.cert, "PEM certificates")?;
        let key = read_key(&files.key)?;
        let crls = match &files.crl {
            Some(path) => read_crls(path)?,
            None => Vec::new(),
        };
        let mut roots = Vec::with_capacity(ca.len());
        for certificate in &ca {
            let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|error| {
                let problem = format!("has a certificate that can't be used: {error}");
                content("ca", &files.ca, problem, "X.509 version 3 CA certificates")
            })?;
            roots.push(anchor.to_owned());
        }
        let (Some(end_entity), path) = (chain.first(), files.cert.clone()) else {
            return Err(content(
                "certificate",
                &files.cert,
                "is empty".into(),
                "PEM certificates",
            ));
        };
        let identity = Identity::from_certificate(end_entity).map_err(|source| {
            CredentialsError::Identity {
                path: path.clone(),
                source,
            }
        })?;
        let not_after = not_after(end_entity).ok_or_else(|| {
            content(
                "certificate",
                &path,
                "has no readable validity".into(),
                "X.509 certificates",
            )
        })?;
        let algorithms = PROVIDER.signature_verification_algorithms;
        let cluster = identity.cluster().to_owned();
        let trust = Arc::new(Trust {
            roots,
            crls,
            cluster,
            algorithms,
        });
        // A peer will check it as a client's or as a server's certificate; either will do here.
        let now = UnixTime::now();
        trust
            .verify(&chain, now, KeyUsage::client_auth())
            .or_else(|refusal| {
                let as_server = trust.verify(&chain, now, KeyUsage::server_auth());
                // That it may not be a server's says nothing of a client's certificate.
                as_server.map_err(|other| match refusal {
                    VerifyError::Invalid { .. } => other,
                    refusal => refusal,
                })
            })
            .map_err(|source| CredentialsError::Refused {
                path: path.clone(),
                source,
            })?;

        let key = CertifiedKey::from_der(chain, key, &PROVIDER).map_err(|source| match source {
            rustls::Error::InconsistentKeys(_) => CredentialsError::KeyMismatch {
                key: files.key.clone(),
                cert: files.cert.clone(),
            },
            source => CredentialsError::Tls {
                path: path.clone(),
                source,
            },
        })?;
        let resolver = Arc::new(SingleCertAndKey::from(key));
        let mut frames = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|source| CredentialsError::Tls { path, source })?
            .with_client_cert_verifier(Arc::new(AnyPeer(trust.clone())))
            .with_cert_resolver(resolver.clone());
        frames.session_storage = Arc::new(NoServerSessionStorage {});
        frames.send_tls13_tickets = 0;
        Ok(Self {
            identity,
            not_after,
            trust,
            resolver,
            frames: Arc::new(frames),
        })
    }
}

/// The end of a certificate's validity.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        seconds,
    )))
}

fn content(
    what: &'static str,
    path: &Path,
    problem: String,
    accepted: &'static str,
) -> CredentialsError {
    CredentialsError::Content {
        what,
        path: path.to_owned(),
        problem,
        accepted,
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let failed = |source| CredentialsError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let len_bytes = std::fs::metadata(path).map_err(failed)?.len();
    if len_bytes > MAX_FILE_BYTES {
        return Err(CredentialsError::TooLong {
            what,
            path: path.to_owned(),
            len_bytes,
        });
    }
    std::fs::read(path).map_err(failed)
}

fn read_pem<T: PemObject>(
    what: &'static str,
    path: &Path,
    accepted: &'static str,
) -> Result<Vec<T>, CredentialsError> {
    let bytes = read(what, path)?;
    let items = T::pem_slice_iter(&bytes)
        .collect::<Result<Vec<T>, _>>()
        .map_err(|error| content(what, path, format!("is not PEM: {error}"), accepted))?;
    if items.is_empty() {
        let problem = "has no PEM section of the right kind".to_owned();
        return Err(content(what, path, problem, accepted));
    }
    Ok(items)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let bytes = read("key", path)?;
    let mode = std::fs::metadata(path)
        .map_err(|source| CredentialsError::Read {
            what: "key",
            path: path.to_owned(),
            source,
        })?
        .mode()
        & 0o7777;
    if mode & 0o007 != 0 {
        return Err(CredentialsError::KeyMode {
            path: path.to_owned(),
            mode,
        });
    }
    if mode & 0o070 != 0 {
        // Service managers hand keys to a group on purpose, so this is not refused.
        tracing::warn!(path = %path.display(), mode = format!("{mode:04o}"), "key file is readable by its group");
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        let problem = format!("has no private key: {error}");
        content(
            "key",
            path,
            problem,
            "one PEM private key (PKCS#8, PKCS#1 or SEC1)",
        )
    })
}

fn read_crls(path: &Path) -> Result<Vec<CertRevocationList<'static>>, CredentialsError> {
    let accepted = "PEM revocation lists (X509 CRL)";
    let ders: Vec<CertificateRevocationListDer<'static>> = read_pem("crl", path, accepted)?;
    ders.iter()
        .map(|der| {
            OwnedCertRevocationList::from_der(der)
                .map(CertRevocationList::from)
                .map_err(|error| {
                    content(
                        "crl",
                        path,
                        format!("has a list that can't be read: {error}"),
                        accepted,
                    )
                })
        })
        .collect()
}
