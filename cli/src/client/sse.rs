//! Server-sent events of one kind: the `data` of each, decoded from JSON.

use super::Body;
use crate::exit::{Exit, Failure};
use anyhow::Context;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use serde::de::DeserializeOwned;

/// No event is longer: an instance with a full environment is far below.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// The events of a response's body.
pub(crate) struct Events {
    body: Incoming,
    decoder: EventDecoder,
    /// Kept so that the connection stays open as long as its body is read.
    _connection: Option<SendRequest<Body>>,
}

impl Events {
    pub(super) fn new(body: Incoming, connection: Option<SendRequest<Body>>) -> Self {
        Self {
            body,
            decoder: EventDecoder::default(),
            _connection: connection,
        }
    }

    /// The data of the next event of this kind; nothing when the controller has closed the stream.
    pub(crate) async fn next<T: DeserializeOwned>(
        &mut self,
        kind: &str,
    ) -> Result<Option<T>, Failure> {
        loop {
            while let Some((name, data)) = self.decoder.next()? {
                if name == "lagged" {
                    let what = "more has changed than could be followed";
                    return Err(Failure::new(Exit::Failed, what).hint("start it again"));
                }
                if name == kind {
                    let event =
                        serde_json::from_str(&data).context("an event is not understood")?;
                    return Ok(Some(event));
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.decoder.push(&data);
                    }
                }
                Some(Err(error)) => {
                    let what = format!("the stream of events was cut off: {error}");
                    return Err(Failure::new(Exit::Unreachable, what));
                }
                None => return Ok(None),
            }
        }
    }
}

/// Bytes in, the names and data of events out. Comments and other fields are passed over.
#[derive(Default)]
struct EventDecoder {
    buffer: Vec<u8>,
    name: String,
    data: String,
}

impl EventDecoder {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Result<Option<(String, String)>, Failure> {
        while let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = std::str::from_utf8(&line).context("an event is not UTF-8")?;
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let name = std::mem::take(&mut self.name);
                if !self.data.is_empty() {
                    return Ok(Some((name, std::mem::take(&mut self.data))));
                }
            } else if let Some(name) = line.strip_prefix("event:") {
                self.name = name.trim_start().to_owned();
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
        if self.buffer.len() + self.data.len() > MAX_EVENT_BYTES {
            return Err(Failure::new(Exit::Failed, "an event is longer than 4 MiB"));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_joined_and_comments_are_passed_over() {
        let mut decoder = EventDecoder::default();
        decoder.push(b": alive\n\nevent: instance\ndata: {\"a\":\r\ndata:1}\r\n\r\ndata: 2");
        let event = |name: &str, data: &str| Some((name.to_owned(), data.to_owned()));
        assert_eq!(decoder.next().unwrap(), event("instance", "{\"a\":\n1}"));
        assert_eq!(decoder.next().unwrap(), None);
        decoder.push(b"\n\n");
        assert_eq!(decoder.next().unwrap(), event("", "2"));
    }
}
