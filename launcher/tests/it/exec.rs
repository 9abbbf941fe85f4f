//! The exec runtime with real processes.

use crate::node::{Node, body, demand, exec, exited};
use pronto_launcher::moment::Moment;
use pronto_launcher::runtime::Runtime;
use pronto_launcher::supervisor::{Event, Found, StopCause};
use pronto_payloads::demand::Demand;
use pronto_payloads::instance::EndCause;
use pronto_payloads::start::{EnvVar, ExecTask, OnDisconnect, StartBody};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Whether a process is there and is more than a zombie that its parent has not looked at yet.
fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The number that a workload wrote into a file of its directory.
async fn number_in(path: &std::path::Path) -> i32 {
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if let Some(number) = text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
            return number;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn exit_code_and_both_streams_arrive() {
    let mut node = Node::new().await;
    let (job, outcome) = node.sh("echo out; echo err >&2; exit 7").await;
    assert!(outcome.started);
    assert_eq!(outcome.end.cause, exited(7));
    let log = node.log(&job.id);
    assert_eq!((log.out(), log.stderr.as_slice()), ("out\n", &b"err\n"[..]));
    let (_, outcome) = node.sh("kill -SEGV $$").await;
    assert_eq!(outcome.end.cause, EndCause::Signaled { signal: 11 });
    node.finish().await;
}

#[tokio::test]
async fn the_environment_is_clean_and_documented() {
    let mut node = Node::new().await;
    let mut body = body(ExecTask {
        command: vec!["env".into()],
        ..ExecTask::default()
    });
    let variable = |name: &str, value: &str| EnvVar {
        name: name.into(),
        value: value.into(),
    };
    body.env = vec![variable("MINE", "1 2"), variable("PRONTO_NODE", "forged")];
    let (job, outcome) = node.run(body).await;
    assert_eq!(outcome.end.cause, exited(0));
    let log = node.log(&job.id);
    let mut names: Vec<&str> = log
        .out()
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "HOME",
            "LANG",
            "MINE",
            "PATH",
            "PRONTO_ATTEMPT",
            "PRONTO_INSTANCE",
            "PRONTO_NAME",
            "PRONTO_NODE",
            "PRONTO_NODE_ADDRESS",
            "PRONTO_TENANT"
        ]
    );
    assert!(log.out().contains("PRONTO_NODE=n1\n") && log.out().contains("MINE=1 2\n"));
    assert!(
        log.out()
            .contains(&format!("PRONTO_INSTANCE={}\n", job.id.instance))
    );
    node.finish().await;
}

#[tokio::test]
async fn a_workload_begins_with_nothing_of_ours() {
    let mut node = Node::new().await;
    let script = "ls /proc/self/fd | wc -l; cat /proc/self/oom_score_adj; \
                  grep -E 'SigBlk|SigIgn|NoNewPrivs' /proc/self/status; umask; pwd; cat";
    let (job, outcome) = node.sh(script).await;
    assert_eq!(outcome.end.cause, exited(0));
    let log = node.log(&job.id);
    let lines: Vec<&str> = log.out().lines().collect();
    // 0, 1, 2 and the directory that ls itself has open.
    assert_eq!(lines[..2], ["4", "0"]);
    // Signals 32 and 33 are libc's own; nobody can reset them, nor send them by mistake.
    let signals = |line: &str| u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap();
    assert_eq!(
        (signals(lines[2]), signals(lines[3]) & !0x1_8000_0000),
        (0, 0),
        "{lines:?}"
    );
    assert!(lines[4].ends_with('1') && lines[5] == "0022", "{lines:?}");
    assert_eq!(
        lines[6],
        node.settings.data_dir.work(&job.id).to_str().unwrap()
    );
    node.finish().await;
}

