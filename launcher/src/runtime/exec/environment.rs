//! What a process finds around it: its variables, and the user that it runs as.

use crate::shim::sys::User;
use crate::supervisor::Job;
use pronto_payloads::ids::InstanceId;
use std::fmt::Write as _;
use std::path::Path;

/// The `PATH` of a workload that brings none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the node tells its workloads of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeVariables {
    /// The name in its certificate.
    pub name: String,
    /// Where its ports are reached; may be empty.
    pub address: String,
    /// Whether it has GPUs, so that those of others are hidden.
    pub has_gpus: bool,
}

/// The variables of a workload, `NAME=value`. Nothing is inherited from the launcher.
///
/// | variable | value |
/// |---|---|
/// | `PATH`, `HOME`, `LANG` | defaults, unless the workload sets them; `HOME` is its directory |
/// | `PRONTO_INSTANCE`, `PRONTO_ATTEMPT`, `PRONTO_TENANT` | which attempt this is, and whose |
/// | `PRONTO_NAME`, `PRONTO_WORKLOAD` | the instance's and workload's names, where it has them |
/// | `PRONTO_NODE`, `PRONTO_NODE_ADDRESS` | where it runs |
/// | `PRONTO_GPUS`, `CUDA_VISIBLE_DEVICES` | indices of its devices, comma between them |
/// | `CUDA_DEVICE_ORDER` | `PCI_BUS_ID`: the order in which the node counts them |
/// | `PRONTO_GPU_MILLIS` | its share of each |
#[must_use]
pub fn variables(job: &Job, node: &NodeVariables, workdir: &Path) -> Vec<String> {
    let body = &job.body;
    let mut variables = Vec::with_capacity(body.env.len() + 12);
    for (name, value) in [
        ("PATH", PATH),
        ("HOME", &workdir.to_string_lossy()),
        ("LANG", "C.UTF-8"),
    ] {
        if !body.env.iter().any(|variable| variable.name == name) {
            variables.push(format!("{name}={value}"));
        }
    }
    let ours = |name: &str| name.starts_with("PRONTO_");
    variables.extend(
        body.env
            .iter()
            .filter(|variable| !ours(&variable.name))
            .map(|variable| format!("{}={}", variable.name, variable.value)),
    );
    variables.push(format!("PRONTO_INSTANCE={}", job.id.instance));
    variables.push(format!("PRONTO_ATTEMPT={}", job.id.attempt));
    for (name, value) in [
        ("PRONTO_TENANT", &body.tenant),
        ("PRONTO_NAME", &body.name),
        ("PRONTO_WORKLOAD", &body.workload),
        ("PRONTO_NODE", &node.name),
        ("PRONTO_NODE_ADDRESS", &node.address),
    ] {
        if !value.is_empty() {
            variables.push(format!("{name}={value}"));
        }
    }
    let mut devices = String::new();
    for share in &job.gpus {
        let comma = if devices.is_empty() { "" } else { "," };
        let _ = write!(devices, "{comma}{}", share.device);
    }
    if let Some(share) = job.gpus.first() {
        variables.push(format!("PRONTO_GPUS={devices}"));
        variables.push(format!("PRONTO_GPU_MILLIS={}", share.millis));
    }
    if node.has_gpus {
        // CUDA's own order puts the fastest first, which a node of several models must not obey.
        variables.push("CUDA_DEVICE_ORDER=PCI_BUS_ID".to_owned());
        variables.push(format!("CUDA_VISIBLE_DEVICES={devices}"));
    }
    variables
}

/// Ids of users that exist for one instance: a range that systemd's list of them leaves to nobody.
const OWN_USERS_FIRST: u32 = 0x7000_0000;
/// So many that two living instances of one node hardly ever share one.
const OWN_USERS_BITS: u32 = 28;

/// The user of one instance, which has no entry anywhere: what it leaves behind is nobody else's.
#[must_use]
pub fn own_user(instance: &InstanceId) -> User {
    // The tail of an id is its random part.
    let [.., a, b, c, d] = instance.0;
    let random = u32::from_be_bytes([a, b, c, d]) & ((1 << OWN_USERS_BITS) - 1);
    let uid = OWN_USERS_FIRST + random;
    User {
        uid,
        gid: uid,
        groups: Vec::new(),
    }
}

/// Looks a user up by name or number in the node's own files.
///
/// # Errors
/// Says in words that there is none.
pub fn user(name: &str) -> Result<User, String> {
    let read =
        |path: &str| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    find_user(
        name,
        &read("/etc/passwd")?,
        &read("/etc/group").unwrap_or_default(),
    )
}

fn find_user(name: &str, passwd: &str, group: &str) -> Result<User, String> {
    let found = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [login, _, uid, gid, ..] = fields[..] else {
            return None;
        };
        (login == name || uid == name)
            .then(|| Some((login, uid.parse().ok()?, gid.parse().ok()?)))?
    });
    let Some((login, uid, gid)) = found else {
        // A number needs no entry.
        return match name.parse() {
            Ok(uid) => Ok(User {
                uid,
                gid: uid,
                groups: Vec::new(),
            }),
            Err(_) => Err(format!("there is no user {name} on this node")),
        };
    };
    let groups = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [_, _, gid, members] = fields[..] else {
                return None;
            };
            members
                .split(',')
                .any(|member| member == login)
                .then(|| gid.parse().ok())?
        })
        .collect();
    Ok(User { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nada:x:1000:100::/home/ada:/bin/sh\n";
        let group = "users:x:100:\ngpu:x:44:ada,bob\n";
        let ada = User {
            uid: 1000,
            gid: 100,
            groups: vec![44],
        };
        assert_eq!(find_user("ada", passwd, group), Ok(ada.clone()));
        assert_eq!(find_user("1000", passwd, group), Ok(ada));
        let stranger = User {
            uid: 77,
            gid: 77,
            groups: Vec::new(),
        };
        assert_eq!(find_user("77", passwd, group), Ok(stranger));
        assert_eq!(
            find_user("eve", passwd, group).unwrap_err(),
            "there is no user eve on this node"
        );
    }
}
