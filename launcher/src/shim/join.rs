//! A command that joins a running instance: the same control group, user, directory and
//! variables. It becomes the command, so its exit code is the command's own.

use super::sys::User;
use crate::cgroup::{self, Hierarchy};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// What to join, and what to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// [`super::message::FORMAT`].
    pub format: u32,
    /// The instance's group; absent: it has none.
    pub hierarchy: Option<(Hierarchy, String)>,
    /// The instance's user; absent: this process's own.
    pub user: Option<User>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Where it runs.
    pub workdir: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// Becomes the command. Returns the exit code only if that failed.
pub(super) fn become_command(join: &Join) -> i32 {
    let Err(error) = try_become(join);
    let program = join.command.first().map_or("", String::as_str);
    eprintln!("{program}: {error}");
    if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        126
    }
}

fn try_become(join: &Join) -> std::io::Result<std::convert::Infallible> {
    if let Some((hierarchy, group)) = &join.hierarchy {
        for mut file in cgroup::join_files(hierarchy, group)? {
            file.write_all(b"0")?;
        }
    }
    // Fails only where it is one already.
    let _ = rustix::process::setsid();
    let [program, arguments @ ..] = &join.command[..] else {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "an empty command",
        ));
    };
    let variables = join
        .environment
        .iter()
        .filter_map(|variable| variable.split_once('='));
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(variables);
    std::env::set_current_dir(&join.workdir)?;
    if let Some(user) = &join.user {
        // This process has one thread: what is set for it is set for all.
        let groups: Vec<_> = user
            .groups
            .iter()
            .map(|gid| rustix::process::Gid::from_raw(*gid))
            .collect();
        set_thread_groups(&groups)?;
        set_thread_gid(rustix::process::Gid::from_raw(user.gid))?;
        set_thread_uid(rustix::process::Uid::from_raw(user.uid))?;
    }
    rustix::thread::set_no_new_privs(true)?;
    Err(command.exec())
}
