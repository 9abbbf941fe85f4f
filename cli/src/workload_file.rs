//! Workload files: YAML for people, turned into the API's workload.
//!
//! ```yaml
//! name: thumbnails
//! runtime: exec              # exec (default), docker, qemu, sim
//! command: [convert, in.png, -resize, 100x, out.png]
//! image: busybox             # docker, qemu
//! env: {LANG: C}
//! resources: {cpus: 0.5, memory: 64M, disk: 1G, gpus: 0.5, named: {licence: 1}}
//! constraints: {node: node-1, zone: a}
//! labels: {team: web}
//! restart: on-failure:5      # never, on-failure[:LIMIT], always[:LIMIT]
//! reschedule: 5
//! on_disconnect: keep        # or stop-after:30s
//! timeout: 10m
//! ```
//!
//! Every error names the file, the line and the column. An unknown key is an error.

use crate::exit::{Exit, Failure};
use crate::short_forms;
use crate::units;
use anyhow::anyhow;
use pronto_controller::api::types as api;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

/// No workload file is longer: cloud-init data is at most 64 KiB of it.
const MAX_BYTES: u64 = 1 << 20;

/// One workload, as a user writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkloadFile {
    name: Option<Spanned<String>>,
    runtime: Option<Spanned<api::RuntimeName>>,
    command: Option<Spanned<Vec<Scalar>>>,
    image: Option<Spanned<String>>,
    #[serde(default)]
    env: BTreeMap<String, Scalar>,
    workdir: Option<Spanned<String>>,
    user: Option<Spanned<String>>,
    pids_limit: Option<Spanned<u32>>,
    umask: Option<Spanned<Text<Umask>>>,
    private_tmp: Option<Spanned<bool>>,
    require_hard_limits: Option<Spanned<bool>>,
    ports: Option<Spanned<Vec<Text<Port>>>>,
    mounts: Option<Spanned<Vec<Text<Mount>>>>,
    kernel: Option<Spanned<String>>,
    initrd: Option<Spanned<String>>,
    append: Option<Spanned<String>>,
    user_data: Option<Spanned<String>>,
    meta_data: Option<Spanned<String>>,
    run_for: Option<Spanned<Text<Millis>>>,
    exit_code: Option<Spanned<i32>>,
    #[serde(default)]
    resources: Resources,
    #[serde(default)]
    constraints: BTreeMap<String, Scalar>,
    #[serde(default)]
    labels: BTreeMap<String, Scalar>,
    restart: Option<Text<Restart>>,
    reschedule: Option<u32>,
    on_disconnect: Option<Text<OnDisconnect>>,
    priority: Option<i16>,
    timeout: Option<Text<SomeMillis>>,
    pending_timeout: Option<Text<Millis>>,
    stop_grace: Option<Text<Millis>>,
    keep_outputs: Option<Text<Millis>>,
    log_cap: Option<Text<Bytes>>,
    #[serde(default)]
    privileged: bool,
    #[serde(default)]
    hard_cpu: bool,
}

/// The demand, in people's units.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Resources {
    cpus: Option<Text<CpuMillis>>,
    memory: Option<Text<Memory>>,
    disk: Option<Text<Mib>>,
    gpus: Option<Text<Gpus>>,
    named: BTreeMap<String, u32>,
}

/// A value that is written as a string or as a number, and parsed by `P`.
#[derive(Debug)]
struct Text<P: Parse>(P::Value);

/// How one kind of value is read; the very parsers that the flags use.
trait Parse {
    type Value: fmt::Debug;
    fn parse(text: &str) -> Result<Self::Value, String>;
}

macro_rules! parsed_by {
    ($($name:ident -> $value:ty = $parser:expr;)+) => {$(
        #[derive(Debug)]
        struct $name;
        impl Parse for $name {
            type Value = $value;
            fn parse(text: &str) -> Result<$value, String> {
                $parser(text)
            }
        }
    )+};
}

parsed_by! {
    CpuMillis -> u32 = units::cpu_millis;
    Mib -> u32 = units::size_mib;
    Memory -> u32 = units::memory_mib;
    Bytes -> u64 = units::bytes;
    Gpus -> units::Gpus = units::gpus;
    Millis -> u64 = units::duration_ms;
    SomeMillis -> u64 = units::some_duration_ms;
    Umask -> u32 = units::umask;
    Restart -> api::RestartPolicy = short_forms::restart;
    OnDisconnect -> api::OnDisconnectSpec = short_forms::on_disconnect;
    Port -> api::PortSpec = short_forms::port;
    Mount -> api::MountSpec = short_forms::mount;
    Verbatim -> String = |text: &str| Ok::<_, String>(text.to_owned());
}

