//! Two schedulers, launchers that hang: who takes over, and what becomes of the work.

use crate::cluster::wait_until;
use crate::evidence::Evidence;
use crate::rig::{Plan, Rig, launcher, scheduler};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

/// Two seconds are promised of a quiet machine (see SPECIFICATION.md); this one may be busy.
const FAILOVER_LIMIT: Duration = Duration::from_secs(10);

fn two_schedulers(launchers: usize) -> Plan {
    Plan {
        schedulers: 2,
        launchers,
        ..Plan::default()
    }
}

/// The active scheduler is killed under load: a hundred launchers and the controller go to the
/// other, and every instance ends as it should.
#[test]
fn a_hundred_launchers_fail_over_and_nothing_is_lost() {
    let mut rig = Rig::new("failover", two_schedulers(1));
    let certs = rig.path("nodes");
    let pki = rig.path("pki");
    rig.local(&[
        "cert", "issue", "--role", "launcher", "--name", "sim", "--count", "100", "--ca-dir", &pki,
        "--dir", &certs,
    ]);
    let config = rig.path("node-1.toml");
    let text = std::fs::read_to_string(&config).expect("a file");
    std::fs::write(&config, format!("simulate_certs_dir = {certs:?}\n{text}")).expect("a file");
    rig.start(&scheduler(1));
    rig.start(&scheduler(2));
    rig.start("controller");
    rig.start_with(&launcher(1), &["--simulate", "100"]);
    rig.await_ready(100);
    let submit = |count: &str| {
        rig.must(&[
            "create",
            "instance",
            "--count",
            count,
            "--cpus",
            "0.001",
            "--memory",
            "4M",
            "--runtime",
            "sim",
            "--run-for",
            "2s",
            "--detach",
        ]);
    };
    submit("500");
    rig.kill(&scheduler(1));
    let began = Instant::now();
    wait_until("all are at the other scheduler", || {
        rig.log(&scheduler(2)).matches("launcher connected").count() >= 100
            && rig.log(&scheduler(2)).contains("warm-up is over")
    });
    let took = began.elapsed();
    eprintln!("100 launchers and the controller failed over in {took:?}");
    assert!(took < FAILOVER_LIMIT, "{took:?}");
    rig.must(&[
        "create",
        "instance",
        "--count",
        "500",
        "--cpus",
        "0.001",
        "--memory",
        "4M",
        "--runtime",
        "sim",
        "--run-for",
        "100ms",
        "--detach",
    ]);
    wait_until("every instance has succeeded", || {
        let Some(list) = rig.try_json(&["list", "instances", "--limit", "2000"]) else {
            return false;
        };
        let list = list["instances"].as_array().cloned().unwrap_or_default();
        list.len() == 1000 && list.iter().all(|instance| instance["state"] == "succeeded")
    });
}

/// A standby refuses placements, and a launcher that finds itself there goes to the active one.
#[test]
fn a_launcher_at_the_standby_finds_the_active_one() {
    let mut rig = Rig::new("standby", two_schedulers(2));
    rig.configure_launcher(&launcher(2), &[scheduler(2), scheduler(1)]);
    rig.start(&scheduler(1));
    rig.start("controller");
    rig.start(&launcher(1));
    rig.await_ready(1);
    rig.start(&scheduler(2));
    wait_until("the standby listens", || {
        rig.log(&scheduler(2)).contains("scheduler is listening")
    });
    rig.start(&launcher(2));
    wait_until("it came to the standby first", || {
        rig.log(&scheduler(2)).contains("launcher connected")
    });
    rig.await_ready(2);
    assert!(!rig.log(&scheduler(2)).contains("activated"));
}

/// The active scheduler hangs instead of dying: the cluster goes on with the other, and the one
/// that comes back is obeyed by nobody.
#[test]
fn a_hung_scheduler_is_left_and_obeyed_no_more() {
    let mut rig = Rig::new("hung", two_schedulers(2));
    let evidence = Evidence::new(rig.path("evidence").into());
    let script = evidence.command("sleep 0.1");
    rig.start_all();
    rig.await_ready(2);
    let submit = || {
        rig.must(&[
            "create", "instance", "--count", "50", "--cpus", "0.01", "--memory", "16M", "--detach",
            "--", "sh", "-c", &script,
        ]);
    };
    submit();
    rig.signal(&scheduler(1), "STOP");
    submit();
    let ended = |count: usize| {
        rig.try_json(&["list", "instances", "--limit", "500"])
            .is_some_and(|list| {
                let list = list["instances"].as_array().cloned().unwrap_or_default();
                list.len() == count && list.iter().all(|one| one["state"] == "succeeded")
            })
    };
    wait_until("the other scheduler serves them", || ended(100));
    rig.signal(&scheduler(1), "CONT");
    submit();
    wait_until("all goes on", || ended(150));
    evidence.assert_no_attempt_ran_twice();
    assert_eq!(evidence.attempts().len(), 150);
}

