//! What a bench needs around it: a scratch directory, certificates, and a server process to push.
//!
//! The scheduler under test is the real binary in a process of its own, and so is the relay that it
//! is compared with; both are ended by their process ids when the rig is dropped.

use super::fleet::node_name;
use super::relay::RelayShape;
use crate::cert::{Authority, Terms};
use crate::exit::Failure;
use anyhow::{Context as _, Result, bail};
use pronto_protocol::Role;
use pronto_protocol::transport::{Credentials, TlsFiles};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The cluster's name in the bench's certificates.
const CLUSTER: &str = "bench";
/// Certificates within the scratch directory: the launchers', and everybody else's.
const LAUNCHERS: &str = "launcher-certs";
const CERTS: &str = "certs";
/// A server process listens within this time, or something is wrong with it.
const START_LIMIT: Duration = Duration::from_secs(10);

/// The largest that a scheduler accepts: the bench's own window is what bounds its STARTs.
const START_WINDOW: u32 = 65_536;

/// Scratch directory and certificates.
pub(crate) struct Rig {
    directory: PathBuf,
    authority: Authority,
}

/// A server process and where it listens.
pub(crate) struct Target {
    pub(crate) address: String,
    child: Child,
}

impl Rig {
    /// A new directory under the system's temporary one, with a fresh authority.
    pub(crate) fn new() -> Result<Self> {
        let name = format!("pronto-bench-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let authority = Authority::init(&directory.join(CERTS), CLUSTER, 2).map_err(said)?;
        fs::create_dir(directory.join(LAUNCHERS)).context("can't make the scratch directory")?;
        Ok(Self {
            directory,
            authority,
        })
    }

    /// The certificate of this role and name; names are distinct, since files are named by them.
    fn issue(&self, role: Role, name: &str) -> Result<TlsFiles> {
        // Apart, since a process that simulates nodes takes every certificate of its directory.
        let certs = self.directory.join(match role {
            Role::Launcher => LAUNCHERS,
            _ => CERTS,
        });
        let identity = self.authority.identity(role, None, name).map_err(said)?;
        let known = crate::cert::pair_of(&identity, &certs);
        let pair = if known.cert.exists() {
            known
        } else {
            self.authority
                .issue(
                    &identity,
                    &certs,
                    &Terms {
                        days: 2,
                        hosts: Vec::new(),
                    },
                )
                .map_err(said)?
        };
        Ok(TlsFiles {
            ca: self.directory.join(CERTS).join(crate::cert::CA_CERT),
            cert: pair.cert,
            key: pair.key,
            crl: None,
        })
    }

    pub(crate) fn launcher_credentials(&self, node: u32) -> Result<Arc<Credentials>> {
        Ok(Credentials::load(
            &self.issue(Role::Launcher, &node_name(node))?,
        )?)
    }

    pub(crate) fn controller_credentials(&self) -> Result<Arc<Credentials>> {
        Ok(Credentials::load(
            &self.issue(Role::Controller, "controller")?,
        )?)
    }

    /// Credentials of somebody else of this role.
    pub(crate) fn other_credentials(&self, role: Role, name: &str) -> Result<Arc<Credentials>> {
        Ok(Credentials::load(&self.issue(role, name)?)?)
    }

    /// A real scheduler that refuses no START for its window.
    pub(crate) fn scheduler(&self) -> Result<Target> {
        let port = free_port()?;
        let ops = free_port()?;
        self.scheduler_at(port, ops)
    }

    /// A scheduler at the address of one that has ended.
    pub(crate) fn scheduler_again(&self, ended: &Target) -> Result<Target> {
        let (_, port) = ended.address.rsplit_once(':').context("host:port")?;
        self.scheduler_at(port.parse()?, free_port()?)
    }

    fn scheduler_at(&self, port: u16, ops: u16) -> Result<Target> {
        let tls = self.issue(Role::Scheduler, "scheduler")?;
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\nops_listen = \"127.0.0.1:{ops}\"\n\
             start_window = {START_WINDOW}\n{}",
            tls_table(&tls)
        );
        let mut command = own_command()?;
        command.args(["scheduler", "--config"]);
        command.arg(self.write("scheduler.toml", &text)?);
        self.spawn(command, port)
    }

