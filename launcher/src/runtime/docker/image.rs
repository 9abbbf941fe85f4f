//! Images: present, or pulled with its progress told in the attempt's log.

use super::engine::{Engine, has_status, is_away};
use super::verdict;
use crate::logs::{self, LogWriter};
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt;
use pronto_payloads::instance::End;
use pronto_payloads::stream::Channel;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// A registry that sends nothing for so long has gone.
const PULL_SILENCE: Duration = Duration::from_secs(180);
/// Lines of progress are this far apart at least.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Makes sure that the engine has the image.
pub(super) async fn ensure(engine: &Engine, image: &str, log: &mut LogWriter) -> Result<(), End> {
    match engine
        .call(|client| async move { client.inspect_image(image).await })
        .await
    {
        Ok(_) => return Ok(()),
        Err(error) if has_status(&error, 404) => {}
        Err(error) => return Err(verdict::no_image(image, &error)),
    }
    loop {
        let client = engine.up().await;
        match pull(&client, image, log).await {
            Ok(()) => return Ok(()),
            // The registry's trouble is told by the engine; only the engine's own absence is not.
            Err(error) if is_away(&error) => engine.suspect().await,
            Err(error) => return Err(verdict::no_image(image, &error)),
        }
    }
}

async fn pull(client: &Docker, image: &str, log: &mut LogWriter) -> Result<(), Error> {
    tell(log, &format!("pulling {image}"));
    let (name, tag) = split(image);
    let options = CreateImageOptionsBuilder::new()
        .from_image(name)
        .tag(tag)
        .build();
    let mut steps = client.create_image(Some(options), None, None);
    let mut progress = Progress::default();
    let mut told_at = Instant::now();
    loop {
        let step = timeout(PULL_SILENCE, steps.next()).await.map_err(|_| {
            let error = format!("no progress for {} s", PULL_SILENCE.as_secs());
            Error::DockerStreamError { error }
        })?;
        let Some(step) = step else { return Ok(()) };
        let step = step?;
        if let Some(error) = step
            .error_detail
            .as_ref()
            .and_then(|detail| detail.message.clone())
        {
            return Err(Error::DockerStreamError { error });
        }
        progress.step(&step);
        if told_at.elapsed() >= PROGRESS_INTERVAL {
            told_at = Instant::now();
            tell(log, &format!("pulling {image}: {}", progress.text()));
        }
    }
}

/// As the engine's own client tells its progress, on standard error.
fn tell(log: &mut LogWriter, text: &str) {
    tracing::debug!(text);
    let line = format!("pronto: {text}\n");
    if let Err(error) = log.append(Channel::Stderr, logs::unix_ms(), line.as_bytes()) {
        tracing::warn!(%error, "an attempt's log can't be written");
    }
}

/// Name and tag or digest. Without a tag the engine would pull all that there are.
fn split(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name, digest);
    }
    match image.rsplit_once(':') {
        // A colon before a slash is a registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

/// Bytes of all layers.
#[derive(Debug, Default)]
struct Progress {
    layers: HashMap<String, (i64, i64)>,
}

/// Layers that are counted: an image has at most 127.
const LAYERS: usize = 256;

impl Progress {
    fn step(&mut self, step: &CreateImageInfo) {
        let downloading = step
            .status
            .as_deref()
            .is_some_and(|status| status == "Downloading");
        let (Some(id), Some(detail)) = (&step.id, &step.progress_detail) else {
            return;
        };
        if let (true, Some(current), Some(total)) = (downloading, detail.current, detail.total)
            && (self.layers.len() < LAYERS || self.layers.contains_key(id))
        {
            self.layers.insert(id.clone(), (current, total));
        }
    }

    fn text(&self) -> String {
        let sum = |part: fn(&(i64, i64)) -> i64| self.layers.values().map(part).sum::<i64>();
        let mib = |bytes: i64| bytes / (1024 * 1024);
        format!(
            "{} of {} MiB",
            mib(sum(|layer| layer.0)),
            mib(sum(|layer| layer.1))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_digests_and_ports_are_told_apart() {
        assert_eq!(split("busybox"), ("busybox", "latest"));
        assert_eq!(split("busybox:1.36"), ("busybox", "1.36"));
        assert_eq!(split("host:5000/a/b"), ("host:5000/a/b", "latest"));
        assert_eq!(split("host:5000/a/b:t"), ("host:5000/a/b", "t"));
        assert_eq!(split("a@sha256:00"), ("a", "sha256:00"));
    }

    #[test]
    fn progress_sums_layers() {
        let mut progress = Progress::default();
        let step = |id: &str, status: &str, current, total| CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(bollard::models::ProgressDetail {
                current: Some(current),
                total: Some(total),
            }),
            ..CreateImageInfo::default()
        };
        progress.step(&step("a", "Downloading", 1 << 20, 3 << 20));
        progress.step(&step("b", "Downloading", 0, 5 << 20));
        progress.step(&step("a", "Downloading", 2 << 20, 3 << 20));
        progress.step(&step("a", "Extracting", 0, 3 << 20));
        assert_eq!(progress.text(), "2 of 8 MiB");
    }
}
