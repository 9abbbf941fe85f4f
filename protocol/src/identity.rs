//! Who a peer is: the SPIFFE-style URI in its certificate.
//!
//! ```text
//! spiffe://<cluster>/launcher/<node>       spiffe://<cluster>/user/<tenant>/<name>
//! spiffe://<cluster>/scheduler/<name>      spiffe://<cluster>/admin/<name>
//! spiffe://<cluster>/controller/<name>
//! ```
//!
//! Nothing else in a certificate is looked at: no common name, no DNS name. A certificate with no
//! such URI or with two is refused, so that nobody is two things at once. Whether the certificate
//! is genuine is for [`crate::transport`] to find out first.

use std::fmt;
use std::str::FromStr;

/// The longest cluster, tenant or other name: a DNS label, so that names can become host names.
pub const MAX_NAME_BYTES: usize = 63;

/// What a peer is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Runs workloads on one compute node.
    Launcher,
    /// Finds a fit.
    Scheduler,
    /// Holds policy and state.
    Controller,
    /// Works for one tenant, through the controller's API.
    User,
    /// Works on the cluster itself, through the controller's API.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Launcher,
        Self::Scheduler,
        Self::Controller,
        Self::User,
        Self::Admin,
    ];

    /// The path segment in the URI.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Launcher => "launcher",
            Self::Scheduler => "scheduler",
            Self::Controller => "controller",
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::ALL
            .into_iter()
            .find(|role| role.name() == text)
            .ok_or_else(|| IdentityError::UnknownRole {
                found: shortened(text),
            })
    }
}

/// Why something is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The URI is of another shape.
    #[error(
        "'{uri}' is not an identity; accepted: spiffe://<cluster>/<launcher|scheduler|controller|admin>/<name> \
         or spiffe://<cluster>/user/<tenant>/<name>"
    )]
    Shape {
        /// The URI, cut short if it is long.
        uri: String,
    },
    /// The role segment is none of ours.
    #[error("unknown role '{found}'; accepted: launcher, scheduler, controller, user, admin")]
    UnknownRole {
        /// The segment.
        found: String,
    },
    /// A name has a character or a length that names may not have.
    #[error("{what} '{found}' is not a name; accepted: {accepted}")]
    Name {
        /// Which name.
        what: &'static str,
        /// The name, cut short if it is long.
        found: String,
        /// The rule.
        accepted: &'static str,
    },
    /// A tenant belongs to users and to nobody else.
    #[error("a {role} identity {} a tenant", if *.role == Role::User { "needs" } else { "has not" })]
    Tenant {
        /// The role that was asked for.
        role: Role,
    },
    /// The certificate itself can't be read.
    #[error("certificate can't be read: {0}")]
    Certificate(String),
    /// The certificate names nobody, or several.
    #[error(
        "certificate has {found} spiffe:// URIs in its subject alternative name; accepted: exactly one"
    )]
    UriCount {
        /// How many it has.
        found: usize,
    },
}

/// Role and name of a peer within a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    cluster: String,
    role: Role,
    tenant: Option<String>,
    name: String,
}

impl Identity {
    /// An identity of these parts; a user has a tenant and nobody else does.
    pub fn new(
        cluster: &str,
        role: Role,
        tenant: Option<&str>,
        name: &str,
    ) -> Result<Self, IdentityError> {
        if tenant.is_some() != (role == Role::User) {
            return Err(IdentityError::Tenant { role });
        }
        check_cluster(cluster)?;
        if let Some(tenant) = tenant {
            check_name("tenant", tenant)?;
        }
        check_name("name", name)?;
        Ok(Self {
            cluster: cluster.to_owned(),
            role,
            tenant: tenant.map(str::to_owned),
            name: name.to_owned(),
        })
    }

