//! The emulator's command line, made from a workload: pure, so that every word of it is tested.
//!
//! The emulator runs in its attempt's directory and finds its own files there by plain names, so
//! nothing of a user's choosing is ever parsed as an option's suboption.

use super::probe::Emulator;
use pronto_payloads::demand::Demand;
use pronto_payloads::start::{Port, QemuTask};

/// The copy-on-write disk of an attempt.
pub(super) const DISK: &str = "disk.qcow2";
/// Its cloud-init seed.
pub(super) const SEED: &str = "seed.img";
/// Its monitor's socket.
pub(super) const MONITOR: &str = "qmp";

/// What emulation itself takes beside the guest's memory: the translation buffer below, device
/// state, and the emulator's own heap (measured at 60 to 110 MiB for guests of 128 MiB to 2 GiB).
pub(super) const OVERHEAD_MIB: u32 = 192;
/// The same where only an rlimit holds it, which counts what is mapped and not what is used: the
/// reserves of a dozen threads, and of each coroutine.
pub(super) const OVERHEAD_MAPPED_MIB: u32 = 1024;
/// TCG's buffer of translated code, which would be an eighth of the host's memory otherwise.
const TRANSLATION_BUFFER_MIB: u32 = 64;
/// The serial port on which a Linux guest is asked to speak.
const CONSOLE: &str = if cfg!(target_arch = "aarch64") {
    "ttyAMA0"
} else {
    "ttyS0"
};

/// One guest, all choices made.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) name: &'a str,
    pub(super) emulator: &'a Emulator,
    pub(super) task: &'a QemuTask,
    pub(super) demand: &'a Demand,
    /// The task's ports with every 0 replaced.
    pub(super) ports: &'a [Port],
    /// It has a seed.
    pub(super) seed: bool,
}

/// Virtual CPUs: the demand's cores, rounded up.
pub(super) fn vcpus(demand: &Demand) -> u32 {
    demand.cpu_millis.div_ceil(1000).max(1)
}

/// A Linux kernel measures its timer against interrupts at boot, and gives up on a machine whose
/// emulation was held up meanwhile; libguestfs found the same.
const NO_TIMER_CHECK: &str = "no_timer_check";

/// What the guest's kernel is told. A console is added where the user names none, since the console
/// is the log.
fn append(task: &QemuTask, emulated: bool) -> String {
    let has = |start: &str| {
        task.append
            .split_ascii_whitespace()
            .any(|word| word.starts_with(start))
    };
    let mut line = task.append.trim().to_owned();
    let mut add = |word: &str| {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    };
    if !has("console=") {
        add(&format!("console={CONSOLE}"));
    }
    if emulated && cfg!(target_arch = "x86_64") && !has(NO_TIMER_CHECK) {
        add(NO_TIMER_CHECK);
    }
    line
}

