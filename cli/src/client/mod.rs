//! The client of the controller's API: one connection, one request at a time.
//!
//! HTTP/1.1 over mutual TLS; the peer must prove that it is a controller of the same cluster. A
//! connection is kept for the next request; a stream takes it along. Before a controller has
//! answered once, an unreachable one is an error at once; afterwards an outage is ridden out for
//! [`OUTAGE_LIMIT`], since a command that waits for its workload must survive a controller's
//! restart. Only requests that may be repeated are repeated. Frames of streams are decoded in
//! [`frames`], server-sent events in [`sse`].

mod early;
pub(crate) mod frames;
pub(crate) mod sse;

use crate::exit::{Exit, Failure, told_once};
use crate::output::terminal;
use crate::settings::Settings;
use anyhow::Context;
use bytes::Bytes;
use early::Early;
use frames::Frames;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use pronto_controller::api::types::{
    CHANNEL_END, ErrorBody, ErrorCode, FRAMES_CONTENT_TYPE, SHA256_HEADER,
};
use pronto_protocol::identity::Role;
use pronto_protocol::transport::{
    Credentials, TlsFiles, alert_in_words, connect_tcp, take_refusal,
};
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{self, AlertDescription};

/// From connecting to the end of the TLS handshake, for one address.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// From a request to its answer's head: longer than any commit to a slow disk.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// From a stream's last frame to its end.
const TAKE_BACK_LIMIT: Duration = Duration::from_millis(20);
/// How long an outage of the controllers is ridden out by a command that waits.
const OUTAGE_LIMIT: Duration = Duration::from_secs(60);
/// Between two tries: at first, and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// No answer's document is longer: a page of 1,000 instances is below 2 MiB, and so are the ids of
/// a submission of 100,000 below 8.
const MAX_DOCUMENT_BYTES: usize = 32 << 20;

/// What stays as it is in a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The body of a request.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// A client of the controllers.
pub(crate) struct Client {
    settings: Arc<Settings>,
    credentials: Arc<Credentials>,
    connection: Option<SendRequest<Body>>,
    /// A controller has answered: from now on an outage may pass.
    answered: bool,
}

/// One request, to be sent as often as needed.
struct Call {
    method: Method,
    path: String,
    content_type: &'static str,
    body: Bytes,
    /// Sending it twice does no more than sending it once.
    repeatable: bool,
}

impl Call {
    fn get(path: &str) -> Self {
        Self {
            method: Method::GET,
            path: path.to_owned(),
            content_type: "",
            body: Bytes::new(),
            repeatable: true,
        }
    }
}

/// What came instead of an answer.
enum Trouble {
    /// Nothing was sent, or it may be sent again.
    Outage(Failure),
    /// The controller is at a limit of its own for a moment.
    Busy(Failure, Duration),
    /// An answer: no.
    Final(Failure),
}

/// A path of escaped segments.
pub(crate) fn path(segments: &[&str]) -> String {
    let mut path = String::from("/v1");
    for segment in segments {
        path.push('/');
        path.extend(utf8_percent_encode(segment, SEGMENT));
    }
    path
}

/// The path with a query made of the fields that are there.
pub(crate) fn query(path: String, query: &impl Serialize) -> Result<String, Failure> {
    let query = serde_urlencoded::to_string(query).map_err(anyhow::Error::from)?;
    Ok(if query.is_empty() {
        path
    } else {
        format!("{path}?{query}")
    })
}

impl Client {
    /// A client with these settings. Reads the certificates; connects to nothing yet.
    pub(crate) fn new(settings: Settings) -> Result<Self, Failure> {
        let files = TlsFiles {
            ca: settings.ca.clone(),
            cert: settings.cert.clone(),
            key: settings.key.clone(),
            crl: None,
        };
        let credentials = Credentials::load(&files)
            .map_err(|error| Failure::caused(Exit::Usage, error.into()))?;
        Ok(Self {
            settings: Arc::new(settings),
            credentials,
            connection: None,
            answered: false,
        })
    }

    /// Another client of the same controllers, for requests beside a stream.
    pub(crate) fn another(&self) -> Self {
        Self {
            settings: self.settings.clone(),
            credentials: self.credentials.clone(),
            connection: None,
            answered: self.answered,
        }
    }

    /// The tenant that was chosen, for administrators.
    pub(crate) fn tenant(&self) -> Option<String> {
        self.settings.tenant.clone()
    }

    /// From now on an outage is ridden out, as if a controller had answered.
    pub(crate) fn patient(mut self) -> Self {
        self.answered = true;
        self
    }

