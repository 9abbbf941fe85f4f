//! The scheduler's configuration: one TOML file, every key with its unit and its default.
//!
//! ```toml
//! listen = "0.0.0.0:7460"        # frames, mutual TLS
//! ops_listen = "127.0.0.1:7461"  # /metrics, /healthz, /readyz, mutual TLS; "" = none
//! fit = "first"                  # or "few": the least fragmented of the first `choices` that fit
//! spread = "settle"              # or "skip", "rotate"
//!
//! [tls]
//! ca = "ca.crt"
//! cert = "scheduler.crt"
//! key = "scheduler.key"
//! ```
//!
//! Relative paths are relative to the file's directory, which whoever reads it resolves. An unknown
//! key is an error.

use crate::core::BrokerConfig;
use crate::table::{Fit, MAX_CHOICES, Spread, TableConfig};
use pronto_protocol::transport::{TlsFiles, ports};
use pronto_protocol::{SessionConfig, Timeouts};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// The configuration file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Where launchers and controllers connect. Default: all addresses, port 7460.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where metrics and health are read. Default: 127.0.0.1, port 7461. Absent key: the default;
    /// an empty string: nowhere.
    #[serde(default = "default_ops_listen", deserialize_with = "optional_address")]
    pub ops_listen: Option<SocketAddr>,
    /// Certificates.
    pub tls: TlsFiles,
    /// Which of the nodes that fit is taken: `first`, or `few`, the least fragmented of the first
    /// `choices`. Default: `first`.
    #[serde(default)]
    pub fit: FitName,
    /// How many nodes `few` compares, 1 to 16. Default: 8.
    #[serde(default = "default_choices")]
    pub choices: u8,
    /// How the most recently used node is avoided: `settle`, `skip` or `rotate`. Default: `settle`.
    #[serde(default)]
    pub spread: Spread,
    /// How long a launcher may start work after it has sent the status that renewed its lease, in
    /// milliseconds, 1,000 to 600,000. Default: 10,000.
    #[serde(default = "default_lease_ms")]
    pub lease_ms: u64,
    /// How often launchers send statistics and controllers are told them, in milliseconds, 100 to
    /// 60,000. Default: 1,000.
    #[serde(default = "default_stats_interval_ms")]
    pub stats_interval_ms: u64,
    /// STARTs that a controller may have unanswered, 1 to 65,536. Default: 1,024.
    #[serde(default = "default_start_window")]
    pub start_window: u32,
    /// After its first activation, how long the scheduler waits for nine tenths of the expected
    /// nodes before it places, in milliseconds, 0 to 600,000. Default: 5,000.
    #[serde(default = "default_warm_up_ms")]
    pub warm_up_ms: u64,
    /// Time limits of sessions.
    #[serde(default)]
    pub timeouts: TimeoutsConfig,
    /// Bounds of what waits to be written.
    #[serde(default)]
    pub queues: QueuesConfig,
    /// Connections at once, handshakes included, 16 to 1,000,000; each takes a file descriptor.
    /// Default: 16,384.
    #[serde(default = "default_max_connections")]
    pub max_connections: usize,
    /// How often the certificate files are looked at for changes, in milliseconds, 100 to
    /// 3,600,000; sessions are verified again after one. Default: 10,000.
    #[serde(default = "default_reload_interval_ms")]
    pub reload_interval_ms: u64,
}

/// Time limits of sessions, in milliseconds.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutsConfig {
    /// From the accepted connection to the end of TLS, and from there to HELLO. Default: 5,000.
    pub handshake_ms: u64,
    /// Silence after which a peer is asked whether it is there. Default: 3,000.
    pub keepalive_ms: u64,
    /// Silence after which it is taken for dead. Default: 10,000, as long as a lease lasts: a
    /// launcher that was stopped for longer throws its session away itself.
    pub idle_ms: u64,
    /// Time without any progress in writing to it after which it is cut. Default: 30,000.
    pub stall_ms: u64,
}

/// Bounds of what waits to be written on one session, in bytes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueuesConfig {
    /// A launcher with more than this waiting is no candidate for placement until it has drained.
    /// Default: 256 KiB, about a thousand STARTs.
    pub launcher_mark_bytes: usize,
    /// A launcher gets nothing more above this. Default: 4 MiB.
    pub launcher_limit_bytes: usize,
    /// A controller with more than this waiting gets its STARTs refused as busy. Default: 4 MiB,
    /// some 20,000 answers.
    pub controller_mark_bytes: usize,
    /// A controller above this is cut, and resynchronises when it connects again. Default: 32 MiB:
    /// the node list and the events of 10,000 nodes that connect at once are 10.
    pub controller_limit_bytes: usize,
    /// A bulk session above this loses the streams that add to it. Default: 64 MiB, every stream
    /// of a launcher's with all its credit four times over.
    pub bulk_limit_bytes: usize,
}

