//! A network of the test's own: each host in a network namespace, all of them on one bridge.
//!
//! ```text
//!   pronto-<pid>-<host>  ── eth0 ═ veth ═ v-<host> ──┐
//!   pronto-<pid>-<host>  ── eth0 ═ veth ═ v-<host> ──┤ br0 in pronto-<pid>-switch
//! ```
//!
//! Nothing of it is seen by, or sees, the machine's own network. Namespaces are removed when the
//! value is dropped, also when the test fails; those that a killed test left are removed by the
//! next one, which knows them by a pid that is no more.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Namespaces of tests are called so, and nothing else is.
const PREFIX: &str = "pronto-";
const SWITCH: &str = "switch";

/// How a host is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Its cable is pulled.
    Cable,
    /// Nothing reaches it; what it sends arrives.
    Deaf,
    /// Nothing that it sends arrives; it hears.
    Mute,
    /// It and another host can't reach each other; everybody else reaches both.
    From(&'static str),
}

/// The namespaces of one test.
#[derive(Debug)]
pub(crate) struct Network {
    hosts: Vec<String>,
}

fn ip(arguments: &[&str]) -> bool {
    quiet("ip", arguments)
}

fn quiet(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn must(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {}: {}(this test needs root and iproute2)",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn namespace(host: &str) -> String {
    format!("{PREFIX}{}-{host}", std::process::id())
}

/// Removes namespaces whose test is no more.
fn sweep() {
    let Ok(listed) = Command::new("ip").args(["netns", "list"]).output() else {
        return;
    };
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let Some(name) = line.split_whitespace().next() else {
            continue;
        };
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            ip(&["netns", "del", name]);
        }
    }
}

impl Network {
    /// These hosts on one bridge; the n-th has the address 10.231.0.n, counted from 1.
    pub(crate) fn new(hosts: &[String]) -> Self {
        sweep();
        let network = Self {
            hosts: hosts.to_vec(),
        };
        let switch = namespace(SWITCH);
        must("ip", &["netns", "add", &switch]);
        must(
            "ip",
            &["-n", &switch, "link", "add", "br0", "type", "bridge"],
        );
        must("ip", &["-n", &switch, "link", "set", "br0", "up"]);
        for (number, host) in (1..).zip(hosts) {
            let (inside, port) = (namespace(host), port(host));
            must("ip", &["netns", "add", &inside]);
            must(
                "ip",
                &[
                    "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
                    "netns", &inside,
                ],
            );
            must(
                "ip",
                &["-n", &switch, "link", "set", &port, "master", "br0", "up"],
            );
            let address = format!("10.231.0.{number}/24");
            must(
                "ip",
                &["-n", &inside, "addr", "add", &address, "dev", "eth0"],
            );
            must("ip", &["-n", &inside, "link", "set", "lo", "up"]);
            must("ip", &["-n", &inside, "link", "set", "eth0", "up"]);
        }
        network
    }

    /// The address of a host.
    pub(crate) fn address(&self, host: &str) -> String {
        let number = self.hosts.iter().position(|known| known == host);
        format!("10.231.0.{}", number.expect("a host of this network") + 1)
    }

    /// The file that names a host's network namespace.
    pub(crate) fn namespace(&self, host: &str) -> PathBuf {
        debug_assert!(self.hosts.iter().any(|known| known == host));
        Path::new("/run/netns").join(namespace(host))
    }

    /// A command on a host. It replaces `nsenter`, so that the child's pid is the program's own;
    /// mounts stay the machine's, since control groups live there.
    pub(crate) fn command(host: &str, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", namespace(host)))
            .arg("--")
            .arg(program);
        command
    }

    /// Cuts a host off.
    pub(crate) fn cut(&self, host: &str, how: Cut) {
        let switch = namespace(SWITCH);
        match how {
            Cut::Cable => must("ip", &["-n", &switch, "link", "set", &port(host), "down"]),
            Cut::Deaf => self.filter("-A", host, "INPUT", "-i"),
            Cut::Mute => self.filter("-A", host, "OUTPUT", "-o"),
            Cut::From(other) => {
                isolate(host, "on");
                isolate(other, "on");
            }
        }
    }

    /// Undoes the same cut.
    pub(crate) fn mend(&self, host: &str, how: Cut) {
        let switch = namespace(SWITCH);
        match how {
            Cut::Cable => must("ip", &["-n", &switch, "link", "set", &port(host), "up"]),
            Cut::Deaf => self.filter("-D", host, "INPUT", "-i"),
            Cut::Mute => self.filter("-D", host, "OUTPUT", "-o"),
            Cut::From(other) => {
                isolate(host, "off");
                isolate(other, "off");
            }
        }
    }

    fn filter(&self, change: &str, host: &str, chain: &str, interface: &str) {
        let inside = format!("--net=/run/netns/{}", namespace(host));
        must(
            "nsenter",
            &[
                &inside, "--", "iptables", "-w", change, chain, interface, "eth0", "-j", "DROP",
            ],
        );
    }
}

/// Two isolated ports of a bridge can't reach each other.
fn isolate(host: &str, state: &str) {
    let switch = namespace(SWITCH);
    must(
        "bridge",
        &[
            "-n",
            &switch,
            "link",
            "set",
            "dev",
            &port(host),
            "isolated",
            state,
        ],
    );
}

fn port(host: &str) -> String {
    format!("v-{host}")
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts.iter().map(String::as_str).chain([SWITCH]) {
            ip(&["netns", "del", &namespace(host)]);
        }
    }
}
