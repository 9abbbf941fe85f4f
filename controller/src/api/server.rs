//! Connections: TLS, who the client is, whether it may, HTTP/1.1 and HTTP/2.
//!
//! Connections, handshakes, headers and idle time are bounded. A client's certificate is judged at
//! the handshake and again every few seconds, so that neither a connection nor what streams on it outlives a
//! certificate that was revoked or has expired.

use super::App;
use super::reply::Caller;
use super::routes::{Access, access, router};
use super::types::ErrorCode;
use crate::planner::{Actor, ActorKind, Refused};
use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use pronto_protocol::transport::{Credentials, take_refusal, wall_clock};
use pronto_protocol::{Identity, Quiet, Role};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// From the accepted connection to the end of its TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// From an idle connection to the end of a request's headers.
const HEADER_LIMIT: Duration = Duration::from_secs(60);
/// Headers of a request.
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Streams of one HTTP/2 connection: a followed output is one.
const MAX_HTTP2_STREAMS: u32 = 256;
/// A connection's certificate is judged again this often: it may have expired, or been revoked.
const JUDGE_EVERY: Duration = Duration::from_secs(3);
/// After a failed `accept(2)`, which means too many open files: time for some to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is under way at the end gets so long.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The client of one connection.
#[derive(Debug)]
struct Client {
    identity: Identity,
    address: SocketAddr,
}

/// Connections that are refused: counted always, logged some times a second.
#[derive(Debug)]
struct Refusals {
    app: Arc<App>,
    began: Instant,
    quiet: Mutex<Quiet>,
}

impl Refusals {
    fn note(&self, address: SocketAddr, why: &dyn std::fmt::Display) {
        self.app.metrics.note_refused_connection();
        let now_ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let line = self
            .quiet
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .line(now_ns);
        if let Some(left_out) = line {
            warn!(%address, %why, left_out, "connection to the API is refused");
        }
    }
}

pub(crate) async fn serve(
    listener: TcpListener,
    credentials: Arc<Credentials>,
    app: Arc<App>,
    max_connections: usize,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(max_connections));
    let service = service(app.clone());
    let refusals = Arc::new(Refusals {
        app,
        began: Instant::now(),
        quiet: Mutex::default(),
    });
    loop {
        let accepted = async {
            // The semaphore is never closed, so an error can't be.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accepted => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "can't accept a connection on the API's port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let serving = connection(
            stream,
            address,
            Arc::clone(&credentials),
            service.clone(),
            Arc::clone(&refusals),
            shutdown.clone(),
        );
        tokio::spawn(async move {
            serving.await;
            drop(place);
        });
    }
}

fn service(app: Arc<App>) -> Router {
    router(Arc::clone(&app))
        .layer(from_fn(authorise))
        .layer(from_fn_with_state(app, count))
        .fallback(|| async {
            Refused::new(ErrorCode::NotFound, "no such route").hint("see /v1/openapi.json")
        })
        .method_not_allowed_fallback(|| async {
            let refused = Refused::new(
                ErrorCode::InvalidRequest,
                "this route does not have that method",
            )
            .hint("see /v1/openapi.json");
            let mut response = refused.into_response();
            *response.status_mut() = hyper::StatusCode::METHOD_NOT_ALLOWED;
            response
        })
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    credentials: Arc<Credentials>,
    service: Router,
    refusals: Arc<Refusals>,
    shutdown: CancellationToken,
) {
    // Small answers of a dialogue must not wait for each other.
    let _best_effort = stream.set_nodelay(true);
    let config = credentials.server_config_with_alpn(&["h2", "http/1.1"]);
    let accepting = TlsAcceptor::from(config).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, accepting).await {
        Ok(Ok(stream)) => stream,
        // The verifier ran within the same poll, so what it said is about this connection.
        Ok(Err(error)) => {
            return match take_refusal() {
                Some(refusal) => refusals.note(address, &refusal),
                None => refusals.note(address, &error),
            };
        }
        Err(_) => return refusals.note(address, &"no TLS handshake in time"),
    };
    let chain: Vec<_> = stream
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|certificate| certificate.clone().into_owned())
        .collect();
    let identity = match credentials.verify_client(&chain, wall_clock()) {
        Ok(identity) => identity,
        Err(error) => return refusals.note(address, &error),
    };
    let client = Arc::new(Client { identity, address });
    let routes = TowerToHyperService::new(service);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Arc::clone(&client));
        routes.call(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .keep_alive_interval(Some(HEADER_LIMIT));
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let barred = async {
        loop {
            tokio::time::sleep(JUDGE_EVERY).await;
            if let Err(error) = credentials.verify_client(&chain, wall_clock()) {
                return error;
            }
        }
    };
    let served = tokio::select! {
        served = &mut serving => served,
        // Not gracefully: a stream that is under way would go on.
        error = barred => return refusals.note(address, &error),
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(LAST_WORDS, serving).await {
                Ok(served) => served,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = served {
        debug!(%address, error, "connection on the API's port failed");
    }
}

fn client(request: &Request) -> Option<Arc<Client>> {
    request.extensions().get::<Arc<Client>>().cloned()
}

/// Whether the client's role may use the route, by the table.
async fn authorise(mut request: Request, next: Next) -> Response {
    let Some(client) = client(&request) else {
        return super::internal().into_response();
    };
    let Some(path) = request.extensions().get::<MatchedPath>().cloned() else {
        return next.run(request).await;
    };
    let Some(access) = access(request.method().as_str(), path.as_str()) else {
        return next.run(request).await;
    };
    let role = client.identity.role();
    let member = matches!(role, Role::User | Role::Admin);
    let allowed = match access {
        Access::Everybody => true,
        Access::Members => member,
        Access::Admins => role == Role::Admin,
        Access::Operators => role != Role::User,
    };
    if !allowed {
        let accepted = match access {
            Access::Members => "users and administrators",
            Access::Admins => "administrators",
            Access::Operators => "administrators and daemons",
            Access::Everybody => "everybody",
        };
        return Refused::new(
            ErrorCode::Forbidden,
            format!("{} may not do this; accepted: {accepted}", client.identity),
        )
        .into_response();
    }
    if member {
        let kind = match client.identity.tenant() {
            Some(tenant) => ActorKind::User(tenant.into()),
            None => ActorKind::Admin,
        };
        request.extensions_mut().insert(Caller(Actor {
            kind,
            name: client.identity.name().to_owned(),
            source: client.address.to_string(),
        }));
    }
    next.run(request).await
}

/// Counts requests by route and status.
async fn count(
    axum::extract::State(app): axum::extract::State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let method = request.method().clone();
    let response = next.run(request).await;
    app.metrics
        .note_request(&format!("{method} {route}"), response.status().as_u16());
    response
}
