//! What lies where in a local cluster's directory, and what its configurations say.
//!
//! ```text
//! DIR/client.toml               what PRONTO_CONFIG is set to
//! DIR/{scheduler,controller,launcher-N}.toml
//! DIR/pki/                      the cluster's CA and all certificates
//! DIR/data/{controller,launcher-N}/
//! DIR/log/                      what each process writes
//! DIR/ports.json  DIR/cluster.json  DIR/lock
//! ```
//!
//! Certificates are made once. Configurations are written at each start, since the number of
//! launchers and the ports may change.

use super::ports;
use crate::cert::{Authority, DAYS, Pair, Terms, pair_of};
use crate::exit::Failure;
use anyhow::Context;
use pronto_launcher::data_dir::DataDir;
use pronto_protocol::identity::Role as CertRole;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The cluster's name in its certificates.
const CLUSTER: &str = "dev";
/// The administrator whose certificate the client uses.
const ADMIN: &str = "dev";

/// The paths of one local cluster.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    directory: PathBuf,
}

/// The ports that its processes listen on, all on 127.0.0.1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ports {
    pub(crate) scheduler: u16,
    pub(crate) scheduler_ops: u16,
    pub(crate) controller: u16,
    pub(crate) launchers_ops: Vec<u16>,
}

/// What a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Scheduler,
    Controller,
    /// Counted from 1.
    Launcher(u16),
}

impl Role {
    /// The stem of its files.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Scheduler => "scheduler".to_owned(),
            Self::Controller => "controller".to_owned(),
            Self::Launcher(number) => format!("launcher-{number}"),
        }
    }

    /// Its command line behind `pronto`.
    pub(crate) fn arguments(self, layout: &Layout) -> Vec<std::ffi::OsString> {
        let daemon = match self {
            Self::Scheduler => "scheduler",
            Self::Controller => "controller",
            Self::Launcher(_) => "launcher",
        };
        vec![
            daemon.into(),
            "--config".into(),
            layout.config(&self.name()).into_os_string(),
        ]
    }
}

impl Layout {
    /// The layout of this directory, an absolute path.
    pub(crate) fn new(directory: &Path) -> Result<Self, Failure> {
        if directory.to_str().is_none() {
            // It is written into TOML files, which are UTF-8.
            return Err(Failure::usage(format!(
                "{} is not UTF-8",
                directory.display()
            )));
        }
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn client_config(&self) -> PathBuf {
        self.directory.join("client.toml")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join("log")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// The data directories of all launchers that ever were here.
    pub(crate) fn launchers(&self) -> Vec<DataDir> {
        let data = std::fs::read_dir(self.directory.join("data"));
        data.into_iter()
            .flatten()
            .flatten()
            .map(|entry| DataDir::new(entry.path()))
            .collect()
    }

    /// What runs, with pids.
    pub(crate) fn record(&self) -> PathBuf {
        self.directory.join("cluster.json")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.directory.join("pki")
    }

    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.toml"))
    }

    fn ports_file(&self) -> PathBuf {
        self.directory.join("ports.json")
    }

    /// The ports of the last start.
    pub(crate) fn ports(&self) -> Option<Ports> {
        serde_json::from_slice(&std::fs::read(self.ports_file()).ok()?).ok()
    }

    /// Makes the directories that everything else lies in.
    pub(crate) fn make_directories(&self) -> Result<(), Failure> {
        for directory in [self.logs(), self.directory.join("data")] {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("can't make {}", directory.display()))?;
        }
        Ok(())
    }

    /// Makes certificates and configurations; says what is to run, in the order of starting.
    pub(crate) fn prepare(&self, launchers: u16) -> Result<Vec<Role>, Failure> {
        let ports = ports::choose(self.ports().as_ref(), launchers)?;
        let pki = self.pki();
        let authority = if pki.join(crate::cert::CA_CERT).exists() {
            Authority::open(&pki)?
        } else {
            Authority::init(&pki, CLUSTER, crate::cert::CA_DAYS)?
        };
        let issue = |role, name: &str| self.certificate(&authority, role, name);
        let mut files = vec![
            (
                self.client_config(),
                client(&ports, &issue(CertRole::Admin, ADMIN)?),
            ),
            (
                self.config("scheduler"),
                scheduler(&ports, &issue(CertRole::Scheduler, "scheduler")?),
            ),
            (
                self.config("controller"),
                controller(&ports, &issue(CertRole::Controller, "controller")?),
            ),
        ];
        let mut roles = vec![Role::Scheduler, Role::Controller];
        for number in 1..=launchers {
            let pair = issue(CertRole::Launcher, &format!("node-{number}"))?;
            let role = Role::Launcher(number);
            files.push((
                self.config(&role.name()),
                launcher(&ports, &pair, number, launchers),
            ));
            roles.push(role);
        }
        for (path, text) in files {
            replace(&path, text.as_bytes())?;
        }
        let bytes = serde_json::to_vec(&ports).map_err(anyhow::Error::from)?;
        replace(&self.ports_file(), &bytes)?;
        Ok(roles)
    }