    /// From now on an outage is an error at once.
    pub(crate) fn impatient(mut self) -> Self {
        self.answered = false;
        self
    }

    /// GET a document.
    pub(crate) async fn get<R: DeserializeOwned>(&mut self, path: &str) -> Result<R, Failure> {
        self.document(Method::GET, path, None::<&()>, true).await
    }

    /// POST, PUT or PATCH something that may be repeated.
    pub(crate) async fn send<R: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<R, Failure> {
        self.document(method, path, Some(body), true).await
    }

    /// POST something that must be done once; an outage during it is an error.
    pub(crate) async fn send_once<R: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<R, Failure> {
        self.document(method, path, Some(body), false).await
    }

    /// A request whose answer has no content, or content of no interest.
    pub(crate) async fn command(&mut self, method: Method, path: &str) -> Result<(), Failure> {
        let call = Call {
            method,
            path: path.to_owned(),
            content_type: "",
            body: Bytes::new(),
            repeatable: true,
        };
        let response = self.answer(&call).await?;
        self.drain(response).await
    }

    async fn document<R: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        repeatable: bool,
    ) -> Result<R, Failure> {
        let body = match body {
            Some(body) => Bytes::from(serde_json::to_vec(body).map_err(anyhow::Error::from)?),
            None => Bytes::new(),
        };
        let content_type = if body.is_empty() {
            ""
        } else {
            "application/json"
        };
        let call = Call {
            method,
            path: path.to_owned(),
            content_type,
            body,
            repeatable,
        };
        let response = self.answer(&call).await?;
        read_document(response, path).await
    }

    /// Opens a framed stream. It takes the connection along.
    pub(crate) async fn open(&mut self, path: &str) -> Result<Frames, Failure> {
        let response = self.answer(&Call::get(path)).await?;
        Ok(Frames::new(response.into_body(), self.connection.take()))
    }

    /// Takes a connection back whose stream has been read to its last frame.
    pub(crate) async fn take_back(&mut self, frames: Frames) {
        // The end of the body is right behind the last frame, or not worth waiting for.
        if let Ok(connection) = timeout(TAKE_BACK_LIMIT, frames.into_connection()).await {
            self.connection = connection;
        }
    }

    /// POSTs a document and reads a framed stream.
    pub(crate) async fn open_with(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Frames, Failure> {
        let body = Bytes::from(serde_json::to_vec(body).map_err(anyhow::Error::from)?);
        let call = Call {
            method: Method::POST,
            path: path.to_owned(),
            content_type: "application/json",
            body,
            repeatable: false,
        };
        let response = self.answer(&call).await?;
        Ok(Frames::new(response.into_body(), self.connection.take()))
    }

    /// POSTs a document with a body of unknown length behind it, once, and reads a framed stream
    /// meanwhile. `body` makes the whole of what its argument begins.
    pub(crate) async fn open_both(
        &mut self,
        path: &str,
        document: &impl Serialize,
        body: impl FnOnce(Bytes) -> Body,
    ) -> Result<Frames, Failure> {
        let document = serde_json::to_vec(document).map_err(anyhow::Error::from)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(CONTENT_TYPE, FRAMES_CONTENT_TYPE);
        let body = body(frames::encode(CHANNEL_END, &document));
        let response = self.send_streamed(request, path, body).await?;
        Ok(Frames::new(response.into_body(), self.connection.take()))
    }

    /// Opens a stream of server-sent events.
    pub(crate) async fn events(&mut self, path: &str) -> Result<sse::Events, Failure> {
        let response = self.answer(&Call::get(path)).await?;
        Ok(sse::Events::new(
            response.into_body(),
            self.connection.take(),
        ))
    }

    /// Sends a body of unknown or known length, once.
    pub(crate) async fn upload(
        &mut self,
        method: Method,
        path: &str,
        length: Option<u64>,
        sha256: Option<&str>,
        body: Body,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, "application/octet-stream");
        if let Some(length) = length {
            request = request.header(CONTENT_LENGTH, length);
        }
        if let Some(sha256) = sha256 {
            request = request.header(SHA256_HEADER, sha256);
        }
        self.send_streamed(request, path, body).await
    }

    async fn send_streamed(
        &mut self,
        request: hyper::http::request::Builder,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, Failure> {
        let (mut sender, authority) = self.sender().await?;
        let request = self.headed(request, &authority, body)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error, path))?;
        self.connection = Some(sender);
        checked(response).await.map_err(|trouble| match trouble {
            Trouble::Outage(failure) | Trouble::Busy(failure, _) | Trouble::Final(failure) => {
                failure
            }
        })
    }

    /// Sends a request until it is answered, or its time is up.
    async fn answer(&mut self, call: &Call) -> Result<Response<Incoming>, Failure> {
        let begun = Instant::now();
        let mut wait = RETRY_FIRST;
        let mut told = false;
        loop {
            let (failure, pause) = match self.attempt(call).await {
                Ok(response) => {
                    self.answered = true;
                    return Ok(response);
                }
                Err(Trouble::Final(failure)) => {
                    self.answered = true;
                    return Err(failure);
                }
                Err(Trouble::Busy(failure, pause)) => (failure, pause.max(wait)),
                Err(Trouble::Outage(failure)) if self.answered && call.repeatable => {
                    (failure, wait)
                }
                Err(Trouble::Outage(failure)) => return Err(failure),
            };
            if begun.elapsed() + pause > OUTAGE_LIMIT {
                return Err(failure);
            }
            if !told && begun.elapsed() > Duration::from_secs(1) {
                terminal::note("the controller does not answer; trying again");
                told = true;
            }
            tokio::time::sleep(pause).await;
            wait = (wait * 2).min(RETRY_MOST);
        }
    }

    async fn attempt(&mut self, call: &Call) -> Result<Response<Incoming>, Trouble> {
        let reused = self.connection.is_some();
        let (mut sender, authority) = self.sender().await.map_err(Trouble::Outage)?;
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&call.path);
        if !call.content_type.is_empty() {
            request = request.header(CONTENT_TYPE, call.content_type);
        }
        let body = Full::new(call.body.clone())
            .map_err(|never| match never {})
            .boxed();
        let request = self
            .headed(request, &authority, body)
            .map_err(Trouble::Final)?;
        let answer = timeout(ANSWER_LIMIT, sender.send_request(request)).await;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let failure = broken(&error, &call.path);
                // A kept connection that the controller closed meanwhile is nobody's fault; that it
                // refuses us will not pass.
                let passes = failure.exit == Exit::Unreachable;
                let again = call.repeatable && passes && (reused || self.answered);
                self.answered |= again;
                return Err(if again {
                    Trouble::Outage(failure)
                } else {
                    Trouble::Final(failure)
                });
            }
            Err(_) => {
                let what = format!("no answer to {} within {ANSWER_LIMIT:?}", call.path);
                return Err(Trouble::Outage(Failure::new(Exit::Unreachable, what)));
            }
        };
        self.connection = Some(sender);
        checked(response).await
    }

    fn headed(
        &self,
        request: hyper::http::request::Builder,
        authority: &str,
        body: Body,
    ) -> Result<Request<Body>, Failure> {
        let request = request
            .header(HOST, authority)
            .header(USER_AGENT, concat!("pronto/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "*/*")
            .body(body)
            .context("can't make the request")?;
        Ok(request)
    }

    /// The kept connection, or a new one to the first controller that takes it.
    async fn sender(&mut self) -> Result<(SendRequest<Body>, String), Failure> {
        let authority = self.settings.controllers[0].clone();
        if let Some(mut sender) = self.connection.take()
            && sender.ready().await.is_ok()
        {
            return Ok((sender, authority));
        }
        let mut reasons = Vec::new();
        for controller in &self.settings.controllers {
            match timeout(CONNECT_LIMIT, self.connect(controller)).await {
                Ok(Ok(sender)) => return Ok((sender, controller.clone())),
                Ok(Err(error)) => reasons.push(format!("{controller}: {}", told_once(&error))),
                Err(_) => reasons.push(format!("{controller}: no answer within {CONNECT_LIMIT:?}")),
            }
        }
        let what = format!("no controller could be reached: {}", reasons.join("; "));
        Err(Failure::new(Exit::Unreachable, what)
            .hint("is it running? `pronto dev` starts a cluster on this machine"))
    }

    async fn connect(&self, controller: &str) -> anyhow::Result<SendRequest<Body>> {
        let stream = connect_tcp(controller).await?;
        let config = self.credentials.client_config(Role::Controller);
        // The peer is judged by the identity in its certificate; host names mean nothing here.
        let name = ServerName::try_from("controller").context("a constant host name")?;
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            // The verifier ran within the same poll: its words say more than the alert.
            .map_err(|error| take_refusal().map_or_else(|| error.into(), anyhow::Error::from))
            .context("TLS")?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(Early::new(stream))).await?;
        tokio::spawn(async move {
            // Its end shows in the next request or in the stream that reads from it.
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn drain(&mut self, response: Response<Incoming>) -> Result<(), Failure> {
        Limited::new(response.into_body(), MAX_DOCUMENT_BYTES)
            .collect()
            .await
            .map(|_| ())
            .map_err(|error| {
                Failure::new(Exit::Unreachable, format!("the answer broke off: {error}"))
            })
    }
}

fn broken(error: &hyper::Error, path: &str) -> Failure {
    if let Some(alert) = alert(error) {
        return Failure::new(
            Exit::Refused,
            format!("the controller refuses us: {}", alert_in_words(alert)),
        )
        .hint("its log says why; `pronto cert show FILE` shows whose it is and until when");
    }
    Failure::new(
        Exit::Unreachable,
        format!("the connection broke during {path}: {error}"),
    )
}

/// The TLS alert that an error comes from: with TLS 1.3 a client hears of the refusal of its
/// certificate only after its own side of the handshake.
fn alert(error: &hyper::Error) -> Option<AlertDescription> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = tls {
            return Some(*alert);
        }
        cause = error.source();
    }
    None
}

/// The JSON document of an answer.
pub(crate) async fn read_document<R: DeserializeOwned>(
    response: Response<Incoming>,
    path: &str,
) -> Result<R, Failure> {
    let bytes = Limited::new(response.into_body(), MAX_DOCUMENT_BYTES)
        .collect()
        .await
        .map_err(|error| Failure::new(Exit::Unreachable, format!("the answer broke off: {error}")))?
        .to_bytes();
    Ok(serde_json::from_slice(&bytes).with_context(|| {
        format!("the controller's answer to {path} is not understood; are the versions the same?")
    })?)
}

/// The answer, if it says yes.
async fn checked(response: Response<Incoming>) -> Result<Response<Incoming>, Trouble> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let pause = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map_or(RETRY_FIRST, Duration::from_secs);
    let body = Limited::new(response.into_body(), MAX_DOCUMENT_BYTES)
        .collect()
        .await;
    let refusal = body
        .ok()
        .and_then(|body| serde_json::from_slice::<ErrorBody>(&body.to_bytes()).ok());
    Err(match refusal {
        Some(refusal) if refusal.code == ErrorCode::Busy => {
            Trouble::Busy(refused(refusal, status), pause)
        }
        Some(refusal) => Trouble::Final(refused(refusal, status)),
        None => Trouble::Final(Failure::new(
            Exit::Failed,
            format!("the controller answered {status}"),
        )),
    })
}

fn refused(refusal: ErrorBody, status: StatusCode) -> Failure {
    let mut failure = Failure::refusal(exit_of(refusal.code), refusal.code, refusal.message);
    if matches!(
        refusal.code,
        ErrorCode::Busy | ErrorCode::NodeUnreachable | ErrorCode::SchedulerUnreachable
    ) {
        failure = failure.passing();
    }
    match refusal.hint {
        Some(hint) => failure.hint(hint),
        None if status == StatusCode::SERVICE_UNAVAILABLE => {
            failure.hint("the scheduler is away; what runs goes on, and new work waits")
        }
        None => failure,
    }
}

/// The exit code of a refusal.
pub(crate) const fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::InvalidRequest | ErrorCode::TooLarge => Exit::Usage,
        ErrorCode::Forbidden
        | ErrorCode::PolicyRefused
        | ErrorCode::QuotaExceeded
        | ErrorCode::RateLimited => Exit::Refused,
        ErrorCode::NotFound => Exit::NotFound,
        ErrorCode::Conflict => Exit::Conflict,
        ErrorCode::Busy
        | ErrorCode::NodeUnreachable
        | ErrorCode::SchedulerUnreachable
        | ErrorCode::StorageFull
        | ErrorCode::Internal => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_escaped() {
        assert_eq!(
            path(&["instances", "a/b c", "stop"]),
            "/v1/instances/a%2Fb%20c/stop"
        );
    }

    #[test]
    fn a_query_has_the_fields_that_are_there() {
        #[derive(Serialize)]
        struct Query {
            state: Option<&'static str>,
            limit: Option<u32>,
        }
        let with = |state, limit| query(path(&["x"]), &Query { state, limit }).unwrap();
        assert_eq!(with(None, None), "/v1/x");
        assert_eq!(with(Some("a,b"), Some(3)), "/v1/x?state=a%2Cb&limit=3");
    }
}
