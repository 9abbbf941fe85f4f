//! Slow links: a relay of TCP connections on a host of the test's network, with a delay that the
//! test sets while it runs.
//!
//! The kernels that this must run on have no netem. A frame that passes is only held back: order,
//! ends and resets stay what they were, so that the daemons see a slow link and nothing else.

use crate::network::Network;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Pieces of one direction that are under way before its sender has to wait.
const PIECES: usize = 256;
const PIECE_BYTES: usize = 16 * 1024;

/// The relay and its thread, which ends with it.
#[derive(Debug)]
pub(crate) struct Relay {
    /// In milliseconds, each way.
    delay: Arc<AtomicU64>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Relay {
    /// On `host`, from each first address to the second.
    pub(crate) fn new(network: &Network, host: &str, routes: Vec<(String, String)>) -> Self {
        let delay = Arc::new(AtomicU64::new(0));
        let (end, ended) = oneshot::channel();
        let (listening, listens) = std::sync::mpsc::channel();
        let namespace = File::open(network.namespace(host)).expect("the host is there");
        let theirs = Arc::clone(&delay);
        let thread = std::thread::spawn(move || {
            // Of this thread alone: every socket below is made on it.
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("this test needs root");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                for (from, to) in routes {
                    let listener = TcpListener::bind(from).await.expect("a free address");
                    tokio::spawn(serve(listener, to, Arc::clone(&theirs)));
                }
                listening.send(()).expect("the test waits");
                let _ended = ended.await;
            });
        });
        listens.recv().expect("the relay listens");
        Self {
            delay,
            end: Some(end),
            thread: Some(thread),
        }
    }

    /// From now on everything takes so much longer, each way.
    pub(crate) fn delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).expect("a short delay");
        self.delay.store(millis, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, to: String, delay: Arc<AtomicU64>) {
    while let Ok((near, _)) = listener.accept().await {
        let (to, delay) = (to.clone(), Arc::clone(&delay));
        tokio::spawn(async move {
            // Refused: so is the one who asked, by the end of its connection.
            let Ok(far) = TcpStream::connect(to).await else {
                return;
            };
            let (near_reads, near_writes) = near.into_split();
            let (far_reads, far_writes) = far.into_split();
            tokio::select! {
                () = pass(near_reads, far_writes, &delay) => {}
                () = pass(far_reads, near_writes, &delay) => {}
            }
        });
    }
}

/// One direction, until its sender ends or its receiver is gone.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: &AtomicU64,
) {
    let (pieces, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let read = async move {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            let due = Instant::now() + Duration::from_millis(delay.load(Ordering::Relaxed));
            if pieces.send((due, piece[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = under_way.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
