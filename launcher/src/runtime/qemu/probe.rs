//! Finding out what virtual machines can run here, by running one.
//!
//! A `/dev/kvm` that answers proves nothing: under some hypervisors it opens, makes a machine, and
//! never gets a guest anywhere. So a guest of one disk sector is booted through the emulator's own
//! firmware, which takes thousands of instructions in all processor modes, and must speak within a
//! limit; first under KVM, else emulated. Where not even that works, no virtual machine is offered.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::Command;

/// Firmware and sector take 0.1 s under KVM and 0.6 s under TCG on a slow machine; a guest that
/// does not run never ends.
const BOOT_TIMEOUT: Duration = Duration::from_secs(20);
/// KVM that works is a hundred times faster than this.
const KVM_TIMEOUT: Duration = Duration::from_secs(5);
/// What the sector says; the debug device makes an exit status of it: twice this, plus one.
const WORD: u8 = 0x2a;
const EXIT_STATUS: i32 = WORD as i32 * 2 + 1;

/// An emulator that has booted a guest here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emulator {
    /// Its program.
    pub program: PathBuf,
    /// Hardware acceleration works; otherwise everything is translated.
    pub kvm: bool,
    /// It was built with its system call filter.
    pub sandbox: bool,
}

impl Emulator {
    /// As node facts say it.
    #[must_use]
    pub const fn acceleration(&self) -> &'static str {
        if self.kvm { "kvm" } else { "tcg" }
    }
}

/// A boot sector: `mov al, WORD; out 0xf4, al; cli; hlt; jmp $-1`, and the firmware's signature.
fn sector() -> [u8; 512] {
    let mut sector = [0; 512];
    let code = [0xb0, WORD, 0xe6, 0xf4, 0xfa, 0xf4, 0xeb, 0xfd];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Boots what can be booted. `scratch` is a directory for the sector's file.
///
/// # Errors
///
/// Why no guest runs here, in words.
pub async fn probe(program: &Path, scratch: &Path) -> Result<Emulator, String> {
    let found = find(program).ok_or_else(|| format!("there is no {}", program.display()))?;
    let disk = scratch.join("probe.img");
    std::fs::create_dir_all(scratch)
        .and_then(|()| std::fs::write(&disk, sector()))
        .map_err(|error| format!("{}: {error}", disk.display()))?;
    let result = boots(&found, &disk).await;
    // A leftover is written over by the next probe.
    let _ = std::fs::remove_file(&disk);
    result
}

async fn boots(program: &Path, disk: &Path) -> Result<Emulator, String> {
    let emulator =
        |kvm, sandbox| Emulator { program: program.to_path_buf(), kvm, sandbox };
    if !cfg!(target_arch = "x86_64") {
        // The sector is x86 code. Elsewhere emulation is believed to work as it does everywhere.
        return Ok(emulator(false, false));
    }
    // A user who may not open the device must not pay for the attempt.
    let may_use_kvm =
        std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if may_use_kvm && boot(program, disk, "kvm", true, KVM_TIMEOUT).await.is_ok() {
        return Ok(emulator(true, true));
    }
    match boot(program, disk, "tcg", true, BOOT_TIMEOUT).await {
        Ok(()) => return Ok(emulator(false, true)),
        Err(error) => tracing::debug!(%error, "no guest with the system call filter"),
    }
    if may_use_kvm && boot(program, disk, "kvm", false, KVM_TIMEOUT).await.is_ok() {
        return Ok(emulator(true, false));
    }
    boot(program, disk, "tcg", false, BOOT_TIMEOUT).await?;
    Ok(emulator(false, false))
}

async fn boot(
    program: &Path,
    disk: &Path,
    accelerator: &str,
    sandbox: bool,
    limit: Duration,
) -> Result<(), String> {
    let mut command = Command::new(program);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16"])
        .args(["-accel", accelerator, "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
        .args(["-blockdev", "driver=raw,node-name=sector,read-only=on,file.driver=file,\
                file.filename=/dev/fd/0"])
        .args(["-device", "virtio-blk-pci,drive=sector"]);
    if sandbox {
        command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]);
    }
    let disk = std::fs::File::open(disk).map_err(|error| error.to_string())?;
    command.stdin(disk).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
    let ended = tokio::time::timeout(limit, child.wait_with_output()).await;
    let ended = ended
        .map_err(|_| format!("a guest under {accelerator} said nothing for {limit:?}"))?
        .map_err(|error| error.to_string())?;
    spoke(ended.status, &ended.stderr)
}

fn spoke(status: ExitStatus, stderr: &[u8]) -> Result<(), String> {
    if status.code() == Some(EXIT_STATUS) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(stderr);
    Err(text.lines().next().map_or_else(|| status.to_string(), str::to_owned))
}

/// A program by its path, or in `PATH`.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    use rustix::fs::{Access, access};
    let executable =
        |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if program.components().count() > 1 {
        return executable(program).then(|| program.to_path_buf());
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| executable(path))
}
