//! `pronto bench overload`: a real controller with a deep queue and many users at once.
//!
//! So many instances wait for a node that does not exist. Then that many users, each with a
//! connection of its own, list a page and submit one instance, in turn, as fast as they are
//! answered; a refusal with 429 waits as long as it says and counts. What is reported is the time
//! from sending a request to its whole answer, and the controller's resident memory.

use super::figures::{as_f64, micros, plain};
use super::rig::Rig;
use super::{Report, Row, parameters};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use pronto_protocol::Role;
use pronto_protocol::transport::{Credentials, connect_tcp};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Handshakes under way at once.
const DIALING: usize = 64;

/// Flags of `bench overload`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OverloadArgs {
    /// Instances that wait
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) pending: u32,
    /// Users at once
    #[arg(long, default_value_t = 1_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(crate) clients: usize,
    /// Seconds of the measurement
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) seconds: u64,
}

struct User {
    sender: SendRequest<Full<Bytes>>,
}

/// An answer's status, and how long to wait before asking again.
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
}

impl User {
    async fn connect(address: &str, credentials: &Credentials) -> Result<Self> {
        let stream = connect_tcp(address).await?;
        let config = credentials.client_config_with_alpn(Role::Controller, &["http/1.1"]);
        let name = rustls_pki_types::ServerName::try_from("controller")?;
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn ask(&mut self, method: Method, path: &str, body: String) -> Result<Answer> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "controller")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        response.into_body().collect().await?;
        Ok(Answer {
            status,
            retry_after,
        })
    }
}

fn submission(count: u32) -> String {
    // No node is ever called so.
    json!({
        "count": count,
        "spec": {
            "task": {"runtime": "sim", "run_ms": 1},
            "constraints": [{"node": "nowhere"}],
        },
    })
    .to_string()
}

#[derive(Default)]
struct Counts {
    asked_to_wait: AtomicU64,
    failed: AtomicU64,
}

struct Latencies {
    list: Histogram<u64>,
    run: Histogram<u64>,
}

impl Latencies {
    fn new() -> Result<Self> {
        Ok(Self {
            list: Histogram::new(3)?,
            run: Histogram::new(3)?,
        })
    }
}

async fn use_it(mut user: User, end: Instant, counts: Arc<Counts>) -> Result<Latencies> {
    let mut latencies = Latencies::new()?;
    while Instant::now() < end {
        for run in [false, true] {
            let began = Instant::now();
            let answer = if run {
                user.ask(Method::POST, "/v1/instances", submission(1)).await
            } else {
                let path = "/v1/instances?limit=100";
                user.ask(Method::GET, path, String::new()).await
            };
            let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let answer = answer?;
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                counts.asked_to_wait.fetch_add(1, Ordering::Relaxed);
                let wait = answer.retry_after.context("429 without Retry-After")?;
                tokio::time::sleep(wait).await;
            } else if answer.status.is_success() {
                let histogram = if run {
                    &mut latencies.run
                } else {
                    &mut latencies.list
                };
                histogram.record(nanos)?;
            } else {
                counts.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(latencies)
}

fn row(name: &str, histogram: &Histogram<u64>) -> Row {
    let at = |quantile| micros(histogram.value_at_quantile(quantile)) / 1000.0;
    Row {
        p50: Some(at(0.5)),
        p99: Some(at(0.99)),
        max: Some(micros(histogram.max()) / 1000.0),
        ..plain(name, "ms", at(0.5))
    }
}

/// Measures and reports.
pub(crate) async fn run(args: &OverloadArgs) -> Result<Report> {
    let rig = Rig::new()?;
    let scheduler = rig.scheduler()?;
    let controller = rig.controller(&scheduler)?;
    let credentials = rig.other_credentials(Role::Admin, "root")?;
    let mut first = User::connect(&controller.address, &credentials).await?;
    let before = controller.rss_bytes()?;
    let mut left = args.pending;
    while left > 0 {
        let count = left.min(50_000);
        let made = first
            .ask(Method::POST, "/v1/instances", submission(count))
            .await?;
        ensure!(
            made.status.is_success(),
            "a submission ended with {}",
            made.status
        );
        left -= count;
    }
    let deep = controller.rss_bytes()?;
    // One user with nobody beside it: what the deep queue alone costs.
    let counts = Arc::new(Counts::default());
    let end = Instant::now() + Duration::from_secs(2);
    let alone = use_it(first, end, Arc::clone(&counts)).await?;
    let mut users = Vec::new();
    while users.len() < args.clients {
        let wave = (args.clients - users.len()).min(DIALING);
        let mut dialing = tokio::task::JoinSet::new();
        for _ in 0..wave {
            let (address, credentials) = (controller.address.clone(), Arc::clone(&credentials));
            dialing.spawn(async move { User::connect(&address, &credentials).await });
        }
        while let Some(user) = dialing.join_next().await {
            users.push(user??);
        }
    }
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let mut tasks = tokio::task::JoinSet::new();
    for user in users {
        tasks.spawn(use_it(user, end, Arc::clone(&counts)));
    }
    let mut all = Latencies::new()?;
    while let Some(joined) = tasks.join_next().await {
        let latencies = joined??;
        all.list.add(&latencies.list)?;
        all.run.add(&latencies.run)?;
    }
    let busy = controller.rss_bytes()?;
    let mib = |bytes: u64| as_f64(bytes) / f64::from(1 << 20);
    let mut report = Report::new(parameters([
        ("bench", json!("overload")),
        ("pending", json!(args.pending)),
        ("clients", json!(args.clients)),
        ("seconds", json!(args.seconds)),
    ]));
    report.rows.push(row("list_ms/alone", &alone.list));
    report.rows.push(row("run_ms/alone", &alone.run));
    report.rows.push(row("list_ms", &all.list));
    report.rows.push(row("run_ms", &all.run));
    let answered = as_f64(all.list.len() + all.run.len());
    let seconds = as_f64(args.seconds.max(1));
    report
        .rows
        .push(plain("requests_per_second", "1/s", answered / seconds));
    let count = |counter: &AtomicU64| as_f64(counter.load(Ordering::Relaxed));
    report
        .rows
        .push(plain("asked_to_wait", "", count(&counts.asked_to_wait)));
    report.rows.push(plain("failed", "", count(&counts.failed)));
    report
        .rows
        .push(plain("controller_rss_mib/empty", "MiB", mib(before)));
    report
        .rows
        .push(plain("controller_rss_mib/pending", "MiB", mib(deep)));
    report
        .rows
        .push(plain("controller_rss_mib/busy", "MiB", mib(busy)));
    Ok(report)
}