/// A string, or a number or a boolean taken as it is written: `[sleep, 5]` is a command.
type Scalar = Text<Verbatim>;

impl<'de, P: Parse> Deserialize<'de> for Text<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<P>(std::marker::PhantomData<P>);

        impl<P: Parse> Visitor<'_> for TextVisitor<P> {
            type Value = Text<P>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a number")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<P>, E> {
                let refused = |accepted| E::custom(format!("'{text}' is not valid; {accepted}"));
                P::parse(text).map(Text).map_err(refused)
            }
        }
        // As a string: the scalar's own letters, not a number that was read and written again.
        deserializer.deserialize_str(TextVisitor(std::marker::PhantomData))
    }
}

/// A workload file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// Needed by `create workload`, optional for `run --file`.
    pub(crate) name: Option<String>,
    pub(crate) spec: api::Spec,
}

/// Reads and parses a workload file; `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<Parsed, Failure> {
    let unreadable = |error: std::io::Error| {
        let what = anyhow::Error::from(error).context(format!("can't read {}", path.display()));
        Failure::caused(Exit::Usage, what)
    };
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(MAX_BYTES + 1)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text))
    }
    .map_err(unreadable)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(Failure::usage(format!(
            "{} is longer than 1 MiB",
            path.display()
        )));
    }
    parse(&text, &path.display().to_string())
}

/// Parses a workload; `source` names it in errors.
pub(crate) fn parse(text: &str, source: &str) -> Result<Parsed, Failure> {
    let file: WorkloadFile = serde_saphyr::from_str(text).map_err(|error| {
        let place = error
            .location()
            .map(|location| format!(":{}:{}", location.line(), location.column()))
            .unwrap_or_default();
        let words = words(error.without_snippet());
        Failure::caused(Exit::Usage, anyhow!("{source}{place}: {words}"))
            .hint("`pronto help workload-file` shows every key")
    })?;
    let at = |location: serde_saphyr::Location, words: &str| {
        Failure::usage(format!(
            "{source}:{}:{}: {words}",
            location.line(),
            location.column()
        ))
        .hint("`pronto help workload-file` shows every key")
    };
    let name = file.name.as_ref().map(|name| name.value.clone());
    let spec = file
        .into_spec()
        .map_err(|(location, words)| match location {
            Some(location) => at(location, &words),
            None => Failure::usage(format!("{source}:1:1: {words}")),
        })?;
    Ok(Parsed { name, spec })
}

/// What the parser says, in words of somebody who wrote a file and not a program. The place stands
/// in front already.
fn words(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error {
        Error::MultipleDocuments { .. } => {
            "a second document; a file describes one workload".to_owned()
        }
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("'{key}' is there twice")
        }
        Error::NullIntoString { .. } => "a value is missing; \"\" is an empty one".to_owned(),
        Error::Unexpected { expected, .. } => {
            let accepted = match *expected {
                "string scalar" | "scalar" => "one value, not a list and not a mapping",
                "sequence start" => "a list: [a, b]",
                "mapping start" => "keys with values: {KEY: VALUE}",
                other => other,
            };
            format!("accepted here: {accepted}")
        }
        _ => {
            let words = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            let words = words.split(" at line ").next().unwrap_or(&words);
            match words.strip_prefix("error: ").unwrap_or(words).trim() {
                "invalid boolean" => "accepted here: true or false".to_owned(),
                "invalid u16" | "invalid u32" | "invalid u64" => {
                    "accepted here: a whole number from 0".to_owned()
                }
                "invalid i16" | "invalid i32" | "invalid i64" => {
                    "accepted here: a whole number".to_owned()
                }
                other => other.to_owned(),
            }
        }
    }
}

type Misplaced = (Option<serde_saphyr::Location>, String);

