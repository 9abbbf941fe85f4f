//! What workloads really did: each appends a line with its instance and attempt to one file.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A file that workloads write to.
#[derive(Debug)]
pub(crate) struct Evidence {
    path: PathBuf,
}

impl Evidence {
    pub(crate) fn new(path: PathBuf) -> Self {
        // Workloads may run as another user than the test.
        std::fs::File::create(&path).expect("an evidence file");
        std::os::unix::fs::chown(&path, None, None).expect("our own file");
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("our file");
        Self { path }
    }

    /// A shell command that leaves its line, then does `then`.
    ///
    /// One short write with O_APPEND: lines of concurrent workloads don't mix.
    pub(crate) fn command(&self, then: &str) -> String {
        format!(
            "echo $PRONTO_INSTANCE $PRONTO_ATTEMPT >> {}; {then}",
            self.path.display()
        )
    }

    /// For each instance the attempts that ran, in the order in which they wrote.
    pub(crate) fn attempts(&self) -> BTreeMap<String, Vec<u32>> {
        let mut seen = BTreeMap::<String, Vec<u32>>::new();
        for line in std::fs::read_to_string(&self.path)
            .expect("the evidence is readable")
            .lines()
        {
            let (instance, attempt) = line.split_once(' ').expect("'instance attempt'");
            seen.entry(instance.to_owned())
                .or_default()
                .push(attempt.parse().expect("a number"));
        }
        seen
    }

    /// Fails if any attempt of any instance ran twice.
    pub(crate) fn assert_no_attempt_ran_twice(&self) {
        for (instance, attempts) in self.attempts() {
            let mut distinct = attempts.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(
                distinct.len(),
                attempts.len(),
                "{instance} ran as {attempts:?}"
            );
        }
    }
}
