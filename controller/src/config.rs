//! The controller's configuration file: TOML, every key with its unit and default; an unknown key
//! is an error.

use crate::api::types::{QuotaLimits, RuntimeName};
use crate::planner::Settings;
use pronto_protocol::transport::{TlsFiles, is_address, ports};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The keys of the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// Where users and administrators connect. Default: all addresses, port 7470.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Schedulers, `HOST:PORT`, in the order in which they are tried. At least one.
    pub schedulers: Vec<String>,
    /// Where the database is. One controller a directory.
    pub data_dir: PathBuf,
    /// Certificates.
    pub tls: TlsFiles,
    /// A node that is away for longer is lost, and its work is rescheduled as each instance's
    /// policy says; in milliseconds, 1,000 to 86,400,000. Default: 60,000.
    #[serde(default = "default_lost_after_ms")]
    pub lost_after_ms: u64,
    /// For how long the scheduler may renew leases of `stop-after` work without hearing from this
    /// controller, in milliseconds, 2,000 to 600,000. Default: 10,000.
    #[serde(default = "default_grant_ms")]
    pub grant_ms: u64,
    /// STOP is repeated this often until it is answered, in milliseconds, 100 to 60,000. Default:
    /// 2,000.
    #[serde(default = "default_stop_repeat_ms")]
    pub stop_repeat_ms: u64,
    /// A demand that has waited so long for room makes younger ones of no higher priority wait, in
    /// milliseconds, 1,000 to 86,400,000. Default: 60,000.
    #[serde(default = "default_overtake_after_ms")]
    pub overtake_after_ms: u64,
    /// A request id is remembered so long after the last instance of its submission ended, in
    /// milliseconds, 1,000 to 86,400,000. Default: 3,600,000.
    #[serde(default = "default_request_window_ms")]
    pub request_window_ms: u64,
    /// Ended instances are kept this long, in milliseconds, at least `request_window_ms`. Default:
    /// 7 days.
    #[serde(default = "default_retention_ms")]
    pub retention_ms: u64,
    /// Events are kept this long, in milliseconds. Default: 30 days.
    #[serde(default = "default_events_retention_ms")]
    pub events_retention_ms: u64,
    /// Living instances over all tenants, 1,000 to 100,000,000: each takes up to 400 bytes of
    /// memory. Default: 1,000,000.
    #[serde(default = "default_max_living")]
    pub max_living: usize,
    /// Connections of users at once, 16 to 100,000; each takes a file descriptor. Default: 4,096.
    #[serde(default = "default_max_connections")]
    pub max_connections: usize,
    /// A node that says nothing for so long while a file is copied from or to it is given up, in
    /// milliseconds, 1,000 to 100,000: the command line waits for two minutes. Default: 60,000.
    #[serde(default = "default_file_silence_ms")]
    pub file_silence_ms: u64,
    /// The quota of the tenant `default` in a new store, and of new tenants. Absent keys have no
    /// limit. Absent table: 100,000 instances, 10,000 cores, 40 TiB of memory, 400 TiB of disk,
    /// 10,000 GPUs.
    #[serde(default = "default_quota")]
    pub default_quota: QuotaLimits,
    /// Runtimes of new tenants. Default: all.
    #[serde(default = "default_runtimes")]
    pub default_runtimes: Vec<RuntimeName>,
    /// Instances that a new tenant may submit a second, sustained. Default: no limit.
    #[serde(default)]
    pub default_submit_rate_per_s: Option<u32>,
}

const fn default_listen() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), ports::CONTROLLER_API)
}

const fn default_lost_after_ms() -> u64 {
    60_000
}

const fn default_grant_ms() -> u64 {
    10_000
}

const fn default_stop_repeat_ms() -> u64 {
    2_000
}

const fn default_overtake_after_ms() -> u64 {
    60_000
}

const fn default_request_window_ms() -> u64 {
    3_600_000
}

const fn default_retention_ms() -> u64 {
    7 * 86_400_000
}

const fn default_events_retention_ms() -> u64 {
    30 * 86_400_000
}

const fn default_max_living() -> usize {
    1_000_000
}

const fn default_max_connections() -> usize {
    4_096
}

const fn default_file_silence_ms() -> u64 {
    60_000
}

fn default_quota() -> QuotaLimits {
    Settings::default().default_quota
}

fn default_runtimes() -> Vec<RuntimeName> {
    Settings::default().default_runtimes
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
        found: String,
        /// What it may be.
        accepted: String,
    },
}