impl WorkloadFile {
    fn into_spec(mut self) -> Result<api::Spec, Misplaced> {
        let runtime = self.runtime.take();
        let name = runtime
            .as_ref()
            .map_or(api::RuntimeName::Exec, |runtime| runtime.value);
        let place = runtime.map(|runtime| runtime.referenced);
        let task = match name {
            api::RuntimeName::Exec => api::TaskSpec::Exec(api::ExecSpec {
                command: required(self.command.take(), place, "runtime exec needs a command")?
                    .into_iter()
                    .map(|argument| argument.0)
                    .collect(),
                workdir: value(self.workdir.take()),
                user: value(self.user.take()),
                pids_limit: value(self.pids_limit.take()),
                umask: value(self.umask.take()).map(|text| text.0),
                private_tmp: value(self.private_tmp.take()).unwrap_or_default(),
                require_hard_limits: value(self.require_hard_limits.take()).unwrap_or_default(),
            }),
            api::RuntimeName::Docker => api::TaskSpec::Docker(api::DockerSpec {
                image: required(self.image.take(), place, "runtime docker needs an image")?,
                command: strings(self.command.take()),
                workdir: value(self.workdir.take()),
                user: value(self.user.take()),
                pids_limit: value(self.pids_limit.take()),
                mounts: texts(self.mounts.take()),
                ports: texts(self.ports.take()),
            }),
            api::RuntimeName::Qemu => {
                if self.image.is_none() && self.kernel.is_none() {
                    return Err((place, "runtime qemu needs an image or a kernel".into()));
                }
                api::TaskSpec::Qemu(api::QemuSpec {
                    image: value(self.image.take()),
                    kernel: value(self.kernel.take()),
                    initrd: value(self.initrd.take()),
                    append: value(self.append.take()).unwrap_or_default(),
                    user_data: value(self.user_data.take()),
                    meta_data: value(self.meta_data.take()),
                    ports: texts(self.ports.take()),
                })
            }
            api::RuntimeName::Sim => api::TaskSpec::Sim(api::SimSpec {
                run_ms: value(self.run_for.take()).map_or(0, |text| text.0),
                exit_code: value(self.exit_code.take()).unwrap_or(0),
            }),
        };
        self.nothing_left(name)?;
        let mut spec = api::Spec::new(task);
        spec.demand = self.resources.demand();
        spec.constraints = self
            .constraints
            .into_iter()
            .map(|(key, value)| match key.as_str() {
                "node" => api::ConstraintSpec::Node(value.0),
                _ => api::ConstraintSpec::Label(api::LabelSpec {
                    key,
                    value: value.0,
                }),
            })
            .collect();
        spec.env = self
            .env
            .into_iter()
            .map(|(name, value)| (name, value.0))
            .collect();
        spec.labels = self
            .labels
            .into_iter()
            .map(|(name, value)| (name, value.0))
            .collect();
        if let Some(Text(restart)) = self.restart {
            spec.restart = restart;
        }
        if let Some(limit) = self.reschedule {
            spec.reschedule.limit = limit;
        }
        if let Some(Text(on_disconnect)) = self.on_disconnect {
            spec.on_disconnect = on_disconnect;
        }
        spec.priority = self.priority.unwrap_or(0);
        spec.timeout_ms = self.timeout.map(|text| text.0);
        spec.pending_timeout_ms = self.pending_timeout.map(|text| text.0);
        if let Some(Text(grace_ms)) = self.stop_grace {
            spec.stop_grace_ms = grace_ms;
        }
        spec.keep_outputs_ms = self.keep_outputs.map_or(0, |text| text.0);
        spec.log_cap_bytes = self.log_cap.map(|text| text.0);
        spec.privileged = self.privileged;
        spec.hard_cpu = self.hard_cpu;
        Ok(spec)
    }

