//! The connection to the launcher: lines of JSON, both ways.

use super::message::{Exit, FORMAT, FromShim, LINE_BYTES};
use super::{CONNECTION, Shim, alive, ended, say};
use crate::moment::Moment;
use rustix::event::epoll;
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// What may wait for a launcher that does not read; then it is cut, and hears all at its return.
const OUTBOX_BYTES: usize = 16 << 20;

pub(super) struct Connection {
    socket: OwnedFd,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    greeted: bool,
    wants_write: bool,
}

impl Shim {
    pub(super) fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(&self.listener, flags) else {
            return;
        };
        // What the last launcher said before it died is done before the next one asks.
        self.receive();
        self.disconnect();
        let data = epoll::EventData::new_u64(CONNECTION);
        if epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).is_ok() {
            self.connection = Some(Connection {
                socket,
                inbox: Vec::new(),
                outbox: Vec::new(),
                greeted: false,
                wants_write: false,
            });
        }
    }

    pub(super) fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = epoll::delete(&self.epoll, &connection.socket);
            self.idle_since = Moment::now();
        }
    }

    /// Reads all that is there, and does it.
    pub(super) fn receive(&mut self) {
        let mut gone = false;
        while let Some(connection) = &mut self.connection {
            match rustix::io::read(&connection.socket, &mut self.buffer[..]) {
                Ok(0) => {
                    gone = true;
                    break;
                }
                Ok(length) => {
                    connection.inbox.extend_from_slice(&self.buffer[..length]);
                    if connection.inbox.len() > LINE_BYTES && !connection.inbox.contains(&b'\n') {
                        gone = true;
                        break;
                    }
                    if length < self.buffer.len() {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
        self.obey();
        if gone {
            self.disconnect();
        }
    }

    fn obey(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let mut inbox = std::mem::take(&mut connection.inbox);
        let Some(end) = inbox.iter().rposition(|byte| *byte == b'\n') else {
            connection.inbox = inbox;
            return;
        };
        let rest = inbox.split_off(end + 1);
        for line in inbox
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            match serde_json::from_slice(line) {
                Ok(message) => self.handle(message),
                // A newer launcher may say what this one does not know; the rest still counts.
                Err(error) => say(format_args!("launcher-shim: not understood: {error}")),
            }
        }
        if let Some(connection) = &mut self.connection {
            connection.inbox = rest;
        }
    }

    pub(super) fn greet(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.greeted = true;
        }
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        self.tell(&FromShim::Welcome {
            format: FORMAT,
            pid,
            started_at: self.started_at,
        });
        let alive: Vec<(FromShim, Option<FromShim>)> = self
            .workloads
            .values()
            .map(|workload| (alive(workload), ended(workload)))
            .collect();
        for (alive, ended) in alive {
            self.tell(&alive);
            if let Some(ended) = ended {
                self.tell(&ended);
            }
        }
        self.exits.retry();
        let unwritten: Vec<Exit> = self.exits.unwritten().cloned().collect();
        for exit in unwritten {
            self.tell(&FromShim::Unwritten(exit));
        }
        self.tell(&FromShim::Listed);
    }

    pub(super) fn tell(&mut self, message: &FromShim) {
        let Some(connection) = self
            .connection
            .as_mut()
            .filter(|connection| connection.greeted)
        else {
            return;
        };
        if serde_json::to_writer(&mut connection.outbox, message).is_ok() {
            connection.outbox.push(b'\n');
        }
    }

    /// Writes what has gathered in this turn.
    pub(super) fn flush(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let mut written = 0;
        let broken = loop {
            if written == connection.outbox.len() {
                break false;
            }
            // A launcher that has died must not kill its shim with SIGPIPE.
            match rustix::net::send(
                &connection.socket,
                &connection.outbox[written..],
                rustix::net::SendFlags::NOSIGNAL,
            ) {
                Ok(length) => written += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break connection.outbox.len() - written > OUTBOX_BYTES,
                Err(_) => break true,
            }
        };
        connection.outbox.drain(..written);
        let wants_write = !connection.outbox.is_empty();
        if wants_write != connection.wants_write {
            connection.wants_write = wants_write;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, wants_write);
            let data = epoll::EventData::new_u64(CONNECTION);
            let _ = epoll::modify(&self.epoll, &connection.socket, data, flags);
        }
        if broken {
            self.receive();
            self.disconnect();
        }
    }
}