    /// A real controller of that scheduler, on an empty store and without quotas.
    pub(crate) fn controller(&self, scheduler: &Target) -> Result<Target> {
        let port = free_port()?;
        let tls = self.issue(Role::Controller, "controller")?;
        let text = format!(
            "listen = \"127.0.0.1:{port}\"\nschedulers = [{:?}]\ndata_dir = {:?}\n\
             default_quota = {{}}\n{}",
            scheduler.address,
            self.directory.join("controller"),
            tls_table(&tls)
        );
        let mut command = own_command()?;
        command.args(["controller", "--config"]);
        command.arg(self.write("controller.toml", &text)?);
        self.spawn(command, port)
    }

    /// A process that stands for so many nodes of this capacity: millis of cpu, MiB of memory.
    pub(crate) fn simulated_launchers(
        &self,
        scheduler: &Target,
        count: u32,
        (cpu_millis, memory_mib): (u32, u32),
    ) -> Result<Target> {
        let mut tls = None;
        for node in 0..count {
            tls = Some(self.issue(Role::Launcher, &node_name(node))?);
        }
        let tls = tls.context("no nodes to simulate")?;
        let data = self.directory.join("launchers");
        fs::create_dir_all(&data).with_context(|| format!("can't make {}", data.display()))?;
        let text = format!(
            "schedulers = [{:?}]\ndata_dir = {:?}\nsimulate_certs_dir = {:?}\n\
             [capacity]\ncpu_millis = {cpu_millis}\nmemory_mib = {memory_mib}\n{}",
            scheduler.address,
            data,
            self.directory.join(LAUNCHERS),
            tls_table(&tls)
        );
        let mut command = own_command()?;
        command.args(["launcher", "--simulate", &count.to_string(), "--config"]);
        command.arg(self.write("launchers.toml", &text)?);
        self.start(command, String::new())
    }

    /// Settings of a client that is an administrator of this controller.
    pub(crate) fn client_config(&self, controller: &Target) -> Result<PathBuf> {
        let tls = self.issue(Role::Admin, "admin")?;
        let text = format!(
            "controllers = [\"https://{}\"]\n{}",
            controller.address,
            tls_table(&tls)
        );
        self.write("client.toml", &text)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        Ok(path)
    }

    /// The reference: a relay of the same shape that decodes nothing.
    pub(crate) fn relay(&self, shape: &RelayShape) -> Result<Target> {
        let port = free_port()?;
        let tls = self.issue(Role::Scheduler, "scheduler")?;
        let mut command = own_command()?;
        command.args(["bench", "relay"]);
        command.args(shape.arguments());
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        command
            .arg("--ca")
            .arg(tls.ca)
            .arg("--cert")
            .arg(tls.cert)
            .arg("--key")
            .arg(tls.key);
        self.spawn(command, port)
    }

    /// Starts a server process and waits until it listens.
    fn spawn(&self, command: Command, port: u16) -> Result<Target> {
        let mut target = self.start(command, format!("127.0.0.1:{port}"))?;
        let began = Instant::now();
        while TcpStream::connect(&target.address).is_err() {
            self.must_live(&mut target)?;
            if began.elapsed() > START_LIMIT {
                bail!("the server process does not listen within {START_LIMIT:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(target)
    }

    /// An error with its last words if a process has ended.
    pub(crate) fn must_live(&self, target: &mut Target) -> Result<()> {
        if let Some(status) = target.child.try_wait()? {
            let log = fs::read_to_string(self.directory.join("server.log"))?;
            bail!("the server process ended with {status}:\n{log}");
        }
        Ok(())
    }

    fn start(&self, mut command: Command, address: String) -> Result<Target> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("server.log"))
            .context("can't write the server's log")?;
        let child = command
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("can't start the server process")?;
        Ok(Target { address, child })
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Nothing can be done about a directory that can't be removed, and nothing depends on it.
        let _left = fs::remove_dir_all(&self.directory);
    }
}

impl Target {
    /// CPU time of all threads so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut total_ns = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
            let ran = schedstat
                .split_whitespace()
                .next()
                .context("an empty schedstat")?;
            total_ns += ran.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total_ns))
    }

    /// Resident memory.
    pub(crate) fn rss_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .context("no VmRSS")?;
        let kib = line
            .split_whitespace()
            .nth(1)
            .context("VmRSS without a number")?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The `[tls]` table of a daemon's configuration.
fn tls_table(tls: &TlsFiles) -> String {
    let TlsFiles { ca, cert, key, .. } = tls;
    format!("[tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n")
}

/// A failure of the command line as an error of a bench.
fn said(failure: Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure}")
}

fn own_command() -> Result<Command> {
    Ok(Command::new(
        std::env::current_exe().context("can't find this binary")?,
    ))
}

/// A port that is free now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
