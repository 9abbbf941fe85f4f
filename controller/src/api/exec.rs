//! Commands inside a running instance, with their standard input if they are given one.

use super::App;
use super::body::{Pipe, pipe};
use super::files::{failed, open, problem};
use super::reply::{Caller, Path, Query, invalid, parse, read_bounded, streamed};
use super::types::{
    CHANNEL_END, CHANNEL_STDERR, CHANNEL_STDOUT, ErrorBody, ExecEnd, ExecRequest,
    FRAME_HEADER_BYTES, FRAMES_CONTENT_TYPE, OneQuery,
};
use crate::planner::Refused;
use crate::streams::{Incoming, Stream};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::header::CONTENT_TYPE;
use pronto_payloads::stream::{Channel, StreamEnd, StreamRequest};
use std::sync::Arc;

/// No document in front of an input is longer: a STREAM_OPEN isn't either.
const MAX_DOCUMENT_BYTES: usize = 64 * 1024;

/// Runs a command inside a running instance. With content type `application/vnd.pronto.frames` the
/// body is one frame on channel 0 with the `ExecRequest`, and behind it, unframed and to the end of
/// the body, the command's standard input. A body that breaks off ends the command.
#[utoipa::path(post, path = "/v1/instances/{id}/exec", tag = "streams",
    params(("id" = String, Path), OneQuery),
    request_body(content((ExecRequest = "application/json"),
    (Vec<u8> = "application/vnd.pronto.frames"))),
    responses((status = 200, body = ExecEnd, content_type = "application/vnd.pronto.frames"),
    (status = "4XX", body = ErrorBody), (status = 502, body = ErrorBody)))]
pub(crate) async fn exec(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    Path(text): Path<String>,
    Query(query): Query<OneQuery>,
    request: Request,
) -> Result<Response, Refused> {
    let content_type = request.headers().get(CONTENT_TYPE);
    let framed = content_type.is_some_and(|value| value == FRAMES_CONTENT_TYPE);
    let mut body = request.into_body();
    let (request, input): (ExecRequest, _) = if framed {
        let (request, rest) = document(&mut body).await?;
        (request, Some((rest, body)))
    } else {
        (parse(&read_bounded(body).await?)?, None)
    };
    let request = StreamRequest::Exec {
        command: request.command,
    };
    let mut opened = open(&app, &actor, &text, query.tenant.as_deref(), request).await?;
    if input.is_none() {
        opened.stream.finish().map_err(|end| failed(&end))?;
    }
    let incoming = match opened.stream.next().await {
        Incoming::End(end @ StreamEnd::Failed { .. }) => {
            return Err(opened.recorded.refused(&app, &actor, failed(&end)).await);
        }
        // A credit, output or its end: it runs.
        incoming => incoming,
    };
    let stream = opened.stream;
    let (pipe, answer) = pipe();
    let (pending, body) = input.unzip();
    let command = Command {
        stream,
        pipe,
        body,
        pending: pending.unwrap_or_default(),
    };
    tokio::spawn(command.run(incoming));
    Ok(streamed(FRAMES_CONTENT_TYPE, answer))
}

/// The document in front of an input, and what of the input came with it.
async fn document(body: &mut Body) -> Result<(ExecRequest, Bytes), Refused> {
    let mut buffer = BytesMut::new();
    loop {
        if let Some([channel, length @ ..]) = buffer.first_chunk::<FRAME_HEADER_BYTES>() {
            let (channel, length) = (*channel, u32::from_le_bytes(*length) as usize);
            if channel != CHANNEL_END || length > MAX_DOCUMENT_BYTES {
                return Err(invalid(
                    "the body does not begin with a request on channel 0",
                ));
            }
            if buffer.len() >= FRAME_HEADER_BYTES + length {
                buffer.advance(FRAME_HEADER_BYTES);
                let request = parse(&buffer.split_to(length))?;
                return Ok((request, buffer.freeze()));
            }
        }
        let part = next_part(body).await.map_err(invalid)?;
        let part = part.ok_or_else(|| invalid("the body ends before its request does"))?;
        buffer.extend_from_slice(&part);
    }
}

/// The next bytes of a body; none at its end.
async fn next_part(body: &mut Body) -> Result<Option<Bytes>, String> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
            Some(Err(error)) => return Err(format!("the body broke off: {error}")),
        }
    }
}

/// A command that runs. Its stream's drop ends it.
struct Command {
    stream: Stream,
    pipe: Pipe,
    /// What is left of its input; absent once all of it was read.
    body: Option<Body>,
    /// Input that waits for credit. A command that does not read delays its input, not its output.
    pending: Bytes,
}

impl Command {
    async fn run(mut self, mut incoming: Incoming) {
        // Ends early when nobody listens any more, or the input breaks off.
        while let Some(next) = self.pass(incoming).await {
            incoming = next;
        }
    }

    /// Passes on what came, then input until the next thing comes.
    async fn pass(&mut self, incoming: Incoming) -> Option<Incoming> {
        match incoming {
            Incoming::Data(channel, bytes) => {
                let code = match channel {
                    Channel::Stderr => CHANNEL_STDERR,
                    _ => CHANNEL_STDOUT,
                };
                self.pipe.frame(code, &bytes).await.ok()?;
                self.stream.took(bytes.len());
            }
            Incoming::Credit(_) => {}
            Incoming::End(end) => {
                self.end(&end).await;
                return None;
            }
        }
        loop {
            if let Err(end) = self.stream.write_granted(Channel::Stdin, &mut self.pending) {
                self.end(&end).await;
                return None;
            }
            tokio::select! {
                incoming = self.stream.next() => return Some(incoming),
                part = input(&mut self.body), if self.pending.is_empty() => match part {
                    Ok(Some(bytes)) => self.pending = bytes,
                    Ok(None) => {
                        self.body = None;
                        // A broken session is noticed by the next read.
                        let _broken = self.stream.finish();
                    }
                    Err(text) => {
                        let document = ExecEnd { code: None, problem: Some(text) };
                        let _hung_up = self.pipe.end(&document).await;
                        return None;
                    }
                },
                () = self.pipe.hung_up() => return None,
            }
        }
    }

    async fn end(&mut self, end: &StreamEnd) {
        let code = match end {
            StreamEnd::Complete { code, .. } => *code,
            StreamEnd::Failed { .. } => None,
        };
        let document = ExecEnd {
            code,
            problem: problem(end),
        };
        let _hung_up = self.pipe.end(&document).await;
    }
}

/// The next part of an input; never anything where there is none.
async fn input(body: &mut Option<Body>) -> Result<Option<Bytes>, String> {
    match body {
        Some(body) => next_part(body).await,
        None => std::future::pending().await,
    }
}
