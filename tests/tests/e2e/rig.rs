//! A cluster whose every daemon the test starts itself: several schedulers, launchers on hosts of
//! their own, faults by name.
//!
//! `pronto dev` restarts what dies, which is what most tests want; here a daemon stays as the test
//! left it. Every process is a child of the test and is ended by its pid; what launchers have
//! started is ended through their data directories.

use crate::cluster::{pronto, signal, wait_until};
use crate::network::Network;
use crate::relay::Relay;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// What a cluster is made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) schedulers: usize,
    pub(crate) launchers: usize,
    /// Each daemon in a network namespace of its own, instead of on loopback.
    pub(crate) network: bool,
    /// How many launchers, the last of them, reach the schedulers by a relay that can be slow. With
    /// a network alone.
    pub(crate) relayed: usize,
    /// Lines for the controller's configuration.
    pub(crate) controller: String,
    /// Lines for the schedulers' configurations.
    pub(crate) scheduler: String,
}

/// Host that users' commands run on.
const USER: &str = "user";
const CONTROLLER: &str = "controller";
/// Host of the relay, where launchers go by one.
const RELAY: &str = "relay";
/// Of the first scheduler there, and those behind it of the others.
const RELAY_PORT: u16 = 7461;

/// A cluster, its processes and its files.
#[derive(Debug)]
pub(crate) struct Rig {
    root: PathBuf,
    daemons: BTreeMap<String, Child>,
    addresses: BTreeMap<String, String>,
    relay: Option<Relay>,
    network: Option<Network>,
    plan: Plan,
}

pub(crate) fn scheduler(number: usize) -> String {
    format!("scheduler-{number}")
}

pub(crate) fn launcher(number: usize) -> String {
    format!("node-{number}")
}

