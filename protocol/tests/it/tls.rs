//! Who gets in: certificates right and wrong, on both sides, and what each side reads about it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use pronto_protocol::transport::{Credentials, TlsFiles, WireError, accept, connect, wall_clock};
use pronto_protocol::{
    Decoder, Frame, Operand, Refusal, RefusalCode, Role, SessionConfig, SessionError, codec,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::cipher::{MessageEncrypter, OutboundPlainMessage};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, ContentType, DigitallySignedStruct, ProtocolVersion,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::certs::{Ca, Order};
use crate::wires::{CONTROLLER, LAUNCHER, SCHEDULER, control_hello, loopback, welcome_one};

/// A client that is not ours: it presents whatever it likes and trusts anybody.
pub(crate) struct RawClient(ClientConfig);

impl RawClient {
    pub(crate) fn good(ca: &Ca, uri: &str) -> Self {
        let order = Order {
            uris: &[uri],
            ..Order::default()
        };
        Self::with_files(&ca.issue("raw", &order))
    }

    fn with_files(files: &TlsFiles) -> Self {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
        Self(builder().with_client_auth_cert(chain, key).unwrap())
    }

    fn anonymous() -> Self {
        Self(builder().with_no_client_auth())
    }

    pub(crate) async fn connect(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("anything.invalid").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(self.0.clone()));
        // In TLS 1.3 the client is through before the server has judged it.
        connector.connect(name, stream).await.unwrap()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAnybody))
}

#[derive(Debug)]
struct TrustsAnybody;

impl ServerCertVerifier for TrustsAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What both sides say when this client comes to a scheduler of this CA.
async fn refusals(ca: &Ca, client: &RawClient) -> (String, String) {
    let listener = loopback();
    let address = listener.local_addr().unwrap();
    let credentials = ca.credentials(SCHEDULER);
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        accept(stream, &credentials, SessionConfig::default())
            .await
            .unwrap_err()
            .to_string()
    };
    let asking = async {
        let mut stream = client.connect(address).await;
        stream.read_u8().await.unwrap_err().to_string()
    };
    tokio::join!(serving, asking)
}

#[tokio::test]
async fn a_client_of_another_ca_is_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (server, client) = refusals(&ca, &RawClient::good(&other, LAUNCHER)).await;
    assert_eq!(
        server,
        "TLS failed: certificate of spiffe://lab/launcher/n1 was not issued by this cluster's CA"
    );
    assert!(client.contains("UnknownCA"), "{client}");
}

#[tokio::test]
async fn expired_and_early_certificates_are_refused() {
    let ca = Ca::new();
    let order = |years| Order {
        uris: &[LAUNCHER],
        years,
        ..Order::default()
    };
    let old = RawClient::with_files(&ca.issue("old", &order((2000, 2001))));
    let (server, client) = refusals(&ca, &old).await;
    assert_eq!(
        server,
        "TLS failed: certificate of spiffe://lab/launcher/n1 has expired"
    );
    assert!(client.contains("CertificateExpired"), "{client}");
    let early = RawClient::with_files(&ca.issue("early", &order((2100, 2101))));
    let (server, _) = refusals(&ca, &early).await;
    assert!(server.contains("is not valid yet"), "{server}");
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let (server, client) = refusals(&Ca::new(), &RawClient::anonymous()).await;
    assert_eq!(server, "TLS failed: peer sent no certificates");
    assert!(client.contains("CertificateRequired"), "{client}");
}

