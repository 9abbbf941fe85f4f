//! The shim: one small process that owns the launcher's workloads and outlives it.
//!
//! It is started by the launcher with a listening Unix socket as standard input and one JSON
//! argument ([`message::ShimSettings`]), makes itself a session of its own and the reaper of its
//! descendants, and then does what [`message::ToShim`] says. It decides nothing about what should
//! run; it enforces what was asked: stop, timeout, and `stop-after` also when no launcher lives.
//!
//! One thread, one epoll. It allocates little and never runs tokio, so that it stays small.
//!
//! Invariants: a workload is in its control group before it executes anything; its exit file is on
//! disk before anybody is told that it is empty, or kept and told to each launcher until it is
//! ([`exits`]); a connection that breaks changes nothing.

pub mod join;
pub mod message;
pub mod sys;

mod connection;
mod ends;
mod exits;
mod orphans;
mod spawn;
mod workload;

use crate::cgroup::Group;
use crate::moment::Moment;
use crate::supervisor::StopCause;
use connection::Connection;
use message::{Exit, FORMAT, FromShim, Key, ShimSettings, ToShim};
use pronto_payloads::instance::{End, EndCause, Usage};
use pronto_payloads::stream::Channel;
use rustix::event::epoll;
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;
use workload::Workload;

/// Control groups kept for the next workload: more than run at once on most nodes.
const POOLED_GROUPS: usize = 64;
/// One read of a pipe: its whole capacity, and one chunk of the log.
const READ_BYTES: usize = crate::logs::CHUNK_BYTES;
/// With fences set, time is looked at this often: epoll's clock stops in suspension, ours does not.
const FENCE_CHECK: Duration = Duration::from_secs(1);

/// A shim that leaves tries so often to take its control groups along.
const LEAVE_TRIES: u32 = 20;
const LEAVE_PAUSE: Duration = Duration::from_millis(10);

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;
const CONNECTION: u64 = 2;
/// Workload n's pipes are FIRST + 2n and the one after.
const FIRST: u64 = 16;

/// The entry of `pronto launcher-shim SETTINGS` and of `pronto launcher-shim join`, with the arguments
/// behind `launcher-shim`. Returns the process's exit code.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> i32 {
    sys::close_from(3);
    sys::reset_signals();
    let mut arguments = arguments.into_iter();
    let first = arguments.next().unwrap_or_default();
    if first == "join" {
        return join::run();
    }
    let settings = serde_json::from_slice::<ShimSettings>(first.as_encoded_bytes()).ok();
    let Some(settings) = settings.filter(|settings| settings.format == FORMAT) else {
        say("launcher-shim is started by the launcher, with its settings as one argument");
        return 64;
    };
    match Shim::new(settings).and_then(|mut shim| shim.run()) {
        Ok(()) => 0,
        Err(error) => {
            say(format_args!("launcher-shim: {error}"));
            1
        }
    }
}

/// A line for whoever reads our log: a disk that is full, or a reader that has gone, must not end us.
fn say(line: impl std::fmt::Display) {
    let _unread = writeln!(io::stderr(), "{line}");
}

struct Shim {
    settings: ShimSettings,
    started_at: Moment,
    epoll: OwnedFd,
    listener: OwnedFd,
    signals: OwnedFd,
    connection: Option<Connection>,
    workloads: HashMap<u64, Workload>,
    by_key: HashMap<Key, u64>,
    by_pid: HashMap<i32, u64>,
    /// Ended, but something of them is left.
    remains: BTreeSet<u64>,
    orphans: orphans::Orphans,
    exits: exits::Exits,
    timers: BTreeSet<(Moment, u64)>,
    pool: Vec<Group>,
    next_workload: u64,
    next_group: u64,
    buffer: Vec<u8>,
    spawner: spawn::Spawner,
    idle_since: Moment,
    shutting_down: bool,
}