    /// What the runtime took is gone by now: a key that is left means nothing to it.
    fn nothing_left(&self, runtime: api::RuntimeName) -> Result<(), Misplaced> {
        fn left<T>(field: Option<&Spanned<T>>) -> Option<serde_saphyr::Location> {
            field.map(|field| field.referenced)
        }
        let keys = [
            ("command", left(self.command.as_ref()), "exec, docker"),
            ("image", left(self.image.as_ref()), "docker, qemu"),
            ("workdir", left(self.workdir.as_ref()), "exec, docker"),
            ("user", left(self.user.as_ref()), "exec, docker"),
            ("pids_limit", left(self.pids_limit.as_ref()), "exec, docker"),
            ("umask", left(self.umask.as_ref()), "exec"),
            ("private_tmp", left(self.private_tmp.as_ref()), "exec"),
            (
                "require_hard_limits",
                left(self.require_hard_limits.as_ref()),
                "exec",
            ),
            ("ports", left(self.ports.as_ref()), "docker, qemu"),
            ("mounts", left(self.mounts.as_ref()), "docker"),
            ("kernel", left(self.kernel.as_ref()), "qemu"),
            ("initrd", left(self.initrd.as_ref()), "qemu"),
            ("append", left(self.append.as_ref()), "qemu"),
            ("user_data", left(self.user_data.as_ref()), "qemu"),
            ("meta_data", left(self.meta_data.as_ref()), "qemu"),
            ("run_for", left(self.run_for.as_ref()), "sim"),
            ("exit_code", left(self.exit_code.as_ref()), "sim"),
        ];
        let stray = keys
            .into_iter()
            .find_map(|(key, place, of)| Some((key, place?, of)));
        stray.map_or(Ok(()), |(key, place, of)| {
            let runtime = crate::run::words::runtime(runtime);
            Err((
                Some(place),
                format!("{key} means nothing to runtime {runtime}; it is for {of}"),
            ))
        })
    }
}

impl Resources {
    fn demand(self) -> api::DemandSpec {
        let default = api::DemandSpec::default();
        let gpus = self.gpus.map(|text| text.0).unwrap_or_default();
        api::DemandSpec {
            cpu_millis: self.cpus.map_or(default.cpu_millis, |text| text.0),
            memory_mib: self.memory.map_or(default.memory_mib, |text| text.0),
            disk_mib: self.disk.map_or(default.disk_mib, |text| text.0),
            gpus: gpus.devices,
            gpu_millis: gpus.millis,
            resources: self.named,
        }
    }
}

fn value<T>(field: Option<Spanned<T>>) -> Option<T> {
    field.map(|field| field.value)
}

fn strings(field: Option<Spanned<Vec<Scalar>>>) -> Vec<String> {
    value(field)
        .unwrap_or_default()
        .into_iter()
        .map(|text| text.0)
        .collect()
}

fn texts<P: Parse>(field: Option<Spanned<Vec<Text<P>>>>) -> Vec<P::Value> {
    value(field)
        .unwrap_or_default()
        .into_iter()
        .map(|text| text.0)
        .collect()
}

fn required<T>(
    field: Option<Spanned<T>>,
    place: Option<serde_saphyr::Location>,
    words: &str,
) -> Result<T, Misplaced> {
    value(field).ok_or_else(|| (place, words.to_owned()))
}

/// The text of `pronto help workload-file`.
pub(crate) const HELP: &str = "\
Workload files (YAML): `pronto create workload -f FILE`, `pronto run --file FILE`

  name: thumbnails            # needed by `create workload`
  runtime: exec               # exec (default), docker, qemu, sim
  command: [sha256sum, a.bin] # exec: needed; docker: the image's own by default
  env: {LANG: C}
  workdir: /srv               # exec, docker; a fresh directory by default
  user: nobody                # exec, docker
  pids_limit: 100             # exec, docker
  umask: 022                  # exec; octal, as in a shell
  private_tmp: true           # exec: a /tmp of its own
  require_hard_limits: true   # exec: refuse nodes that can't enforce limits
  image: busybox              # docker: needed; qemu: a qcow2 image on the node
  mounts: [/data:/data:ro]    # docker, with privileged
  ports: [8080:80, 53/udp]    # docker, qemu: [HOST:]GUEST[/udp]
  kernel: /boot/vmlinuz       # qemu: kernel, initrd, append, user_data, meta_data
  run_for: 10s                # sim: ends after so long ...
  exit_code: 0                # sim: ... with this code

  resources:
    cpus: 0.5                 # cores; default 0.1
    memory: 64M               # hard limit, binary units; default 64M
    disk: 1G
    gpus: 0.5                 # whole GPUs, or a share of one
    named: {licence: 1}       # countable resources
  constraints: {node: n1, zone: a}   # a node by name, or labels that it must have
  labels: {team: web}         # tags for people and filters
  priority: 10                # -1000 to 1000, higher goes first
  restart: on-failure:5       # never (default), on-failure[:LIMIT], always[:LIMIT]
  reschedule: 5               # new attempts when its node fails it
  on_disconnect: keep         # or stop-after:30s
  timeout: 10m                # of running
  pending_timeout: 1h         # of waiting
  stop_grace: 10s             # between SIGTERM and SIGKILL
  keep_outputs: 10m           # keep the working directory so long after the end
  log_cap: 10M
  hard_cpu: false             # CPU as a hard quota instead of a weight
  privileged: false           # the tenant's policy must allow it