#[tokio::test]
async fn what_can_not_be_executed_is_told_in_words() {
    let mut node = Node::new().await;
    let run = |command: &str| {
        body(ExecTask {
            command: vec![command.into()],
            ..ExecTask::default()
        })
    };
    let (_, outcome) = node.run(run("no-such-program")).await;
    assert_eq!(outcome.end.cause, EndCause::CannotExecute { code: 127 });
    assert_eq!(outcome.end.message, "no-such-program: command not found");
    let (_, outcome) = node.run(run("/etc/passwd")).await;
    assert_eq!(outcome.end.cause, EndCause::CannotExecute { code: 126 });
    let nowhere = ExecTask {
        workdir: Some("/no/such/place".into()),
        ..exec("true")
    };
    let (_, outcome) = node.run(body(nowhere)).await;
    assert!(
        outcome.end.message.contains("can't work there"),
        "{outcome:?}"
    );
    let stranger = ExecTask {
        user: Some("no-such-user".into()),
        ..exec("true")
    };
    let (_, outcome) = node.run(body(stranger)).await;
    assert_eq!(
        outcome.end.message,
        "there is no user no-such-user on this node"
    );
    let root = ExecTask {
        user: Some("root".into()),
        ..exec("true")
    };
    let (_, outcome) = node.run(body(root)).await;
    assert_eq!(outcome.end.message, "user root needs a privileged tenant");
    node.finish().await;
}

#[tokio::test]
async fn a_stop_ends_the_whole_process_group() {
    let mut node = Node::new().await;
    let job = node
        .start(body(exec("sleep 1000 & echo $! > child; wait")), demand())
        .await;
    let child = number_in(&node.settings.data_dir.work(&job.id).join("child")).await;
    assert!(is_alive(child));
    node.runtime().stop(job.id, StopCause::Asked, 5000);
    let outcome = node.outcome(job.id).await;
    assert_eq!(outcome.end.cause, EndCause::Stopped);
    assert_eq!(outcome.end.message, "ended by signal 15 when told to stop");
    assert!(!is_alive(child));
    node.finish().await;
}

#[tokio::test]
async fn what_ignores_sigterm_and_leaves_its_session_is_killed_all_the_same() {
    let mut node = Node::new().await;
    let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 1; done' & \
                  while :; do sleep 1; done";
    let job = node.start(body(exec(script)), demand()).await;
    let child = number_in(&node.settings.data_dir.work(&job.id).join("child")).await;
    let before = Moment::now();
    node.runtime().stop(job.id, StopCause::Asked, 300);
    let outcome = node.outcome(job.id).await;
    assert_eq!(outcome.end.message, "ended by signal 9 when told to stop");
    assert!(
        Moment::now().since(before).as_millis() >= 300,
        "it had its grace"
    );
    assert!(!is_alive(child));
    node.finish().await;
}

#[tokio::test]
async fn remains_are_killed_when_the_main_process_ends() {
    let mut node = Node::new().await;
    let (job, outcome) = node.sh("setsid sleep 1000 & echo $! > child; exit 0").await;
    assert_eq!(outcome.end.cause, exited(0));
    let child = number_in(&node.settings.data_dir.work(&job.id).join("child")).await;
    assert!(!is_alive(child), "Emptied means empty");
    node.finish().await;
}

#[tokio::test]
async fn without_control_groups_nothing_gets_away() {
    let mut node = Node::without_groups().await;
    let data = node.settings.data_dir.clone();
    // One that becomes an orphan while its workload lives stays with it when others end.
    let daemon = "(setsid sleep 1000 & echo $! > child); while :; do sleep 1; done";
    let lives = node.start(body(exec(daemon)), demand()).await;
    let orphan = number_in(&data.work(&lives.id).join("child")).await;
    for script in [
        "sleep 1000 & echo $! > child",
        "bash -c 'set -m; sleep 1000 & echo $! > child'",
        "setsid sleep 1000 & echo $! > child",
        "setsid sh -c '(trap \"\" TERM; (setsid sleep 1000 & echo $! > child); sleep 1000) &'",
    ] {
        let job = node.launch(
            body(exec(&format!("{script}; while [ ! -s child ]; do :; done"))),
            demand(),
        );
        let outcome = node.outcome(job.id).await;
        assert_eq!(outcome.end.cause, exited(0));
        let child = number_in(&data.work(&job.id).join("child")).await;
        assert!(!is_alive(child), "{script}");
    }
    assert!(is_alive(orphan));
    node.runtime().stop(lives.id, StopCause::Asked, 5000);
    let outcome = node.outcome(lives.id).await;
    assert_eq!(outcome.end.cause, EndCause::Stopped);
    assert!(!is_alive(orphan));
    node.finish().await;
}