/// What a scheduler is called whose address is the relay's.
fn relayed(scheduler: &str) -> String {
    format!("{scheduler} by relay")
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

impl Rig {
    /// Certificates, configurations and, if wanted, a network; nothing runs yet.
    pub(crate) fn new(name: &str, plan: Plan) -> Self {
        let root = std::env::temp_dir().join(format!("pronto-e2e-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(root.join("log")).expect("a scratch directory");
        let schedulers: Vec<String> = (1..=plan.schedulers).map(scheduler).collect();
        let launchers: Vec<String> = (1..=plan.launchers).map(launcher).collect();
        let network = plan.network.then(|| {
            let hosts = schedulers.iter().chain(&launchers).cloned();
            let others = [CONTROLLER, USER, RELAY].map(str::to_owned);
            Network::new(&hosts.chain(others).collect::<Vec<_>>())
        });
        let mut addresses = BTreeMap::new();
        for host in schedulers.iter().map(String::as_str).chain([CONTROLLER]) {
            let address = match &network {
                Some(network) => format!("{}:7460", network.address(host)),
                None => format!("127.0.0.1:{}", free_port()),
            };
            addresses.insert(host.to_owned(), address);
        }
        let relay = network
            .as_ref()
            .filter(|_| plan.relayed > 0)
            .map(|network| {
                let mut routes = Vec::new();
                for (port, name) in (RELAY_PORT..).zip(&schedulers) {
                    let by_relay = format!("{}:{port}", network.address(RELAY));
                    routes.push((by_relay.clone(), addresses[name].clone()));
                    addresses.insert(relayed(name), by_relay);
                }
                Relay::new(network, RELAY, routes)
            });
        let rig = Self {
            root,
            daemons: BTreeMap::new(),
            addresses,
            relay,
            network,
            plan,
        };
        rig.local(&["cert", "init", "--dir", &rig.path("pki")]);
        for name in &schedulers {
            let extra = rig.plan.scheduler.clone();
            rig.configure("scheduler", name, &rig.listening(name, &extra));
        }
        let mut text = rig.listening(CONTROLLER, &rig.plan.controller);
        let _ = writeln!(text, "{}", rig.schedulers_line(&schedulers));
        let _ = writeln!(text, "data_dir = {:?}", rig.path("data/controller"));
        rig.configure("controller", CONTROLLER, &text);
        for name in &launchers {
            rig.configure_launcher(name, &schedulers);
        }
        rig.issue("admin", "root");
        let client = format!(
            "controllers = [\"https://{}\"]\n{}",
            rig.addresses[CONTROLLER],
            rig.tls("root")
        );
        std::fs::write(rig.path("client.toml"), client).expect("a file");
        rig
    }

    /// A path under its directory, as text.
    pub(crate) fn path(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }

    fn listening(&self, name: &str, extra: &str) -> String {
        let ops = if name == CONTROLLER {
            ""
        } else {
            "ops_listen = \"\"\n"
        };
        // What is added comes last, since it may be a table.
        format!("listen = {:?}\n{ops}{extra}\n", self.addresses[name])
    }

    fn schedulers_line(&self, schedulers: &[String]) -> String {
        let all: Vec<&String> = schedulers
            .iter()
            .map(|name| &self.addresses[name])
            .collect();
        format!("schedulers = {all:?}")
    }

    /// Whether a launcher reaches the schedulers by the relay.
    pub(crate) fn is_relayed(&self, name: &str) -> bool {
        let direct = self.plan.launchers - self.plan.relayed;
        (direct + 1..=self.plan.launchers).any(|number| launcher(number) == name)
    }

    /// The relay, where there is one.
    pub(crate) fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("planned with a relay")
    }

    /// Writes a launcher's configuration, with its schedulers in this order.
    pub(crate) fn configure_launcher(&self, name: &str, schedulers: &[String]) {
        let by_relay = schedulers.iter().map(|name| relayed(name));
        let by_relay: Vec<String> = by_relay.collect();
        let schedulers = if self.is_relayed(name) {
            &by_relay
        } else {
            schedulers
        };
        let text = format!(
            "{}\ndata_dir = {:?}\nshare = \"1/{}\"\nrun_as_invoker = true\n\
             runtimes = [\"exec\", \"sim\"]\n",
            self.schedulers_line(schedulers),
            self.path(&format!("data/{name}")),
            self.plan.launchers
        );
        self.configure("launcher", name, &text);
    }

    fn configure(&self, role: &str, name: &str, text: &str) {
        self.issue(role, name);
        let text = format!("{text}{}", self.tls(name));
        std::fs::write(self.path(&format!("{name}.toml")), text).expect("a file");
    }

    fn tls(&self, name: &str) -> String {
        format!(
            "[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            self.path("pki/ca.crt"),
            self.path(&format!("pki/{name}.crt")),
            self.path(&format!("pki/{name}.key"))
        )
    }

    /// Issues a certificate unless it is there.
    pub(crate) fn issue(&self, role: &str, name: &str) {
        if Path::new(&self.path(&format!("pki/{name}.crt"))).exists() {
            return;
        }
        let pki = self.path("pki");
        self.local(&[
            "cert", "issue", "--role", role, "--name", name, "--ca-dir", &pki,
        ]);
    }

    /// A command that talks to nobody.
    pub(crate) fn local(&self, arguments: &[&str]) -> String {
        let output = Command::new(pronto())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("pronto starts");
        assert!(
            output.status.success(),
            "pronto {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn on_host(&self, host: &str) -> Command {
        on_host(self.network.is_some(), host)
    }

    /// The command line of a user, for a thread of its own.
    pub(crate) fn client(&self) -> Client {
        Client {
            config: self.path("client.toml"),
            network: self.network.is_some(),
        }
    }

    /// The network, where there is one.
    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().expect("planned with a network")
    }

    /// Starts everything.
    pub(crate) fn start_all(&mut self) {
        for number in 1..=self.plan.schedulers {
            self.start(&scheduler(number));
        }
        self.start(CONTROLLER);
        for number in 1..=self.plan.launchers {
            self.start(&launcher(number));
        }
    }

    /// Starts a daemon by its name.
    pub(crate) fn start(&mut self, name: &str) {
        self.start_with(name, &[]);
    }

    /// The same with more flags.
    pub(crate) fn start_with(&mut self, name: &str, flags: &[&str]) {
        let kind = match name.split('-').next() {
            Some("node") => "launcher",
            Some(kind) => kind,
            None => unreachable!("a name is not empty"),
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("log/{name}.log")))
            .expect("a log");
        let child = self
            .on_host(name)
            .args([kind, "--config", &self.path(&format!("{name}.toml"))])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("pronto starts");
        let before = self.daemons.insert(name.to_owned(), child);
        assert!(before.is_none(), "{name} is running already");
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut child = self.daemons.remove(name).expect("it is running");
        child.kill().expect("our own child");
        child.wait().expect("our own child");
    }

    /// Any other signal: STOP, CONT.
    pub(crate) fn signal(&self, name: &str, what: &str) {
        let pid = self.daemons[name].id();
        signal(i32::try_from(pid).expect("a pid"), what);
    }

    /// The log of a daemon so far.
    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("log/{name}.log"))).unwrap_or_default()
    }

    /// A user's command.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.client().run(arguments)
    }

    /// A user's command that must succeed; its standard output.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "pronto {} ended with {}:\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        String::from_utf8(output.stdout).expect("output is text")
    }

    /// What `-o json` prints, if the command succeeds.
    pub(crate) fn try_json(&self, arguments: &[&str]) -> Option<serde_json::Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let output = self.run(&all);
        serde_json::from_slice(&output.stdout)
            .ok()
            .filter(|_| output.status.success())
    }

    /// An instance's field, such as its state; null while nobody answers.
    pub(crate) fn field(&self, instance: &str, field: &str) -> serde_json::Value {
        self.try_json(&["show", "instance", instance])
            .map_or(serde_json::Value::Null, |shown| {
                shown["instance"][field].clone()
            })
    }

    /// How many nodes are in this state.
    pub(crate) fn nodes_in(&self, state: &str) -> usize {
        let Some(list) = self.try_json(&["list", "nodes"]) else {
            return 0;
        };
        let nodes = list["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter(|node| node["state"] == state).count()
    }

    /// Waits until so many nodes are ready.
    pub(crate) fn await_ready(&self, nodes: usize) {
        wait_until(&format!("{nodes} nodes are ready"), || {
            self.nodes_in("ready") == nodes
        });
    }
}

