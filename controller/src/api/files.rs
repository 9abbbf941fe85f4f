//! Files of an instance, and its standard input; how streams to its node are opened.

use super::body::pipe;
use super::reply::{Caller, Path, Query, invalid, nothing, ok, streamed};
use super::types::{
    CHANNEL_FILE, ErrorBody, ErrorCode, FRAMES_CONTENT_TYPE, FileEnd, FileListing, FileQuery,
    ListingQuery, OneQuery, PutFileQuery, SHA256_HEADER,
};
use super::{App, Target};
use crate::planner::{Actor, Call, Refused, Reply};
use crate::streams::{Incoming, Stream};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::header::CONTENT_LENGTH;
use pronto_payloads::codec::Payload as _;
use pronto_payloads::ids::{InstanceId, OwnerId};
use pronto_payloads::stream::{Channel, StreamEnd, StreamFailure, StreamOpen, StreamRequest};
use std::sync::Arc;
use std::time::Duration;

/// A list of paths is cut here.
const MAX_LISTING_BYTES: usize = 4 << 20;
/// Input files are often sent right after a submission: the instance is waited for so long.
const PLACE_WAIT: Duration = Duration::from_secs(10);
/// A file's default permission bits, 0644.
const DEFAULT_MODE: u32 = 0o644;

/// Where an instance is, or was.
struct Place {
    id: InstanceId,
    node: Arc<str>,
    attempt: u32,
}

/// The place of an instance; waits a while for one that is being placed.
async fn place_of(app: &App, actor: &Actor, target: Target, text: &str) -> Result<Place, Refused> {
    let id = target.id();
    let nowhere = || {
        Refused::new(
            ErrorCode::Conflict,
            format!("instance {text} is on no node"),
        )
    };
    let place = |node: Option<Arc<str>>, attempt| {
        let node = node.ok_or_else(nowhere)?;
        Ok(Place { id, node, attempt })
    };
    if let Target::Ended(ended) = target {
        return place(ended.end.node, ended.end.attempt);
    }
    let mut changes = app.hub.follow(id);
    let placed = async {
        loop {
            changes.mark_unchanged();
            match app.ask(actor, Call::Locate(id)).await? {
                Reply::Located(located) => {
                    if located.node.is_some() {
                        return place(located.node, located.attempt);
                    }
                }
                _ => {
                    let ended = app.read(move |reader| reader.ended_by_id(id)).await?;
                    let end = ended.ok_or_else(nowhere)?.end;
                    return place(end.node, end.attempt);
                }
            }
            changes.changed().await.map_err(|_| nowhere())?;
        }
    };
    let found = tokio::time::timeout(PLACE_WAIT, placed).await;
    drop(changes);
    app.hub.unfollow(id);
    found.unwrap_or_else(|_| Err(nowhere()))
}

/// A stream, and which attempt it goes to.
pub(super) struct Opened {
    pub(super) stream: Stream,
    attempt: u32,
    pub(super) recorded: Recorded,
}

/// What the record says of a stream already, if it says anything.
pub(super) struct Recorded(Option<(InstanceId, String)>);

impl Recorded {
    /// Puts on record too that nothing came of it.
    pub(super) async fn refused(self, app: &App, actor: &Actor, refused: Refused) -> Refused {
        if let Some((id, what)) = self.0 {
            let message = format!("{what}: {}", refused.body.message);
            let kind = "refused";
            // A planner that does not answer has said so to whoever asked.
            let _unrecorded = app.ask(actor, Call::Enter { id, kind, message }).await;
        }
        refused
    }
}

pub(super) async fn open(
    app: &App,
    actor: &Actor,
    text: &str,
    tenant: Option<&str>,
    request: StreamRequest,
) -> Result<Opened, Refused> {
    let checked = StreamOpen {
        owner: OwnerId::default(),
        instance: InstanceId::default(),
        request,
        credit_bytes: 0,
    };
    checked.check().map_err(invalid)?;
    let target = app.find(actor, text, tenant).await?;
    let Place { id, node, attempt } = place_of(app, actor, target, text).await?;
    let mut recorded = Recorded(None);
    if let Some((kind, message)) = entry(&checked.request) {
        let what = format!("{kind} {message}");
        // On record before it happens.
        app.ask(actor, Call::Enter { id, kind, message }).await?;
        recorded = Recorded(Some((id, what)));
    }
    let streams = &app.streams;
    match streams
        .open(actor.scope(), &node, id, checked.request)
        .await
    {
        Ok(stream) => Ok(Opened {
            stream,
            attempt,
            recorded,
        }),
        Err(end) => Err(recorded.refused(app, actor, failed(&end)).await),
    }
}

