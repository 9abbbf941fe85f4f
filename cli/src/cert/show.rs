//! Reading certificates: what `cert show` prints and what renewal keeps.

use crate::exit::{Exit, Failure};
use crate::units;
use anyhow::{Context, anyhow};
use pronto_protocol::identity::Identity;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// What a certificate says, for people and for scripts.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Facts {
    pub(crate) subject: String,
    /// The SPIFFE URI; a CA's has no path.
    pub(crate) uris: Vec<String>,
    pub(crate) hosts: Vec<String>,
    pub(crate) issuer: String,
    pub(crate) ca: bool,
    pub(crate) serial: String,
    /// Seconds since 1970.
    pub(crate) not_before_s: i64,
    pub(crate) not_after_s: i64,
    pub(crate) validity: String,
    pub(crate) sha256: String,
}

/// All that a PEM certificate says.
pub(crate) fn facts(pem: &str) -> Result<Facts, Failure> {
    with_parsed(pem, |certificate, der| {
        let (uris, hosts) = names(certificate)?;
        let validity = certificate.validity();
        let (from, until) = (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        );
        Ok(Facts {
            subject: certificate.subject().to_string(),
            uris,
            hosts,
            issuer: certificate.issuer().to_string(),
            ca: certificate.is_ca(),
            serial: certificate.raw_serial_as_string(),
            not_before_s: from,
            not_after_s: until,
            validity: validity_words(from, until, SystemTime::now()),
            sha256: hex(&Sha256::digest(der)),
        })
    })
}

/// The identity of a certificate.
pub(super) fn identity(pem: &str) -> Result<Identity, Failure> {
    with_parsed(pem, |_, der| Ok(Identity::from_certificate(der)?))
}

/// The host names and addresses in a certificate.
pub(super) fn hosts(pem: &str) -> Result<Vec<String>, Failure> {
    with_parsed(pem, |certificate, _| Ok(names(certificate)?.1))
}

/// The cluster that a CA's certificate names.
pub(super) fn cluster(pem: &str) -> Result<String, Failure> {
    with_parsed(pem, |certificate, _| {
        let (uris, _) = names(certificate)?;
        match uris.as_slice() {
            [uri] if certificate.is_ca() => uri
                .strip_prefix("spiffe://")
                .map(str::to_owned)
                .context("no spiffe:// URI"),
            _ => Err(anyhow!(
                "it is not a CA's certificate made by `pronto cert init`"
            )),
        }
    })
}

/// The serial number of a certificate that the CA `ca` has issued.
pub(super) fn issued_serial(pem: &str, ca: &str) -> anyhow::Result<Vec<u8>> {
    parsed(ca, |ca, _| {
        parsed(pem, |certificate, _| {
            certificate
                .verify_signature(Some(ca.public_key()))
                .context("it was not issued by this authority")?;
            Ok(certificate.raw_serial().to_vec())
        })
    })
}

fn with_parsed<T>(
    pem: &str,
    read: impl FnOnce(&X509Certificate<'_>, &[u8]) -> anyhow::Result<T>,
) -> Result<T, Failure> {
    parsed(pem, read)
        .map_err(|error| Failure::caused(Exit::Usage, error.context("can't use this certificate")))
}

fn parsed<T>(
    pem: &str,
    read: impl FnOnce(&X509Certificate<'_>, &[u8]) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| anyhow!("it holds no certificate in PEM: {error}"))?;
    let (_, certificate) = X509Certificate::from_der(&der).context("it can't be parsed")?;
    read(&certificate, &der)
}

fn names(certificate: &X509Certificate<'_>) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let (mut uris, mut hosts) = (Vec::new(), Vec::new());
    let extension = certificate.subject_alternative_name()?;
    for name in extension
        .iter()
        .flat_map(|extension| &extension.value.general_names)
    {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
            GeneralName::IPAddress(bytes) => hosts.extend(address(bytes)),
            _ => {}
        }
    }
    Ok((uris, hosts))
}

fn address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(address.to_string())
}

fn validity_words(from_s: i64, until_s: i64, now: SystemTime) -> String {
    let now_s = now
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(0);
    let span = |seconds: i64| units::show_duration(Duration::from_secs(seconds.unsigned_abs()));
    if now_s < from_s {
        format!("not yet valid, for another {}", span(from_s - now_s))
    } else if now_s > until_s {
        format!("expired {} ago", span(now_s - until_s))
    } else {
        format!("valid for another {}", span(until_s - now_s))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_refused_in_words() {
        let failure = facts("hello").unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            failure.to_string().contains("no certificate in PEM"),
            "{failure}"
        );
    }

    #[test]
    fn validity_is_told_in_words() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(validity_words(100, 200, at(140)), "valid for another 1m");
        assert_eq!(validity_words(100, 200, at(210)), "expired 10s ago");
        assert_eq!(
            validity_words(100, 200, at(40)),
            "not yet valid, for another 1m"
        );
    }
}
