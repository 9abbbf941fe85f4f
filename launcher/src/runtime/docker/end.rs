//! Ending all containers of a data directory whose launcher is gone: what `dev --stop` asks for.
//!
//! Where the engine is and how its containers are labelled is written into the data directory
//! before the first container is made, since a configuration may have changed or gone by then.

use super::{engine, spec};
use crate::data_dir::DataDir;
use anyhow::Context;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use pronto_payloads::ids::NodeUuid;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

const FORMAT: u32 = 1;

/// What is in `docker.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Trace {
    format: u32,
    host: String,
    node_uuid: NodeUuid,
}

fn path(data_dir: &DataDir) -> PathBuf {
    data_dir.path().join("docker.json")
}

/// Notes where the containers of a data directory are.
pub(super) fn leave_trace(data_dir: &DataDir, host: &str, node_uuid: NodeUuid) -> io::Result<()> {
    let trace = Trace {
        format: FORMAT,
        host: host.to_owned(),
        node_uuid,
    };
    std::fs::write(path(data_dir), serde_json::to_vec(&trace)?)
}

/// Ends and removes all containers that launchers of this data directory made, if any.
///
/// # Errors
/// If there may be some and the engine can't be asked.
pub async fn end_containers(data_dir: &DataDir, grace_ms: u64) -> anyhow::Result<()> {
    let bytes = match std::fs::read(path(data_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| path(data_dir).display().to_string())?,
    };
    let trace: Trace = serde_json::from_slice(&bytes)?;
    let client = engine::connect(&trace.host)
        .await
        .with_context(|| format!("the Docker engine at {} does not answer", trace.host))?;
    let label = format!("{}={}", spec::LABEL_NODE, trace.node_uuid);
    let filters = HashMap::from([("label".to_owned(), vec![label])]);
    let options = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&filters)
        .build();
    let found = client.list_containers(Some(options)).await?;
    let grace_s = i32::try_from(grace_ms.div_ceil(1000)).unwrap_or(i32::MAX);
    let ends = found.into_iter().filter_map(|one| one.id).map(|id| {
        let client = &client;
        async move {
            // One that has ended meanwhile is removed all the same.
            let stop = StopContainerOptionsBuilder::new().t(grace_s).build();
            let _ = client.stop_container(&id, Some(stop)).await;
            let force = RemoveContainerOptionsBuilder::new()
                .force(true)
                .v(true)
                .build();
            client.remove_container(&id, Some(force)).await
        }
    });
    for ended in futures_util::future::join_all(ends).await {
        if let Err(error) = ended
            && !engine::has_status(&error, 404)
        {
            return Err(error).context("a container can't be removed");
        }
    }
    Ok(())
}
