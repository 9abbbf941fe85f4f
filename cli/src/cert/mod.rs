//! The cluster's certificate authority: who is who, written into certificates.
//!
//! ECDSA P-256 keys, X.509 certificates whose one SPIFFE URI is the identity that
//! [`pronto_protocol::identity`] reads. Private keys are 0600 and nothing is ever overwritten,
//! except by [`Authority::renew`] and [`Authority::revoke`], which replace a file in one rename. What the commands print is
//! left to [`command`].

pub(crate) mod command;
mod revoke;
mod show;

use crate::exit::{Exit, Failure};
use anyhow::Context;
use pronto_protocol::identity::{Identity, Role, check_cluster};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The CA's certificate within its directory.
pub(crate) const CA_CERT: &str = "ca.crt";
/// The CA's private key within its directory.
pub(crate) const CA_KEY: &str = "ca.key";
/// A CA lives ten years unless told otherwise: replacing it means touching every machine.
pub(crate) const CA_DAYS: u32 = 3650;
/// Other certificates live a year: long enough to be renewed by hand.
pub(crate) const DAYS: u32 = 365;
/// No certificate lives longer; X.509's own dates end with the year 9999.
const MAX_DAYS: u32 = 36_500;
/// A fresh certificate is valid on hosts whose clocks are this much behind.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(86_400);

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// A certificate authority that can sign.
pub(crate) struct Authority {
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Where an issued pair lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// How long a certificate is valid and which addresses it names besides its identity.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) days: u32,
    /// For tools such as curl that compare host names; Pronto itself compares identities.
    pub(crate) hosts: Vec<String>,
}

impl Authority {
    /// Makes a new authority in `directory`, which may exist but must not hold one.
    pub(crate) fn init(directory: &Path, cluster: &str, days: u32) -> Result<Self, Failure> {
        check_cluster(cluster).map_err(Failure::usage)?;
        make_directory(directory)?;
        let key = generate()?;
        let mut params = params(days)?;
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Pronto CA of {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A SPIFFE trust domain without a path names the authority itself; issue() reads it back.
        params.subject_alt_names = vec![uri(&format!("spiffe://{cluster}"))?];
        let certificate = params
            .self_signed(&key)
            .context("can't sign the CA's certificate")?;
        let pair = Pair {
            cert: directory.join(CA_CERT),
            key: directory.join(CA_KEY),
        };
        write_pair(&pair, &certificate.pem(), &key)?;
        let new = Self {
            cluster: cluster.to_owned(),
            issuer: Issuer::new(params, key),
        };
        // An empty list, so that daemons can name it from their first start on.
        new.revoke(directory, &[])?;
        Ok(new)
    }

    /// The authority of `directory`.
    pub(crate) fn open(directory: &Path) -> Result<Self, Failure> {
        let missing = |failure: Failure| failure.hint("make an authority with `pronto cert init`");
        let cert = read_text(&directory.join(CA_CERT)).map_err(missing)?;
        let key = read_text(&directory.join(CA_KEY)).map_err(missing)?;
        let cluster = show::cluster(&cert)?;
        let key = KeyPair::from_pem(&key).context("ca.key is not a private key in PEM")?;
        let issuer = Issuer::from_ca_cert_pem(&cert, key).context("ca.crt can't be used")?;
        Ok(Self { cluster, issuer })
    }

    /// The cluster that this authority vouches for.
    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// An identity in this cluster.
    pub(crate) fn identity(
        &self,
        role: Role,
        tenant: Option<&str>,
        name: &str,
    ) -> Result<Identity, Failure> {
        Identity::new(&self.cluster, role, tenant, name).map_err(Failure::usage)
    }

    /// Makes a key and a certificate for an identity in `directory`.
    pub(crate) fn issue(
        &self,
        identity: &Identity,
        directory: &Path,
        terms: &Terms,
    ) -> Result<Pair, Failure> {
        make_directory(directory)?;
        let pair = pair_of(identity, directory);
        let key = generate()?;
        let certificate = self.sign(identity, &key, terms)?;
        write_pair(&pair, &certificate, &key)?;
        Ok(pair)
    }

    /// A certificate for the key that the identity has already, in PEM.
    fn sign(&self, identity: &Identity, key: &KeyPair, terms: &Terms) -> Result<String, Failure> {
        let mut params = params(terms.days)?;
        // By itself it would be made of the key, which a renewal keeps, and a revocation list would
        // name both.
        params.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes()));
        let common_name = format!("{} {}", identity.role(), identity.name());
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.subject_alt_names = vec![uri(&identity.to_string())?];
        for host in &terms.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().map_err(|_| {
                    Failure::usage(format!("'{host}' is neither a host name nor an address"))
                })?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity.role() {
            Role::User | Role::Admin => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Role::Launcher | Role::Scheduler | Role::Controller => {
                vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ]
            }
        };
        params.use_authority_key_identifier_extension = true;
        let signed = params
            .signed_by(key, &self.issuer)
            .context("can't sign the certificate")?;
        Ok(signed.pem())
    }

    /// Replaces a certificate by one with the same identity, hosts and key and new dates. A daemon
    /// that reads the two files at any moment finds a pair that fits.
    pub(crate) fn renew(&self, pair: &Pair, days: u32) -> Result<Identity, Failure> {
        let old = read_text(&pair.cert)?;
        let identity = show::identity(&old)?;
        if identity.cluster() != self.cluster {
            return Err(Failure::usage(format!(
                "{} is of cluster {}, this authority of {}",
                pair.cert.display(),
                identity.cluster(),
                self.cluster
            )));
        }
        let key = read_text(&pair.key)?;
        let key = KeyPair::from_pem(&key)
            .with_context(|| format!("{} is not a private key in PEM", pair.key.display()))?;
        let terms = Terms {
            days,
            hosts: show::hosts(&old)?,
        };
        let new = self.sign(&identity, &key, &terms)?;
        replace(&pair.cert, new.as_bytes(), PUBLIC)?;
        Ok(identity)
    }
}