impl Machine<'_> {
    /// Program and arguments.
    pub(super) fn command(&self) -> Vec<String> {
        let mut words = vec![self.emulator.program.to_string_lossy().into_owned()];
        let mut add = |these: &[&str]| words.extend(these.iter().map(|word| (*word).to_owned()));
        add(&["-name", self.name]);
        add(&[
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        if self.emulator.sandbox {
            add(&[
                "-sandbox",
                "on,obsolete=deny,elevateprivileges=deny,spawn=deny",
            ]);
        }
        if self.emulator.kvm {
            add(&["-accel", "kvm", "-cpu", "host"]);
        } else {
            // Five-level paging would cost each emulated page walk a fifth step.
            add(&["-accel", &format!("tcg,tb-size={TRANSLATION_BUFFER_MIB}")]);
            add(&[
                "-cpu",
                if cfg!(target_arch = "x86_64") {
                    "max,la57=off"
                } else {
                    "max"
                },
            ]);
        }
        if cfg!(target_arch = "aarch64") {
            add(&["-machine", "virt"]);
        }
        add(&["-m", &self.demand.memory_mib.max(1).to_string()]);
        add(&["-smp", &vcpus(self.demand).to_string()]);
        add(&[
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ]);
        add(&[
            "-chardev",
            &format!("socket,id=monitor,path={MONITOR},server=on,wait=off"),
        ]);
        add(&["-mon", "chardev=monitor,mode=control"]);
        add(&["-object", "rng-random,id=entropy,filename=/dev/urandom"]);
        add(&["-device", "virtio-rng-pci,rng=entropy"]);
        add(&["-netdev", &format!("user,id=net{}", forwards(self.ports))]);
        // Without a ROM: guests boot from their kernel or disk, never from the network.
        add(&["-device", "virtio-net-pci,netdev=net,romfile="]);
        if self.task.image.is_some() {
            // Unsafe as to the host's crash only: the overlay goes with its attempt anyhow.
            let disk = "if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap";
            add(&["-drive", &format!("file={DISK},{disk}")]);
            add(&["-device", "virtio-blk-pci,drive=disk,bootindex=1"]);
        }
        if self.seed {
            add(&[
                "-drive",
                &format!("file={SEED},if=none,id=seed,format=raw,readonly=on"),
            ]);
            add(&["-device", "virtio-blk-pci,drive=seed"]);
        }
        if let Some(kernel) = &self.task.kernel {
            add(&[
                "-kernel",
                kernel,
                "-append",
                &append(self.task, !self.emulator.kvm),
            ]);
        }
        if let Some(initrd) = &self.task.initrd {
            add(&["-initrd", initrd]);
        }
        words
    }
}

fn forwards(ports: &[Port]) -> String {
    ports
        .iter()
        .map(|port| {
            let protocol = if port.udp { "udp" } else { "tcp" };
            format!(",hostfwd={protocol}::{}-:{}", port.host, port.guest)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(task: &QemuTask, demand: &Demand, kvm: bool, seed: bool) -> String {
        let emulator = Emulator {
            program: "/bin/qemu".into(),
            kvm,
            sandbox: true,
        };
        let machine = Machine {
            name: "guest",
            emulator: &emulator,
            task,
            demand,
            ports: &task.ports,
            seed,
        };
        machine.command().join(" ")
    }

    #[test]
    fn the_demand_sizes_the_guest() {
        let task = QemuTask {
            kernel: Some("/k".into()),
            ..QemuTask::default()
        };
        let demand = Demand {
            cpu_millis: 1001,
            memory_mib: 300,
            ..Demand::default()
        };
        let line = words(&task, &demand, false, false);
        assert!(line.contains(" -m 300 -smp 2 "), "{line}");
        assert!(line.contains("-accel tcg,tb-size=64 "), "{line}");
        assert!(
            line.contains(&format!("-kernel /k -append console={CONSOLE}")),
            "{line}"
        );
        assert!(!line.contains("-drive"), "{line}");
        assert!(words(&task, &demand, true, false).contains("-accel kvm -cpu host"));
        let emulated = append(&task, true);
        assert_eq!(
            emulated.contains("no_timer_check"),
            cfg!(target_arch = "x86_64")
        );
        assert_eq!(vcpus(&Demand::default()), 1);
    }

    #[test]
    fn disk_seed_ports_and_kernel_are_wired() {
        let task = QemuTask {
            image: Some("/images/a,b.qcow2".into()),
            initrd: Some("/i".into()),
            kernel: Some("/k".into()),
            append: "console=hvc0 quiet".into(),
            ports: vec![
                Port {
                    host: 8080,
                    guest: 80,
                    udp: false,
                },
                Port {
                    host: 53,
                    guest: 5353,
                    udp: true,
                },
            ],
            ..QemuTask::default()
        };
        let line = words(&task, &Demand::default(), true, true);
        assert!(line.contains("user,id=net,hostfwd=tcp::8080-:80,hostfwd=udp::53-:5353 "));
        assert!(line.contains("file=disk.qcow2,"), "{line}");
        assert!(line.contains("file=seed.img,"), "{line}");
        assert!(
            !line.contains("a,b"),
            "the user's path is no option's part: {line}"
        );
        assert!(
            line.ends_with("-append console=hvc0 quiet -initrd /i"),
            "{line}"
        );
    }
}
