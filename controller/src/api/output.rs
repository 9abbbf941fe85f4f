//! The output of an instance, framed, from wherever it runs: while it waits, from its start to its
//! end across attempts, and after it has ended.

use super::body::{HungUp, Pipe, pipe};
use super::instances::own;
use super::reply::{Caller, Path, Query, invalid, streamed};
use super::types::{
    CHANNEL_STDERR, CHANNEL_STDOUT, ErrorBody, ErrorCode, FRAMES_CONTENT_TYPE, OutputEnd,
    OutputQuery, Step, TimelineStep,
};
use super::{App, Target};
use crate::planner::views::{ended_view, timeline};
use crate::planner::{Actor, Call, Change, Refused, Reply};
use crate::shell::unix_ms;
use crate::store::read::EventFilter;
use crate::streams::Incoming;
use axum::extract::State;
use axum::response::Response;
use pronto_payloads::ids::{Attempt, InstanceId};
use pronto_payloads::stream::{Channel, LogsRequest, StreamEnd, StreamFailure, StreamRequest};
use rustc_hash::FxHashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Silence after which the client gets a sign of life.
const ALIVE: Duration = Duration::from_secs(15);
/// After a stream could not be opened, before it is tried again: doubles, since the log of an
/// attempt that has just been placed is there in a moment, and a restarted node is not.
const AGAIN_FIRST: Duration = Duration::from_millis(2);
const AGAIN_LONGEST: Duration = Duration::from_millis(400);
/// A stream that could not be opened, or broke, is tried so often before it is given up.
const TRIES: u32 = 25;
/// The same for one that has ended: about a second.
const PAST_TRIES: u32 = 9;
/// A log that is younger is kept unless there never was one: launchers keep them for an hour.
const KEPT_FOR_SURE_MS: u64 = 5 * 60 * 1000;
/// And for no longer, where the node itself takes its time to say that it can't.
const PAST_LIMIT: Duration = Duration::from_secs(2);
/// Of an instance's record, for the nodes that it has been on.
const EVENTS: usize = 100;

/// Streams the output of an instance; with `follow=true` until it has ended.
#[utoipa::path(get, path = "/v1/instances/{id}/output", tag = "streams",
    params(("id" = String, Path), OutputQuery),
    responses((status = 200, body = OutputEnd, content_type = "application/vnd.pronto.frames",
    description = "Framed stream: channel 1 standard output, 2 standard error, last frame on \
    channel 0: `OutputEnd`"), (status = "4XX", body = ErrorBody)))]
pub(crate) async fn output(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<OutputQuery>,
) -> Result<Response, Refused> {
    let target = app.find(&actor, &text, query.tenant.as_deref()).await?;
    let past = match query.attempt {
        Some(attempt) => Some(whereabouts(&app, &actor, &target, attempt, &query).await?),
        None => None,
    };
    let (pipe, body) = pipe();
    tokio::spawn(async move {
        let id = target.id();
        let changes = app.hub.follow(id);
        let mut session = Output {
            app: &app,
            actor: &actor,
            id,
            query: &query,
            pipe: &pipe,
            changes,
            began: Instant::now(),
            sent: Sent::default(),
            problem: None,
            tries: 0,
        };
        // Ends when the client hangs up.
        let _hung_up = match past {
            Some(past) => session.run_past(&past).await,
            None => session.run(target).await,
        };
        drop(session);
        app.hub.unfollow(id);
    });
    Ok(streamed(FRAMES_CONTENT_TYPE, body))
}

/// One attempt, and the nodes that may have its log, the likeliest first.
struct Past {
    attempt: u32,
    nodes: Vec<Arc<str>>,
}

