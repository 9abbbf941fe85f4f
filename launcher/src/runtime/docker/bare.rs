//! A container without Pronto around it: what benches compare with.

use super::engine::{address, connect, words};
use super::spec;
use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt;
use std::time::{Duration, Instant};

/// One container, as often as wanted, with the limits that the runtime sets.
#[derive(Clone, Debug)]
pub struct BareContainer {
    client: Docker,
    body: ContainerCreateBody,
}

impl BareContainer {
    /// Connects to the engine of `DOCKER_HOST`, or at the usual socket.
    ///
    /// # Errors
    ///
    /// Why there is no engine, or no such image, in words.
    pub async fn connect(
        image: &str,
        command: Vec<String>,
        memory_mib: u32,
    ) -> Result<Self, String> {
        let host = address(None);
        let client = connect(&host)
            .await
            .map_err(|error| format!("no Docker engine answers at {host}: {}", words(&error)))?;
        let found = client.inspect_image(image).await;
        found.map_err(|error| {
            format!(
                "the engine at {host} has no image {image}: {}",
                words(&error)
            )
        })?;
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(command),
            host_config: Some(spec::limits(memory_mib)),
            ..ContainerCreateBody::default()
        };
        Ok(Self { client, body })
    }

    /// Creates it, starts it, waits for its end and removes it. How long it took until the engine
    /// had started it, and until its end.
    ///
    /// # Errors
    ///
    /// What the engine says, or that the container ended badly.
    pub async fn run(&self, name: &str) -> Result<[Duration; 2], String> {
        let began = Instant::now();
        let run = self.created_started_ended(name, began).await;
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        let removed = self.client.remove_container(name, Some(options)).await;
        let times = run.map_err(|error| words(&error))?;
        removed.map_err(|error| words(&error))?;
        Ok(times)
    }

    async fn created_started_ended(
        &self,
        name: &str,
        began: Instant,
    ) -> Result<[Duration; 2], Error> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let body = self.body.clone();
        self.client.create_container(Some(options), body).await?;
        self.client.start_container(name, None).await?;
        let started = began.elapsed();
        let options = WaitContainerOptionsBuilder::new()
            .condition("not-running")
            .build();
        // An exit code other than 0 is an error here.
        if let Some(end) = self.client.wait_container(name, Some(options)).next().await {
            end?;
        }
        Ok([started, began.elapsed()])
    }
}