fn on_host(network: bool, host: &str) -> Command {
    if network {
        Network::command(host, pronto())
    } else {
        Command::new(pronto())
    }
}

/// A user and its settings.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    config: String,
    network: bool,
}

impl Client {
    /// A command, run to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("pronto starts")
    }

    /// A command that goes on; its standard output is a pipe.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped());
        command.spawn().expect("pronto starts")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = on_host(self.network, USER);
        command
            .args(arguments)
            .env("PRONTO_CONFIG", &self.config)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Submits instances that run nothing, named by the number of their batch; their ids, if the
    /// submission was acknowledged.
    pub(crate) fn submit_named(&self, batch: u64, count: usize) -> Option<Vec<String>> {
        let (name, count) = (format!("batch-{batch}"), count.to_string());
        let output = self.run(&[
            "create",
            "instance",
            "--count",
            &count,
            "--name",
            &name,
            "--cpus",
            "0.001",
            "--memory",
            "4M",
            "--runtime",
            "sim",
            "--run-for",
            "1ms",
            "--detach",
            "-o",
            "json",
        ]);
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let ids = said["instances"]
            .as_array()
            .filter(|_| output.status.success())?;
        let ids = ids.iter().filter_map(|id| id.as_str().map(str::to_owned));
        Some(ids.collect())
    }

    /// Every instance with its state; none if the controller does not answer.
    pub(crate) fn all_instances(&self) -> Option<BTreeMap<String, String>> {
        self.instances("id")
    }

    /// Every instance by its name.
    pub(crate) fn named_instances(&self) -> Option<BTreeMap<String, String>> {
        self.instances("name")
    }

    fn instances(&self, key: &str) -> Option<BTreeMap<String, String>> {
        let output = self.run(&["list", "instances", "--all", "-o", "json"]);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let list = list["instances"]
            .as_array()
            .filter(|_| output.status.success())?;
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        list.iter()
            .map(|one| Some((text(&one[key])?, text(&one["state"])?)))
            .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.daemons.keys() {
                let log = self.log(name);
                let from = log.len().saturating_sub(3000);
                let from = log.floor_char_boundary(from);
                eprintln!("--- {name} said last:\n{}", &log[from..]);
            }
        }
        for child in self.daemons.values_mut() {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        for number in 1..=self.plan.launchers {
            let data = self.root.join(format!("data/{}", launcher(number)));
            if data.exists()
                && let Err(error) = runtime.block_on(pronto_launcher::end_workloads(&data, 0))
            {
                eprintln!("workloads of {} may be left: {error:#}", data.display());
            }
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