/// The file names of an identity: its name, which is unique among those of a role.
pub(crate) fn pair_of(identity: &Identity, directory: &Path) -> Pair {
    let name = identity.name();
    Pair {
        cert: directory.join(format!("{name}.crt")),
        key: directory.join(format!("{name}.key")),
    }
}

fn generate() -> Result<KeyPair, Failure> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("can't make a key")?)
}

fn params(days: u32) -> Result<CertificateParams, Failure> {
    if !(1..=MAX_DAYS).contains(&days) {
        return Err(Failure::usage(format!(
            "{days} days; accepted: 1 to {MAX_DAYS}"
        )));
    }
    let now = now()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(CLOCK_SKEW);
    params.not_after = date_time_ymd(1970, 1, 1) + now + DAY * days;
    Ok(params)
}

/// Since 1970.
fn now() -> Result<Duration, Failure> {
    Ok(SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("this machine's clock stands before 1970")?)
}

fn uri(text: &str) -> Result<SanType, Failure> {
    Ok(SanType::URI(
        text.try_into().context("a SPIFFE URI is ASCII")?,
    ))
}

fn make_directory(directory: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("can't make {}", directory.display()))
        .map_err(Failure::from)
}

/// Writes the key first: a certificate without its key would be of no use to anybody.
fn write_pair(pair: &Pair, certificate: &str, key: &KeyPair) -> Result<(), Failure> {
    if pair.cert.exists() {
        return Err(exists(&pair.cert));
    }
    write_new(&pair.key, key.serialize_pem().as_bytes(), PRIVATE)?;
    write_new(&pair.cert, certificate.as_bytes(), PUBLIC)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let mut file = match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(exists(path)),
        Err(error) => {
            let what =
                anyhow::Error::from(error).context(format!("can't write {}", path.display()));
            return Err(what.into());
        }
    };
    Ok(file
        .write_all(bytes)
        .with_context(|| format!("can't write {}", path.display()))?)
}

/// A reader finds the old file or the new one.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let _ = std::fs::remove_file(&fresh);
    write_new(&fresh, bytes, mode)?;
    Ok(std::fs::rename(&fresh, path)
        .with_context(|| format!("can't replace {}", path.display()))?)
}