/// The name of a fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FitName {
    /// The first node that fits.
    #[default]
    First,
    /// Of the first few that fit, the one that is left least fragmented.
    Few,
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            handshake_ms: ms(Timeouts::DEFAULT.handshake),
            keepalive_ms: 3_000,
            idle_ms: 10_000,
            stall_ms: ms(Timeouts::DEFAULT.stall),
        }
    }
}

impl Default for QueuesConfig {
    fn default() -> Self {
        Self {
            launcher_mark_bytes: 256 << 10,
            launcher_limit_bytes: 4 << 20,
            controller_mark_bytes: 4 << 20,
            controller_limit_bytes: 32 << 20,
            bulk_limit_bytes: 64 << 20,
        }
    }
}

const fn default_listen() -> SocketAddr {
    SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        ports::SCHEDULER_FRAMES,
    )
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "serde's default has the field's type"
)]
const fn default_ops_listen() -> Option<SocketAddr> {
    Some(SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        ports::SCHEDULER_OPS,
    ))
}

const fn default_choices() -> u8 {
    8
}

const fn default_lease_ms() -> u64 {
    10_000
}

const fn default_stats_interval_ms() -> u64 {
    1_000
}

const fn default_start_window() -> u32 {
    1_024
}

const fn default_warm_up_ms() -> u64 {
    5_000
}

const fn default_reload_interval_ms() -> u64 {
    10_000
}

const fn default_max_connections() -> usize {
    16_384
}

fn optional_address<'de, D>(deserializer: D) -> Result<Option<SocketAddr>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        serde::de::Error::custom(format!(
            "'{text}' is not an address; accepted: IP:PORT, or \"\""
        ))
    })
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// A value outside of what is accepted.
    #[error("{key} is {found}; accepted: {accepted}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        found: u64,
        /// What it may be.
        accepted: String,
    },
}

impl SchedulerConfig {
    /// A configuration with every default.
    #[must_use]
    pub fn new(tls: TlsFiles) -> Self {
        Self {
            listen: default_listen(),
            ops_listen: default_ops_listen(),
            tls,
            fit: FitName::default(),
            choices: default_choices(),
            spread: Spread::default(),
            lease_ms: default_lease_ms(),
            stats_interval_ms: default_stats_interval_ms(),
            start_window: default_start_window(),
            warm_up_ms: default_warm_up_ms(),
            timeouts: TimeoutsConfig::default(),
            queues: QueuesConfig::default(),
            max_connections: default_max_connections(),
            reload_interval_ms: default_reload_interval_ms(),
        }
    }

    /// Reads and checks the text of a file.
    ///
    /// # Errors
    /// What is wrong and what is accepted.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Makes relative paths relative to this directory.
    pub fn resolve(&mut self, directory: &Path) {
        let TlsFiles { ca, cert, key, crl } = &mut self.tls;
        for path in [ca, cert, key].into_iter().chain(crl) {
            *path = directory.join(&*path);
        }
    }

