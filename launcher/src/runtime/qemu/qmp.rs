//! A small client of QEMU's machine protocol: JSON objects, one a line, over a Unix socket.
//!
//! It greets, sends commands one at a time and hands out events; what a command or event means is
//! its caller's business. Every wait has a limit: a stopped or wedged emulator must not hold its
//! instance's task. The parsing is apart from the socket, in [`Message::parse`].

use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

/// A reply longer than this is not one of ours: the longest that we ask for is a few KiB.
const LINE_BYTES: usize = 1024 * 1024;
/// A healthy monitor answers within milliseconds, also under emulation.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Events kept while a command waits for its reply; the emulator sends a handful in a lifetime,
/// and of those only the shutdown's reason matters to us.
const EVENTS: usize = 64;

/// Why the emulator was not heard.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("no monitor answers at {path}")]
    Connect {
        path: String,
        source: std::io::Error,
    },
    #[error("the monitor did not answer within {} s", REPLY_TIMEOUT.as_secs())]
    Timeout,
    #[error("the monitor has closed the connection")]
    Closed,
    #[error("the monitor's line can't be read")]
    Line(#[from] LinesCodecError),
    #[error("the monitor sent something that is not its protocol: {0}")]
    Malformed(String),
    #[error("{command} was refused: {text}")]
    Refused { command: String, text: String },
}

/// One line of the monitor.
#[derive(Clone, Debug, PartialEq)]
enum Message {
    Greeting,
    Return { id: Option<u64>, value: Value },
    Error { id: Option<u64>, text: String },
    Event(Event),
}

/// What the emulator says unasked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<ErrorLine>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct ErrorLine {
    desc: String,
}

impl Message {
    fn parse(line: &str) -> Result<Self, QmpError> {
        let malformed = || QmpError::Malformed(line.chars().take(200).collect());
        let line: Line = serde_json::from_str(line).map_err(|_| malformed())?;
        match line {
            Line {
                greeting: Some(_), ..
            } => Ok(Self::Greeting),
            Line {
                error: Some(error),
                id,
                ..
            } => Ok(Self::Error {
                id,
                text: error.desc,
            }),
            Line {
                value: Some(value),
                id,
                ..
            } => Ok(Self::Return { id, value }),
            Line {
                event: Some(name),
                data,
                ..
            } => Ok(Self::Event(Event {
                name,
                data: data.unwrap_or(Value::Null),
            })),
            _ => Err(malformed()),
        }
    }
}

/// A connection to one emulator's monitor, ready for commands.
#[derive(Debug)]
pub(super) struct Qmp {
    lines: Framed<UnixStream, LinesCodec>,
    events: VecDeque<Event>,
    next_id: u64,
}

impl Qmp {
    /// Connects to the socket `name` in `directory`, and negotiates.
    ///
    /// The path of a Unix socket has room for 107 bytes and an instance's directory may be longer,
    /// so the directory is reached through its descriptor.
    pub(super) async fn connect(directory: &Path, name: &str) -> Result<Self, QmpError> {
        let failed = |source| QmpError::Connect {
            path: directory.join(name).display().to_string(),
            source,
        };
        let opened = std::fs::File::open(directory).map_err(failed)?;
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&opened);
        let short = format!("/proc/self/fd/{descriptor}/{name}");
        let stream = within(UnixStream::connect(short)).await?.map_err(failed)?;
        let mut qmp = Self {
            lines: Framed::new(stream, LinesCodec::new_with_max_length(LINE_BYTES)),
            events: VecDeque::new(),
            next_id: 1,
        };
        // A monitor that another client holds accepts the connection and stays silent.
        while within(qmp.read()).await?? != Message::Greeting {}
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Sends a command and waits for what it returns.
    pub(super) async fn execute(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        within(self.lines.send(line.to_string())).await??;
        within(self.reply(command, id)).await?
    }

