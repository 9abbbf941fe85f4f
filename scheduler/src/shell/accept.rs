//! From the listening socket to a connection that has said HELLO, off the frame thread.
//!
//! A TLS handshake costs as much as a thousand placements. So it is done in the runtime of whoever
//! runs the daemon, many at a time, and the frame thread gets connections that are through with it.
//! Invariants: every step ends by a time limit; handshakes and connections are bounded, and what is
//! above the bound waits in the kernel's backlog, for which the oldest silent connection is cut; no
//! failure ends the loop.

use super::breaches::Breaches;
use super::hub::Greeted;
use super::silent::{Silence, Silent};
use crate::config::SchedulerConfig;
use pronto_protocol::SessionConfig;
use pronto_protocol::transport::{Credentials, HandshakeLimiter, WireError, accept};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// After a failed `accept(2)`, which means too many open files: time for some to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Handshakes at once, silent connections included. Each costs a few KiB until its time limit.
const HANDSHAKES: usize = 4096;

/// Accepts until `shutdown`.
pub(crate) async fn accept_all(
    listener: TcpListener,
    config: &SchedulerConfig,
    credentials: Arc<Credentials>,
    greeted: mpsc::Sender<Greeted>,
    breaches: Arc<Breaches>,
    shutdown: CancellationToken,
) {
    let session = config.session();
    let handshakes = HandshakeLimiter::new(HANDSHAKES);
    let places = Arc::new(Semaphore::new(config.max_connections));
    let mut was_full = false;
    let mut silent = Silent::default();
    loop {
        let is_full = places.available_permits() == 0;
        if is_full && !was_full {
            let connections = config.max_connections;
            warn!(
                connections,
                "no further connection is accepted until one ends"
            );
        }
        was_full = is_full;
        let next = async {
            let accepted = listener.accept().await;
            let handshake = match handshakes.try_acquire() {
                Some(handshake) => handshake,
                None => {
                    silent.cut_oldest().await;
                    handshakes.acquire().await
                }
            };
            let place = match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => place,
                Err(_) => {
                    silent.cut_oldest().await;
                    // Closed by nobody, so that the error can't be.
                    Arc::clone(&places).acquire_owned().await.ok()?
                }
            };
            Some((handshake, place, accepted))
        };
        let next = tokio::select! {
            () = shutdown.cancelled() => return,
            next = next => next,
        };
        let Some((handshake, place, accepted)) = next else {
            return;
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let address = stream.peer_addr();
        let (credentials, greeted) = (Arc::clone(&credentials), greeted.clone());
        let breaches = Arc::clone(&breaches);
        let silence = silent.add();
        tokio::spawn(async move {
            let greeting = async {
                hear(&stream, &silence, session.timeouts.handshake).await?;
                greet(stream, &credentials, session, place, &greeted).await
            };
            if let Err(error) = greeting.await {
                let peer = address.map_or_else(|_| "gone".to_owned(), |peer| peer.to_string());
                breaches.note_connection(&peer, &error);
            }
            silence.end();
            drop(handshake);
        });
    }
}

/// Waits for the first word of a connection.
async fn hear(stream: &TcpStream, silence: &Silence, limit: Duration) -> Result<(), WireError> {
    let what = "first word";
    let mut word = [0];
    let heard = tokio::select! {
        heard = tokio::time::timeout(limit, stream.peek(&mut word)) => heard,
        () = silence.cut() => return Err(WireError::Displaced),
    };
    silence.end();
    heard.map_err(|_| WireError::Timeout { what, limit })??;
    Ok(())
}

async fn greet(
    stream: TcpStream,
    credentials: &Credentials,
    session: SessionConfig,
    place: OwnedSemaphorePermit,
    greeted: &mpsc::Sender<Greeted>,
) -> Result<(), WireError> {
    let mut wire = accept(stream, credentials, session).await?;
    match wire.read_hello(session.timeouts.handshake).await {
        Ok(hello) => {
            let wire = wire.detach()?;
            // The frame thread takes it at once, or is gone and with it the daemon.
            let _shutting_down = greeted.send(Greeted { wire, hello, place }).await;
            Ok(())
        }
        Err(error) => {
            wire.finish().await;
            Err(error)
        }
    }
}
