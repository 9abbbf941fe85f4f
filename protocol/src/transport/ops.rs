//! A small HTTPS server for a daemon's `/metrics`, `/healthz` and `/readyz`, mutual TLS as everywhere.
//!
//! Daemons and admins of the cluster may read; users may not, since metrics speak of all tenants.
//! GET and HEAD only, HTTP/1.1 only, no bodies. What there is to read is the handler's business; it
//! must not block. Invariant: connections, their handshakes, their headers and their silence are all
//! bounded, so this port can't be used to starve the daemon.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::identity::Role;
use crate::transport::connect::wall_clock;
use crate::transport::credentials::Credentials;

/// Scrapers and people at once; the next one waits in the backlog.
const MAX_CONNECTIONS: usize = 32;

/// From the accepted connection to the end of its TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// From an idle connection to the end of a request's headers: a scraper's interval and more.
const HEADER_LIMIT: Duration = Duration::from_secs(60);
/// From the end of a handshake: then a client is judged anew, and one that reads nothing is gone.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);

/// Headers of a GET are below 1 KiB.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// After a failed `accept(2)`, which means too many open files: time for some to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a path answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpsReply {
    /// The HTTP status.
    pub status: u16,
    /// The `content-type`.
    pub content_type: &'static str,
    /// The body.
    pub body: Bytes,
}

impl OpsReply {
    /// A reply in plain text.
    #[must_use]
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        let body = Bytes::from(body.into());
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body,
        }
    }

    /// Metrics in the OpenMetrics text format.
    #[must_use]
    pub fn metrics(body: impl Into<String>) -> Self {
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Self {
            status: 200,
            content_type,
            body: Bytes::from(body.into()),
        }
    }
}

/// Answers a path, or has nothing under it.
pub type OpsHandler = Arc<dyn Fn(&str) -> Option<OpsReply> + Send + Sync>;

/// Serves until `shutdown`. Errors of single connections end those alone.
pub async fn serve_ops(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    handler: OpsHandler,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            // The semaphore is never closed, so an error can't be; without a place none is taken.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection on the ops port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let serving = serve_one(stream, credentials.clone(), handler.clone());
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = serving => {}
            }
            drop(place);
        });
    }
}

async fn serve_one(stream: TcpStream, credentials: Arc<Credentials>, handler: OpsHandler) {
    let acceptor = TlsAcceptor::from(credentials.server_config_with_alpn(&["http/1.1"]));
    let stream = match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake on the ops port failed");
            return;
        }
        Err(_) => return,
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let role = credentials
        .verify_client(chain, wall_clock())
        .map(|identity| identity.role());
    let may_read = role.is_ok_and(|role| role != Role::User);
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, may_read, &handler);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(MAX_HEADER_BYTES)
        // Who may read nothing hears so, and gives its place.
        .keep_alive(may_read)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(CONNECTION_LIMIT, serving).await {
        tracing::debug!(%error, "connection on the ops port failed");
    }
}

fn answer(
    request: &Request<Incoming>,
    may_read: bool,
    handler: &OpsHandler,
) -> Response<Full<Bytes>> {
    let reply = if !may_read {
        OpsReply::text(403, "accepted: admins and daemons of this cluster\n")
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        OpsReply::text(405, "accepted: GET and HEAD\n")
    } else {
        handler(request.uri().path())
            .unwrap_or_else(|| OpsReply::text(404, "accepted: /metrics, /healthz, /readyz\n"))
    };
    let mut response = Response::new(Full::new(reply.body));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    if reply.status == 405 {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
