//! The ops server: what it answers, and to whom.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use pronto_protocol::Role;
use pronto_protocol::transport::{Credentials, OpsReply, connect_tcp, serve_ops};
use rustls_pki_types::ServerName;
use tokio_util::sync::CancellationToken;

use crate::certs::Ca;
use crate::wires::{LAUNCHER, SCHEDULER, loopback};

async fn ask(address: &str, credentials: &Credentials, method: &str, path: &str) -> (u16, String) {
    let stream = connect_tcp(address).await.unwrap();
    let config = credentials.client_config_with_alpn(Role::Scheduler, &["http/1.1"]);
    let name = ServerName::try_from("any.invalid").unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = connector.connect(name, stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address)
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn daemons_and_admins_may_read_and_users_may_not() {
    let ca = Ca::new();
    let listener = loopback();
    let address = listener.local_addr().unwrap().to_string();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(serve_ops(
        listener,
        ca.credentials(SCHEDULER),
        Arc::new(|path| match path {
            "/healthz" => Some(OpsReply::text(200, "ok\n")),
            "/metrics" => Some(OpsReply::metrics("nodes 3\n# EOF\n")),
            _ => None,
        }),
        shutdown.clone(),
    ));
    let admin = ca.credentials("spiffe://lab/admin/root");
    assert_eq!(
        ask(&address, &admin, "GET", "/healthz").await,
        (200, "ok\n".into())
    );
    assert_eq!(
        ask(&address, &admin, "GET", "/metrics").await,
        (200, "nodes 3\n# EOF\n".into())
    );
    assert_eq!(
        ask(&address, &admin, "HEAD", "/healthz").await,
        (200, String::new())
    );
    assert_eq!(ask(&address, &admin, "GET", "/secret").await.0, 404);
    assert_eq!(ask(&address, &admin, "POST", "/healthz").await.0, 405);
    let launcher = ca.credentials(LAUNCHER);
    assert_eq!(ask(&address, &launcher, "GET", "/healthz").await.0, 200);
    let user = ca.credentials("spiffe://lab/user/physics/ada");
    let (status, body) = ask(&address, &user, "GET", "/healthz").await;
    assert_eq!(
        (status, body),
        (403, "accepted: admins and daemons of this cluster\n".into())
    );
    shutdown.cancel();
    serving.await.unwrap();
}