    fn certificate(
        &self,
        authority: &Authority,
        role: CertRole,
        name: &str,
    ) -> Result<Pair, Failure> {
        let identity = authority.identity(role, None, name)?;
        let pair = pair_of(&identity, &self.pki());
        if pair.cert.exists() {
            return Ok(pair);
        }
        let hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        authority.issue(&identity, &self.pki(), &Terms { days: DAYS, hosts })
    }
}

/// Writes a file so that nobody ever reads a part of it.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, bytes)
        .and_then(|()| std::fs::rename(&fresh, path))
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(())
}

/// The `[tls]` table: paths relative to the configuration's own directory.
fn tls(pair: &Pair) -> String {
    let name = |path: &Path| {
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    format!(
        "\n[tls]\nca = \"pki/ca.crt\"\ncert = \"pki/{}\"\nkey = \"pki/{}\"\n",
        name(&pair.cert),
        name(&pair.key)
    )
}

const HEADER: &str = "# Written by `pronto dev` at each start: changes here are lost.\n";

fn client(ports: &Ports, pair: &Pair) -> String {
    format!(
        "{HEADER}controllers = [\"https://127.0.0.1:{}\"]\n{}",
        ports.controller,
        tls(pair)
    )
}

fn scheduler(ports: &Ports, pair: &Pair) -> String {
    format!(
        "{HEADER}listen = \"127.0.0.1:{}\"\nops_listen = \"127.0.0.1:{}\"\n{}",
        ports.scheduler,
        ports.scheduler_ops,
        tls(pair)
    )
}

fn controller(ports: &Ports, pair: &Pair) -> String {
    format!(
        "{HEADER}listen = \"127.0.0.1:{}\"\nschedulers = [\"127.0.0.1:{}\"]\n\
         data_dir = \"data/controller\"\n{}",
        ports.controller,
        ports.scheduler,
        tls(pair)
    )
}

fn launcher(ports: &Ports, pair: &Pair, number: u16, launchers: u16) -> String {
    let mut text = String::from(HEADER);
    let ops = ports.launchers_ops[usize::from(number) - 1];
    // Writing to a String can't fail.
    let _ = write!(
        text,
        "schedulers = [\"127.0.0.1:{}\"]\nops_listen = \"127.0.0.1:{ops}\"\n\
         data_dir = \"data/launcher-{number}\"\naddress = \"127.0.0.1\"\n\
         # So many launchers share this machine.\nshare = \"1/{launchers}\"\n\
         run_as_invoker = true\n{}",
        ports.scheduler,
        tls(pair)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_second_start_keeps_certificates_and_serves_another_number_of_launchers() {
        let directory = std::env::temp_dir().join(format!("pronto-layout-{}", std::process::id()));
        let layout = Layout::new(&directory).unwrap();
        layout.make_directories().unwrap();
        assert_eq!(layout.prepare(1).unwrap().len(), 3);
        let ca = std::fs::read(layout.pki().join("ca.crt")).unwrap();
        let client = std::fs::File::open(layout.client_config()).unwrap();
        assert_eq!(layout.prepare(2).unwrap().last(), Some(&Role::Launcher(2)));
        assert_eq!(std::fs::read(layout.pki().join("ca.crt")).unwrap(), ca);
        assert_eq!(layout.ports().unwrap().launchers_ops.len(), 2);
        assert_ne!(
            client.metadata().unwrap().ino(),
            std::fs::metadata(layout.client_config()).unwrap().ino(),
            "who reads it meanwhile has the whole file"
        );
        for name in [
            "client",
            "scheduler",
            "controller",
            "launcher-1",
            "launcher-2",
        ] {
            let text = std::fs::read_to_string(layout.config(name)).unwrap();
            let parsed: toml::Table = text.parse().unwrap();
            let cert = parsed["tls"]["cert"].as_str().unwrap();
            assert!(directory.join(cert).exists(), "{name}");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
