//! What the replay needs around it: certificates, and the scheduler's process.

use super::{LOOK_INTERVAL, PATIENCE};
use crate::cert::{Authority, CA_CERT, Terms, pair_of};
use crate::dev::process::{OWN_PROGRAM, Process, last_lines};
use crate::exit::{Exit, Failure};
use anyhow::Context;
use pronto_protocol::Role;
use pronto_protocol::transport::TlsFiles;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const CLUSTER: &str = "demo";

/// Certificates and paths.
pub(super) struct Rig {
    directory: PathBuf,
    authority: Authority,
}

impl Rig {
    pub(super) fn new(directory: &Path) -> Result<Self, Failure> {
        let authority = Authority::init(&directory.join("pki"), CLUSTER, 1)?;
        Ok(Self {
            directory: directory.to_owned(),
            authority,
        })
    }

    pub(super) fn files(&self, role: Role, name: &str) -> Result<TlsFiles, Failure> {
        let pki = self.directory.join("pki");
        let identity = self.authority.identity(role, None, name)?;
        let pair = pair_of(&identity, &pki);
        if !pair.cert.exists() {
            self.authority.issue(
                &identity,
                &pki,
                &Terms {
                    days: 1,
                    hosts: Vec::new(),
                },
            )?;
        }
        Ok(TlsFiles {
            ca: pki.join(CA_CERT),
            cert: pair.cert,
            key: pair.key,
            crl: None,
        })
    }
}

/// The scheduler's process; it ends with this value.
pub(super) struct Server {
    pub(super) address: String,
    child: Child,
    log: PathBuf,
}

impl Server {
    pub(super) fn start(rig: &Rig) -> Result<Self, Failure> {
        let port = free_port()?;
        let tls = rig.files(Role::Scheduler, "scheduler")?;
        let config = rig.directory.join("scheduler.toml");
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\nops_listen = \"\"\n[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            tls.ca, tls.cert, tls.key
        );
        std::fs::write(&config, text).context("can't write the scheduler's configuration")?;
        let log = rig.directory.join("scheduler.log");
        let file = std::fs::File::create(&log).context("can't write the scheduler's log")?;
        let child = Command::new(OWN_PROGRAM)
            .arg0("pronto")
            .args(["scheduler", "--config"])
            .arg(&config)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("can't start the scheduler")?;
        let mut server = Self {
            address: format!("127.0.0.1:{port}"),
            child,
            log,
        };
        let begun = Instant::now();
        while std::net::TcpStream::connect(&server.address).is_err() {
            if server.child.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                let said = last_lines(&server.log, 5);
                return Err(Failure::new(
                    Exit::Failed,
                    format!("the scheduler did not come up: {said}"),
                ));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok();
        if let Some(process) = pid.and_then(Process::of) {
            process.signal(rustix::process::Signal::TERM);
        }
        // It holds no state: how it ends does not matter, that it ends does.
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").context("there is no free port")?;
    Ok(listener
        .local_addr()
        .context("a listener has an address")?
        .port())
}
