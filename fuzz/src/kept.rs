//! The corpora, for ordinary tests of the crates that stand beside this one.

/// What the fuzzers have found to reach something new, and each finding of theirs.
pub(crate) fn kept(target: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("each target has a corpus")
        .map(|entry| entry.expect("a file").path())
        .collect();
    // A folder has no order, and mutations are to be the same everywhere.
    files.sort();
    let read = |file| std::fs::read(file).expect("a kept input is readable");
    files.into_iter().map(read).collect()
}