    async fn reply(&mut self, command: &str, id: u64) -> Result<Value, QmpError> {
        loop {
            match self.read().await? {
                Message::Event(event) => {
                    if self.events.len() == EVENTS {
                        self.events.pop_front();
                    }
                    self.events.push_back(event);
                }
                Message::Return {
                    id: Some(of),
                    value,
                } if of == id => return Ok(value),
                Message::Error { id: of, text } if of.is_none() || of == Some(id) => {
                    return Err(QmpError::Refused {
                        command: command.to_owned(),
                        text,
                    });
                }
                // A reply to a command whose wait had run out.
                Message::Return { .. } | Message::Error { .. } | Message::Greeting => {}
            }
        }
    }

    /// The next event, however long it takes. May be cancelled without losing one.
    pub(super) async fn event(&mut self) -> Result<Event, QmpError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        loop {
            if let Message::Event(event) = self.read().await? {
                return Ok(event);
            }
        }
    }

    async fn read(&mut self) -> Result<Message, QmpError> {
        let line = self.lines.next().await.ok_or(QmpError::Closed)??;
        Message::parse(&line)
    }
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T, QmpError> {
    tokio::time::timeout(REPLY_TIMEOUT, work)
        .await
        .map_err(|_| QmpError::Timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    #[test]
    fn lines_of_the_monitor_are_told_apart() {
        let greeting = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;
        assert_eq!(Message::parse(greeting).unwrap(), Message::Greeting);
        assert_eq!(
            Message::parse(r#"{"return": {"running": true}, "id": 7}"#).unwrap(),
            Message::Return {
                id: Some(7),
                value: json!({"running": true})
            },
        );
        assert_eq!(
            Message::parse(r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 2}"#)
                .unwrap(),
            Message::Error {
                id: Some(2),
                text: "no".to_owned()
            },
        );
        let event = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN",
                        "data": {"guest": true, "reason": "guest-shutdown"}}"#;
        let Message::Event(event) = Message::parse(event).unwrap() else {
            panic!("an event")
        };
        assert_eq!(
            (event.name.as_str(), &event.data["guest"]),
            ("SHUTDOWN", &json!(true))
        );
        for broken in ["", "{", "[]", "{}", "{\"id\": 1}", "null"] {
            assert!(
                matches!(Message::parse(broken), Err(QmpError::Malformed(_))),
                "{broken}"
            );
        }
    }

    #[tokio::test]
    async fn events_between_a_command_and_its_reply_are_kept_in_order() {
        // Longer than the path of a socket may be.
        let base = tempfile();
        let directory = base.join("d".repeat(120));
        std::fs::create_dir_all(&directory).unwrap();
        let opened = std::fs::File::open(&directory).unwrap();
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&opened);
        let listener = UnixListener::bind(format!("/proc/self/fd/{descriptor}/qmp")).unwrap();
        let monitor = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.write_all(b"{\"QMP\": {}}\r\n").await.unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            assert_eq!(line, "{\"execute\":\"qmp_capabilities\",\"id\":1}\n");
            stream
                .write_all(b"{\"return\": {}, \"id\": 1}\r\n")
                .await
                .unwrap();
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            let answer = b"{\"event\": \"STOP\"}\r\n{\"event\": \"RESUME\"}\r\n\
                {\"return\": {}, \"id\": 1}\r\n{\"return\": 5, \"id\": 2}\r\n";
            stream.write_all(answer).await.unwrap();
        });
        let mut qmp = Qmp::connect(&directory, "qmp").await.unwrap();
        assert_eq!(
            qmp.execute("query-status", json!({"a": 1})).await.unwrap(),
            json!(5)
        );
        assert_eq!(qmp.event().await.unwrap().name, "STOP");
        assert_eq!(qmp.event().await.unwrap().name, "RESUME");
        assert!(matches!(qmp.event().await, Err(QmpError::Closed)));
        monitor.await.unwrap();
        std::fs::remove_dir_all(base).unwrap();
    }

    fn tempfile() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("pronto-qmp-{}", std::process::id()))
    }
}
