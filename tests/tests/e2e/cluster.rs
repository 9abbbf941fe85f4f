//! A real cluster for one test: `pronto dev` with its own data directory, and the command line.
//!
//! Every process is started from the built binary and ended through `pronto dev --stop` when the
//! value is dropped, also when the test fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long anything in a test may take before it counts as hung: these machines are slow at times.
const PATIENCE: Duration = Duration::from_secs(120);

/// The binary under test: `PRONTO_BIN`, or the one built beside this test's own executable.
pub(crate) fn pronto() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("PRONTO_BIN") {
            return path.into();
        }
        let test = std::env::current_exe().expect("a running test has a path");
        let profile = test
            .ancestors()
            .nth(2)
            .expect("target/<profile>/deps/<test>");
        let release = profile.ends_with("release");
        // Cargo builds the binaries of a package for its own tests alone, and this is another's.
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--package", "pronto-cli"]);
        if release {
            build.arg("--release");
        }
        build.env(
            "CARGO_TARGET_DIR",
            profile.parent().expect("a profile is inside of target"),
        );
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(
            build.status().expect("cargo runs").success(),
            "pronto does not build"
        );
        profile.join("pronto")
    })
}

/// A cluster on this machine, and its scratch directory.
#[derive(Debug)]
pub(crate) struct Cluster {
    root: PathBuf,
    /// Variables that its daemons find.
    environment: Vec<(String, String)>,
}

impl Cluster {
    /// A running cluster with so many launchers.
    pub(crate) fn start(name: &str, launchers: u32) -> Self {
        Self::start_with(name, launchers, &[])
    }

    /// The same with variables in its daemons' environment.
    pub(crate) fn start_with(name: &str, launchers: u32, environment: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("pronto-e2e-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).expect("a scratch directory");
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let cluster = Self { root, environment };
        cluster.up(launchers);
        cluster
    }

    /// Starts it (again) on its data directory.
    pub(crate) fn up(&self, launchers: u32) {
        // Its output goes to a file: the daemons inherit it, and a pipe would never end.
        let log = File::create(self.root.join("dev.out")).expect("a log file");
        let status = Command::new(pronto())
            .args([
                "dev",
                "--detach",
                "--launchers",
                &launchers.to_string(),
                "--data-dir",
            ])
            .arg(self.data_dir())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .status()
            .expect("pronto starts");
        assert!(
            status.success(),
            "pronto dev failed:\n{}",
            self.dev_output()
        );
    }

    /// Ends it with its workloads; the data directory stays.
    pub(crate) fn down(&self) -> ExitStatus {
        Command::new(pronto())
            .args(["dev", "--stop", "--data-dir"])
            .arg(self.data_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("pronto starts")
    }

    pub(crate) fn dev_output(&self) -> String {
        std::fs::read_to_string(self.root.join("dev.out")).unwrap_or_default()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.root.join("dev")
    }

    /// A path for a test's own files.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A command of the user, ready to be added to.
    pub(crate) fn command<I: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = I>,
    ) -> Command {
        let mut command = Command::new(pronto());
        command
            .args(arguments)
            .env("PRONTO_CONFIG", self.data_dir().join("client.toml"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command of the user to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("pronto starts")
    }

    /// The same, which must succeed; its standard output.
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

    /// The same with `-o json`.
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.must(&all)).expect("-o json prints JSON")
    }

    /// The process ids of this cluster's daemons of one kind (`scheduler`, `controller`,
    /// `launcher`), found by their command lines, which name files under its data directory.
    pub(crate) fn daemons(&self, kind: &str) -> Vec<i32> {
        let directory = self.data_dir().display().to_string();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")
            .expect("/proc is mounted")
            .flatten()
        {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
                continue;
            };
            let words: Vec<_> = line
                .split(|&byte| byte == 0)
                .map(String::from_utf8_lossy)
                .collect();
            let is_ours = words.iter().any(|word| word.starts_with(&directory));
            if is_ours && words.get(1).is_some_and(|word| word == kind) {
                found.push(pid);
            }
        }
        found.sort_unstable();
        found
    }

    /// SIGKILL to one daemon of this cluster.
    pub(crate) fn kill(&self, kind: &str) -> i32 {
        let pid = *self
            .daemons(kind)
            .first()
            .unwrap_or_else(|| panic!("no {kind} is running"));
        signal(pid, "KILL");
        pid
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- pronto dev said:\n{}", self.dev_output());
        }
        self.down();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Sends a signal to a process that this test has found by its cluster.
pub(crate) fn signal(pid: i32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    assert!(status.expect("kill runs").success(), "no process {pid}");
}

/// Waits for a condition, asking it again and again, and fails loudly when patience ends.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < PATIENCE,
            "waited {PATIENCE:?} for: {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