/// What the record says of a stream: who looks into an instance or changes it. Arguments are left
/// out, since they may be secrets.
fn entry(request: &StreamRequest) -> Option<(&'static str, String)> {
    match request {
        StreamRequest::Exec { command } => {
            Some(("command_run", command.first().cloned().unwrap_or_default()))
        }
        StreamRequest::CopyOut { path } => Some(("file_read", path.clone())),
        StreamRequest::CopyIn { path, .. } => Some(("file_written", path.clone())),
        _ => None,
    }
}

/// A stream's failure as a refusal.
pub(super) fn failed(end: &StreamEnd) -> Refused {
    match end {
        StreamEnd::Complete { .. } => super::internal(),
        StreamEnd::Failed { kind, text } => {
            let code = match kind {
                StreamFailure::NotFound => ErrorCode::NotFound,
                StreamFailure::Unreachable => ErrorCode::NodeUnreachable,
                StreamFailure::Busy => ErrorCode::Busy,
                StreamFailure::Unsupported => ErrorCode::InvalidRequest,
                StreamFailure::Failed => ErrorCode::Conflict,
            };
            let refused = Refused::new(code, text.clone());
            if code == ErrorCode::Busy {
                refused.retry_after(1000)
            } else {
                refused
            }
        }
    }
}

pub(super) fn problem(end: &StreamEnd) -> Option<String> {
    match end {
        StreamEnd::Complete { .. } => None,
        StreamEnd::Failed { text, .. } => Some(text.clone()),
    }
}

/// The first thing on a stream: a failure then is still a status, not a broken body.
async fn first(stream: &mut Stream) -> Result<Incoming, Refused> {
    loop {
        match stream.next().await {
            Incoming::Credit(_) => {}
            Incoming::End(end @ StreamEnd::Failed { .. }) => return Err(failed(&end)),
            incoming => return Ok(incoming),
        }
    }
}

/// Reads a file of the instance's directory.
#[utoipa::path(get, path = "/v1/instances/{id}/files", tag = "streams",
    params(("id" = String, Path), FileQuery),
    responses((status = 200, body = FileEnd, content_type = "application/vnd.pronto.frames"),
    (status = "4XX", body = ErrorBody), (status = 502, body = ErrorBody)))]
pub(crate) async fn get_file(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<FileQuery>,
) -> Result<Response, Refused> {
    let request = StreamRequest::CopyOut { path: query.path };
    let mut opened = open(&app, &actor, &text, query.tenant.as_deref(), request).await?;
    let mut incoming = match first(&mut opened.stream).await {
        Ok(incoming) => incoming,
        Err(refused) => return Err(opened.recorded.refused(&app, &actor, refused).await),
    };
    let mut stream = opened.stream;
    let (pipe, body) = pipe();
    tokio::spawn(async move {
        let mut total = 0;
        loop {
            match incoming {
                Incoming::Data(_, bytes) => {
                    total += bytes.len() as u64;
                    if pipe.frame(CHANNEL_FILE, &bytes).await.is_err() {
                        return;
                    }
                    stream.took(bytes.len());
                }
                Incoming::Credit(_) => {}
                Incoming::End(end) => {
                    let _hung_up = pipe.end(&file_end(total, &end)).await;
                    return;
                }
            }
            incoming = tokio::select! {
                incoming = stream.next() => incoming,
                () = pipe.hung_up() => return,
            };
        }
    });
    Ok(streamed(FRAMES_CONTENT_TYPE, body))
}

fn file_end(bytes: u64, end: &StreamEnd) -> FileEnd {
    FileEnd {
        bytes,
        sha256: match end {
            StreamEnd::Complete { sha256, .. } => hex(sha256),
            StreamEnd::Failed { .. } => String::new(),
        },
        attempt: None,
        problem: problem(end),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Copies a request's body down a stream. The number of its bytes.
async fn send_body(stream: &mut Stream, channel: Channel, mut body: Body) -> Result<u64, Refused> {
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| invalid(format!("the body broke off: {error}")))?;
        if let Ok(bytes) = frame.into_data() {
            total += bytes.len() as u64;
            stream
                .write(channel, bytes)
                .await
                .map_err(|end| failed(&end))?;
        }
    }
    Ok(total)
}

