//! Runs the binary in a directory of its own, with an environment of its own.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory that goes when the test ends.
pub(crate) struct Scratch {
    pub(crate) path: PathBuf,
}

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pronto-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self { path }
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The binary, in this directory, with nothing of our own environment.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pronto"));
        command
            .args(line.split_whitespace())
            .current_dir(&self.path)
            .env_clear()
            .env("HOME", &self.path)
            .env("PATH", "/usr/bin:/bin");
        command
    }

    pub(crate) fn run(&self, line: &str) -> Ran {
        Ran::new(line, &self.path, &self.command(line).output().unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// What a command did.
pub(crate) struct Ran {
    line: String,
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn new(line: &str, directory: &Path, output: &Output) -> Self {
        let text = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).replace(&directory.display().to_string(), "[DIR]")
        };
        Self {
            line: line.to_owned(),
            code: output.status.code().unwrap(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// As it stands in a snapshot.
    pub(crate) fn transcript(&self) -> String {
        let mut text = format!("$ pronto {}\n", self.line);
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !stream.is_empty() {
                writeln!(text, "--- {name}").unwrap();
                for line in stream.lines() {
                    writeln!(text, "{}", line.trim_end()).unwrap();
                }
            }
        }
        writeln!(text, "--- exit code {}", self.code).unwrap();
        text
    }
}

/// Holds a text against the snapshot of this name; `PRONTO_UPDATE_SNAPSHOTS=1` writes it instead.
pub(crate) fn assert_snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/snapshots")
        .join(name);
    if std::env::var_os("PRONTO_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{} differs; PRONTO_UPDATE_SNAPSHOTS=1 rewrites it. Now:\n{text}",
        path.display()
    );
}
