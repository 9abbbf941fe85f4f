//! `pronto cert init|issue|show|renew|revoke`.

use super::revoke::{REVOKED, Serial, parse_serial};
use super::{Authority, CA_DAYS, CA_KEY, DAYS, Pair, Terms, read_text, show};
use crate::exit::{Failure, OK, Outcome};
use crate::output::{Format, print_value, say};
use clap::{Args, Subcommand};
use pronto_protocol::identity::Role;
use std::path::PathBuf;

/// Certificates issued by one command: a large cluster's worth.
const MAX_COUNT: u32 = 100_000;

/// Make, renew and revoke the certificates of a cluster
#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Make a cluster's certificate authority
    Init {
        /// Where to put ca.crt and ca.key
        #[arg(long, default_value = "pki", value_name = "DIR")]
        dir: PathBuf,
        /// The cluster's name: the trust domain of every identity
        #[arg(long, default_value = "pronto", value_name = "NAME")]
        cluster: String,
        /// Days of validity
        #[arg(long, default_value_t = CA_DAYS)]
        days: u32,
    },
    /// Issue a certificate: a role and a name, for users a tenant too
    Issue(IssueArgs),
    /// Show what a certificate says
    Show {
        /// The certificate, PEM
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Give a certificate new dates; identity, hosts and key stay
    Renew {
        /// The certificate, PEM; its key lies beside it as .key
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The authority's directory
        #[arg(long, default_value = "pki", value_name = "DIR")]
        ca_dir: PathBuf,
        /// Days of validity from now
        #[arg(long, default_value_t = DAYS)]
        days: u32,
    },
    /// Add certificates to the authority's revocation list
    ///
    /// The list is revoked.pem in the authority's directory. Copy it to each machine: a daemon that
    /// names it as `crl` refuses what is on it within ten seconds, and ends its sessions.
    Revoke {
        /// Certificates, PEM
        #[arg(value_name = "FILE", required_unless_present = "serials")]
        files: Vec<PathBuf>,
        /// A certificate that is not at hand, by its serial number; may be repeated
        #[arg(long = "serial", id = "serials", value_name = "HEX", value_parser = parse_serial)]
        serials: Vec<Serial>,
        /// The authority's directory
        #[arg(long, default_value = "pki", value_name = "DIR")]
        ca_dir: PathBuf,
    },
}

/// Flags of `cert issue`.
#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// What the holder is
    #[arg(long, value_name = "ROLE", value_parser = ["launcher", "scheduler", "controller", "user", "admin"])]
    role: String,
    /// Its name: a node's, a daemon's, a person's
    #[arg(long)]
    name: String,
    /// The tenant that a user works for
    #[arg(
        long,
        id = "holder_tenant",
        value_name = "NAME",
        required_if_eq("role", "user")
    )]
    tenant: Option<String>,
    /// Issue so many, counting the name up: node-1, node-2, …
    #[arg(long, value_name = "N")]
    count: Option<u32>,
    /// The authority's directory
    #[arg(long, default_value = "pki", value_name = "DIR")]
    ca_dir: PathBuf,
    /// Where to put certificate and key; the authority's directory by default
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A host name or address that tools such as curl compare; may be repeated
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
    /// Days of validity
    #[arg(long, default_value_t = DAYS)]
    days: u32,
}

/// Runs it.
pub(crate) fn run(command: &CertCommand, format: Format) -> Outcome {
    match command {
        CertCommand::Init { dir, cluster, days } => {
            let authority = Authority::init(dir, cluster, *days)?;
            say!(
                "made the authority of cluster {} in {}",
                authority.cluster(),
                dir.display()
            );
            say!("keep {} secret and backed up", dir.join(CA_KEY).display());
        }
        CertCommand::Issue(args) => issue(args)?,
        CertCommand::Show { file } => {
            let facts = show::facts(&read_text(file)?)?;
            if format.is_machine() {
                print_value(&facts, format)?;
            } else {
                print_facts(&facts);
            }
        }
        CertCommand::Renew { file, ca_dir, days } => {
            let pair = Pair {
                cert: file.clone(),
                key: file.with_extension("key"),
            };
            let identity = Authority::open(ca_dir)?.renew(&pair, *days)?;
            say!("renewed {} for {days} days: {identity}", file.display());
        }
        CertCommand::Revoke {
            files,
            serials,
            ca_dir,
        } => {
            let authority = Authority::open(ca_dir)?;
            let mut serials = serials.clone();
            for file in files {
                serials.push(authority.serial_of(ca_dir, file)?);
            }
            let listed = authority.revoke(ca_dir, &serials)?;
            let path = ca_dir.join(REVOKED);
            say!("{} lists {listed} revoked", path.display());
        }
    }
    Ok(OK)
}

fn issue(args: &IssueArgs) -> Result<(), Failure> {
    let role: Role = args.role.parse().map_err(Failure::usage)?;
    let names = match args.count {
        None => vec![args.name.clone()],
        Some(count) if (1..=MAX_COUNT).contains(&count) => counted(&args.name, count),
        Some(count) => {
            return Err(Failure::usage(format!(
                "--count {count}; accepted: 1 to {MAX_COUNT}"
            )));
        }
    };
    let authority = Authority::open(&args.ca_dir)?;
    let directory = args.dir.as_ref().unwrap_or(&args.ca_dir);
    let terms = Terms {
        days: args.days,
        hosts: args.hosts.clone(),
    };
    for name in names {
        let identity = authority.identity(role, args.tenant.as_deref(), &name)?;
        let pair = authority.issue(&identity, directory, &terms)?;
        say!("{}  {identity}", pair.cert.display());
    }
    Ok(())
}

/// The name counted up: from its own trailing number, or from `-1` where it has none.
fn counted(name: &str, count: u32) -> Vec<String> {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &name[stem.len()..];
    match digits.parse::<u64>() {
        Ok(first) => (first..)
            .take(count as usize)
            .map(|number| format!("{stem}{number:0width$}", width = digits.len()))
            .collect(),
        Err(_) => (1..=count)
            .map(|number| format!("{name}-{number}"))
            .collect(),
    }
}

fn print_facts(facts: &show::Facts) {
    for uri in &facts.uris {
        say!(
            "identity   {uri}{}",
            if facts.ca {
                "  (certificate authority)"
            } else {
                ""
            }
        );
    }
    say!("subject    {}", facts.subject);
    say!("issuer     {}", facts.issuer);
    say!("validity   {}", facts.validity);
    if !facts.hosts.is_empty() {
        say!("hosts      {}", facts.hosts.join(", "));
    }
    say!("serial     {}", facts.serial);
    say!("sha256     {}", facts.sha256);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_up_from_their_own_number() {
        assert_eq!(counted("node-1", 3), ["node-1", "node-2", "node-3"]);
        assert_eq!(counted("node-08", 3), ["node-08", "node-09", "node-10"]);
        assert_eq!(counted("node", 2), ["node-1", "node-2"]);
    }
}