#[tokio::test]
async fn certificates_that_name_nobody_or_two_or_strangers_are_refused() {
    let ca = Ca::new();
    for (uris, expected) in [
        (&[][..], "has 0 spiffe:// URIs"),
        (
            &[LAUNCHER, "spiffe://lab/admin/root"][..],
            "has 2 spiffe:// URIs",
        ),
        (&["spiffe://lab/boss/me"][..], "unknown role 'boss'"),
        (
            &["spiffe://prod/launcher/n1"][..],
            "is not of cluster 'lab'",
        ),
    ] {
        let order = Order {
            uris,
            ..Order::default()
        };
        let (server, client) =
            refusals(&ca, &RawClient::with_files(&ca.issue("odd", &order))).await;
        assert!(server.contains(expected), "{server}");
        assert!(client.contains("AccessDenied"), "{client}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_meant_is_refused_and_both_sides_say_so() {
    let (ca, other) = (Ca::new(), Ca::new());
    let connect_to = async |server_credentials: Arc<Credentials>| {
        let listener = loopback();
        let address = listener.local_addr().unwrap().to_string();
        let launcher = ca.credentials(LAUNCHER);
        let (config, hello) = (SessionConfig::default(), control_hello());
        let (client, server) = tokio::join!(
            connect(&address, &launcher, Role::Scheduler, &hello, config),
            welcome_one(&listener, &server_credentials, config),
        );
        (
            client.unwrap_err().to_string(),
            server.unwrap_err().to_string(),
        )
    };
    let (client, server) = connect_to(ca.credentials(CONTROLLER)).await;
    assert_eq!(
        client,
        "TLS failed: spiffe://lab/controller/c1 is not a scheduler"
    );
    assert!(
        server.contains("role or cluster is not the one that the peer accepts"),
        "{server}"
    );
    let (client, server) = connect_to(other.credentials(SCHEDULER)).await;
    assert!(
        client.contains("was not issued by this cluster's CA"),
        "{client}"
    );
    assert!(server.contains("not issued by the peer's CA"), "{server}");
}

#[tokio::test]
async fn a_user_is_unauthorized_at_hello_even_a_byte_at_a_time() {
    let ca = Ca::new();
    let listener = loopback();
    let address = listener.local_addr().unwrap();
    let credentials = ca.credentials(SCHEDULER);
    let config = SessionConfig::default();
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut wire = accept(stream, &credentials, config).await.unwrap();
        let error = wire
            .read_hello(config.timeouts.handshake)
            .await
            .unwrap_err();
        wire.finish().await;
        error.to_string()
    };
    let asking = async {
        let mut stream = RawClient::good(&ca, "spiffe://lab/user/physics/ada")
            .connect(address)
            .await;
        let mut hello = Vec::new();
        codec::encode(
            &Frame::new(Operand::Hello, control_hello().encode()),
            &mut hello,
        )
        .unwrap();
        // One record and one segment a byte.
        for byte in hello {
            stream.write_all(&[byte]).await.unwrap();
            stream.flush().await.unwrap();
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let mut frames = Vec::new();
        Decoder::new().feed(&answer, &mut frames).unwrap();
        frames
    };
    let (server, frames) = tokio::join!(serving, asking);
    let expected = "COMMAND HELLO may not be sent by a user to a scheduler on a control session";
    assert_eq!(server, expected);
    assert_eq!(frames.len(), 1);
    assert_eq!(
        (frames[0].operand, frames[0].is_last()),
        (Operand::Unauthorized, true)
    );
    let refusal = Refusal::decode(&frames[0].payload.to_bytes()).unwrap();
    assert_eq!(refusal, Refusal::new(RefusalCode::NotPermitted, expected));
}

#[tokio::test]
async fn a_daemon_can_refuse_a_hello_and_the_peer_learns_why() {
    let ca = Ca::new();
    let listener = loopback();
    let address = listener.local_addr().unwrap().to_string();
    let (launcher, scheduler) = (ca.credentials(LAUNCHER), ca.credentials(SCHEDULER));
    let (config, hello) = (SessionConfig::default(), control_hello());
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut wire = accept(stream, &scheduler, config).await.unwrap();
        wire.read_hello(config.timeouts.handshake).await.unwrap();
        let refusal = Refusal::new(RefusalCode::NameTaken, "node n1 is connected already");
        let error = wire.refuse(Operand::Unauthorized, refusal);
        wire.finish().await;
        error
    };
    let (client, server) = tokio::join!(
        connect(&address, &launcher, Role::Scheduler, &hello, config),
        serving
    );
    assert!(matches!(server, SessionError::RefusedPeer { .. }));
    let error = client.unwrap_err();
    assert_eq!(
        error.to_string(),
        "peer refused with UNAUTHORIZED: node n1 is connected already"
    );
    assert!(error.is_refusal());
}

#[tokio::test]
async fn revoked_certificates_end_sessions_and_begin_none() {
    let ca = Ca::new();
    let order = |serial| Order {
        uris: &[LAUNCHER],
        serial,
        ..Order::default()
    };
    let bad = Credentials::load(&ca.issue("bad", &order(66))).unwrap();
    let good = Credentials::load(&ca.issue("good", &order(67))).unwrap();
    let scheduler_order = Order {
        uris: &[SCHEDULER],
        serial: 5,
        ..Order::default()
    };
    let mut files = ca.issue("scheduler", &scheduler_order);
    files.crl = Some(ca.revoke(&[1000]));
    let scheduler = Credentials::load(&files).unwrap();

    let (config, hello) = (SessionConfig::default(), control_hello());
    let session = async |launcher: &Credentials| {
        let listener = loopback();
        let address = listener.local_addr().unwrap().to_string();
        tokio::join!(
            connect(&address, launcher, Role::Scheduler, &hello, config),
            welcome_one(&listener, &scheduler, config),
        )
    };
    let (client, server) = session(&bad).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    server.refuse_invalid(wall_clock(), &scheduler).unwrap();
    client.refuse_invalid(wall_clock(), &bad).unwrap();

    // The list is replaced while the session is open.
    ca.revoke(&[66]);
    scheduler.reload().unwrap();
    let revoked = format!("certificate of {LAUNCHER} has been revoked");
    let refused = |refused: Result<(), SessionError>, text: &str| {
        let operand = Operand::Unauthorized;
        let refusal = Refusal::new(RefusalCode::CertificateInvalid, text);
        assert_eq!(refused, Err(SessionError::RefusedPeer { operand, refusal }));
    };
    refused(server.refuse_invalid(wall_clock(), &scheduler), &revoked);
    let (heard, ()) = tokio::join!(
        async { client.read_frames(&mut Vec::new()).await },
        server.finish()
    );
    assert!(heard.unwrap_err().to_string().contains(&revoked));
    let (client, server) = session(&bad).await;
    assert!(
        client
            .unwrap_err()
            .to_string()
            .contains("our certificate has been revoked")
    );
    assert!(server.unwrap_err().to_string().contains("has been revoked"));
    let (client, server) = session(&good).await;
    assert!(client.is_ok() && server.is_ok());

    // And what expires is found in the same way.
    let next_century = UnixTime::since_unix_epoch(Duration::from_secs(5_000_000_000));
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    server.refuse_expired(wall_clock()).unwrap();
    refused(
        server.refuse_expired(next_century),
        "your certificate has expired",
    );
    let expired = format!("certificate of {SCHEDULER} has expired");
    refused(client.refuse_invalid(next_century, &good), &expired);
}

#[tokio::test]
async fn certificates_rotate_under_open_sessions() {
    let ca = Ca::new();
    let order = |serial| Order {
        uris: &[SCHEDULER],
        serial,
        ..Order::default()
    };
    let files = ca.issue("scheduler", &order(1));
    let scheduler = Credentials::load(&files).unwrap();
    let launcher = ca.credentials(LAUNCHER);
    let listener = loopback();
    let address = listener.local_addr().unwrap().to_string();
    let (config, hello) = (SessionConfig::default(), control_hello());
    let session = async || {
        let (client, server) = tokio::join!(
            connect(&address, &launcher, Role::Scheduler, &hello, config),
            welcome_one(&listener, &scheduler, config),
        );
        (client.unwrap(), server.unwrap())
    };
    let (mut old_client, mut old_server) = session().await;
    ca.issue("scheduler", &order(2));
    scheduler.reload().unwrap();
    let (new_client, _new_server) = session().await;
    assert_ne!(
        old_client.peer_certificates(),
        new_client.peer_certificates()
    );
    old_server
        .queue(&Frame::new(Operand::SetMode, vec![1]))
        .unwrap();
    old_server.try_flush().unwrap();
    let mut frames = Vec::new();
    old_client.read_frames(&mut frames).await.unwrap();
    assert_eq!(frames.len(), 1);

    // A broken file changes nothing, and nobody becomes somebody else.
    std::fs::write(&files.cert, "garbage").unwrap();
    assert!(scheduler.reload().is_err());
    ca.issue(
        "scheduler",
        &Order {
            uris: &[CONTROLLER],
            ..Order::default()
        },
    );
    let error = scheduler.reload().unwrap_err().to_string();
    assert!(
        error.contains("now names spiffe://lab/controller/c1"),
        "{error}"
    );
    session().await;
}

#[test]
fn credentials_that_can_not_work_are_refused_by_name() {
    let ca = Ca::new();
    let order = Order {
        uris: &[LAUNCHER],
        ..Order::default()
    };
    let load = |files: &TlsFiles| Credentials::load(files).unwrap_err().to_string();
    let good = ca.issue("good", &order);
    let other = ca.issue("other", &order);
    let dir = ca.dir().display().to_string();

    let files = TlsFiles {
        ca: ca.dir().join("none.pem"),
        ..good.clone()
    };
    assert_eq!(
        load(&files),
        format!("ca file {dir}/none.pem: No such file or directory (os error 2)")
    );
    let files = TlsFiles {
        key: other.key.clone(),
        ..good.clone()
    };
    assert_eq!(
        load(&files),
        format!("key file {dir}/other.key is not the key of certificate file {dir}/good.pem")
    );
    let files = TlsFiles {
        cert: good.key.clone(),
        ..good.clone()
    };
    assert!(
        load(&files).contains("has no PEM section of the right kind; accepted: PEM certificates")
    );
    let files = TlsFiles {
        key: good.cert.clone(),
        ..good.clone()
    };
    std::fs::set_permissions(&good.cert, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(load(&files).contains("has no private key"));
    std::fs::set_permissions(&other.key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        load(&other),
        format!(
            "key file {dir}/other.key has mode 0644: anybody may read it; \
             run: chmod 600 {dir}/other.key"
        )
    );
    let files = TlsFiles {
        crl: Some(good.cert.clone()),
        ..good.clone()
    };
    assert!(load(&files).contains("accepted: PEM revocation lists (X509 CRL)"));

    let old = ca.issue(
        "old",
        &Order {
            years: (2000, 2001),
            uris: &[LAUNCHER],
            serial: 1,
        },
    );
    let error = load(&old);
    assert!(
        error.contains("would be refused by its peers") && error.contains("has expired"),
        "{error}"
    );
    let stranger = Ca::new();
    let files = TlsFiles {
        ca: stranger.issue("x", &order).ca,
        ..good.clone()
    };
    assert!(load(&files).contains("was not issued by this cluster's CA"));
    let nobody = ca.issue("nobody", &Order::default());
    assert!(load(&nobody).contains("accepted: exactly one"));
    assert_eq!(
        Credentials::load(&good).unwrap().identity().to_string(),
        LAUNCHER
    );
}

#[tokio::test]
async fn bytes_that_are_not_tls_end_one_connection() {
    let ca = Ca::new();
    let listener = loopback();
    let address = listener.local_addr().unwrap();
    let credentials = ca.credentials(SCHEDULER);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let error = accept(accepted, &credentials, SessionConfig::default())
        .await
        .unwrap_err();
    assert!(matches!(error, WireError::Tls(_)), "{error}");
}

/// Writes records as TLS would, with contents that TLS would not choose.
struct Forger {
    stream: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    seq: u64,
}

impl Forger {
    /// Takes over a client's connection after an honest handshake.
    async fn take_over(mut client: RawClient, address: SocketAddr) -> Self {
        client.0.enable_secret_extraction = true;
        let (stream, connection) = client.connect(address).await.into_inner();
        let suite = connection.negotiated_cipher_suite().unwrap();
        let aead = suite.tls13().unwrap().aead_alg;
        let secrets = connection.dangerous_extract_secrets().unwrap();
        let (seq, ConnectionTrafficSecrets::Aes256Gcm { key, iv }) = secrets.tx else {
            panic!("this client asks for AES-256 first");
        };
        Self {
            stream,
            encrypter: aead.encrypter(key, iv),
            seq,
        }
    }

    fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let version = ProtocolVersion::TLSv1_3;
        let message = OutboundPlainMessage {
            typ,
            version,
            payload: payload.into(),
        };
        let record = self.encrypter.encrypt(message, self.seq).unwrap().encode();
        self.seq += 1;
        record
    }
}

#[tokio::test]
async fn half_a_key_update_does_not_shake_the_one_who_writes_meanwhile() {
    let ca = Ca::new();
    let listener = loopback();
    let address = listener.local_addr().unwrap();
    let credentials = ca.credentials(SCHEDULER);
    let config = SessionConfig::default();
    let forging = async {
        let mut forger = Forger::take_over(RawClient::good(&ca, LAUNCHER), address).await;
        let mut hello = Vec::new();
        codec::encode(
            &Frame::new(Operand::Hello, control_hello().encode()),
            &mut hello,
        )
        .unwrap();
        // HELLO, three of a key update's five bytes, and a piece of the next record's header: all
        // of it in one segment, so that the server writes WELCOME with them in its hands.
        let mut bytes = forger.record(ContentType::ApplicationData, &hello);
        bytes.extend(forger.record(ContentType::Handshake, &[24, 0, 0]));
        let rest = forger.record(ContentType::Handshake, &[1, 0]);
        bytes.extend(&rest[..2]);
        forger.stream.write_all(&bytes).await.unwrap();
        let mut welcome = [0; 512];
        assert!(forger.stream.read(&mut welcome).await.unwrap() > 0);
        forger.stream.write_all(&rest[2..]).await.unwrap();
        // With its keys updated the server can't read what the old ones encrypt: that ends it.
        let stale = forger.record(ContentType::ApplicationData, &[0; 16]);
        forger.stream.write_all(&stale).await.unwrap();
        forger
    };
    let serving = async {
        let mut wire = welcome_one(&listener, &credentials, config).await.unwrap();
        let mut frames = Vec::new();
        loop {
            wire.queue(&Frame::new(Operand::SetMode, vec![1])).unwrap();
            wire.try_flush().unwrap();
            if let Err(error) = wire.read_frames(&mut frames).await {
                wire.finish().await;
                return error;
            }
        }
    };
    let (_forger, error) = tokio::join!(forging, serving);
    assert!(
        matches!(error, WireError::Tls(rustls::Error::DecryptError)),
        "{error}"
    );
}
