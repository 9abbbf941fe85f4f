//! Output, exec, standard input and files, through controller, scheduler and node.

use crate::api::{Cluster, sim, submit};
use crate::client::frames;
use crate::fake::LONG;
use http_body_util::BodyExt;
use pronto_controller::api::types::{
    ErrorBody, ErrorCode, ExecEnd, FileEnd, FileListing, InstanceState, OutputEnd,
};
use serde_json::json;
use sha2::Digest as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_streamed_whole_with_its_channels_and_its_end() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let id = submit(&mut client, sim(0, 3), 1).await.instances[0];
    // On the same connection, as `pronto run` does it.
    let response = client
        .get(&format!("/v1/instances/{id}/output?follow=true"))
        .await;
    assert_eq!(response.status, 200);
    let frames = frames(&response.body);
    let on = |channel| -> Vec<u8> {
        let parts = frames.iter().filter(|(c, _)| *c == channel);
        parts.flat_map(|(_, bytes)| bytes.clone()).collect()
    };
    assert_eq!(on(2), b"err\n");
    assert_eq!(on(1).len(), 4 + LONG, "more than a stream's credit");
    let (channel, last) = frames.last().unwrap();
    assert_eq!(*channel, 0);
    let end: OutputEnd = serde_json::from_slice(last).unwrap();
    assert_eq!(end.instance.state, InstanceState::Failed);
    assert_eq!(end.instance.end.unwrap().code, Some(3));
    assert_eq!(end.problem, None);
    assert!(!end.timeline.is_empty());
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_followed_until_a_stop() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let id = submit(&mut client, sim(60_000, 0), 1).await.instances[0];
    let mut follower = cluster.admin().await;
    let path = format!("/v1/instances/{id}/output?follow=true");
    let response = follower.stream("GET", &path, "", &[]).await;
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b"\x01\x04\0\0\0out\n");
    let path = format!("/v1/instances/{id}/stop");
    assert_eq!(client.post(&path, &json!({})).await.status, 202);
    let rest = body.collect().await.unwrap().to_bytes();
    let frames = frames(&rest);
    let end: OutputEnd = serde_json::from_slice(&frames.last().unwrap().1).unwrap();
    assert_eq!(end.instance.state, InstanceState::Stopped);
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_slow_or_leaves_disturbs_nobody() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let id = submit(&mut client, sim(60_000, 0), 1).await.instances[0];
    let path = format!("/v1/instances/{id}/output?follow=true");
    for _ in 0..20 {
        let mut leaver = cluster.admin().await;
        let response = leaver.stream("GET", &path, "", &[]).await;
        let mut body = response.into_body();
        body.frame().await.unwrap().unwrap();
    }
    let response = client.get(&format!("/v1/instances/{id}/output")).await;
    assert!(response.body.len() > LONG);
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_input_and_files() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let id = submit(&mut client, sim(60_000, 0), 1).await.instances[0];
    let path = format!("/v1/instances/{id}/exec");
    let response = client.post(&path, &json!({"command": ["ls", "-l"]})).await;
    let answer = frames(&response.body);
    assert_eq!(answer[0], (1, b"ls -l".to_vec()));
    let end: ExecEnd = serde_json::from_slice(&answer[1].1).unwrap();
    assert_eq!(end.code, Some(3));
    let refused = client.post(&path, &json!({"command": []})).await;
    assert_eq!(refused.status, 400);

    let path = format!("/v1/instances/{id}/stdin");
    let input = vec![b'i'; 5000];
    let sent = client.raw("POST", &path, input.clone()).await;
    assert_eq!(sent.status, 204);
    assert_eq!(cluster.fake.world.lock().unwrap().stdin, input);

    let file: Vec<u8> = (0..700_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let hash: String = sha2::Sha256::digest(&file)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let path = format!("/v1/instances/{id}/files?path=in/data.bin");
    let headers = [("x-pronto-sha256", hash.as_str())];
    let response = client.stream("PUT", &path, file.clone(), &headers).await;
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let written: FileEnd = serde_json::from_slice(&body).unwrap();
    assert_eq!((written.bytes, &written.sha256), (700_000, &hash));
    let wrong = [("x-pronto-sha256", "00")];
    let response = client.stream("PUT", &path, "other", &wrong).await;
    assert_eq!(response.status(), 409);
    response.into_body().collect().await.unwrap();
    let path = format!("/v1/instances/{id}/files?path=missing");
    let missing: ErrorBody = client.get(&path).await.expect(404);
    assert_eq!(missing.code, ErrorCode::NotFound);
    let path = format!("/v1/instances/{id}/files?path=in/data.bin");
    let response = client.get(&path).await;
    let answer = frames(&response.body);
    assert_eq!(answer[0], (3, b"other".to_vec()));
    let read: FileEnd = serde_json::from_slice(&answer[1].1).unwrap();
    assert_eq!(read.bytes, 5);
    let path = format!("/v1/instances/{id}/listing?pattern=*.txt");
    let listing: FileListing = client.get(&path).await.expect(200);
    assert_eq!(listing.paths, ["a", "b", "*.txt"]);
    cluster.controller.stop().await;
}
