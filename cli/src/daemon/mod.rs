//! The daemons as subcommands: read the configuration, set up the log, run until told to end.
//!
//! A configuration is TOML; an unknown key is an error that names its line. Relative paths in it
//! are relative to the file. SIGTERM and SIGINT end a daemon in order; its log goes to stderr, for
//! systemd's journal or a file.

use crate::exit::{Exit, Failure, OK, Outcome, own_code};
use crate::output::say;
use anyhow::Context;
use clap::Args;
use pronto_controller::{ControllerConfig, store};
use pronto_launcher::LauncherConfig;
use pronto_protocol::Role;
use pronto_protocol::transport::{Credentials, TlsFiles};
use pronto_scheduler::SchedulerConfig;
use std::future::Future;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// No configuration is longer.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Flags of every daemon.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// The configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How the log is written to stderr; RUST_LOG says what of it
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `pronto scheduler`.
#[derive(Debug, Args)]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Check the configuration and the certificates, and end
    #[arg(long)]
    check: bool,
}

/// `pronto controller`.
#[derive(Debug, Args)]
pub(crate) struct ControllerArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Check the configuration, the certificates and the store, and end
    #[arg(long, conflicts_with_all = ["backup", "restore_backup"])]
    check: bool,
    /// Write a copy of the store, also of a running controller's, and end
    #[arg(long, value_name = "FILE", conflicts_with = "restore_backup")]
    backup: Option<PathBuf>,
    /// Put a copy in the store's place and end; the next start raises its epoch above all that
    /// launchers report
    #[arg(long, value_name = "FILE")]
    restore_backup: Option<PathBuf>,
}

/// `pronto launcher`.
#[derive(Debug, Args)]
pub(crate) struct LauncherArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Check the configuration and the certificates, and end
    #[arg(long, conflicts_with = "simulate")]
    check: bool,
    /// Stand for so many nodes whose workloads run nothing
    #[arg(long, value_name = "N")]
    simulate: Option<u32>,
}

/// `pronto scheduler --config FILE`.
pub(crate) fn scheduler(args: &SchedulerArgs) -> Outcome {
    let (text, directory) = read(&args.daemon.config)?;
    let mut config =
        SchedulerConfig::parse(&text).map_err(|error| invalid(&args.daemon.config, error))?;
    config.resolve(&directory);
    if args.check {
        return checked(&config.tls, Role::Scheduler);
    }
    run(&args.daemon, |shutdown| {
        pronto_scheduler::run(config, shutdown)
    })
}

/// `pronto controller --config FILE`.
pub(crate) fn controller(args: &ControllerArgs) -> Outcome {
    let (text, directory) = read(&args.daemon.config)?;
    let mut config =
        ControllerConfig::parse(&text).map_err(|error| invalid(&args.daemon.config, error))?;
    config.resolve(&directory);
    let file = |path: &Path| {
        std::path::absolute(path)
            .with_context(|| format!("can't use {}", path.display()))
            .map_err(|error| Failure::caused(Exit::Usage, error))
    };
    if args.check {
        // Before the first start there is no store, which is as it should be.
        if config.data_dir.exists() {
            store::check(&config.data_dir).map_err(anyhow::Error::from)?;
        }
        return checked(&config.tls, Role::Controller);
    }
    if let Some(target) = &args.backup {
        store::backup(&config.data_dir, &file(target)?).map_err(anyhow::Error::from)?;
        say!("the store is copied to {}", target.display());
        return Ok(OK);
    }
    if let Some(source) = &args.restore_backup {
        let aside =
            store::restore_backup(&config.data_dir, &file(source)?).map_err(anyhow::Error::from)?;
        say!(
            "the store of {} is the one of {}",
            config.data_dir.display(),
            source.display()
        );
        if let Some(aside) = aside {
            say!("the one that was there is kept as {}", aside.display());
        }
        return Ok(OK);
    }
    run(&args.daemon, |shutdown| {
        pronto_controller::run(config, shutdown)
    })
}