";

#[cfg(test)]
#[path = "../../fuzz/src/kept.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let failure = parse(text, "job.yaml").unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        failure.to_string()
    }

    #[test]
    fn files_of_the_corpus_are_workloads_or_errors() {
        let mut understood = 0;
        for bytes in super::kept::kept("workload_file") {
            match parse(&String::from_utf8_lossy(&bytes), "job.yaml") {
                Ok(_) => understood += 1,
                Err(failure) => assert!(failure.to_string().contains("job.yaml")),
            }
        }
        assert!(understood > 0);
    }

    /// Whatever is in a file, it is a workload or an error that names it: mutations of a whole one,
    /// always the same.
    #[test]
    fn mutated_files_are_workloads_or_errors() {
        const WHOLE: &str = "name: hash\ncommand: [sha256sum, 7, true]\nenv: {LEVEL: 9, ON: yes}\n\
            resources: {cpus: 0.01, memory: 1.5G, gpus: 0.5, named: {licence: 2}}\n\
            constraints: {node: n1, zone: a}\nrestart: on-failure:5\n\
            on_disconnect: stop-after:30s\ntimeout: 90s\npriority: -3\n";
        const WORDS: [&str; 20] = [
            "*a",
            "&a ",
            "!!str ",
            "{",
            "}",
            "[",
            "]",
            "- ",
            ": ",
            "\n",
            "\t",
            "|\n",
            ">",
            "0x1f",
            "1e999",
            "-1",
            "null",
            "\0",
            "99999999999999999999",
            "<<: ",
        ];
        let mut state = 1_u64;
        let mut draw = move |bound: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % u64::try_from(bound.max(1)).unwrap()).unwrap()
        };
        assert!(parse(WHOLE, "job.yaml").is_ok());
        let mut understood = 0;
        for _ in 0..2_000 {
            let mut text = WHOLE.to_owned();
            for _ in 0..=draw(4) {
                let at = text.floor_char_boundary(draw(text.len() + 1));
                let until = text.floor_char_boundary((at + draw(12)).min(text.len()));
                let word = WORDS[draw(WORDS.len())];
                match draw(3) {
                    0 => text.insert_str(at, word),
                    1 => text.replace_range(at..until, ""),
                    _ => text.replace_range(at..until, word),
                }
            }
            match parse(&text, "job.yaml") {
                Ok(_) => understood += 1,
                Err(failure) => {
                    let said = failure.to_string();
                    assert!(said.contains("job.yaml"), "{said}\n{text}");
                }
            }
        }
        assert!(
            understood > 100,
            "mutations that break everything test nothing"
        );
    }

    #[test]
    fn what_is_no_number_is_told_in_words() {
        for (line, accepted) in [
            ("priority: high", "a whole number"),
            ("reschedule: -1", "a whole number from 0"),
            ("hard_cpu: 1", "true or false"),
        ] {
            let text = format!("runtime: exec\ncommand: [x]\n{line}\n");
            let said = parse(&text, "job.yaml").unwrap_err().to_string();
            let words = format!("accepted here: {accepted}");
            assert!(said.lines().any(|line| line.ends_with(&words)), "{said}");
        }
    }

    /// A kilobyte that means ten billion entries costs a kilobyte's work.
    #[test]
    fn aliases_that_multiply_are_refused() {
        let mut text = String::from("env:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..10 {
            let below = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("  a{level}: &a{level} [{below}]\n"));
        }
        text.push_str("command: *a9\n");
        assert!(parse(&text, "job.yaml").is_err());
    }

    #[test]
    fn a_whole_file_is_understood() {
        let parsed = parse(
            "name: hash\ncommand: [sha256sum, 7, true]\nenv: {LEVEL: 9, ON: yes}\n\
             resources: {cpus: 0.01, memory: 1.5G, gpus: 0.5, named: {licence: 2}}\n\
             constraints: {node: n1, zone: a}\nrestart: on-failure:5\non_disconnect: stop-after:30s\n\
             timeout: 90s\npriority: -3\n",
            "job.yaml",
        )
        .unwrap();
        let spec = parsed.spec;
        assert_eq!(parsed.name.as_deref(), Some("hash"));
        let api::TaskSpec::Exec(exec) = &spec.task else {
            panic!("{:?}", spec.task)
        };
        assert_eq!(exec.command, ["sha256sum", "7", "true"]);
        assert_eq!(spec.env["ON"], "yes");
        assert_eq!((spec.demand.cpu_millis, spec.demand.memory_mib), (10, 1536));
        assert_eq!((spec.demand.gpus, spec.demand.gpu_millis), (0, 500));
        assert_eq!(spec.constraints[0], api::ConstraintSpec::Node("n1".into()));
        assert_eq!(spec.restart.limit, Some(5));
        assert_eq!(
            spec.on_disconnect,
            api::OnDisconnectSpec::StopAfterMs(30_000)
        );
        assert_eq!((spec.timeout_ms, spec.priority), (Some(90_000), -3));
    }

    #[test]
    fn what_is_left_out_has_the_stated_defaults() {
        let spec = parse("command: [ls]", "x").unwrap().spec;
        assert_eq!(spec.demand, api::DemandSpec::default());
        let sim = parse("runtime: sim\nrun_for: 10s", "x").unwrap().spec;
        assert_eq!(
            sim.task,
            api::TaskSpec::Sim(api::SimSpec {
                run_ms: 10_000,
                exit_code: 0
            })
        );
    }

    #[test]
    fn errors_point_at_line_and_column() {
        let unknown = error("name: a\ncommand: [ls]\ncomand: [ls]\n");
        assert!(
            unknown.contains("job.yaml:3:1:") && unknown.contains("comand"),
            "{unknown}"
        );
        let value = error("command: [ls]\nresources:\n  memory: lots\n");
        assert!(
            value.contains("job.yaml:3:11:") && value.contains("'lots'"),
            "{value}"
        );
        assert!(value.contains("64M"), "{value}");
        let runtime = error("runtime: podman\n");
        assert!(
            runtime.contains("job.yaml:1:10:") && runtime.contains("docker"),
            "{runtime}"
        );
        let syntax = error("command: [ls\nname: a\n");
        assert!(syntax.contains("job.yaml:"), "{syntax}");
        let missing = error("name: a\nruntime: docker\n");
        assert!(
            missing.contains("job.yaml:2:10:") && missing.contains("image"),
            "{missing}"
        );
        let stray = error("command: [ls]\nkernel: /vmlinuz\n");
        assert!(
            stray.contains("job.yaml:2:9:") && stray.contains("qemu"),
            "{stray}"
        );
        assert!(error("").contains("job.yaml:"), "an empty file");
    }

    #[test]
    fn errors_speak_of_the_file_and_not_of_the_parser() {
        let said = |text: &str, place: &str, words: &str| {
            let said = error(text);
            assert!(said.contains(place) && said.contains(words), "{said}");
        };
        said(
            "command: [ls]\n---\ncommand: [ls]\n",
            "job.yaml:",
            "one workload",
        );
        said(
            "command: [ls]\nname: a\nname: b\n",
            "job.yaml:3:1:",
            "'name' is there twice",
        );
        said(
            "command: [ls]\nenv: {A: }\n",
            "job.yaml:2:",
            "a value is missing",
        );
        said("command: true\n", "job.yaml:1:10:", "a list: [a, b]");
        said(
            "command: [ls]\nrestart: {mode: always}\n",
            "job.yaml:2:10:",
            "one value",
        );
        said("command: [ls]\nenv: [A]\n", "job.yaml:2:6:", "KEY: VALUE");
    }

    #[test]
    fn the_help_is_itself_a_valid_file_for_each_runtime() {
        for runtime in ["exec", "docker", "qemu", "sim"] {
            let yaml: String = HELP
                .lines()
                .skip(2)
                .map(|line| line.strip_prefix("  ").unwrap_or(line))
                .filter(|line| {
                    let comment = line.split_once('#').map_or("", |(_, comment)| comment);
                    let of = comment.split(['(', ':']).next().unwrap_or("");
                    let scoped = ["exec", "docker", "qemu", "sim"]
                        .iter()
                        .any(|name| of.contains(name));
                    !scoped || of.contains(runtime) || line.starts_with("runtime")
                })
                .map(|line| line.replace("runtime: exec ", &format!("runtime: {runtime} ")) + "\n")
                .collect();
            parse(&yaml, runtime).unwrap_or_else(|failure| panic!("{failure}\n{yaml}"));
        }
    }
}
