//! TLS records to plaintext and back, without sockets: rustls' unbuffered interface.
//!
//! rustls' buffered connections keep queues of their own for both directions; here the caller's
//! buffers are used, so that an idle session holds none and 10,000 of them share two. What arrives
//! is decrypted in place. Invariant: nothing that TLS itself wants to say is lost; it is appended
//! to `outgoing` in its place.

use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::ServerName;

/// The most plaintext in one record (RFC 8446, 5.1).
pub(crate) const MAX_RECORD_PLAINTEXT_BYTES: usize = 16 * 1024;

/// What one record takes beyond its plaintext: header 5, content type 1, tag 16; rounded up.
const RECORD_OVERHEAD_BYTES: usize = 32;

/// Room for a key update and an alert beside the records.
const CONTROL_BYTES: usize = 512;

/// What encrypting so much plaintext may take.
pub(crate) const fn encrypted_bound(plain_len: usize) -> usize {
    plain_len + (plain_len / MAX_RECORD_PLAINTEXT_BYTES + 1) * RECORD_OVERHEAD_BYTES + CONTROL_BYTES
}

/// One end of a TLS connection.
pub(crate) enum Tls {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

impl std::fmt::Debug for Tls {
    /// Keys are in there, so the side is all there is to see.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Tls::Client",
            Self::Server(_) => "Tls::Server",
        })
    }
}

/// What became of the bytes that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pumped {
    /// How many of them are done with; the rest must be given again, with more behind them.
    pub(crate) consumed: usize,
    /// The peer has said that it sends nothing more.
    pub(crate) peer_closed: bool,
}

impl Tls {
    pub(crate) fn client(config: Arc<ClientConfig>) -> Result<Self, rustls::Error> {
        // The name goes nowhere: SNI is off, and the verifier looks at the role.
        let name = ServerName::try_from("peer.invalid")
            .map_err(|error| rustls::Error::General(format!("constant server name: {error}")))?;
        Ok(Self::Client(Box::new(UnbufferedClientConnection::new(
            config, name,
        )?)))
    }

    pub(crate) fn server(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self::Server(Box::new(UnbufferedServerConnection::new(
            config,
        )?)))
    }

    pub(crate) fn state(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }

    /// Works on what came and hands each piece of plaintext to `on_plain`.
    ///
    /// After an error, `outgoing` ends with the alert that tells the peer.
    pub(crate) fn pump(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Vec<u8>,
        on_plain: &mut dyn FnMut(&[u8]),
    ) -> Result<Pumped, rustls::Error> {
        match self {
            Self::Client(connection) => pump(&mut **connection, incoming, outgoing, on_plain),
            Self::Server(connection) => pump(&mut **connection, incoming, outgoing, on_plain),
        }
    }

    /// Encrypts into the front of `outgoing`, which has [`encrypted_bound`] bytes, and returns how
    /// many were written.
    ///
    /// `kept` is what [`Self::pump`] has not consumed. rustls remembers offsets into it while it
    /// holds half of a handshake message, and would index out of any other buffer: a peer could
    /// make us panic with half a key update.
    pub(crate) fn encrypt(
        &mut self,
        plain: &[u8],
        kept: &mut [u8],
        outgoing: &mut [u8],
    ) -> Result<usize, rustls::Error> {
        match self {
            Self::Client(connection) => {
                encrypt(&mut **connection, Say::Data(plain), kept, outgoing)
            }
            Self::Server(connection) => {
                encrypt(&mut **connection, Say::Data(plain), kept, outgoing)
            }
        }
    }

    /// Writes the alert that says we send nothing more. `kept` as in [`Self::encrypt`].
    pub(crate) fn close_notify(
        &mut self,
        kept: &mut [u8],
        outgoing: &mut [u8],
    ) -> Result<usize, rustls::Error> {
        match self {
            Self::Client(connection) => encrypt(&mut **connection, Say::Goodbye, kept, outgoing),
            Self::Server(connection) => encrypt(&mut **connection, Say::Goodbye, kept, outgoing),
        }
    }
}

/// What client and server connections have in common and rustls does not name.
trait Connection {
    type Data;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Connection for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Connection for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

fn pump<C: Connection>(
    connection: &mut C,
    incoming: &mut [u8],
    outgoing: &mut Vec<u8>,
    on_plain: &mut dyn FnMut(&[u8]),
) -> Result<Pumped, rustls::Error> {
    let mut pumped = Pumped::default();
    loop {
        let UnbufferedStatus { mut discard, state } =
            connection.process(&mut incoming[pumped.consumed..]);
        let go_on = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    on_plain(record.payload);
                }
                true
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                append(outgoing, |room| data.encode(room))?;
                true
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                true
            }
            Ok(ConnectionState::PeerClosed) => {
                pumped.peer_closed = true;
                true
            }
            Ok(
                ConnectionState::BlockedHandshake
                | ConnectionState::WriteTraffic(_)
                | ConnectionState::Closed,
            ) => false,
            // Early data is never offered; a state of a later rustls would need code of its own.
            Ok(other) => {
                return Err(rustls::Error::General(format!(
                    "unexpected TLS state {other:?}"
                )));
            }
            Err(error) => {
                append_alert(
                    connection,
                    &mut incoming[pumped.consumed + discard..],
                    outgoing,
                );
                return Err(error);
            }
        };
        pumped.consumed += discard;
        if !go_on {
            return Ok(pumped);
        }
    }
}

/// After an error the alert for the peer is still to be fetched.
fn append_alert<C: Connection>(connection: &mut C, rest: &mut [u8], outgoing: &mut Vec<u8>) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process(rest).state {
        // Without room for an alert the peer sees the connection end, which is as final.
        let _best_effort = append(outgoing, |room| data.encode(room));
    }
}

/// Makes the room that an encoding asks for.
fn append(
    outgoing: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), rustls::Error> {
    let begin = outgoing.len();
    let mut room = CONTROL_BYTES;
    loop {
        outgoing.resize(begin + room, 0);
        match encode(&mut outgoing[begin..]) {
            Ok(written) => {
                outgoing.truncate(begin + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(needed)) if needed.required_size > room => {
                room = needed.required_size;
            }
            Err(error) => {
                outgoing.truncate(begin);
                return Err(rustls::Error::General(error.to_string()));
            }
        }
    }
}

enum Say<'a> {
    Data(&'a [u8]),
    Goodbye,
}

fn encrypt<C: Connection>(
    connection: &mut C,
    what: Say<'_>,
    kept: &mut [u8],
    outgoing: &mut [u8],
) -> Result<usize, rustls::Error> {
    let general = |text: String| rustls::Error::General(text);
    let mut written = 0;
    loop {
        match connection.process(kept).state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                let room = &mut outgoing[written..];
                let more = match what {
                    Say::Data(plain) => traffic.encrypt(plain, room),
                    Say::Goodbye => traffic.queue_close_notify(room),
                };
                return match more {
                    Ok(more) => Ok(written + more),
                    Err(EncryptError::EncryptExhausted) => Err(rustls::Error::EncryptError),
                    Err(error) => Err(general(error.to_string())),
                };
            }
            ConnectionState::EncodeTlsData(mut data) => {
                written += data
                    .encode(&mut outgoing[written..])
                    .map_err(|error| general(error.to_string()))?;
            }
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => {}
            other => return Err(general(format!("can't encrypt in TLS state {other:?}"))),
        }
    }
}
