//! Where settings come from, seen from outside: which one wins shows in the error.

use crate::harness::{Ran, Scratch};

fn with_pki(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    scratch.run("cert init --dir pki");
    scratch.run("cert issue --role admin --name root");
    scratch
}

fn file(port: u16) -> String {
    // Port numbers below 10 are nobody's on any machine that tests run on.
    format!(
        "controllers = ['https://127.0.0.1:{port}']\n[tls]\nca = '[PKI]/ca.crt'\n\
         cert = '[PKI]/root.crt'\nkey = '[PKI]/root.key'\n"
    )
}

fn write(scratch: &Scratch, name: &str, port: u16) {
    let pki = scratch.path.join("pki").display().to_string();
    scratch.write(name, &file(port).replace("[PKI]", &pki));
}

#[test]
fn flag_then_environment_then_named_file_then_the_users() {
    let scratch = with_pki("order");
    std::fs::create_dir_all(scratch.path.join(".config/pronto")).unwrap();
    write(&scratch, ".config/pronto/client.toml", 1);
    write(&scratch, "named.toml", 2);
    let run = |line: &str, environment: &[(&str, &str)]| {
        let output = scratch
            .command(line)
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let ran = Ran::new(line, &scratch.path, &output);
        assert_eq!(ran.code, 122, "{}", ran.stderr);
        ran.stderr
    };
    let port = |stderr: &str, port: u16| {
        assert!(stderr.contains(&format!("127.0.0.1:{port}")), "{stderr}");
    };
    let line = "list nodes";
    port(&run(line, &[]), 1);
    port(&run(line, &[("PRONTO_CONFIG", "named.toml")]), 2);
    let both = [
        ("PRONTO_CONFIG", "named.toml"),
        ("PRONTO_CONTROLLERS", "https://127.0.0.1:3"),
    ];
    port(&run(line, &both), 3);
    port(
        &run("list nodes --controller https://127.0.0.1:4", &both),
        4,
    );
}

/// A usage line names what a command needs, which is not what the environment has said already.
#[test]
fn what_the_environment_says_is_in_no_usage_line() {
    let scratch = Scratch::new("usage");
    let output = scratch
        .command("show instance")
        .env("PRONTO_CONFIG", "named.toml")
        .env("PRONTO_TENANT", "physics")
        .output()
        .unwrap();
    let ran = Ran::new("show instance", &scratch.path, &output);
    assert_eq!(ran.code, 2);
    let usage = "Usage: pronto show instance <INSTANCE>\n";
    assert!(ran.stderr.contains(usage), "{}", ran.stderr);
}

#[test]
fn an_unknown_key_is_a_usage_error() {
    let scratch = Scratch::new("unknown-key");
    scratch.write("c.toml", "colour = 'red'\n");
    let ran = scratch.run("list nodes --client-config c.toml");
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("unknown field `colour`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_key_that_all_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = with_pki("open-key");
    write(&scratch, "c.toml", 1);
    let key = scratch.path.join("pki/root.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ran = scratch.run("list nodes --client-config c.toml");
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("chmod 600"), "{}", ran.stderr);
}

/// A log's disk may be full, or its reader gone.
#[test]
fn a_full_stderr_changes_no_exit_code() {
    let scratch = with_pki("full");
    write(&scratch, "client.toml", 1);
    let code = |line: &str| {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let mut command = scratch.command(line);
        command.env("PRONTO_CONFIG", scratch.path.join("client.toml"));
        command.stderr(full.unwrap()).status().unwrap().code()
    };
    assert_eq!(code("list nodes"), Some(122));
    assert_eq!(code("run -- true"), Some(122));
    // It logs before it finds out that there is nowhere to listen.
    scratch.run("cert issue --role scheduler --name s");
    let tls = "[tls]\nca = 'pki/ca.crt'\ncert = 's.crt'\nkey = 's.key'\n";
    scratch.write("s.toml", &format!("listen = '203.0.113.1:1'\n{tls}"));
    assert_eq!(code("scheduler --config s.toml"), Some(125));
}
