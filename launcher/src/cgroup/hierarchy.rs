//! Which control groups this machine has, and where a launcher's lie.

use super::files::{kill_members, make_directory, remove_directories, remove_directory};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The end of the name of a group that holds daemons and no groups.
const LEAF: &str = "-daemon";

/// Which control groups this machine lets us use, and where ours lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hierarchy {
    /// The unified hierarchy.
    V2 {
        /// The directory of this launcher's groups.
        base: PathBuf,
    },
    /// One hierarchy a controller.
    V1 {
        /// The directory of this launcher's groups in each.
        memory: PathBuf,
        /// Weight and quota.
        cpu: PathBuf,
        /// CPU time; may be the same directory as `cpu`.
        cpuacct: PathBuf,
        /// Number of tasks.
        pids: PathBuf,
    },
}

impl Hierarchy {
    /// Finds a writable hierarchy and makes this launcher's directory in it.
    ///
    /// # Errors
    /// Says in words why limits can't be enforced by control groups here.
    pub fn detect(name: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| format!("/proc/self/mountinfo: {error}"))?;
        let own = fs::read_to_string("/proc/self/cgroup")
            .map_err(|error| format!("/proc/self/cgroup: {error}"))?;
        let v2 = unified(&mounts, &own).ok_or_else(|| "no cgroup2 mount".to_owned());
        let tried = v2.and_then(|own| Self::make_v2(&own, name));
        tried.or_else(|v2| {
            Self::make_v1(&mounts, &own, name)
                .map_err(|v1| format!("version 2: {v2}; version 1: {v1}"))
        })
    }

    /// What a node's facts call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::V2 { .. } => "cgroup2",
            Self::V1 { .. } => "cgroup1",
        }
    }

    fn make_v2(own: &Path, name: &str) -> Result<Self, String> {
        let words = |error: io::Error| error.to_string();
        // Its groups lie where an earlier process put them, or the other runtime of this one.
        let own = own.parent().filter(|_| is_leaf(own)).unwrap_or(own);
        let offered = fs::read_to_string(own.join("cgroup.controllers")).map_err(words)?;
        for needed in ["memory", "cpu", "pids"] {
            if !offered
                .split_whitespace()
                .any(|controller| controller == needed)
            {
                return Err(format!(
                    "controller {needed} is not available in {}",
                    own.display()
                ));
            }
        }
        // A group with processes of its own can't hand controllers down, the root excepted; so the
        // launcher moves into a leaf.
        let enable = || fs::write(own.join("cgroup.subtree_control"), "+memory +cpu +pids");
        if enable().is_err() {
            let leaf = own.join(format!("{name}{LEAF}"));
            make_directory(&leaf).map_err(words)?;
            move_members(own, &leaf).map_err(words)?;
            enable().map_err(words)?;
        }
        let _ = fs::write(own.join("cgroup.subtree_control"), "+io");
        let base = own.join(name);
        make_directory(&base).map_err(words)?;
        fs::write(base.join("cgroup.subtree_control"), "+memory +cpu +pids").map_err(words)?;
        let _ = fs::write(base.join("cgroup.subtree_control"), "+io");
        Ok(Self::V2 { base })
    }

    fn make_v1(mounts: &str, own: &str, name: &str) -> Result<Self, String> {
        let make = |controller: &str| {
            let own = controller_directory(mounts, own, controller)
                .ok_or_else(|| format!("controller {controller} is not mounted"))?;
            let base = own.join(name);
            make_directory(&base).map_err(|error| format!("{}: {error}", base.display()))?;
            Ok::<_, String>(base)
        };
        Ok(Self::V1 {
            memory: make("memory")?,
            cpu: make("cpu")?,
            cpuacct: make("cpuacct")?,
            pids: make("pids")?,
        })
    }

    /// Every directory under which groups lie, each once.
    pub(super) fn bases(&self) -> Vec<&Path> {
        match self {
            Self::V2 { base } => vec![base],
            Self::V1 {
                memory,
                cpu,
                cpuacct,
                pids,
            } => {
                let mut bases: Vec<&Path> = vec![pids, memory, cpu, cpuacct];
                bases.dedup();
                bases
            }
        }
    }

    /// Kills and removes every group that is there: what a shim that vanished has left.
    ///
    /// # Errors
    /// If a process does not die or a directory can't be removed.
    pub fn clear(&self) -> io::Result<()> {
        for base in self.bases() {
            for entry in fs::read_dir(base)? {
                let path = entry?.path();
                if !path.is_dir() {
                    continue;
                }
                kill_members(&path)?;
                remove_directory(&path)?;
            }
        }
        Ok(())
    }

    /// Removes this launcher's own directories; they must be empty. Whoever removes the last ones
    /// also puts the daemons back where they were started.
    ///
    /// # Errors
    /// If one is not.
    pub fn remove(&self) -> io::Result<()> {
        remove_directories(self.bases().into_iter())?;
        match self {
            Self::V2 { base } => base.parent().map_or(Ok(()), remove_leaves),
            Self::V1 { .. } => Ok(()),
        }
    }
}

