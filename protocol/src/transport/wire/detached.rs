//! A connection on its way from one runtime to another.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::Wire;
use crate::frame::Frame;
use crate::identity::Identity;
use crate::session::Session;
use crate::transport::tls::Tls;

/// A connection between two runtimes; see [`Wire::detach`].
#[derive(Debug)]
pub struct DetachedWire {
    stream: std::net::TcpStream,
    tls: Tls,
    session: Session,
    peer: Box<Identity>,
    peer_address: SocketAddr,
    record_in: Vec<u8>,
    records_out: Vec<u8>,
    peer_closed: bool,
    early: Vec<Frame>,
}

impl DetachedWire {
    /// Goes on within the runtime that this is called in.
    pub fn attach(self) -> io::Result<Wire> {
        let stream = TcpStream::from_std(self.stream)?;
        let Self {
            tls,
            session,
            peer,
            peer_address,
            ..
        } = self;
        let (out, unread) = (self.records_out, self.record_in);
        let mut wire = Wire::new(stream, tls, session, *peer, peer_address, out, unread);
        wire.peer_closed = self.peer_closed;
        wire.early = self.early;
        Ok(wire)
    }
}

impl Wire {
    /// Takes the connection off this runtime, so that another thread's can have it: a TLS handshake
    /// costs a thousand times what a frame does, and may be done where it delays nobody.
    pub fn detach(self) -> io::Result<DetachedWire> {
        let Self {
            stream,
            tls,
            session,
            peer,
            peer_address,
            ..
        } = self;
        Ok(DetachedWire {
            stream: stream.into_std()?,
            tls,
            session,
            peer,
            peer_address,
            record_in: self.record_in,
            records_out: self.records_out[self.records_out_taken..].to_vec(),
            peer_closed: self.peer_closed,
            early: self.early,
        })
    }
}
