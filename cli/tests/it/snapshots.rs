//! Help and errors, word for word: a change of either shows in the review.

use crate::harness::{Scratch, assert_snapshot};
use std::fmt::Write;

fn transcripts(scratch: &Scratch, lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        writeln!(text, "{}", scratch.run(line).transcript()).unwrap();
    }
    text
}

#[test]
fn help_of_every_command() {
    let scratch = Scratch::new("help");
    let lines = [
        "--help",
        "help exit-codes",
        "help workload-file",
        "run --help",
        "create instance --help",
        "create workload --help",
        "create tenant --help",
        "list --help",
        "list instances --help",
        "list events --help",
        "show --help",
        "update --help",
        "delete --help",
        "stop instance --help",
        "restart instance --help",
        "logs --help",
        "exec --help",
        "cp --help",
        "explain --help",
        "drain --help",
        "restore --help",
        "cert --help",
        "cert issue --help",
        "dev --help",
        "completion --help",
        "scheduler --help",
    ];
    assert_snapshot("help.txt", &transcripts(&scratch, &lines));
}

#[test]
fn errors_say_what_is_accepted_and_what_to_do_next() {
    let scratch = Scratch::new("errors");
    scratch.write(
        "bad.yaml",
        "name: a\ncommand: [ls]\nresources: {memory: lots}\n",
    );
    scratch.write("stray.yaml", "name: a\ncommand: [ls]\nkernel: /vmlinuz\n");
    scratch.write("typo.yaml", "name: a\ncomand: [ls]\n");
    scratch.write("typo.toml", "tenant = 'x'\ncontroler = 'https://h'\n");
    scratch.write(
        "unreachable.toml",
        "controllers = ['https://127.0.0.1:1']\n[tls]\nca = 'pki/ca.crt'\ncert = 'pki/root.crt'\nkey = 'pki/root.key'\n",
    );
    scratch.run("cert init --dir pki --cluster lab");
    scratch.run("cert issue --ca-dir pki --role admin --name root");
    let lines = [
        "bogus",
        "list",
        "list pods",
        "run --cpus lots -- true",
        "run --cpu 1 -- true",
        "run --memory 12Q -- true",
        "run --gpus 1.5 -- true",
        "run --constraint zone -- true",
        "run --on-disconnect sometimes -- true",
        "run --restart often -- true",
        "run --priority 2000 -- true",
        "create instance --count 0 -- true",
        "run -- true",
        "run --client-config missing.toml -- true",
        "run --client-config typo.toml -- true",
        "run --client-config unreachable.toml -- true",
        "run --client-config unreachable.toml",
        "run --client-config unreachable.toml --kernel /k --runtime exec -- ls",
        "run --client-config unreachable.toml --name ü -- true",
        "create instance --client-config unreachable.toml --name a/b -- true",
        "run --client-config unreachable.toml --file bad.yaml",
        "run --client-config unreachable.toml --file stray.yaml",
        "create workload --client-config unreachable.toml --file typo.yaml",
        "cp --client-config unreachable.toml a b",
        "update quota --client-config unreachable.toml t cores=4",
        "scheduler --config missing.toml",
        "help bogus",
    ];
    assert_snapshot("errors.txt", &transcripts(&scratch, &lines));
}

#[test]
fn completion_and_manual_pages_are_made() {
    let scratch = Scratch::new("local");
    for shell in ["bash", "zsh", "fish"] {
        let ran = scratch.run(&format!("completion {shell}"));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stdout.contains("pronto"), "{shell}");
    }
    let page = scratch.run("man");
    assert!(
        page.stdout.contains(".TH") && page.stdout.contains("Exit codes"),
        "{}",
        page.stdout
    );
    assert_eq!(scratch.run("man --dir man").code, 0);
    assert!(scratch.path.join("man/pronto-list-instances.1").exists());
}

#[test]
fn the_version_is_one_line_on_stdout() {
    let ran = Scratch::new("version").run("--version");
    assert_eq!(
        ran.stdout,
        concat!("pronto ", env!("CARGO_PKG_VERSION"), "\n")
    );
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let scratch = Scratch::new("pipe");
    let mut child = scratch
        .command("help workload-file")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    // It may have written before we closed our end; if not, it ends as SIGPIPE would end it.
    assert!(matches!(output.status.code(), Some(0 | 141)), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