/// Where the log of an attempt may be: its instance's record names the nodes that it has left.
async fn whereabouts(
    app: &App,
    actor: &Actor,
    target: &Target,
    attempt: u32,
    query: &OutputQuery,
) -> Result<Past, Refused> {
    if query.follow.unwrap_or(false) {
        return Err(invalid("the log of one attempt is not followed"));
    }
    let id = target.id();
    let (last, nodes) = match app.ask(actor, Call::Locate(id)).await? {
        Reply::Located(located) => {
            let previous = located.previous.map(|(_, node)| node);
            let nodes = located.node.into_iter().chain(previous);
            (located.attempt, nodes.collect::<Vec<_>>())
        }
        _ => {
            let ended = app.read(move |reader| reader.ended_by_id(id)).await?;
            let ended = ended.ok_or_else(|| Refused::not_found("instance", &id.to_string()))?;
            (ended.end.attempt, ended.end.node.into_iter().collect())
        }
    };
    if attempt > last {
        let what = format!("there is no attempt {attempt}: the last is {last}");
        return Err(Refused::new(ErrorCode::NotFound, what));
    }
    let _place = app.place_for_list(actor)?;
    let nodes = nodes_on_record(app, id, nodes).await?;
    Ok(Past { attempt, nodes })
}

/// These nodes, and behind them those that an instance's record names, the latest first.
async fn nodes_on_record(
    app: &App,
    id: InstanceId,
    mut nodes: Vec<Arc<str>>,
) -> Result<Vec<Arc<str>>, Refused> {
    let filter = EventFilter {
        tenant: None,
        instance: Some(id),
        node: None,
        kind: None,
        before: None,
        limit: EVENTS,
    };
    let events = app.read(move |reader| reader.events(&filter)).await?;
    let named = events.into_iter().filter_map(|event| event.node);
    nodes.extend(named.map(Arc::from));
    let mut seen = FxHashSet::default();
    nodes.retain(|node| seen.insert(Arc::clone(node)));
    Ok(nodes)
}

struct Output<'a> {
    app: &'a App,
    actor: &'a Actor,
    id: InstanceId,
    query: &'a OutputQuery,
    pipe: &'a Pipe,
    changes: watch::Receiver<Option<Change>>,
    began: Instant,
    sent: Sent,
    problem: Option<(StreamFailure, String)>,
    tries: u32,
}

/// Bytes of one attempt that the client has: a stream that broke is taken up behind them.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    attempt: u32,
    /// Standard output and standard error.
    bytes: [u64; 2],
}

impl Sent {
    fn is_nothing(&self) -> bool {
        self.bytes == [0, 0]
    }
}

/// What is to be done after one stream.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// All of this attempt's output was sent.
    AttemptDone(u32),
    /// It broke; look again where the instance is.
    Again,
    GiveUp,
}