#[tokio::test]
async fn without_control_groups_limits_are_soft() {
    let mut node = Node::without_groups().await;
    let (job, outcome) = node.sh("sleep 1000 & echo $! > child; echo done").await;
    assert_eq!(outcome.end.cause, exited(0));
    let child = number_in(&node.settings.data_dir.work(&job.id).join("child")).await;
    assert!(!is_alive(child));
    let hard = ExecTask {
        require_hard_limits: true,
        ..exec("true")
    };
    let (_, outcome) = node.run(body(hard)).await;
    assert_eq!(outcome.end.cause, EndCause::Rejected);
    assert_eq!(
        outcome.end.message,
        "this node has no control groups to enforce limits with"
    );
    // 64 MiB of data at most: the shell's own allocation fails, the node does not.
    let (_, outcome) = node
        .sh("x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}")
        .await;
    assert_ne!(outcome.end.cause, exited(0));
    node.finish().await;
}

#[tokio::test]
async fn the_memory_limit_ends_it_in_words() {
    let mut node = Node::new().await;
    let script = "head -c 200000000 /dev/zero | tail";
    let (_, outcome) = node.sh(&format!("exec {script}")).await;
    // A pipeline's killed part is the shell's business; what it exits with tells it failed.
    let EndCause::OutOfMemory {
        limit_mib,
        peak_mib,
    } = outcome.end.cause
    else {
        panic!("{outcome:?}");
    };
    assert_eq!((limit_mib, peak_mib), (64, 64));
    assert_eq!(
        outcome.end.message,
        "out of memory: limit 64 MiB, peak 64 MiB"
    );
    // The next workload in the same control group has a clean count.
    let (_, outcome) = node.sh("exit 9").await;
    assert_eq!(outcome.end.cause, exited(9));
    // Of the shell, not of the shim whose memory it shared until it executed.
    let shim = number_in(&node.directory.path().join("shim.pid")).await;
    let status = std::fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
    let own_kib: u32 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next())
        .and_then(|kib| kib.parse().ok())
        .unwrap();
    let peak_kib = outcome.usage.memory_peak_mib * 1024;
    assert!(peak_kib > 0 && peak_kib < own_kib, "{outcome:?} {own_kib}");
    node.finish().await;
}

#[tokio::test]
async fn a_fork_bomb_stays_in_its_bounds() {
    let mut node = Node::new().await;
    let bomb = ExecTask {
        pids_limit: Some(50),
        ..exec("f() { f | f & }; f; sleep 1000")
    };
    let job = node.start(body(bomb), demand()).await;
    node.runtime().stop(job.id, StopCause::Asked, 200);
    let outcome = node.outcome(job.id).await;
    assert_eq!(outcome.end.cause, EndCause::Stopped);
    let (_, outcome) = node.sh("exit 3").await;
    assert_eq!(outcome.end.cause, exited(3), "the node goes on");
    node.finish().await;
}

/// Processes that have ended, whose parent this is and who has not looked at them.
fn zombies_of(parent: i32) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| {
            let mut fields = stat
                .rsplit_once(") ")
                .map_or("", |(_, rest)| rest)
                .split(' ');
            fields.next() == Some("Z")
                && fields.next().and_then(|pid| pid.parse().ok()) == Some(parent)
        })
        .count()
}

#[tokio::test]
async fn zombies_go_with_whoever_made_them() {
    let mut node = Node::new().await;
    // `sleep` has twenty children that it knows nothing of, and never waits for one.
    let heedless = "echo $$ > pid; for i in $(seq 20); do sleep 0.3 & done; exec sleep 1000";
    let job = node.start(body(exec(heedless)), demand()).await;
    let parent = number_in(&node.settings.data_dir.work(&job.id).join("pid")).await;
    while zombies_of(parent) < 20 {
        tokio::task::yield_now().await;
    }
    // Orphans come to the shim, which looks at each.
    let (_, outcome) = node
        .sh("for i in $(seq 50); do (true &); done; exit 2")
        .await;
    assert_eq!(outcome.end.cause, exited(2));
    node.runtime().stop(job.id, StopCause::Asked, 0);
    let outcome = node.outcome(job.id).await;
    assert_eq!(outcome.end.cause, EndCause::Stopped);
    let shim = number_in(&node.directory.path().join("shim.pid")).await;
    while zombies_of(shim) > 0 || zombies_of(parent) > 0 {
        tokio::task::yield_now().await;
    }
    node.finish().await;
}

