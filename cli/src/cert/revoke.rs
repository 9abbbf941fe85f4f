//! The revocation list of an authority: certificates that are no longer believed, whatever their dates
//! say.
//!
//! The list is the only record of what was revoked, so it only grows. It has the authority's signature
//! and lies beside its certificate; daemons that name it as `crl` read it again when it changes.

use super::{Authority, CA_CERT, PUBLIC, now, read_text, replace, show};
use crate::exit::{Exit, Failure};
use anyhow::{Context, anyhow};
use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

/// The list within the authority's directory.
pub(crate) const REVOKED: &str = "revoked.pem";

/// A certificate's serial number.
pub(crate) type Serial = Vec<u8>;
/// When each was revoked, since 1970.
type Revoked = BTreeMap<Serial, Duration>;

impl Authority {
    /// Adds serial numbers to the list in the authority's directory. Gives how many it has now.
    pub(crate) fn revoke(&self, directory: &Path, serials: &[Serial]) -> Result<usize, Failure> {
        let path = directory.join(REVOKED);
        let mut revoked = if path.exists() {
            read(&read_text(&path)?)
                .with_context(|| format!("can't use {}", path.display()))
                .map_err(|error| Failure::caused(Exit::Usage, error))?
        } else {
            Revoked::new()
        };
        let now = now()?;
        for serial in serials {
            revoked.entry(serial.clone()).or_insert(now);
        }
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(1970, 1, 1) + now,
            // Nothing is to become valid again because nobody has signed the list anew.
            next_update: date_time_ymd(9999, 12, 31),
            crl_number: SerialNumber::from(now.as_secs()),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|(serial, at)| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: date_time_ymd(1970, 1, 1) + *at,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = list.signed_by(&self.issuer).and_then(|list| list.pem());
        let pem = signed.context("can't sign the list")?;
        replace(&path, pem.as_bytes(), PUBLIC)?;
        Ok(revoked.len())
    }

    /// The serial number of a certificate that this authority has issued.
    pub(crate) fn serial_of(&self, directory: &Path, cert: &Path) -> Result<Serial, Failure> {
        let ca = read_text(&directory.join(CA_CERT))?;
        show::issued_serial(&read_text(cert)?, &ca)
            .with_context(|| format!("can't use {}", cert.display()))
            .map_err(|error| Failure::caused(Exit::Usage, error))
    }
}

/// A serial number as `cert show` and logs write it: hexadecimal, with or without colons.
pub(crate) fn parse_serial(text: &str) -> Result<Serial, String> {
    let digits: String = text.chars().filter(|digit| *digit != ':').collect();
    let bytes: Option<Vec<u8>> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect();
    bytes
        .filter(|bytes| (1..=20).contains(&bytes.len()))
        .ok_or_else(|| "accepted: 1 to 20 bytes in hexadecimal, as `cert show` prints".to_owned())
}

fn read(pem: &str) -> anyhow::Result<Revoked> {
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| anyhow!("it holds no revocation list in PEM: {error}"))?;
    let (_, list) = CertificateRevocationList::from_der(&der).context("it can't be parsed")?;
    list.iter_revoked_certificates()
        .map(|one| {
            let at = u64::try_from(one.revocation_date.timestamp())
                .context("something was revoked before 1970")?;
            Ok((one.raw_serial().to_vec(), Duration::from_secs(at)))
        })
        .collect()
}

/// What is on the list of an authority's directory.
#[cfg(test)]
pub(super) fn listed(directory: &Path) -> anyhow::Result<std::collections::BTreeSet<Serial>> {
    let pem = std::fs::read_to_string(directory.join(REVOKED))?;
    Ok(read(&pem)?.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_are_read_as_they_are_shown() {
        assert_eq!(parse_serial("0a:ff").unwrap(), [0x0a, 0xff]);
        assert_eq!(parse_serial("0aff").unwrap(), [0x0a, 0xff]);
        for wrong in ["", "0", "xy", "0a:f", "ö1"] {
            assert!(parse_serial(wrong).is_err(), "{wrong}");
        }
    }
}
