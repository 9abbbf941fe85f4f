//! A controller that runs in this process, and a small client of its API.

use crate::certs::Ca;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use pronto_controller::{Controller, ControllerConfig};
use pronto_protocol::Role;
use pronto_protocol::transport::{Credentials, connect_tcp};
use rustls_pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Short: the tests wait for it.
const FILE_SILENCE_MS: u64 = 1_000;

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// A controller on this data directory that dials this scheduler.
    pub(crate) fn start(ca: &Ca, data_dir: &Path, scheduler: &str) -> Self {
        let tls = ca.files("spiffe://lab/controller/c1");
        let mut config = ControllerConfig::new(vec![scheduler.to_owned()], data_dir.into(), tls);
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.file_silence_ms = FILE_SILENCE_MS;
        let controller = Controller::bind(config).unwrap();
        let address = controller.address().unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(controller.serve(shutdown.clone()));
        Self {
            address,
            shutdown,
            serving,
        }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
    }

    /// Why it did not come up.
    pub(crate) async fn failure(self) -> String {
        format!("{:#}", self.serving.await.unwrap().unwrap_err())
    }

    pub(crate) async fn client(&self, credentials: Arc<Credentials>) -> Client {
        Client::connect(self.address, credentials).await
    }
}

/// The body of a request.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

pub(crate) struct Client {
    sender: SendRequest<Body>,
}

pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<String>,
    pub(crate) body: Bytes,
}

impl Response {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub(crate) fn expect<T: DeserializeOwned>(&self, status: u16) -> T {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.body)
        );
        self.json()
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, credentials: Arc<Credentials>) -> Self {
        Self::try_connect(address, credentials).await.unwrap()
    }

    pub(crate) async fn try_connect(
        address: SocketAddr,
        credentials: Arc<Credentials>,
    ) -> anyhow::Result<Self> {
        let stream = connect_tcp(&address.to_string()).await?;
        let config = credentials.client_config_with_alpn(Role::Controller, &["http/1.1"]);
        let name = ServerName::try_from("any.invalid")?;
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    pub(crate) async fn stream(
        &mut self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
        headers: &[(&str, &str)],
    ) -> hyper::Response<Incoming> {
        let body = Full::new(body.into()).map_err(|never| match never {});
        self.stream_body(method, path, body.boxed(), headers).await
    }

    pub(crate) async fn stream_body(
        &mut self,
        method: &str,
        path: &str,
        body: Body,
        headers: &[(&str, &str)],
    ) -> hyper::Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "controller");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        self.sender.ready().await.unwrap();
        self.sender.send_request(request).await.unwrap()
    }

    pub(crate) async fn raw(
        &mut self,
        method: &str,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Response {
        let response = self.stream(method, path, body, &[]).await;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get("retry-after")
            .map(|value| value.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Response {
            status,
            retry_after,
            body,
        }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response {
        self.raw("GET", path, "").await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Response {
        self.raw("POST", path, body.to_string()).await
    }
}

/// The frames of a framed stream.
pub(crate) fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<5>() {
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
        frames.push((header[0], rest[..length].to_vec()));
        bytes = &rest[length..];
    }
    assert!(bytes.is_empty());
    frames
}