#[tokio::test]
async fn a_configured_inventory_of_gpus_is_assigned() {
    let mut node = Node::new().await;
    node.settings.node.has_gpus = true;
    node.restart().await;
    node.adopt(&[]).await;
    let script = "echo $PRONTO_GPUS $PRONTO_GPU_MILLIS $CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER";
    let job = node.job(body(exec(script)), demand());
    let share = |device| pronto_payloads::place::GpuShare {
        device,
        millis: 1000,
    };
    let job = std::sync::Arc::new(pronto_launcher::supervisor::Job {
        gpus: vec![share(1), share(3)],
        ..(*job).clone()
    });
    let outcome = node.run_job(&job).await;
    assert_eq!(outcome.end.cause, exited(0));
    assert_eq!(node.log(&job.id).out(), "1,3 1000 1,3 PCI_BUS_ID\n");
    // Those of others are hidden.
    let (job, _) = node.sh("echo [${CUDA_VISIBLE_DEVICES-unset}]").await;
    assert_eq!(node.log(&job.id).out(), "[]\n");
    node.finish().await;
}

#[tokio::test]
async fn a_timeout_ends_it() {
    let mut node = Node::new().await;
    let job = node.launch(
        StartBody {
            timeout_ms: Some(200),
            ..body(exec("sleep 1000"))
        },
        demand(),
    );
    let outcome = node.outcome(job.id).await;
    assert_eq!(outcome.end.cause, EndCause::TimedOut);
    node.finish().await;
}

#[tokio::test]
async fn an_expired_lease_ends_stop_after_work() {
    let mut node = Node::new().await;
    let fenced = StartBody {
        on_disconnect: OnDisconnect::StopAfter { ms: 100 },
        ..body(exec("sleep 1000"))
    };
    let job = node.start(fenced, demand()).await;
    node.runtime()
        .fence(job.id.owner, Moment::now().after_ms(200));
    let outcome = node.outcome(job.id).await;
    assert_eq!(outcome.end.cause, EndCause::LeaseExpired);
    node.finish().await;
}

