//! Commands that are refused, interrupted or asked for what is not there: what they say, what they
//! exit with, and that they leave nothing behind.

use crate::cluster::Cluster;
use std::process::Output;

/// Code and words of a command that did not succeed.
fn refusal(output: &Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// The controller says so and closes, long before it could have read such a file.
#[test]
fn a_refusal_is_told_while_a_large_file_is_sent() {
    let cluster = Cluster::start("refusal", 1);
    let large = cluster.scratch("large");
    let file = std::fs::File::create(&large).expect("a file");
    file.set_len(256 << 20).expect("a sparse file");
    for _ in 0..5 {
        let refused = cluster.run(&["cp", &large.display().to_string(), "nobody:large"]);
        let (code, said) = refusal(&refused);
        assert_eq!(code, Some(121), "{said}");
        assert!(said.contains("no instance nobody"), "{said}");
    }
}
