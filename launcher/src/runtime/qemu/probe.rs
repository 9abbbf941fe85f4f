//! Finding out what virtual machines can run here, by running one.
//!
//! A `/dev/kvm` that answers proves nothing: under some hypervisors it opens, makes a machine, gets
//! a guest of a few instructions to its end within seconds, and a kernel never anywhere. So a guest
//! of one boot sector is booted through the emulator's own firmware, counts to 64 million, and must
//! then speak. Emulated, it shows what any machine can do; KVM is believed only if it is faster.
//! Where not even emulation works, no virtual machine is offered.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::Command;
use tokio::time::Instant;

/// The guest takes half a second emulated on a slow machine, and a tenth under KVM; one that does
/// not run never ends.
const BOOT_TIMEOUT: Duration = Duration::from_secs(30);
/// Where nothing is emulated, KVM has this long: twenty times what it takes.
const KVM_TIMEOUT: Duration = Duration::from_secs(5);
/// What the sector says; the debug device makes an exit status of it: twice this, plus one.
const WORD: u8 = 0x2a;
const EXIT_STATUS: i32 = WORD as i32 * 2 + 1;
/// Firmware boots from no disk of a single sector.
const DISK_BYTES: usize = 1024 * 1024;

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

/// A disk with a boot sector: `mov ecx, 0x4000000`, `dec ecx`, `jnz` back, `mov al, WORD`,
/// `out 0xf4, al`, `cli`, `hlt`, `jmp` back, and the firmware's signature.
fn disk() -> Vec<u8> {
    let mut sector = vec![0; DISK_BYTES];
    let code = [
        0x66, 0xb9, 0x00, 0x00, 0x00, 0x04, 0x66, 0x49, 0x75, 0xfc, 0xb0, WORD, 0xe6, 0xf4, 0xfa,
        0xf4, 0xeb, 0xfd,
    ];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Boots what can be booted. `scratch` is a directory for the sector's file.
///
/// # Errors
///
/// Why no guest runs here, in words.
pub async fn probe(program: &Path, scratch: &Path) -> Result<Emulator, String> {
    let found = find(program).ok_or_else(|| format!("there is no {}", program.display()))?;
    let path = scratch.join("probe.img");
    std::fs::create_dir_all(scratch)
        .and_then(|()| std::fs::write(&path, disk()))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let result = boots(&found, &path).await;
    // A leftover is written over by the next probe.
    let _ = std::fs::remove_file(&path);
    result
}

async fn boots(program: &Path, disk: &Path) -> Result<Emulator, String> {
    let emulator = |kvm, sandbox| Emulator {
        program: program.to_path_buf(),
        kvm,
        sandbox,
    };
    if !cfg!(target_arch = "x86_64") {
        // The sector is x86 code. Elsewhere emulation is believed to work as it does everywhere.
        return Ok(emulator(false, false));
    }
    // A user who may not open the device must not pay for the attempt.
    let may_use_kvm = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    let mut reason = String::new();
    for sandbox in [true, false] {
        let emulated = boot(program, disk, "tcg", sandbox, BOOT_TIMEOUT).await;
        let limit = emulated.as_ref().copied().unwrap_or(KVM_TIMEOUT);
        let kvm = may_use_kvm && boot(program, disk, "kvm", sandbox, limit).await.is_ok();
        match emulated {
            Ok(_) => return Ok(emulator(kvm, sandbox)),
            // Some builds can't emulate.
            Err(_) if kvm => return Ok(emulator(true, sandbox)),
            Err(error) => reason = error,
        }
    }
    Err(reason)
}

/// How long the guest took until it spoke.
async fn boot(
    program: &Path,
    disk: &Path,
    accelerator: &str,
    sandbox: bool,
    limit: Duration,
) -> Result<Duration, String> {
    let mut command = Command::new(program);
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-m",
            "16",
        ])
        .args([
            "-accel",
            accelerator,
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=0x04",
        ])
        .args([
            "-blockdev",
            "driver=raw,node-name=sector,read-only=on,file.driver=file,\
                file.filename=/dev/fd/0",
        ])
        .args(["-device", "virtio-blk-pci,drive=sector"]);
    if sandbox {
        command.args([
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny",
        ]);
    }
    let disk = std::fs::File::open(disk).map_err(|error| error.to_string())?;
    command
        .stdin(disk)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let started = Instant::now();
    let child = command
        .spawn()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let ended = tokio::time::timeout(limit, child.wait_with_output()).await;
    let ended = ended
        .map_err(|_| format!("a guest under {accelerator} said nothing for {limit:?}"))?
        .map_err(|error| error.to_string())?;
    spoke(ended.status, &ended.stderr).map(|()| started.elapsed())
}

fn spoke(status: ExitStatus, stderr: &[u8]) -> Result<(), String> {
    if status.code() == Some(EXIT_STATUS) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(stderr);
    Err(text
        .lines()
        .next()
        .map_or_else(|| status.to_string(), str::to_owned))
}

/// A program by its path, or in `PATH`.
pub(crate) fn find(program: &Path) -> Option<PathBuf> {
    use rustix::fs::{Access, access};
    let executable = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if program.components().count() > 1 {
        return executable(program).then(|| program.to_path_buf());
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| executable(path))
}