/// It lay too long on its way: its successor may run by now.
#[tokio::test]
async fn what_comes_after_its_fence_is_not_started() {
    let mut node = Node::new().await;
    let fenced = StartBody {
        on_disconnect: OnDisconnect::StopAfter { ms: 100 },
        ..body(exec("touch ran"))
    };
    let job = node.job(fenced, demand());
    node.launch_job(&job, Some(Moment::now()));
    let outcome = node.outcome(job.id).await;
    assert!(!outcome.started);
    assert_eq!(outcome.end.cause, EndCause::LeaseExpired);
    assert!(!node.settings.data_dir.work(&job.id).join("ran").exists());
    // Nor does the next launcher take it for one that waits.
    node.restart().await;
    let found = node.adopt(&[job]).await;
    assert!(
        matches!(&found[0], Found::Ended { started_at: None, end, .. } if end.cause == EndCause::LeaseExpired),
        "{found:?}"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_flood_is_slowed_capped_and_marked() {
    let mut node = Node::new().await;
    let script = "head -c 30000000 /dev/zero | tr '\\0' x; echo; echo last";
    let (job, outcome) = node.sh(script).await;
    assert_eq!(outcome.end.cause, exited(0));
    let log = node.log(&job.id);
    assert!(log.out().ends_with("x\nlast\n"));
    assert!(log.stdout.len() <= 1 << 20, "{}", log.stdout.len());
    assert_eq!(log.dropped_bytes + log.stdout.len() as u64, 30_000_006);
    node.finish().await;
}

#[tokio::test]
async fn a_restarted_launcher_adopts_with_exit_codes_and_logs_whole() {
    let mut node = Node::new().await;
    let mut jobs = Vec::new();
    // One runs on, one ends while no launcher is there, one had ended before unheard.
    for script in [
        "while [ ! -e go ]; do sleep 0.02; done; echo late; exit 5",
        "echo early; exit 6",
    ] {
        jobs.push(node.start(body(exec(script)), demand()).await);
    }
    jobs.push(node.job(body(exec("exit 1")), demand()));
    node.outcome(jobs[1].id).await;
    node.restart().await;
    let found = node.adopt(&jobs).await;
    assert!(matches!(found[0], Found::Running { .. }), "{found:?}");
    let Found::Ended {
        end,
        started_at: Some(_),
        ..
    } = &found[1]
    else {
        panic!("{found:?}")
    };
    assert_eq!(end.cause, exited(6));
    assert_eq!(found[2], Found::NeverStarted);
    std::fs::write(node.settings.data_dir.work(&jobs[0].id).join("go"), "").unwrap();
    let outcome = node.outcome(jobs[0].id).await;
    assert_eq!(outcome.end.cause, exited(5));
    assert_eq!(node.log(&jobs[0].id).out(), "late\n");
    assert_eq!(node.log(&jobs[1].id).out(), "early\n");
    node.finish().await;
}

#[tokio::test]
async fn an_exit_that_can_not_be_written_is_told_to_the_next_launcher() {
    let mut node = Node::new().await;
    let script = "while [ ! -e go ]; do sleep 0.02; done; exit 6";
    let job = node.start(body(exec(script)), demand()).await;
    let attempt = node.settings.data_dir.attempt(&job.id);
    let (exit, nowhere) = (attempt.join("exit.json"), attempt.join("nowhere"));
    // It can be written as soon as the directory is there, and looks as if it had never been.
    std::os::unix::fs::symlink(nowhere.join("exit.json"), &exit).unwrap();
    std::fs::write(node.settings.data_dir.work(&job.id).join("go"), "").unwrap();
    node.outcome(job.id).await;
    node.restart().await;
    let found = node.adopt(std::slice::from_ref(&job)).await;
    assert!(
        matches!(&found[0], Found::Ended { started_at: Some(_), end, .. } if end.cause == exited(6)),
        "{found:?}"
    );
    std::fs::create_dir(nowhere).unwrap();
    while !exit.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    node.finish().await;
}

#[tokio::test]
async fn a_workload_may_open_as_many_files_as_its_launcher_was_told() {
    let mut node = Node::new().await;
    let (job, outcome) = node.sh("ulimit -Sn; ulimit -Hn").await;
    assert_eq!(outcome.end.cause, exited(0));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let words = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
    let expected = format!("{}\n{}\n", words(limit.current), words(limit.maximum));
    assert_eq!(node.log(&job.id).out(), expected);
    let shim = number_in(&node.directory.path().join("shim.pid")).await;
    let own = rustix::process::prlimit(
        Pid::from_raw(shim),
        rustix::process::Resource::Nofile,
        limit,
    );
    assert_eq!(
        own.unwrap().current,
        limit.maximum,
        "the shim's own is raised"
    );
    node.finish().await;
}

#[tokio::test]
async fn a_vanished_shim_ends_its_work_as_the_nodes_failure() {
    let mut node = Node::new().await;
    let job = node
        .start(
            body(exec("setsid sleep 1000 & echo $! > child; wait")),
            demand(),
        )
        .await;
    let child = number_in(&node.settings.data_dir.work(&job.id).join("child")).await;
    let shim = number_in(&node.directory.path().join("shim.pid")).await;
    rustix::process::kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    let outcome = node.outcome(job.id).await;
    assert_eq!(outcome.end.cause, EndCause::NodeFailed);
    assert!(!is_alive(child), "the next shim clears what was left");
    let (_, outcome) = node.sh("exit 4").await;
    assert_eq!(outcome.end.cause, exited(4));
    node.finish().await;
}

#[tokio::test]
async fn an_attempt_that_is_stopped_before_it_starts_never_runs() {
    let mut node = Node::new().await;
    let job = node.job(body(exec("touch ran")), demand());
    std::fs::create_dir(node.settings.data_dir.attempt(&job.id)).unwrap();
    node.runtime().prepare(&job);
    node.runtime().stop(job.id, StopCause::Asked, 0);
    let outcome = node.outcome(job.id).await;
    assert!(!outcome.started);
    assert_eq!(outcome.end.cause, EndCause::Stopped);
    node.runtime().start(&job, None);
    let (_, other) = node.sh("true").await;
    assert_eq!(other.end.cause, exited(0));
    assert!(!node.settings.data_dir.work(&job.id).join("ran").exists());
    node.finish().await;
}

#[tokio::test]
async fn a_command_joins_a_running_instance() {
    let mut node = Node::new().await;
    let job = node.start(body(exec("sleep 1000")), demand()).await;
    let script = "cat; pwd; echo $PRONTO_NODE; grep -c pronto-test /proc/self/cgroup >&2; exit 3";
    let command = vec!["sh".into(), "-c".into(), script.into()];
    let mut session = node.runtime().exec(job.id, command).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    session.stdout.read_to_string(&mut out).await.unwrap();
    session.stderr.read_to_string(&mut err).await.unwrap();
    assert_eq!(session.exit.await, Ok(3));
    let work = node.settings.data_dir.work(&job.id);
    assert_eq!(out, format!("hello\n{}\nn1\n", work.display()));
    assert!(
        err.trim().parse::<u32>().unwrap() >= 1,
        "it is in the instance's control groups"
    );
    let stranger = node.job(body(exec("")), demand()).id;
    let refused = node.runtime().exec(stranger, vec!["sh".into()]).await;
    assert_eq!(refused.unwrap_err().text, "the instance does not run");
    node.finish().await;
}

#[tokio::test]
async fn a_command_gets_the_variables_where_nobody_else_reads_them() {
    let mut node = Node::new().await;
    // Together they are longer than one argument of a program may be.
    let env = (0..5).map(|n| EnvVar {
        name: format!("SECRET{n}"),
        value: format!("secret-{}", "x".repeat(40_000)),
    });
    let job = StartBody {
        env: env.collect(),
        ..body(exec("sleep 1000"))
    };
    let job = node.start(job, demand()).await;
    // Its parent is its keeper.
    let script = "echo ${#SECRET4}; tr '\\0' ' ' < /proc/$PPID/cmdline";
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    let mut session = node.runtime().exec(job.id, command).await.unwrap();
    let mut out = String::new();
    session.stdout.read_to_string(&mut out).await.unwrap();
    assert_eq!(session.exit.await, Ok(0));
    let (length, keeper) = out.split_once('\n').unwrap();
    assert_eq!(length, "40007");
    assert!(keeper.ends_with(" join "), "{keeper}");
    node.finish().await;
}

#[tokio::test]
async fn a_command_lives_no_longer_than_its_instance() {
    for mut node in [Node::new().await, Node::without_groups().await] {
        let job = node.start(body(exec("sleep 1000")), demand()).await;
        let work = node.settings.data_dir.work(&job.id);
        let script = "setsid sleep 1000 & echo $! > child; echo $$ > command; wait";
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let session = node.runtime().exec(job.id, command.clone()).await.unwrap();
        let command_pid = number_in(&work.join("command")).await;
        let child = number_in(&work.join("child")).await;
        node.runtime().stop(job.id, StopCause::Asked, 5000);
        let outcome = node.outcome(job.id).await;
        assert_eq!(outcome.end.cause, EndCause::Stopped);
        // Its session is held all the while.
        assert_eq!(session.exit.await, Ok(137));
        while is_alive(command_pid) || is_alive(child) {
            tokio::task::yield_now().await;
        }
        node.finish().await;
    }
}

#[tokio::test]
async fn a_command_never_joins_who_has_the_groups_of_its_instance_now() {
    let mut node = Node::new().await;
    let shim = node.settings.shim_command[0].clone();
    let go = node.directory.path().join("go");
    // Its keeper comes to run only when the instance has ended and another has its groups.
    let late = format!(
        "while [ ! -e {} ]; do sleep 0.01; done; exec \"$0\" \"$@\"",
        go.display()
    );
    node.settings.shim_command = vec!["sh".into(), "-c".into(), late, shim];
    node.restart().await;
    node.adopt(&[]).await;
    let first = node.start(body(exec("sleep 1000")), demand()).await;
    let command = ["touch", "ran"].map(str::to_owned).to_vec();
    let mut session = node.runtime().exec(first.id, command).await.unwrap();
    node.runtime().stop(first.id, StopCause::Asked, 0);
    node.outcome(first.id).await;
    let second = node.start(body(exec("sleep 1000")), demand()).await;
    std::fs::write(go, "").unwrap();
    let mut said = String::new();
    session.stderr.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "the instance has ended\n");
    assert_ne!(session.exit.await, Ok(0));
    assert!(!node.settings.data_dir.work(&first.id).join("ran").exists());
    node.runtime().stop(second.id, StopCause::Asked, 0);
    node.outcome(second.id).await;
    node.finish().await;
}

#[tokio::test]
async fn a_command_is_not_spared_when_memory_runs_out() {
    let mut node = Node::new().await;
    let shim = node.settings.shim_command[0].clone();
    // As the packaged unit has it. Only root may, and nobody else has that unit.
    let spared = "echo -900 > /proc/self/oom_score_adj; exec \"$0\" \"$@\"";
    node.settings.shim_command = vec!["sh".into(), "-c".into(), spared.into(), shim];
    node.restart().await;
    node.adopt(&[]).await;
    let job = node.start(body(exec("sleep 1000")), demand()).await;
    let command = ["cat", "/proc/self/oom_score_adj"].map(str::to_owned);
    let mut session = node.runtime().exec(job.id, command.into()).await.unwrap();
    let mut score = String::new();
    session.stdout.read_to_string(&mut score).await.unwrap();
    assert_eq!(session.exit.await, Ok(0));
    assert_eq!(score, "0\n");
    node.finish().await;
}

#[tokio::test]
async fn a_commands_input_passes_whole_or_not_at_all() {
    let mut node = Node::new().await;
    let job = node.start(body(exec("sleep 1000")), demand()).await;
    let run = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    let input: Vec<u8> = (0..=250_u8).cycle().take(1_000_000).collect();

    let mut session = node.runtime().exec(job.id, run("cat")).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let feed = async {
        stdin.write_all(&input).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let mut output = Vec::new();
    let read = session.stdout.read_to_end(&mut output);
    let ((), read) = tokio::join!(feed, read);
    read.unwrap();
    assert!(output == input);
    assert_eq!(session.exit.await, Ok(0));

    // One that reads no more ends as it would have.
    let deaf = run("exec <&-; echo deaf; sleep 0.2; exit 4");
    let mut session = node.runtime().exec(job.id, deaf).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let feeding = tokio::spawn(async move { stdin.write_all(&input).await });
    assert_eq!(session.exit.await, Ok(4));
    feeding.await.unwrap().unwrap_err();

    // One whose input breaks off does not see its end, and is killed.
    let waiting = run("echo $$ > command; cat; echo end > end");
    let mut session = node.runtime().exec(job.id, waiting).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"part\n").await.unwrap();
    stdin.flush().await.unwrap();
    let mut part = [0; 5];
    session.stdout.read_exact(&mut part).await.unwrap();
    let work = node.settings.data_dir.work(&job.id);
    let command = number_in(&work.join("command")).await;
    drop(stdin);
    assert!(is_alive(command), "somebody still holds its input");
    drop(session);
    while is_alive(command) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(!work.join("end").exists());
    node.finish().await;
}

#[tokio::test]
async fn standard_input_is_fed_and_closed() {
    let mut node = Node::new().await;
    let job = node
        .start(
            StartBody {
                stdin: true,
                ..body(exec("cat; echo end"))
            },
            demand(),
        )
        .await;
    let mut cut_off = node.runtime().stdin(job.id).await.unwrap();
    cut_off.write_all(b"one\n").await.unwrap();
    drop(cut_off);
    let mut stdin = node.runtime().stdin(job.id).await.unwrap();
    stdin.write_all(b"two\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    let outcome = node.outcome(job.id).await;
    assert_eq!(outcome.end.cause, exited(0));
    assert_eq!(node.log(&job.id).out(), "one\ntwo\nend\n");
    node.finish().await;
}

#[tokio::test]
async fn usage_is_measured_while_it_runs() {
    let mut node = Node::new().await;
    let script = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); touch ready; while :; do :; done";
    let job = node.start(body(exec(script)), demand()).await;
    let usage = loop {
        let usages = node.runtime().usages().await;
        match usages
            .iter()
            .find(|usage| usage.id == job.id)
            .map(|usage| usage.usage)
        {
            Some(usage) if usage.cpu_ms > 100 && usage.memory_mib >= 10 => break usage,
            _ => tokio::task::yield_now().await,
        }
    };
    assert!(
        usage.pids >= 1 && usage.memory_peak_mib >= usage.memory_mib,
        "{usage:?}"
    );
    node.runtime().stop(job.id, StopCause::Asked, 0);
    let outcome = node.outcome(job.id).await;
    assert!(outcome.usage.cpu_ms >= usage.cpu_ms, "{outcome:?}");
    node.finish().await;
}

#[tokio::test]
async fn a_private_tmp_is_its_own() {
    let mut node = Node::new().await;
    let name = format!("pronto-{}", uuid::Uuid::new_v4().simple());
    let task = ExecTask {
        private_tmp: true,
        ..exec(&format!("echo x > /tmp/{name}; ls /tmp"))
    };
    let (job, outcome) = node.run(body(task)).await;
    assert_eq!(outcome.end.cause, exited(0));
    assert_eq!(node.log(&job.id).out(), format!("{name}\n"));
    assert!(!std::env::temp_dir().join(name).exists());
    node.finish().await;
}

/// Another instance's directory, log and environment, the launcher's own files, and the process
/// itself: all of it out of reach.
#[tokio::test]
async fn workloads_can_not_look_into_each_other_nor_into_the_launcher() {
    let mut node = Node::with_own_users().await;
    let data = node.settings.data_dir.clone();
    std::fs::write(node.directory.path().join("node.key"), "key").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(node.directory.path().join("node.key"), private).unwrap();
    let mut body_of_victim = body(exec("echo secret; echo $$ > pid; exec sleep 600"));
    body_of_victim.env = vec![EnvVar {
        name: "TOKEN".into(),
        value: "secret".into(),
    }];
    let victim = node.start(body_of_victim, demand()).await;
    let pid = number_in(&data.work(&victim.id).join("pid")).await;
    let instances = data.instances();
    let root = node.directory.path().display().to_string();
    let script = format!(
        "touch mine; cat /proc/{pid}/environ; ls {work}; cat {work}/pid; kill {pid} && echo killed; \
         cat {root}/node.key; find {root} -type f -readable -not -path \"$PWD/*\" 2>/dev/null; \
         ls {instances}; touch {instances}/new && echo made; \
         ls -l mine | wc -l; id -u",
        work = data.work(&victim.id).display(),
        instances = instances.display(),
    );
    let (attacker, outcome) = node.sh(&script).await;
    assert_eq!(outcome.end.cause, exited(0));
    let log = node.log(&attacker.id);
    let lines: Vec<&str> = log.out().lines().collect();
    let uid = pronto_launcher::runtime::exec::own_user(&attacker.id.instance).uid;
    assert_ne!(
        uid,
        pronto_launcher::runtime::exec::own_user(&victim.id.instance).uid
    );
    assert_eq!(lines, ["1", &uid.to_string()], "{}", log.out());
    assert!(is_alive(pid));
    node.runtime().stop(victim.id, StopCause::Asked, 0);
    node.finish().await;
}

#[tokio::test]
async fn hundreds_of_short_tasks_end_once_each() {
    let mut node = Node::new().await;
    let mut jobs = Vec::new();
    for _ in 0..200 {
        let task = ExecTask {
            command: vec!["/bin/true".into()],
            ..ExecTask::default()
        };
        jobs.push(node.launch(
            body(task),
            Demand {
                memory_mib: 16,
                ..demand()
            },
        ));
    }
    for job in &jobs {
        let outcome = node.outcome(job.id).await;
        assert_eq!(outcome.end.cause, exited(0));
    }
    // Anything told twice would still be waiting to be seen.
    let (_, outcome) = node.sh("exit 1").await;
    assert_eq!(outcome.end.cause, exited(1));
    let last = node.wait(|event| !matches!(event, Event::Started { .. }));
    assert!(
        tokio::time::timeout(std::time::Duration::from_millis(50), last)
            .await
            .is_err()
    );
    node.finish().await;
}