/// The same to the stream's own end, which is not a failure.
async fn send_whole(
    stream: &mut Stream,
    channel: Channel,
    body: Body,
) -> Result<(u64, StreamEnd), Refused> {
    let sent = send_body(stream, channel, body).await?;
    stream.finish().map_err(|end| failed(&end))?;
    match stream.end().await {
        end @ StreamEnd::Complete { .. } => Ok((sent, end)),
        end @ StreamEnd::Failed { .. } => Err(failed(&end)),
    }
}

/// Writes a file into the instance's directory.
#[utoipa::path(put, path = "/v1/instances/{id}/files", tag = "streams",
    params(("id" = String, Path), PutFileQuery,
    ("x-pronto-sha256" = Option<String>, Header, description = "Of the file, in hex")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = FileEnd), (status = "4XX", body = ErrorBody),
    (status = 502, body = ErrorBody)))]
pub(crate) async fn put_file(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<PutFileQuery>,
    request: Request,
) -> Result<Response, Refused> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| {
        let value = parts.headers.get(name)?.to_str().ok()?;
        Some(value.to_ascii_lowercase())
    };
    let expected = header(SHA256_HEADER);
    let bytes = header(CONTENT_LENGTH.as_str())
        .and_then(|length| length.parse::<u64>().ok())
        .ok_or_else(|| invalid("a Content-Length is needed"))?;
    let copy = StreamRequest::CopyIn {
        path: query.path,
        mode: query.mode.unwrap_or(DEFAULT_MODE),
        bytes,
        input: query.input.unwrap_or(false),
    };
    let tenant = query.tenant.as_deref();
    let mut opened = open(&app, &actor, &text, tenant, copy).await?;
    let (sent, end) = match send_whole(&mut opened.stream, Channel::File, body).await {
        Ok(sent) => sent,
        Err(refused) => return Err(opened.recorded.refused(&app, &actor, refused).await),
    };
    let written = FileEnd {
        attempt: Some(opened.attempt),
        ..file_end(sent, &end)
    };
    if let Some(expected) = expected
        && !written.sha256.is_empty()
        && expected != written.sha256
    {
        return Err(Refused::new(
            ErrorCode::Conflict,
            format!(
                "the file was written with sha256 {}, not {expected}",
                written.sha256
            ),
        )
        .hint("send it again"));
    }
    Ok(ok(&written))
}

/// Sends standard input to an instance that was submitted with `stdin: true`.
#[utoipa::path(post, path = "/v1/instances/{id}/stdin", tag = "streams",
    params(("id" = String, Path), OneQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = 502, body = ErrorBody)))]
pub(crate) async fn stdin(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<OneQuery>,
    request: Request,
) -> Result<Response, Refused> {
    let stdin = StreamRequest::Stdin;
    let mut opened = open(&app, &actor, &text, query.tenant.as_deref(), stdin).await?;
    send_whole(&mut opened.stream, Channel::Stdin, request.into_body()).await?;
    Ok(nothing())
}

/// Lists files of the instance's directory.
#[utoipa::path(get, path = "/v1/instances/{id}/listing", tag = "streams",
    params(("id" = String, Path), ListingQuery),
    responses((status = 200, body = FileListing), (status = "4XX", body = ErrorBody),
    (status = 502, body = ErrorBody)))]
pub(crate) async fn listing(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<ListingQuery>,
) -> Result<Response, Refused> {
    let request = StreamRequest::List {
        pattern: query.pattern.unwrap_or_else(|| "*".to_owned()),
    };
    let mut stream = open(&app, &actor, &text, query.tenant.as_deref(), request)
        .await?
        .stream;
    let mut listed = Vec::new();
    loop {
        match stream.next().await {
            Incoming::Data(_, bytes) => {
                if listed.len() + bytes.len() > MAX_LISTING_BYTES {
                    return Err(Refused::new(
                        ErrorCode::TooLarge,
                        "more files match than one answer lists",
                    )
                    .hint("give a narrower pattern"));
                }
                listed.extend_from_slice(&bytes);
                stream.took(bytes.len());
            }
            Incoming::Credit(_) => {}
            Incoming::End(StreamEnd::Complete { .. }) => break,
            Incoming::End(end) => return Err(failed(&end)),
        }
    }
    let text = String::from_utf8_lossy(&listed);
    Ok(ok(&FileListing {
        paths: text.lines().map(str::to_owned).collect(),
    }))
}