    /// The cluster: the trust domain of the URI.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The role.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// The tenant, for users.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// The node's, daemon's or person's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The identity that a DER certificate states, which nobody has verified here.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let der = rustls_pki_types::CertificateDer::from(der);
        let certificate = webpki::EndEntityCert::try_from(&der)
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let mut uris = certificate
            .valid_uri_names()
            .filter(|uri| uri.starts_with(SCHEME));
        match (uris.next(), uris.count()) {
            (Some(uri), 0) => uri.parse(),
            (None, _) => Err(IdentityError::UriCount { found: 0 }),
            (Some(_), more) => Err(IdentityError::UriCount { found: more + 1 }),
        }
    }
}

const SCHEME: &str = "spiffe://";

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/", self.cluster, self.role)?;
        if let Some(tenant) = &self.tenant {
            write!(f, "{tenant}/")?;
        }
        f.write_str(&self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let shape = || IdentityError::Shape {
            uri: shortened(uri),
        };
        let path = uri.strip_prefix(SCHEME).ok_or_else(shape)?;
        let segments: Vec<&str> = path.splitn(6, '/').collect();
        match segments[..] {
            [cluster, role, name] if role != Role::User.name() => {
                Self::new(cluster, role.parse()?, None, name)
            }
            [cluster, role, tenant, name] if role == Role::User.name() => {
                Self::new(cluster, Role::User, Some(tenant), name)
            }
            _ => Err(shape()),
        }
    }
}

/// Checks a name of a node, a daemon, a person or a tenant.
pub fn check_name(what: &'static str, name: &str) -> Result<(), IdentityError> {
    let fits = (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        // They would be path segments with a meaning of their own.
        && name != "."
        && name != "..";
    if fits {
        return Ok(());
    }
    let accepted = "1 to 63 of a-z A-Z 0-9 . _ - and neither . nor ..";
    Err(IdentityError::Name {
        what,
        found: shortened(name),
        accepted,
    })
}

/// Checks a cluster's name: a SPIFFE trust domain, which has no capitals.
pub fn check_cluster(name: &str) -> Result<(), IdentityError> {
    match check_name("cluster", name) {
        Ok(()) if !name.bytes().any(|b| b.is_ascii_uppercase()) => Ok(()),
        _ => {
            let accepted = "1 to 63 of a-z 0-9 . _ - and neither . nor ..";
            Err(IdentityError::Name {
                what: "cluster",
                found: shortened(name),
                accepted,
            })
        }
    }
}

/// A peer's text as it may stand in a log line: short, and without control characters.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 100;
    let mut short: String = text
        .chars()
        .take(MAX_CHARS)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_and_written_back() {
        for uri in [
            "spiffe://lab/launcher/node-1.rack_2",
            "spiffe://lab.example.org/scheduler/S1",
            "spiffe://c/controller/a",
            "spiffe://c/user/physics/ada",
            "spiffe://c/admin/root",
        ] {
            assert_eq!(uri.parse::<Identity>().unwrap().to_string(), uri);
        }
        let user: Identity = "spiffe://c/user/physics/ada".parse().unwrap();
        assert_eq!(
            (user.tenant(), user.name(), user.role()),
            (Some("physics"), "ada", Role::User)
        );
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        let long = format!("spiffe://c/launcher/{}", "n".repeat(64));
        for uri in [
            "",
            "https://c/launcher/n",
            "spiffe://c",
            "spiffe://c/launcher",
            "spiffe://c/launcher/",
            "spiffe://c/launcher/n/m",
            "spiffe://c/user/n",
            "spiffe://c/user/t/n/m",
            "spiffe:///launcher/n",
            "spiffe://C/launcher/n",
            "spiffe://c/Launcher/n",
            "spiffe://c/launcher/..",
            "spiffe://c/launcher/n%20",
            "spiffe://c/launcher/nö",
            "spiffe://c/launcher/n\n",
            &long,
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
        let error = "spiffe://c/boss/n"
            .parse::<Identity>()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("'boss'") && error.contains("scheduler"),
            "{error}"
        );
        assert!(Identity::new("c", Role::Admin, Some("t"), "n").is_err());
    }
}
