//! The sample configurations under `packaging/` are the reference: they name every key, what they
//! show as a default is the default, and what they show as an example is accepted.

use pronto_controller::ControllerConfig;
use pronto_launcher::LauncherConfig;
use pronto_scheduler::SchedulerConfig;
use std::fmt::Debug;

/// A sample with its comments of this mark taken away, and those of others left.
fn without(text: &str, marks: &[&str]) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines() {
        let bare = marks.iter().find_map(|mark| line.strip_prefix(mark));
        let is_setting = |bare: &str| {
            bare.starts_with('[') || bare.split_once(" = ").is_some_and(|(key, _)| is_key(key))
        };
        lines.push(bare.filter(|bare| is_setting(bare)).unwrap_or(line));
    }
    lines.join("\n")
}

fn is_key(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// The keys that an error about an unknown one says are accepted.
fn accepted(error: &str) -> Vec<String> {
    let (_, expected) = error.split_once("expected").expect("an unknown key");
    let words = expected.split('`').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

fn check<T: Debug>(sample: &str, tables: &[&str], parse: impl Fn(&str) -> Result<T, String>) {
    let bare = parse(sample).expect("as shipped");
    let defaults = parse(&without(sample, &["# "])).expect("with the defaults written out");
    assert_eq!(format!("{bare:?}"), format!("{defaults:?}"));
    let everything = without(sample, &["# ", "#: "]);
    parse(&everything).expect("with the examples written out");
    let with_unknown = |table: &str| match table {
        "" => format!("unheard_of = 1\n{everything}"),
        table => everything.replace(&format!("[{table}]"), &format!("[{table}]\nunheard_of = 1")),
    };
    for table in tables {
        let error = parse(&with_unknown(table)).expect_err("an unknown key");
        for key in accepted(&error) {
            let named = everything.contains(&format!("\n{key} = "))
                || everything.contains(&format!("\n[{key}]"));
            assert!(named, "{key} of [{table}] is not in the sample");
        }
    }
}

#[test]
fn the_schedulers_sample_is_whole_and_true() {
    let sample = include_str!("../../../packaging/config/scheduler.toml");
    check(sample, &["", "timeouts", "queues"], |text| {
        SchedulerConfig::parse(text).map_err(|error| error.to_string())
    });
}

#[test]
fn the_controllers_sample_is_whole_and_true() {
    let sample = include_str!("../../../packaging/config/controller.toml");
    check(sample, &["", "default_quota"], |text| {
        ControllerConfig::parse(text).map_err(|error| error.to_string())
    });
}

#[test]
fn the_launchers_sample_is_whole_and_true() {
    let sample = include_str!("../../../packaging/config/launcher.toml");
    let tables = ["", "reserve", "capacity", "docker", "qemu"];
    check(sample, &tables, |text| {
        toml::from_str::<LauncherConfig>(text).map_err(|error| error.to_string())
    });
}