impl Shim {
    fn new(settings: ShimSettings) -> io::Result<Self> {
        let listener = sys::take_stdin()?;
        // Both fail harmlessly: in a session of its own already, or on a foreign kernel.
        let _ = rustix::process::setsid();
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        let protected = std::fs::write("/proc/self/oom_score_adj", "-900").is_ok();
        let files_limit = sys::raise_files_limit();
        let signals =
            sys::signal_file(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        if let Some(hierarchy) = &settings.hierarchy {
            hierarchy.clear()?;
        }
        let now = Moment::now();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watch = |fd: &OwnedFd, token| {
            epoll::add(
                &epoll,
                fd,
                epoll::EventData::new_u64(token),
                epoll::EventFlags::IN,
            )
        };
        watch(&listener, LISTENER)?;
        watch(&signals, SIGNALS)?;
        Ok(Self {
            settings,
            started_at: now,
            epoll,
            listener,
            signals,
            connection: None,
            workloads: HashMap::new(),
            by_key: HashMap::new(),
            by_pid: HashMap::new(),
            remains: BTreeSet::new(),
            orphans: orphans::Orphans::default(),
            exits: exits::Exits::default(),
            timers: BTreeSet::new(),
            pool: Vec::new(),
            next_workload: 0,
            next_group: 0,
            buffer: vec![0; READ_BYTES],
            spawner: spawn::Spawner::new(protected, files_limit)?,
            idle_since: now,
            shutting_down: false,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        loop {
            self.flush();
            if self.is_done() {
                self.leave();
                return Ok(());
            }
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            // Output first, so that nobody's last words come after the word of its end; and its
            // standard output before its errors, which is how most would have been written.
            let mut tokens: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
            tokens.sort_unstable_by_key(|token| match *token {
                pipe @ FIRST.. => (0, pipe),
                // CONNECTION, SIGNALS, LISTENER.
                other => (1, FIRST - other),
            });
            for token in tokens {
                match token {
                    LISTENER => self.accept(),
                    SIGNALS => self.take_signals(),
                    CONNECTION => self.receive(),
                    pipe => self.read_pipe(pipe),
                }
            }
            self.wake();
        }
    }

    fn is_done(&self) -> bool {
        if !self.workloads.is_empty() {
            return false;
        }
        let idle = Moment::now().since(self.idle_since);
        let long = idle >= Duration::from_millis(self.settings.idle_exit_ms);
        // Exits that are nowhere else are not left behind.
        let idle = self.connection.is_none() && long && self.exits.due().is_none();
        self.shutting_down || idle
    }

    fn leave(&mut self) {
        for group in self.pool.drain(..) {
            let _ = group.remove();
        }
        let Some(hierarchy) = &self.settings.hierarchy else {
            return;
        };
        // The kernel may hold a group for a moment after its last process. The next shim makes them
        // anew.
        for _ in 0..LEAVE_TRIES {
            let _ = hierarchy.clear();
            if hierarchy.remove().is_ok() {
                return;
            }
            std::thread::sleep(LEAVE_PAUSE);
        }
    }

    fn timeout(&self) -> rustix::time::Timespec {
        let now = Moment::now();
        let mut wait = Duration::from_millis(self.settings.idle_exit_ms.max(10));
        if let Some(at) = self.exits.due() {
            wait = wait.min(at.since(now));
        }
        if let Some((at, _)) = self.timers.first() {
            // A millisecond up: the kernel rounds timeouts, and a timer must not spin.
            wait = wait
                .min(at.since(now) + Duration::from_micros(50))
                .min(FENCE_CHECK);
        }
        rustix::time::Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        }
    }

    // Launcher

    fn handle(&mut self, message: ToShim) {
        let now = Moment::now();
        match message {
            ToShim::Hello { .. } => self.greet(),
            ToShim::Spawn(spawn) => self.spawn(*spawn),
            ToShim::Stop {
                key,
                cause,
                grace_ms,
            } => {
                self.with(&key, |workload| workload.stop(now, cause, grace_ms));
            }
            ToShim::Fence { owner, lease_until } => {
                let owned: Vec<u64> = self
                    .workloads
                    .iter()
                    .filter(|(_, workload)| workload.spawn.owner == owner)
                    .map(|(id, _)| *id)
                    .collect();
                for id in owned {
                    if let Some(workload) = self.workloads.get_mut(&id) {
                        workload.lease_renewed(lease_until);
                    }
                    self.set_timer(id);
                }
            }
            ToShim::CloseStdin { key } => self.with(&key, |workload| workload.stdin_holder = None),
            ToShim::Shutdown { grace_ms } => self.shut_down(grace_ms),
        }
    }

    fn with(&mut self, key: &str, change: impl FnOnce(&mut Workload)) {
        let Some(&id) = self.by_key.get(key) else {
            return;
        };
        if let Some(workload) = self.workloads.get_mut(&id) {
            change(workload);
        }
        self.set_timer(id);
    }

    fn shut_down(&mut self, grace_ms: u64) {
        self.shutting_down = true;
        let now = Moment::now();
        let all: Vec<u64> = self.workloads.keys().copied().collect();
        for id in all {
            if let Some(workload) = self.workloads.get_mut(&id) {
                workload.stop(now, StopCause::Asked, grace_ms);
            }
            self.set_timer(id);
        }
    }

    // Workloads

    fn spawn(&mut self, spawn: message::Spawn) {
        if self.by_key.contains_key(&spawn.key) {
            return;
        }
        let key = spawn.key.clone();
        let directory = spawn.directory.clone();
        if spawn.fence_at.is_some_and(|at| at <= Moment::now()) {
            // It lay here, or on its way, until its successor may run.
            let end = End {
                cause: EndCause::LeaseExpired,
                message: "its fence had passed before it could be started".to_owned(),
            };
            return self.refuse(key, directory, end);
        }
        let group = match self.take_group(&spawn) {
            Ok(group) => group,
            Err(error) => {
                let text = format!("no control group could be made: {error}");
                return self.refuse(key, directory, spawn::node_failed(text));
            }
        };
        let id = self.next_workload;
        match self.spawner.start(spawn, group) {
            Ok(workload) => {
                self.next_workload += 1;
                self.tell(&FromShim::Started {
                    key: key.clone(),
                    at: workload.started_at,
                    pid: workload.pid,
                    group: workload.group.as_ref().map(|group| group.name().to_owned()),
                    group_cpu_us: workload.group.as_ref().map_or(0, Group::baseline_cpu_us),
                });
                for (index, pipe) in (0_u64..).zip(&workload.pipes) {
                    if let Some(pipe) = pipe {
                        let data = epoll::EventData::new_u64(FIRST + 2 * id + index);
                        let _ = epoll::add(&self.epoll, pipe, data, epoll::EventFlags::IN);
                    }
                }
                self.by_pid.insert(workload.pid, id);
                self.by_key.insert(key, id);
                self.workloads.insert(id, workload);
                self.set_timer(id);
            }
            Err(refused) => {
                let spawn::Refused { end, group } = *refused;
                if let Some(group) = group {
                    self.put_group(group);
                }
                self.refuse(key, directory, end);
            }
        }
    }

    fn refuse(&mut self, key: Key, directory: PathBuf, end: End) {
        let exit = Exit {
            format: FORMAT,
            key: key.clone(),
            started_at: None,
            ended_at: Moment::now(),
            end: end.clone(),
            usage: Usage::default(),
        };
        self.exits.write(directory, exit);
        self.tell(&FromShim::Failed { key, end });
    }

    fn take_group(&mut self, spawn: &message::Spawn) -> io::Result<Option<Group>> {
        let Some(hierarchy) = &self.settings.hierarchy else {
            return Ok(None);
        };
        let mut group = match self.pool.pop() {
            Some(group) => group,
            None => {
                self.next_group += 1;
                Group::create(hierarchy, &format!("w{}", self.next_group))?
            }
        };
        match group.limit(spawn.limits) {
            Ok(()) => Ok(Some(group)),
            Err(error) => {
                let _ = group.remove();
                Err(error)
            }
        }
    }

    fn put_group(&mut self, mut group: Group) {
        if group.recycle() && self.pool.len() < POOLED_GROUPS {
            self.pool.push(group);
        } else {
            // If it is not empty after all, the next shim's clearing takes it.
            let _ = group.remove();
        }
    }

    fn read_pipe(&mut self, token: u64) {
        let Some(offset) = token.checked_sub(FIRST) else {
            return;
        };
        self.drain_pipe(offset / 2, usize::from(offset % 2 == 1), 1);
    }

    /// Reads at most so many times, so that nobody's flood starves the others.
    fn drain_pipe(&mut self, id: u64, index: usize, reads: usize) {
        let now = Moment::now();
        let Some(workload) = self.workloads.get_mut(&id) else {
            return;
        };
        let channel = if index == 0 {
            Channel::Stdout
        } else {
            Channel::Stderr
        };
        for _ in 0..reads {
            let Some(pipe) = &workload.pipes[index] else {
                return;
            };
            match rustix::io::read(pipe, &mut self.buffer[..]) {
                Ok(0) => {
                    // Closing also takes it out of the epoll: no copy of it exists.
                    workload.pipes[index] = None;
                    return;
                }
                Ok(length) => {
                    let goes_on = workload.output(now, channel, &self.buffer[..length]);
                    if !goes_on && workload.ended.is_none() {
                        workload.watched[index] = false;
                        if let Some(pipe) = &workload.pipes[index] {
                            let _ = epoll::delete(&self.epoll, pipe);
                        }
                        return self.set_timer(id);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    // Time

    fn set_timer(&mut self, id: u64) {
        let Some(workload) = self.workloads.get_mut(&id) else {
            return;
        };
        let due = workload.due();
        if due != workload.alarm {
            if let Some(at) = workload.alarm {
                self.timers.remove(&(at, id));
            }
            if let Some(at) = due {
                self.timers.insert((at, id));
            }
            workload.alarm = due;
        }
    }

    fn wake(&mut self) {
        let now = Moment::now();
        if self.exits.due().is_some_and(|at| at <= now) {
            self.exits.retry();
        }
        while let Some(&(at, id)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            let Some(workload) = self.workloads.get_mut(&id) else {
                continue;
            };
            workload.alarm = None;
            if workload.wake(now) {
                self.watch_again(id);
            }
            self.set_timer(id);
            if self.remains.contains(&id) {
                self.settle();
            }
        }
    }

    fn watch_again(&mut self, id: u64) {
        let Some(workload) = self.workloads.get_mut(&id) else {
            return;
        };
        for (index, token) in (0..2).zip(FIRST + 2 * id..) {
            let Some(pipe) = workload.pipes[index]
                .as_ref()
                .filter(|_| !workload.watched[index])
            else {
                continue;
            };
            let data = epoll::EventData::new_u64(token);
            workload.watched[index] =
                epoll::add(&self.epoll, pipe, data, epoll::EventFlags::IN).is_ok();
        }
    }
}

fn alive(workload: &Workload) -> FromShim {
    FromShim::Alive {
        key: workload.spawn.key.clone(),
        pid: workload.pid,
        started_at: workload.started_at,
        fence_at: workload.fence_at,
        group: workload.group.as_ref().map(|group| group.name().to_owned()),
        group_cpu_us: workload.group.as_ref().map_or(0, Group::baseline_cpu_us),
    }
}

fn ended(workload: &Workload) -> Option<FromShim> {
    workload.ended.as_ref().map(|ended| FromShim::Ended {
        key: workload.spawn.key.clone(),
        at: ended.at,
        end: ended.end.clone(),
        usage: ended.usage,
    })
}
