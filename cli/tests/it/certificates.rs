//! `pronto cert`, end to end.

use crate::harness::{Scratch, assert_snapshot};
use std::os::unix::fs::PermissionsExt;

#[test]
fn an_authority_issues_shows_and_renews() {
    let scratch = Scratch::new("cert");
    let mut text = String::new();
    for line in [
        "cert init --dir pki --cluster lab",
        "cert init --dir pki --cluster lab",
        "cert issue --ca-dir pki --role launcher --name node-1 --count 3 --dir out",
        "cert issue --ca-dir pki --role launcher --name node-2 --dir out",
        "cert issue --ca-dir pki --role user --name ada --dir out",
        "cert issue --ca-dir pki --role user --tenant physics --name ada --dir out",
        "cert issue --ca-dir pki --role boss --name ada --dir out",
        "cert issue --ca-dir pki --role launcher --name ../x --dir out",
        "cert issue --ca-dir elsewhere --role launcher --name x",
        "cert renew out/node-1.crt --ca-dir pki --days 30",
        "cert show out/node-1.key",
        "cert revoke out/node-1.crt out/ada.crt --ca-dir pki",
        "cert revoke --serial 0a:ff --ca-dir pki",
        "cert revoke --ca-dir pki",
        "cert revoke --serial 0aff7 --ca-dir pki",
        "cert revoke out/node-1.key --ca-dir pki",
    ] {
        text += &scratch.run(line).transcript();
        text.push('\n');
    }
    assert_snapshot("cert.txt", &text);
    let mode = |name: &str| {
        std::fs::metadata(scratch.path.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("pki/ca.key"), 0o600);
    assert_eq!(mode("out/node-3.key"), 0o600);
    assert_eq!(mode("out/node-3.crt"), 0o644);
}

#[test]
fn show_says_who_and_for_how_long() {
    let scratch = Scratch::new("cert-show");
    scratch.run("cert init");
    scratch.run("cert issue --role user --tenant physics --name ada --days 2 --host localhost");
    let shown = scratch.run("cert show pki/ada.crt");
    for words in [
        "spiffe://pronto/user/physics/ada",
        "valid for another ",
        "localhost",
    ] {
        assert!(shown.stdout.contains(words), "{words}: {}", shown.stdout);
    }
    let json: serde_json::Value =
        serde_json::from_str(&scratch.run("cert show pki/ca.crt -o json").stdout).unwrap();
    assert_eq!(json["ca"], true);
    assert_eq!(json["uris"][0], "spiffe://pronto");
}

/// Whose certificate it is, and that it is of another cluster: not what a library calls it.
#[test]
fn a_certificate_of_another_cluster_is_told_in_words() {
    let scratch = Scratch::new("foreign");
    scratch.run("cert init --dir ours");
    scratch.run("cert init --dir theirs");
    scratch.run("cert issue --ca-dir theirs --role admin --name eve --dir theirs");
    let refused = scratch.run(
        "list nodes --controller localhost:1 --ca ours/ca.crt --cert theirs/eve.crt \
         --key theirs/eve.key",
    );
    assert_eq!(refused.code, 2);
    let said = refused.transcript();
    assert!(
        said.contains("admin/eve was not issued by this cluster's CA"),
        "{said}"
    );
}
