//! The files of an attempt: its copy-on-write disk and its seed.

use super::machine::{DISK, MONITOR, SEED};
use super::seed;
use crate::shim::sys::User;
use crate::supervisor::Job;
use pronto_payloads::instance::{End, EndCause};
use pronto_payloads::start::QemuTask;
use serde::Deserialize;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// The tool writes a few hundred KiB; only a disk that hangs takes longer.
const TOOL_TIMEOUT: Duration = Duration::from_secs(60);
const MIB: u64 = 1024 * 1024;

/// What the tool says about an image.
#[derive(Debug, Deserialize)]
struct ImageInfo {
    format: String,
    #[serde(rename = "virtual-size")]
    virtual_bytes: u64,
}

/// The user's fault, on any node.
pub(super) fn unusable(message: String) -> End {
    End {
        cause: EndCause::CannotExecute { code: 126 },
        message,
    }
}

/// This node's fault.
pub(super) fn rejected(message: String) -> End {
    End {
        cause: EndCause::Rejected,
        message,
    }
}

/// Whether the files that a workload names are there. That one is missing on this node is taken
/// for the user's mistake: as the node's fault, a mistyped path would make every node suspect.
pub(super) fn check(task: &QemuTask) -> Result<(), End> {
    let named = [
        ("image", &task.image),
        ("kernel", &task.kernel),
        ("initrd", &task.initrd),
    ];
    for (what, path) in named {
        let Some(path) = path else { continue };
        let found = if Path::new(path).is_absolute() {
            fs::metadata(path)
        } else {
            return Err(unusable(format!(
                "{what} {path}: a path on the node begins with /"
            )));
        };
        match found {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(unusable(format!("{what} {path} is not a file"))),
            Err(error) => {
                let code = if error.kind() == io::ErrorKind::NotFound {
                    127
                } else {
                    126
                };
                let message = format!("{what} {path} on this node: {error}");
                return Err(End {
                    cause: EndCause::CannotExecute { code },
                    message,
                });
            }
        }
    }
    Ok(())
}

/// Whether the guest gets a seed: one with a disk is a cloud image more often than not, and looks
/// for a seed for minutes.
pub(super) const fn wants_seed(task: &QemuTask) -> bool {
    task.user_data.is_some() || task.meta_data.is_some() || task.image.is_some()
}

/// Makes what the guest needs in `directory`, which is ours alone until all of it is there: we may be
/// root, and would follow the links that its user put in our way.
pub(super) async fn make(
    tool: &Path,
    directory: &Path,
    user: Option<&User>,
    job: &Job,
    task: &QemuTask,
) -> Result<(), End> {
    make_directory(directory)
        .map_err(|error| rejected(format!("its working directory can't be made: {error}")))?;
    if let Some(image) = &task.image {
        overlay(tool, directory, image, job.demand.disk_mib).await?;
        let path = directory.join(DISK);
        File::open(&path)
            .and_then(|disk| give(&disk, user))
            .map_err(|error| rejected(format!("{}: {error}", path.display())))?;
    }
    if wants_seed(task) {
        let attempt = format!("{}-{}", job.id.instance, job.id.attempt);
        let name = if job.body.name.is_empty() {
            "guest"
        } else {
            &job.body.name
        };
        let meta = task.meta_data.clone();
        let meta = meta.unwrap_or_else(|| seed::default_meta_data(&attempt, name));
        // Cloud-init wants the file, and takes this for nothing to do.
        let user_data = task.user_data.as_deref().unwrap_or("#cloud-config\n{}\n");
        seed::volume(user_data, &meta)
            .and_then(|volume| write(&directory.join(SEED), &volume, user))
            .map_err(|error| rejected(format!("its cloud-init seed can't be made: {error}")))?;
    }
    Ok(())
}

/// One that an earlier process made for this attempt is its user's already, and empty.
fn make_directory(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(directory)
}

fn write(path: &Path, bytes: &[u8], user: Option<&User>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    give(&file, user)
}

async fn overlay(tool: &Path, directory: &Path, image: &str, disk_mib: u32) -> Result<(), End> {
    let info = run(
        tool,
        &["info", "--output=json", "--force-share", "--", image],
    )
    .await?;
    let info: ImageInfo = serde_json::from_slice(&info)
        .map_err(|error| rejected(format!("{} says nothing useful: {error}", tool.display())))?;
    if !["qcow2", "raw"].contains(&info.format.as_str()) {
        let message = format!(
            "image {image} is of format {}, not qcow2 or raw",
            info.format
        );
        return Err(unusable(message));
    }
    let path = directory.join(DISK);
    let path = path.to_string_lossy();
    let mut words = vec![
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        &info.format,
        "-b",
        image,
    ];
    words.extend(["--", &*path]);
    // A demand of more disk than the image has is met; less is not, since the guest's own file
    // system would be cut.
    let bytes = (u64::from(disk_mib) * MIB)
        .max(info.virtual_bytes)
        .to_string();
    words.push(&bytes);
    run(tool, &words).await.map(|_| ())
}

async fn run(tool: &Path, words: &[&str]) -> Result<Vec<u8>, End> {
    let mut command = Command::new(tool);
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(TOOL_TIMEOUT, command.output()).await;
    let ended = ended
        .map_err(|_| rejected(format!("{} did not end", tool.display())))?
        .map_err(|error| rejected(format!("{}: {error}", tool.display())))?;
    if ended.status.success() {
        return Ok(ended.stdout);
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
    Err(if said.contains("No space left") {
        rejected(said)
    } else {
        unusable(said)
    })
}

fn give(file: &File, user: Option<&User>) -> io::Result<()> {
    user.map_or(Ok(()), |user| {
        std::os::unix::fs::fchown(file, Some(user.uid), Some(user.gid))
    })
}

/// Removes all that [`make`] and the emulator made.
pub(super) fn remove(directory: &Path) {
    for name in [DISK, SEED, MONITOR] {
        match fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(directory = %directory.display(), name, %error, "can't be removed");
            }
            _ => {}
        }
    }
}
