//! Follows the files of a daemon's credentials: they are read again when one of them has changed,
//! and on SIGHUP.
//!
//! Sessions that are up stay up: TLS has no use for a certificate after its handshake. Who wants
//! its peers judged anew does that when it is told of a reload.

use super::Credentials;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What of a file shows that it has changed.
type Stamp = Option<(SystemTime, u64)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Until `shutdown`; `reloaded` is called after each reload. To be called within a tokio runtime.
/// From its first poll on SIGHUP no longer ends the process.
pub async fn follow_files(
    credentials: Arc<Credentials>,
    interval: Duration,
    shutdown: CancellationToken,
    mut reloaded: impl FnMut(),
) {
    let files = credentials.files();
    let paths: Vec<&Path> = [&files.ca, &files.cert, &files.key]
        .into_iter()
        .chain(&files.crl)
        .map(AsRef::as_ref)
        .collect();
    let stamps = || -> Vec<Stamp> { paths.iter().map(|path| stamp(path)).collect() };
    // Without a handler the files are still looked at.
    let mut hangup = signal(SignalKind::hangup()).ok();
    let mut known = stamps();
    loop {
        let asked = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let by_signal = tokio::select! {
            () = shutdown.cancelled() => return,
            _ = asked => true,
            () = tokio::time::sleep(interval) => false,
        };
        let found = stamps();
        if !by_signal && found == known {
            continue;
        }
        match credentials.reload() {
            Ok(()) => {
                known = found;
                info!("credentials reloaded");
                reloaded();
            }
            // They may be in the middle of being replaced: it is tried again after the interval.
            Err(error) => warn!(%error, "credentials can't be reloaded, the old ones stay"),
        }
    }
}