    /// Whether every value is inside its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let TimeoutsConfig {
            handshake_ms,
            keepalive_ms,
            idle_ms,
            stall_ms,
        } = self.timeouts;
        let queues = self.queues;
        let ranges = [
            (
                "choices",
                u64::from(self.choices),
                1,
                u64::from(MAX_CHOICES),
            ),
            ("lease_ms", self.lease_ms, 1_000, 600_000),
            ("stats_interval_ms", self.stats_interval_ms, 100, 60_000),
            ("start_window", u64::from(self.start_window), 1, 65_536),
            ("warm_up_ms", self.warm_up_ms, 0, 600_000),
            (
                "reload_interval_ms",
                self.reload_interval_ms,
                100,
                3_600_000,
            ),
            (
                "max_connections",
                self.max_connections as u64,
                16,
                1_000_000,
            ),
            ("timeouts.handshake_ms", handshake_ms, 100, 600_000),
            ("timeouts.keepalive_ms", keepalive_ms, 100, 600_000),
            (
                "timeouts.idle_ms",
                idle_ms,
                keepalive_ms.saturating_add(1),
                3_600_000,
            ),
            ("timeouts.stall_ms", stall_ms, 100, 3_600_000),
            // Above the mark one more START and the commands must fit.
            (
                "queues.launcher_mark_bytes",
                queues.launcher_mark_bytes as u64,
                4_096,
                1 << 30,
            ),
            (
                "queues.launcher_limit_bytes",
                queues.launcher_limit_bytes as u64,
                queues.launcher_mark_bytes as u64 + (512 << 10),
                1 << 32,
            ),
            (
                "queues.controller_mark_bytes",
                queues.controller_mark_bytes as u64,
                65_536,
                1 << 30,
            ),
            (
                "queues.controller_limit_bytes",
                queues.controller_limit_bytes as u64,
                queues.controller_mark_bytes as u64 + (2 << 20),
                1 << 32,
            ),
            (
                "queues.bulk_limit_bytes",
                queues.bulk_limit_bytes as u64,
                1 << 20,
                1 << 32,
            ),
        ];
        for (key, found, least, most) in ranges {
            if !(least..=most).contains(&found) {
                let accepted = format!("{least} to {most}");
                return Err(ConfigError::Value {
                    key,
                    found,
                    accepted,
                });
            }
        }
        Ok(())
    }

    /// What the core is told.
    #[must_use]
    pub fn broker(&self) -> BrokerConfig {
        let fit = match self.fit {
            FitName::First => Fit::First,
            FitName::Few => Fit::Few {
                choices: self.choices,
            },
        };
        BrokerConfig {
            table: TableConfig {
                fit,
                spread: self.spread,
            },
            lease_ms: self.lease_ms,
            stats_interval_ms: self.stats_interval_ms,
            start_window: self.start_window,
            warm_up_ms: self.warm_up_ms,
        }
    }

    /// What bounds every session; each kind's own queue limit is below this one.
    pub(crate) fn session(&self) -> SessionConfig {
        let TimeoutsConfig {
            handshake_ms,
            keepalive_ms,
            idle_ms,
            stall_ms,
        } = self.timeouts;
        let queues = self.queues;
        let limits = [
            queues.launcher_limit_bytes,
            queues.controller_limit_bytes,
            queues.bulk_limit_bytes,
        ];
        SessionConfig {
            timeouts: Timeouts {
                handshake: Duration::from_millis(handshake_ms),
                keepalive: Duration::from_millis(keepalive_ms),
                idle: Duration::from_millis(idle_ms),
                stall: Duration::from_millis(stall_ms),
            },
            queue_limit_bytes: limits.into_iter().max().unwrap_or(usize::MAX),
            ..SessionConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "[tls]\nca = 'ca.crt'\ncert = 's.crt'\nkey = '/abs/s.key'\n";

    #[test]
    fn the_least_file_has_every_default() {
        let mut config = SchedulerConfig::parse(LEAST).unwrap();
        assert_eq!(config.listen.port(), ports::SCHEDULER_FRAMES);
        assert_eq!(config.ops_listen.unwrap().port(), ports::SCHEDULER_OPS);
        assert_eq!(config.broker().table, TableConfig::default());
        config.resolve(Path::new("/etc/pronto"));
        assert_eq!(config.tls.ca, Path::new("/etc/pronto/ca.crt"));
        assert_eq!(config.tls.key, Path::new("/abs/s.key"));
        SchedulerConfig::new(config.tls.clone()).check().unwrap();
    }

    #[test]
    fn every_key_is_read() {
        let text = format!(
            "listen = '127.0.0.1:1'\nops_listen = ''\nfit = 'few'\nchoices = 4\nspread = 'skip'\n\
             lease_ms = 2000\nstats_interval_ms = 200\nstart_window = 64\nwarm_up_ms = 0\n\
             max_connections = 100\nreload_interval_ms = 500\n[timeouts]\nhandshake_ms = 1000\n[queues]\n\
             bulk_limit_bytes = 2000000\n{LEAST}"
        );
        let config = SchedulerConfig::parse(&text).unwrap();
        assert_eq!(config.ops_listen, None);
        let broker = config.broker();
        assert_eq!(broker.table.fit, Fit::Few { choices: 4 });
        assert_eq!(broker.table.spread, Spread::Skip);
        assert_eq!(broker.lease_ms, 2000);
        assert_eq!(config.session().timeouts.handshake, Duration::from_secs(1));
    }

    #[test]
    fn what_is_wrong_and_what_is_accepted_is_said() {
        let error = |text: &str| {
            SchedulerConfig::parse(&format!("{text}\n{LEAST}"))
                .unwrap_err()
                .to_string()
        };
        assert!(error("lisen = '127.0.0.1:1'").contains("unknown field `lisen`"));
        assert!(error("fit = 'best'").contains("`first` or `few`"));
        assert!(error("ops_listen = 'here'").contains("IP:PORT"));
        assert_eq!(error("choices = 0"), "choices is 0; accepted: 1 to 16");
        assert!(error("lease_ms = 5").contains("1000 to 600000"));
    }
}