impl ControllerConfig {
    /// A configuration with every default.
    #[must_use]
    pub fn new(schedulers: Vec<String>, data_dir: PathBuf, tls: TlsFiles) -> Self {
        Self {
            listen: default_listen(),
            schedulers,
            data_dir,
            tls,
            lost_after_ms: default_lost_after_ms(),
            grant_ms: default_grant_ms(),
            stop_repeat_ms: default_stop_repeat_ms(),
            overtake_after_ms: default_overtake_after_ms(),
            request_window_ms: default_request_window_ms(),
            retention_ms: default_retention_ms(),
            events_retention_ms: default_events_retention_ms(),
            max_living: default_max_living(),
            max_connections: default_max_connections(),
            file_silence_ms: default_file_silence_ms(),
            default_quota: default_quota(),
            default_runtimes: default_runtimes(),
            default_submit_rate_per_s: None,
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
        let paths = [ca, cert, key, &mut self.data_dir];
        for path in paths.into_iter().chain(crl) {
            *path = directory.join(&*path);
        }
    }

    /// Whether every value is inside its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.schedulers.is_empty() || !self.schedulers.iter().all(|text| is_address(text)) {
            return Err(ConfigError::Value {
                key: "schedulers",
                found: format!("{:?}", self.schedulers),
                accepted: "at least one HOST:PORT".to_owned(),
            });
        }
        const DAY_MS: u64 = 86_400_000;
        let ranges = [
            ("lost_after_ms", self.lost_after_ms, 1_000, DAY_MS),
            ("grant_ms", self.grant_ms, 2_000, 600_000),
            ("stop_repeat_ms", self.stop_repeat_ms, 100, 60_000),
            ("overtake_after_ms", self.overtake_after_ms, 1_000, DAY_MS),
            ("request_window_ms", self.request_window_ms, 1_000, DAY_MS),
            (
                "retention_ms",
                self.retention_ms,
                self.request_window_ms,
                10_000 * DAY_MS,
            ),
            (
                "events_retention_ms",
                self.events_retention_ms,
                1_000,
                10_000 * DAY_MS,
            ),
            ("max_living", self.max_living as u64, 1_000, 100_000_000),
            ("max_connections", self.max_connections as u64, 16, 100_000),
            ("file_silence_ms", self.file_silence_ms, 1_000, 100_000),
        ];
        for (key, found, least, most) in ranges {
            if found < least || found > most {
                return Err(ConfigError::Value {
                    key,
                    found: found.to_string(),
                    accepted: format!("{least} to {most}"),
                });
            }
        }
        Ok(())
    }

    /// What the planner needs of it.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            lost_after_ms: self.lost_after_ms,
            grant_ms: self.grant_ms,
            stop_repeat_ms: self.stop_repeat_ms,
            request_window_ms: self.request_window_ms,
            overtake_after_ms: self.overtake_after_ms,
            max_living: self.max_living,
            default_quota: self.default_quota,
            default_runtimes: self.default_runtimes.clone(),
            default_submit_rate_per_s: self.default_submit_rate_per_s,
            ..Settings::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TLS: &str = "[tls]\nca = 'ca.pem'\ncert = 'c.pem'\nkey = 'k.pem'\n";

    #[test]
    fn the_smallest_file_has_all_defaults_and_relative_paths() {
        let text = format!("schedulers = ['localhost:7460']\ndata_dir = 'data'\n{TLS}");
        let mut config = ControllerConfig::parse(&text).unwrap();
        config.resolve(Path::new("/etc/pronto"));
        assert_eq!(config.listen.port(), 7470);
        assert_eq!(config.data_dir, Path::new("/etc/pronto/data"));
        assert_eq!(config.tls.ca, Path::new("/etc/pronto/ca.pem"));
        assert_eq!(config.default_quota.instances, Some(100_000));
    }

    #[test]
    fn unknown_keys_and_values_out_of_range_are_named() {
        let with = |line: &str| {
            let text = format!("schedulers = ['a:1']\ndata_dir = 'd'\n{line}\n{TLS}");
            ControllerConfig::parse(&text).unwrap_err().to_string()
        };
        assert!(with("lost_after = 5").contains("lost_after"));
        assert_eq!(
            with("lost_after_ms = 5"),
            "lost_after_ms is 5; accepted: 1000 to 86400000"
        );
        assert!(with("default_quota = { cpus = 4 }").contains("cpus"));
        let none = format!("schedulers = []\ndata_dir = 'd'\n{TLS}");
        assert!(ControllerConfig::parse(&none).is_err());
    }
}
