//! Our standard input as the body of a request, and how an instance gets it.

use super::{stop, wait_until};
use crate::client::{Body, Client, path};
use crate::exit::Failure;
use crate::output::tell;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Frame;
use pronto_controller::api::types as api;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Reads under way at once.
const CHUNKS: usize = 4;
const CHUNK_BYTES: usize = 32 * 1024;

struct Stdin(mpsc::Receiver<io::Result<Bytes>>);

impl hyper::body::Body for Stdin {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let chunk = self.0.poll_recv(context);
        chunk.map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

/// What we are given to read, behind `front`. Its thread is no task of the runtime: one that waits
/// for a person would hold up our end.
pub(crate) fn body(front: Bytes) -> Body {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    std::thread::spawn(move || {
        let mut next = Some(Ok(front));
        while let Some(chunk) = next {
            let failed = chunk.is_err();
            if sender.blocking_send(chunk).is_err() || failed {
                return;
            }
            next = read().transpose();
        }
    });
    Stdin(receiver).boxed()
}

/// The next chunk; none at the end.
fn read() -> io::Result<Option<Bytes>> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let length = loop {
        match io::stdin().lock().read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    buffer.truncate(length);
    Ok((length > 0).then(|| buffer.into()))
}

/// Sends our standard input to an instance. One that would wait for ever for the rest of it is
/// stopped: what it made of a part must not pass for the whole.
pub(super) async fn send(mut client: Client, id: Uuid) {
    let Err(failure) = try_send(&mut client, id).await else {
        return;
    };
    // Otherwise it reads no more, as `head` does, or has ended.
    if !failure.may_pass() {
        return;
    }
    let lives = wait_until(&mut client, id, |state| !state.is_end()).await;
    if !matches!(lives, Ok(false)) {
        tell!("{failure}");
        tell!("pronto: its standard input was cut off, so it is stopped");
        stop(&mut client, id).await;
    }
}

/// Sends it, once the instance runs.
async fn try_send(client: &mut Client, id: Uuid) -> Result<(), Failure> {
    let running = |state| state == api::InstanceState::Running;
    if !wait_until(client, id, running).await? {
        return Ok(());
    }
    let to = path(&["instances", &id.to_string(), "stdin"]);
    client
        .upload(Method::POST, &to, None, None, body(Bytes::new()))
        .await
        .map(drop)
}