impl Output<'_> {
    async fn run(&mut self, target: Target) -> Result<(), HungUp> {
        if let Target::Ended(ended) = &target {
            let (node, attempt) = (ended.end.node.clone(), ended.end.attempt);
            self.past(node, attempt).await?;
            let age_ms = unix_ms().saturating_sub(ended.end.ended_unix_ms);
            if self.is_forgotten() && age_ms < KEPT_FOR_SURE_MS {
                self.problem = None;
            }
            return self.finish().await;
        }
        let follow = self.query.follow.unwrap_or(false);
        let mut done = 0;
        loop {
            self.changes.mark_unchanged();
            let located = match self.app.ask(self.actor, Call::Locate(self.id)).await {
                Ok(Reply::Located(located)) => located,
                Ok(_) => {
                    self.past_of_store(done).await?;
                    return self.finish().await;
                }
                Err(refused) => {
                    self.problem = Some((StreamFailure::Failed, refused.body.message));
                    return self.finish().await;
                }
            };
            // One that came and went while an earlier one was sent.
            let passed = located.previous.filter(|(attempt, _)| {
                follow && *attempt > done && (done > 0 || located.node.is_none())
            });
            if let Some((attempt, node)) = passed {
                self.missed(done, attempt).await?;
                self.past(Some(node), attempt).await?;
                (self.problem, self.tries) = (None, 0);
                done = attempt;
                continue;
            }
            match located.node {
                Some(node) if located.attempt > done => {
                    match self.stream(&node, located.attempt, follow).await? {
                        Then::AttemptDone(attempt) => {
                            done = attempt;
                            self.tries = 0;
                        }
                        Then::Again => {
                            self.pause().await?;
                            continue;
                        }
                        // It lives, out of reach: one more try whenever something has changed.
                        Then::GiveUp if follow => {
                            self.wait().await?;
                            self.tries = TRIES - 1;
                        }
                        Then::GiveUp => {}
                    }
                    if !follow {
                        return self.finish().await;
                    }
                }
                _ if !follow => return self.finish().await,
                _ => self.wait().await?,
            }
        }
    }

    async fn run_past(&mut self, past: &Past) -> Result<(), HungUp> {
        self.past_anywhere(past.attempt, &past.nodes).await?;
        self.finish().await
    }

    /// The kept log of one attempt, from the first node that has it; or why there is none.
    async fn past_anywhere(&mut self, attempt: u32, nodes: &[Arc<str>]) -> Result<(), HungUp> {
        let mut problem = None;
        for node in nodes {
            self.tries = 0;
            self.past(Some(Arc::clone(node)), attempt).await?;
            if self.problem.is_none() || !self.sent.is_nothing() {
                return Ok(());
            }
            if !self.is_forgotten() {
                problem = self.problem.take();
            }
        }
        self.problem = problem.or_else(|| {
            let why = "it wrote nothing, or its log is not kept any more";
            let what = format!("attempt {attempt} has no log: {why}");
            Some((StreamFailure::NotFound, what))
        });
        Ok(())
    }

    /// Waits for a change of the instance; says that it is alive meanwhile.
    async fn wait(&mut self) -> Result<(), HungUp> {
        tokio::select! {
            changed = self.changes.changed() => changed.map_err(|_| HungUp),
            () = self.pipe.hung_up() => Err(HungUp),
            () = tokio::time::sleep(ALIVE) => self.pipe.frame(CHANNEL_STDOUT, &[]).await,
        }
    }

    async fn pause(&mut self) -> Result<(), HungUp> {
        let doubled = AGAIN_FIRST.saturating_mul(1 << self.tries.min(16));
        let wait = doubled.min(AGAIN_LONGEST);
        tokio::select! {
            _ = self.changes.changed() => Ok(()),
            () = self.pipe.hung_up() => Err(HungUp),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }

    async fn stream(&mut self, node: &str, attempt: u32, follow: bool) -> Result<Then, HungUp> {
        if self.sent.attempt != attempt {
            self.sent = Sent {
                attempt,
                bytes: [0, 0],
            };
        }
        let elapsed_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let request = StreamRequest::Logs(LogsRequest {
            follow,
            stdout: self.query.stdout.unwrap_or(true),
            stderr: self.query.stderr.unwrap_or(true),
            // From the same moment as at first.
            since_ms: self.query.since_ms.map(|ms| ms.saturating_add(elapsed_ms)),
            tail_bytes: self.query.tail_bytes,
            // Its node may not know it yet, or know a newer one already.
            attempt: Some(Attempt(attempt)),
        });
        let mut skip = self.sent.bytes;
        let opened = self
            .app
            .streams
            .open(self.actor.scope(), node, self.id, request)
            .await;
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(end) => return Ok(self.judge(end, attempt)),
        };
        loop {
            let incoming = tokio::select! {
                incoming = stream.next() => incoming,
                () = self.pipe.hung_up() => return Err(HungUp),
                () = tokio::time::sleep(ALIVE) => {
                    self.pipe.frame(CHANNEL_STDOUT, &[]).await?;
                    continue;
                }
            };
            match incoming {
                Incoming::Data(channel, bytes) => {
                    let (code, index) = if channel == Channel::Stderr {
                        (CHANNEL_STDERR, 1)
                    } else {
                        (CHANNEL_STDOUT, 0)
                    };
                    let known = usize::try_from(skip[index]).unwrap_or(usize::MAX);
                    let known = known.min(bytes.len());
                    skip[index] -= known as u64;
                    let fresh = &bytes[known..];
                    if !fresh.is_empty() {
                        self.pipe.frame(code, fresh).await?;
                        self.sent.bytes[index] += fresh.len() as u64;
                        self.tries = 0;
                    }
                    stream.took(bytes.len());
                }
                Incoming::Credit(_) => {}
                Incoming::End(end) => return Ok(self.judge(end, attempt)),
            }
        }
    }

    fn judge(&mut self, end: StreamEnd, attempt: u32) -> Then {
        match end {
            StreamEnd::Complete { .. } => {
                self.problem = None;
                Then::AttemptDone(attempt)
            }
            StreamEnd::Failed { kind, text } => {
                self.tries += 1;
                self.problem = Some((kind, text));
                // An attempt that was placed a moment ago may have no log yet, a node may be about
                // to come back. But where its last bytes began nobody knows any more, and a log
                // that was there and is not there now is deleted.
                let passes = match kind {
                    StreamFailure::Unsupported => false,
                    StreamFailure::NotFound => self.sent.is_nothing(),
                    _ => self.sent.is_nothing() || self.query.tail_bytes.is_none(),
                };
                let tries = if self.query.follow.unwrap_or(false) {
                    TRIES
                } else {
                    PAST_TRIES
                };
                match (passes, self.tries < tries) {
                    (true, true) => Then::Again,
                    (true, false) => Then::GiveUp,
                    (false, _) => Then::AttemptDone(attempt),
                }
            }
        }
    }

    /// The kept output of an instance that has ended.
    async fn past(&mut self, node: Option<Arc<str>>, attempt: u32) -> Result<(), HungUp> {
        let Some(node) = node else { return Ok(()) };
        let began = Instant::now();
        while self.stream(&node, attempt, false).await? == Then::Again
            && self.tries < PAST_TRIES
            && began.elapsed() < PAST_LIMIT
            && !self.is_forgotten()
        {
            self.pause().await?;
        }
        Ok(())
    }

    /// The node knows nothing of an instance that has ended, and never will again.
    fn is_forgotten(&self) -> bool {
        matches!(self.problem, Some((StreamFailure::NotFound, _)))
    }

    /// What came and went between the attempt that was followed last, if any was, and this one.
    async fn missed(&mut self, done: u32, before: u32) -> Result<(), HungUp> {
        if done == 0 {
            return Ok(());
        }
        if before > done + 1 {
            let nodes = nodes_on_record(self.app, self.id, Vec::new()).await;
            let nodes = nodes.unwrap_or_default();
            for attempt in done + 1..before {
                self.past_anywhere(attempt, &nodes).await?;
            }
        }
        (self.problem, self.tries) = (None, 0);
        Ok(())
    }

    /// What is kept of an instance that has ended, behind the attempt that was followed.
    async fn past_of_store(&mut self, done: u32) -> Result<(), HungUp> {
        let id = self.id;
        let found = self.app.read(move |reader| reader.ended_by_id(id)).await;
        match found {
            Ok(Some(ended)) if own(self.actor, &ended) && ended.end.attempt > done => {
                let (node, last) = (ended.end.node, ended.end.attempt);
                self.missed(done, last).await?;
                self.past(node, last).await?;
            }
            _ => {}
        }
        // It lived when this began, and a log is kept for longer than that: there never was one.
        if self.is_forgotten() {
            self.problem = None;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), HungUp> {
        let id = self.id;
        let living = self.app.ask(self.actor, Call::Show(id)).await;
        let (instance, timeline) = match living {
            Ok(Reply::Shown {
                instance, timeline, ..
            }) => (*instance, timeline),
            _ => match self.app.read(move |reader| reader.ended_by_id(id)).await {
                Ok(Some(ended)) if own(self.actor, &ended) => (
                    ended_view(ended.id, &ended.submission, &ended.spec, &ended.end),
                    timeline(&ended.end.times),
                ),
                // Deleted meanwhile: the body ends without its last frame.
                _ => return Ok(()),
            },
        };
        let mut timeline = timeline;
        let committed = self
            .changes
            .borrow()
            .as_ref()
            .and_then(|c| c.end_committed_ns);
        if let (Some(offset_ns), Some(last)) = (committed, timeline.last()) {
            let delta_ns = offset_ns.saturating_sub(last.offset_ns);
            timeline.push(TimelineStep {
                step: Step::EndCommitted,
                offset_ns,
                delta_ns,
            });
        }
        self.pipe
            .end(&OutputEnd {
                instance,
                timeline,
                problem: self.problem.take().map(|(_, text)| text),
            })
            .await
    }
}