/// A launcher that hangs is noticed and given nothing more; its work is placed elsewhere by
/// policy, and what it still ran is ended when it comes back.
#[test]
fn a_hung_launcher_is_noticed_and_its_stale_attempt_ended() {
    let mut rig = Rig::new(
        "hung-node",
        Plan {
            schedulers: 1,
            launchers: 2,
            controller: "lost_after_ms = 2000".to_owned(),
            scheduler: "[timeouts]\nkeepalive_ms = 2000\nidle_ms = 9000".to_owned(),
            ..Plan::default()
        },
    );
    rig.start_all();
    rig.await_ready(2);
    let script = format!(
        "echo $$ > {}-$PRONTO_ATTEMPT; exec sleep 600",
        rig.path("pid")
    );
    let id = rig.must(&[
        "run", "--detach", "--node", "node-1", "--", "sh", "-c", &script,
    ]);
    let moving = rig.must(&[
        "run",
        "--detach",
        "--cpus",
        "0.1",
        "--",
        "sh",
        "-c",
        &format!(
            "echo $$ > {}-$PRONTO_NODE-$PRONTO_ATTEMPT; exec sleep 600",
            rig.path("moving")
        ),
    ]);
    let (id, moving) = (id.trim(), moving.trim());
    wait_until("both run", || {
        rig.field(id, "state") == "running" && rig.field(moving, "state") == "running"
    });
    let node = rig.field(moving, "node");
    let node = node.as_str().expect("it runs on a node").to_owned();
    let other = if node == "node-1" { "node-2" } else { "node-1" };
    let pid_of = |file: String| {
        std::fs::read_to_string(rig.path(&file))
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    };
    let first = pid_of(format!("moving-{node}-1")).expect("it wrote its pid");
    rig.signal(&node, "STOP");
    wait_until("it is noticed as silent", || {
        rig.try_json(&["show", "node", &node]).is_some_and(|shown| {
            shown["reason"]
                .as_str()
                .unwrap_or_default()
                .contains("silent")
        })
    });
    assert!(
        Path::new(&format!("/proc/{first}")).exists(),
        "keep: it runs on"
    );
    wait_until("its work runs elsewhere", || {
        pid_of(format!("moving-{other}-2")).is_some()
    });
    rig.signal(&node, "CONT");
    wait_until("the stale attempt is ended", || {
        !Path::new(&format!("/proc/{first}")).exists()
    });
    wait_until("the second goes on alone", || {
        rig.field(moving, "node") == other && rig.field(moving, "state") == "running"
    });
}

/// Certificates are renewed and every daemon is sent SIGHUP: all of them read the new ones, and no
/// session is dropped.
#[test]
fn certificates_rotate_under_sessions_on_sighup() {
    let mut rig = Rig::new(
        "rotate",
        Plan {
            schedulers: 1,
            launchers: 1,
            ..Plan::default()
        },
    );
    rig.start_all();
    rig.await_ready(1);
    let (scheduler, node) = (scheduler(1), launcher(1));
    let pki = rig.path("pki");
    for name in [scheduler.as_str(), &node, "controller"] {
        let file = rig.path(&format!("pki/{name}.crt"));
        let before = std::fs::read(&file).expect("a certificate");
        rig.local(&["cert", "renew", &file, "--ca-dir", &pki]);
        assert_ne!(std::fs::read(&file).expect("a certificate"), before);
    }
    for name in [scheduler.as_str(), &node, "controller"] {
        rig.signal(name, "HUP");
        wait_until(&format!("{name} has reloaded"), || {
            rig.log(name).contains("credentials reloaded")
        });
    }
    let id = rig.must(&["run", "--detach", "--", "true"]);
    wait_until("it has run", || {
        rig.field(id.trim(), "state") == "succeeded"
    });
    assert!(!rig.log(&scheduler).contains("disconnected"));
    // A new session comes up with the new certificates.
    rig.kill(&node);
    rig.start(&node);
    wait_until("it is back", || {
        rig.log(&scheduler).matches("launcher connected").count() == 2
    });
}

/// A node's and a person's certificates are revoked while they are used: the sessions end, and no new
/// one begins; everybody else goes on.
#[test]
fn revoked_certificates_are_refused_while_everything_runs() {
    let plan = Plan {
        schedulers: 1,
        launchers: 2,
        ..Plan::default()
    };
    let mut rig = Rig::new("revoked", plan);
    let pki = rig.path("pki");
    let revoke = |rig: &Rig, name: &str| {
        let cert = rig.path(&format!("pki/{name}.crt"));
        rig.local(&["cert", "revoke", &cert, "--ca-dir", &pki])
    };
    rig.issue("admin", "eve");
    for name in ["scheduler-1", "controller"] {
        let config = rig.path(&format!("{name}.toml"));
        let text = std::fs::read_to_string(&config).expect("a file");
        std::fs::write(&config, format!("{text}crl = \"{pki}/revoked.pem\"\n")).expect("a file");
    }
    rig.start_all();
    rig.await_ready(2);
    let (cert, key) = (rig.path("pki/eve.crt"), rig.path("pki/eve.key"));
    let hers = ["--cert", cert.as_str(), "--key", key.as_str()];
    let eves = |what: &str| rig.run(&[&["list", what], hers.as_slice()].concat());
    assert!(eves("nodes").status.success());
    let endless = ["--", "sh", "-c", "echo up; exec sleep 300"];
    let mut under_way = rig
        .client()
        .start(&[&["run"], hers.as_slice(), &endless].concat());
    let mut line = String::new();
    let output = under_way.stdout.take().expect("a pipe");
    let mut output = BufReader::new(output);
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "up\n");
    revoke(&rig, "eve");
    assert!(revoke(&rig, "node-2").contains("lists 2 revoked"));
    wait_until("node-2 is out", || rig.nodes_in("ready") == 1);
    wait_until("eve is refused", || !eves("nodes").status.success());
    let said = String::from_utf8_lossy(&eves("nodes").stderr).into_owned();
    let words = "the controller refuses us: our certificate has been revoked";
    assert!(said.contains(words), "{said}");
    let mut ended = None;
    wait_until("what she has under way is cut", || {
        ended = under_way.try_wait().expect("our own child");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(123));
    rig.must(&["run", "--", "true"]);
}