fn exists(path: &Path) -> Failure {
    Failure::new(
        Exit::Conflict,
        format!("{} exists and is not overwritten", path.display()),
    )
    .hint("choose another --dir or --name, `pronto cert renew` it, or move it away")
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .with_context(|| format!("can't read {}", path.display()))
        .map_err(|error| Failure::caused(Exit::Usage, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("pronto-cert-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn terms(days: u32) -> Terms {
        Terms {
            days,
            hosts: vec!["localhost".into(), "127.0.0.1".into()],
        }
    }

    #[test]
    fn issued_certificates_state_their_identity_and_chain_to_the_ca() {
        let scratch = Scratch::new("issue");
        let directory = scratch.0.join("pki");
        Authority::init(&directory, "lab", CA_DAYS).unwrap();
        let authority = Authority::open(&directory).unwrap();
        for (role, tenant) in [
            (Role::Launcher, None),
            (Role::Scheduler, None),
            (Role::Controller, None),
            (Role::Admin, None),
            (Role::User, Some("physics")),
        ] {
            let identity = authority
                .identity(role, tenant, &format!("a-{role}"))
                .unwrap();
            let pair = authority
                .issue(&identity, &directory, &terms(DAYS))
                .unwrap();
            let mode = std::fs::metadata(&pair.key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let pem = std::fs::read_to_string(&pair.cert).unwrap();
            assert_eq!(show::identity(&pem).unwrap(), identity);
            assert_eq!(show::hosts(&pem).unwrap(), ["localhost", "127.0.0.1"]);
            let ca = std::fs::read_to_string(directory.join(CA_CERT)).unwrap();
            show::issued_serial(&pem, &ca).unwrap();
        }
        let mode = std::fs::metadata(directory.join(CA_KEY))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_overwritten() {
        let scratch = Scratch::new("overwrite");
        let authority = Authority::init(&scratch.0, "lab", CA_DAYS).unwrap();
        let before = std::fs::read(scratch.0.join(CA_KEY)).unwrap();
        let again = Authority::init(&scratch.0, "lab", CA_DAYS).err().unwrap();
        assert_eq!(again.exit, Exit::Conflict);
        assert_eq!(std::fs::read(scratch.0.join(CA_KEY)).unwrap(), before);
        let identity = authority.identity(Role::Admin, None, "a").unwrap();
        authority.issue(&identity, &scratch.0, &terms(1)).unwrap();
        let again = authority
            .issue(&identity, &scratch.0, &terms(1))
            .unwrap_err();
        assert_eq!(again.exit, Exit::Conflict);
        assert!(again.to_string().contains("a.crt"), "{again}");
    }

    #[test]
    fn renewal_keeps_identity_hosts_and_key() {
        let scratch = Scratch::new("renew");
        let authority = Authority::init(&scratch.0, "lab", CA_DAYS).unwrap();
        let identity = authority.identity(Role::Launcher, None, "n").unwrap();
        let pair = authority.issue(&identity, &scratch.0, &terms(1)).unwrap();
        let (old, key) = (
            std::fs::read_to_string(&pair.cert).unwrap(),
            std::fs::read(&pair.key).unwrap(),
        );
        authority.renew(&pair, 300).unwrap();
        let new = std::fs::read_to_string(&pair.cert).unwrap();
        assert_ne!(old, new);
        let serial = |pem: &str| show::facts(pem).unwrap().serial;
        assert_ne!(serial(&old), serial(&new), "a revocation names one of them");
        assert_eq!(std::fs::read(&pair.key).unwrap(), key);
        assert_eq!(show::identity(&new).unwrap(), identity);
        assert_eq!(show::hosts(&new).unwrap(), ["localhost", "127.0.0.1"]);
        let other = Scratch::new("renew-other");
        let stranger = Authority::init(&other.0, "elsewhere", CA_DAYS).unwrap();
        assert_eq!(stranger.renew(&pair, 300).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn the_revocation_list_grows_and_names_certificates_as_they_name_themselves() {
        let scratch = Scratch::new("revoke");
        let authority = Authority::init(&scratch.0, "lab", CA_DAYS).unwrap();
        let mut expected = std::collections::BTreeSet::new();
        // Every second serial number is written with a zero in front.
        for number in 0..16 {
            let identity = authority
                .identity(Role::Launcher, None, &format!("n{number}"))
                .unwrap();
            let pair = authority.issue(&identity, &scratch.0, &terms(1)).unwrap();
            let serial = authority.serial_of(&scratch.0, &pair.cert).unwrap();
            expected.insert(serial.clone());
            let listed = authority.revoke(&scratch.0, &[serial]).unwrap();
            assert_eq!(listed, expected.len());
        }
        assert_eq!(revoke::listed(&scratch.0).unwrap(), expected);
        let other = Scratch::new("revoke-other");
        let stranger = Authority::init(&other.0, "lab", CA_DAYS).unwrap();
        let refused = stranger.serial_of(&other.0, &scratch.0.join("n1.crt"));
        let words = refused.unwrap_err().to_string();
        assert!(words.contains("n1.crt") && words.contains("not issued by this authority"));
    }

    #[test]
    fn users_need_a_tenant_and_nobody_else_has_one() {
        let scratch = Scratch::new("tenant");
        let authority = Authority::init(&scratch.0, "lab", CA_DAYS).unwrap();
        assert!(authority.identity(Role::User, None, "ada").is_err());
        assert!(authority.identity(Role::Launcher, Some("t"), "n").is_err());
        assert!(Authority::init(&scratch.0.join("x"), "No Such", CA_DAYS).is_err());
        assert!(Authority::init(&scratch.0.join("y"), "lab", 0).is_err());
    }
}