/// Whether a group is one into which a launcher has moved itself.
fn is_leaf(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("pronto-") && name.ends_with(LEAF))
}

fn move_members(from: &Path, to: &Path) -> io::Result<()> {
    let members = fs::read_to_string(from.join("cgroup.procs"))?;
    for pid in members.split_whitespace() {
        // A process that has ended meanwhile needs no move.
        let _ = fs::write(to.join("cgroup.procs"), pid);
    }
    Ok(())
}

/// Undoes what made leaves necessary. As long as another launcher has groups here, the kernel
/// refuses, and they stay.
fn remove_leaves(own: &Path) -> io::Result<()> {
    let leaves: Vec<PathBuf> = fs::read_dir(own)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_leaf(path))
        .collect();
    if leaves.is_empty() {
        return Ok(());
    }
    let enabled = fs::read_to_string(own.join("cgroup.subtree_control"))?;
    let disable: Vec<String> = enabled
        .split_whitespace()
        .map(|controller| format!("-{controller}"))
        .collect();
    fs::write(own.join("cgroup.subtree_control"), disable.join(" "))?;
    for leaf in leaves {
        move_members(&leaf, own)?;
        remove_directory(&leaf)?;
    }
    Ok(())
}

/// The directory of this process in the unified hierarchy.
fn unified(mounts: &str, own: &str) -> Option<PathBuf> {
    let (root, mount) = mounts
        .lines()
        .find_map(|line| mount_of(line, "cgroup2", None))?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(below(&mount, &root, path))
}

/// The directory of this process in a controller's hierarchy of version 1.
fn controller_directory(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let (root, mount) = mounts
        .lines()
        .find_map(|line| mount_of(line, "cgroup", Some(controller)))?;
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| fields.next())?
    })?;
    Some(below(&mount, &root, path))
}

/// Root and mount point of a line of mountinfo, if it is of this type and has this option.
fn mount_of(line: &str, kind: &str, option: Option<&str>) -> Option<(String, PathBuf)> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    if right.next()? != kind {
        return None;
    }
    let options = right.nth(1)?;
    if option.is_some_and(|wanted| !options.split(',').any(|option| option == wanted)) {
        return None;
    }
    let mut left = left.split(' ').skip(3);
    Some((left.next()?.to_owned(), PathBuf::from(left.next()?)))
}

/// Inside of a container the mount shows a part of the hierarchy only.
fn below(mount: &Path, root: &str, own: &str) -> PathBuf {
    let own = own
        .strip_prefix(root)
        .unwrap_or(own)
        .trim_start_matches('/');
    let path = mount.join(own);
    if path.is_dir() {
        path
    } else {
        mount.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_as_this_process_sees_them() {
        let mounts = "30 29 0:26 / /nowhere/cg/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 29 0:27 /lxc/a /nowhere/cg/memory rw - cgroup cgroup rw,memory\n\
                      32 29 0:28 / /nowhere/cg/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/lxc/a/b\n2:cpu,cpuacct:/x\n0::/y\n";
        let find = |controller| controller_directory(mounts, own, controller);
        // A path that does not exist falls back to the mount itself.
        assert_eq!(find("cpuacct"), Some("/nowhere/cg/cpu,cpuacct".into()));
        assert_eq!(find("memory"), Some("/nowhere/cg/memory".into()));
        assert_eq!(find("pids"), None);
        assert_eq!(unified(mounts, own), Some("/nowhere/cg/unified".into()));
        assert_eq!(
            below(Path::new("/proc"), "/lxc/a", "/lxc/a/self"),
            Path::new("/proc/self")
        );
    }

    #[test]
    fn leaves_are_told_from_other_groups() {
        assert!(is_leaf(Path::new("/cg/unit/pronto-0a1b2c3d-daemon")));
        for other in ["/cg/pronto-0a1b2c3d", "/cg/ssh-daemon", "/"] {
            assert!(!is_leaf(Path::new(other)), "{other}");
        }
    }
}
