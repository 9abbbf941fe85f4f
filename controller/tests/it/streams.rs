//! Output, exec, standard input and files, through controller, scheduler and node.

use crate::api::{Cluster, sim, submit};
use crate::client::{Body, frames};
use crate::fake::{LONG, SILENT};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use pronto_controller::api::types::{
    ErrorBody, ErrorCode, ExecEnd, FileEnd, FileListing, InstanceState, OutputEnd,
};
use serde_json::json;
use sha2::Digest as _;
use std::time::Duration;

const FRAMES: [(&str, &str); 1] = [("content-type", "application/vnd.pronto.frames")];

/// The request of a command that writes what it reads, without its input.
fn echo() -> Bytes {
    let document = json!({"command": ["echo", "-"]}).to_string();
    let length = u32::try_from(document.len()).unwrap().to_le_bytes();
    [&[0], &length[..], document.as_bytes()].concat().into()
}

/// The next bytes of an answer.
async fn next(answer: &mut hyper::body::Incoming) -> Bytes {
    answer.frame().await.unwrap().unwrap().into_data().unwrap()
}

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
    assert_eq!(written.attempt, Some(1), "which attempt has it");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commands_input_and_output_stream_at_the_same_time() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let id = submit(&mut client, sim(60_000, 0), 1).await.instances[0];
    let path = format!("/v1/instances/{id}/exec");

    // All of it at once, beyond what the node grants.
    let input = vec![b'i'; 5000];
    let whole = [&echo()[..], &input].concat();
    let response = client.stream("POST", &path, whole, &FRAMES).await;
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let mut answer = frames(&body);
    let end: ExecEnd = serde_json::from_slice(&answer.pop().unwrap().1).unwrap();
    assert_eq!((end.code, end.problem), (Some(5), None));
    let echoed: Vec<u8> = answer.into_iter().flat_map(|(_, bytes)| bytes).collect();
    assert_eq!(echoed, input);

    // Word and answer in turn.
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(1);
    sender.send_data(echo()).await.unwrap();
    let body: Body = body.boxed();
    let mut talker = cluster.admin().await;
    let response = talker.stream_body("POST", &path, body, &FRAMES).await;
    let mut answer = response.into_body();
    for word in ["one", "two"] {
        sender.send_data(word.into()).await.unwrap();
        assert_eq!(&next(&mut answer).await[5..], word.as_bytes());
    }
    drop(sender);
    let rest = answer.collect().await.unwrap().to_bytes();
    let end: ExecEnd = serde_json::from_slice(&frames(&rest)[0].1).unwrap();
    assert_eq!(end.code, Some(5));

    let refused = client.stream("POST", &path, "no frame", &FRAMES).await;
    assert_eq!(refused.status(), 400);
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_input_breaks_off_is_cancelled_and_reads_no_end() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let id = submit(&mut client, sim(60_000, 0), 1).await.instances[0];
    let path = format!("/v1/instances/{id}/exec");
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(1);
    sender.send_data(echo()).await.unwrap();
    let body: Body = body.boxed();
    let response = client.stream_body("POST", &path, body, &FRAMES).await;
    let mut answer = response.into_body();
    sender.send_data("part".into()).await.unwrap();
    assert_eq!(&next(&mut answer).await[5..], b"part");
    sender.abort(std::io::Error::other("cut"));
    let cancelled = async {
        while cluster.fake.world.lock().unwrap().cancelled_commands == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), cancelled)
        .await
        .expect("the node is told");
    cluster.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_silent_while_a_file_is_copied_is_given_up() {
    let cluster = Cluster::start().await;
    let mut client = cluster.admin().await;
    let id = submit(&mut client, sim(60_000, 0), 1).await.instances[0];
    let path = format!("/v1/instances/{id}/files?path={SILENT}");
    for (method, body) in [("GET", ""), ("PUT", "content")] {
        let mut client = cluster.admin().await;
        let refused: ErrorBody = client.raw(method, &path, body).await.expect(502);
        assert_eq!(refused.code, ErrorCode::NodeUnreachable);
        assert_eq!(refused.message, "the node has said nothing for 1s");
    }
    cluster.controller.stop().await;
}