/// `pronto launcher --config FILE`.
pub(crate) fn launcher(args: &LauncherArgs) -> Outcome {
    let (text, directory) = read(&args.daemon.config)?;
    let mut config: LauncherConfig =
        toml::from_str(&text).map_err(|error| invalid(&args.daemon.config, error))?;
    let TlsFiles { ca, cert, key, crl } = &mut config.tls;
    let paths = [ca, cert, key, &mut config.data_dir];
    for path in paths
        .into_iter()
        .chain(crl)
        .chain(&mut config.simulate_certs_dir)
    {
        *path = directory.join(&*path);
    }
    config
        .check()
        .map_err(|error| invalid(&args.daemon.config, error))?;
    if args.check {
        return checked(&config.tls, Role::Launcher);
    }
    pronto_launcher::privileges::give_up().context("can't give up privileges of root")?;
    match args.simulate {
        None => run(&args.daemon, |shutdown| {
            pronto_launcher::run(config, shutdown)
        }),
        Some(count) => {
            let count = usize::try_from(count).map_err(anyhow::Error::from)?;
            run(&args.daemon, |shutdown| {
                pronto_launcher::run_simulated(config, count, shutdown)
            })
        }
    }
}

/// Reads a configuration's text; says which directory its relative paths are relative to.
fn read(path: &Path) -> Result<(String, PathBuf), Failure> {
    let unreadable = |error: anyhow::Error| {
        Failure::caused(Exit::Usage, error).hint("--config names a TOML file")
    };
    let context = || format!("can't read the configuration {}", path.display());
    let absolute = std::path::absolute(path)
        .with_context(context)
        .map_err(unreadable)?;
    let metadata = std::fs::metadata(&absolute)
        .with_context(context)
        .map_err(unreadable)?;
    if metadata.len() > MAX_CONFIG_BYTES {
        return Err(Failure::usage(format!(
            "{} is longer than 1 MiB",
            path.display()
        )));
    }
    let text = std::fs::read_to_string(&absolute)
        .with_context(context)
        .map_err(unreadable)?;
    let directory = absolute.parent().unwrap_or(Path::new("/")).to_owned();
    Ok((text, directory))
}

/// A configuration that can't be used.
fn invalid(path: &Path, error: impl Into<anyhow::Error>) -> Failure {
    let error = error
        .into()
        .context(format!("configuration {} is not valid", path.display()));
    Failure::caused(Exit::Usage, error)
}

/// `--check`: what is left to check when the configuration has been read are the certificates.
fn checked(tls: &TlsFiles, role: Role) -> Outcome {
    let credentials =
        Credentials::load(tls).map_err(|error| Failure::caused(Exit::Usage, error.into()))?;
    let identity = credentials.identity();
    if identity.role() != role {
        let cert = tls.cert.display();
        return Err(Failure::usage(format!("{cert} is {identity}'s"))
            .hint(format!("accepted: a certificate of the role {role}")));
    }
    say!(
        "the configuration is valid; this daemon is {}",
        credentials.identity()
    );
    Ok(OK)
}

/// Runs a daemon until it ends or is told to.
fn run<F>(args: &DaemonArgs, daemon: impl FnOnce(CancellationToken) -> F) -> Outcome
where
    F: Future<Output = anyhow::Result<()>>,
{
    start_log(args.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let shutdown = CancellationToken::new();
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let told = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("told to end");
            told.cancel();
        });
        daemon(shutdown).await
    });
    // What still blocks in the background (a name's resolution) is of no use any more.
    runtime.shutdown_background();
    match ended {
        Ok(()) => Ok(OK),
        Err(error) => {
            tracing::error!("{error:#}");
            Err(error.into())
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would say on stderr that stderr takes nothing, and panic there.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.with_ansi(crate::output::terminal::coloured()).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// `pronto launcher-shim`: owns one workload; started by the launcher alone.
pub(crate) fn shim() -> Outcome {
    let code = pronto_launcher::shim::main(std::env::args_os().skip(2));
    Ok(own_code(code))
}
