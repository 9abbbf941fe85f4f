//! The client's settings: who to talk to, as whom, for which tenant.
//!
//! Each key is taken from the first place that has it: a flag, `PRONTO_*` in the environment, the
//! file in `PRONTO_CONFIG`, the user's file (`~/.config/pronto/client.toml`), the system's
//! (`/etc/pronto/client.toml`). An unknown key is an error that names its line. Paths in a file
//! are relative to that file. Nothing here connects.

use crate::exit::{Exit, Failure};
use anyhow::Context;
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The system's file.
const SYSTEM_FILE: &str = "/etc/pronto/client.toml";

/// One settings file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClientFile {
    /// Addresses of controllers, tried in order: `https://host:7470`.
    pub(crate) controllers: Option<Vec<String>>,
    /// Whom an admin acts for; a user's certificate names the tenant itself.
    pub(crate) tenant: Option<String>,
    /// The certificates.
    pub(crate) tls: TlsKeys,
}

/// The certificates of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TlsKeys {
    /// The cluster's CA, PEM.
    pub(crate) ca: Option<PathBuf>,
    /// The client's certificate, PEM.
    pub(crate) cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub(crate) key: Option<PathBuf>,
}

/// What flags said, and with [`ConnectionArgs::or_environment`] what the environment said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArgs {
    /// Settings file; the user's and the system's fill in what it leaves out [env: PRONTO_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) client_config: Option<PathBuf>,
    /// Controllers, tried in order: https://host:7470 [env: PRONTO_CONTROLLERS]
    #[arg(
        long = "controller",
        global = true,
        value_name = "URL",
        value_delimiter = ','
    )]
    pub(crate) controllers: Option<Vec<String>>,
    /// The cluster's CA certificate [env: PRONTO_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Your certificate [env: PRONTO_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// Your private key [env: PRONTO_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Whom to act for; only an admin may choose [env: PRONTO_TENANT]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) tenant: Option<String>,
}

impl ConnectionArgs {
    /// The same, with variables of the environment where there was no flag; an empty one counts as
    /// none. clap could read them as well, but names those that are set in each usage line, as if
    /// they were flags that the command needs.
    pub(crate) fn or_environment(self) -> Result<Self, Failure> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let text = |name: &str| {
            let value = variable(name).map(OsString::into_string).transpose();
            value.map_err(|_| Failure::usage(format!("{name} is not UTF-8")))
        };
        let controllers = text("PRONTO_CONTROLLERS")?;
        let controllers = controllers.map(|all| all.split(',').map(str::to_owned).collect());
        Ok(Self {
            client_config: self.client_config.or_else(|| path("PRONTO_CONFIG")),
            controllers: self.controllers.or(controllers),
            ca: self.ca.or_else(|| path("PRONTO_CA")),
            cert: self.cert.or_else(|| path("PRONTO_CERT")),
            key: self.key.or_else(|| path("PRONTO_KEY")),
            tenant: self.tenant.or(text("PRONTO_TENANT")?),
        })
    }
}

/// Everything that is needed to talk to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Never empty; scheme and trailing slash taken off: `host:port`.
    pub(crate) controllers: Vec<String>,
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) tenant: Option<String>,
}

impl Settings {
    /// The settings of these flags, then of the files.
    pub(crate) fn resolve(args: &ConnectionArgs) -> Result<Self, Failure> {
        Self::from_layers(args, &files(args, user_file().as_deref())?)
    }

    fn from_layers(args: &ConnectionArgs, files: &[ClientFile]) -> Result<Self, Failure> {
        fn pick<T: Clone>(
            arg: Option<&T>,
            files: &[ClientFile],
            key: impl Fn(&ClientFile) -> Option<&T>,
        ) -> Option<T> {
            arg.or_else(|| files.iter().find_map(key)).cloned()
        }
        let missing = |key: &str, flag: &str, env: &str| {
            Failure::usage(format!("no {key} is set")).hint(format!(
                "start a cluster with `pronto dev` and export the PRONTO_CONFIG that it prints, \
                 or give {flag}, {env}, or the key in ~/.config/pronto/client.toml"
            ))
        };
        let controllers = pick(args.controllers.as_ref(), files, |file| {
            file.controllers.as_ref()
        })
        .filter(|controllers| !controllers.is_empty())
        .ok_or_else(|| missing("controller", "--controller", "PRONTO_CONTROLLERS"))?;
        Ok(Self {
            controllers: controllers
                .iter()
                .map(|controller| authority(controller))
                .collect::<Result<_, _>>()?,
            ca: pick(args.ca.as_ref(), files, |file| file.tls.ca.as_ref())
                .ok_or_else(|| missing("CA certificate", "--ca", "PRONTO_CA"))?,
            cert: pick(args.cert.as_ref(), files, |file| file.tls.cert.as_ref())
                .ok_or_else(|| missing("certificate", "--cert", "PRONTO_CERT"))?,
            key: pick(args.key.as_ref(), files, |file| file.tls.key.as_ref())
                .ok_or_else(|| missing("private key", "--key", "PRONTO_KEY"))?,
            tenant: pick(args.tenant.as_ref(), files, |file| file.tenant.as_ref()),
        })
    }
}

/// The settings files that exist, the first to be asked first. One that was named must exist.
fn files(args: &ConnectionArgs, user: Option<&Path>) -> Result<Vec<ClientFile>, Failure> {
    let mut files = Vec::new();
    if let Some(named) = &args.client_config {
        files.push(read(named)?.ok_or_else(|| {
            Failure::usage(format!("settings file {} does not exist", named.display()))
                .hint("`pronto dev` writes one and prints its path; check PRONTO_CONFIG")
        })?);
    }
    for path in user.into_iter().chain([Path::new(SYSTEM_FILE)]) {
        match read(path) {
            Ok(file) => files.extend(file),
            // It may be somebody else's, and nothing of it is needed.
            Err(_) if is_complete(args, &files) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(files)
}

/// Whether these say all that a connection needs.
fn is_complete(args: &ConnectionArgs, files: &[ClientFile]) -> bool {
    let has = |arg: bool, key: fn(&ClientFile) -> bool| arg || files.iter().any(key);
    has(args.controllers.is_some(), |file| {
        file.controllers.is_some()
    }) && has(args.ca.is_some(), |file| file.tls.ca.is_some())
        && has(args.cert.is_some(), |file| file.tls.cert.is_some())
        && has(args.key.is_some(), |file| file.tls.key.is_some())
}

/// Where the user's own file is: `$XDG_CONFIG_HOME` or `~/.config`.
fn user_file() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|directory| directory.is_absolute())
    };
    let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(base.join("pronto/client.toml"))
}

fn read(path: &Path) -> Result<Option<ClientFile>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let what = anyhow::Error::from(error).context(format!("can't read {}", path.display()));
            return Err(Failure::caused(Exit::Usage, what));
        }
    };
    let mut file: ClientFile = toml::from_str(&text)
        .with_context(|| format!("settings file {} is not valid", path.display()))
        .map_err(|error| Failure::caused(Exit::Usage, error))?;
    let directory = path.parent().unwrap_or(Path::new(""));
    for file in [&mut file.tls.ca, &mut file.tls.cert, &mut file.tls.key]
        .into_iter()
        .flatten()
    {
        *file = directory.join(&*file);
    }
    Ok(Some(file))
}

/// `host:port` of a controller's address.
fn authority(address: &str) -> Result<String, Failure> {
    let bad = |why: &str| {
        Failure::usage(format!("'{address}' is not a controller's address: {why}")).hint(format!(
            "accepted: https://HOST[:PORT]; the port is {DEFAULT_PORT} by default"
        ))
    };
    let rest = match address.split_once("://") {
        Some(("https", rest)) => rest,
        Some((scheme, _)) => return Err(bad(&format!("the scheme is {scheme}"))),
        None => address,
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() || rest.contains(['/', ' ', '@', '?', '#']) {
        return Err(bad("there is no host, or something stands behind it"));
    }
    // An IPv6 address has colons of its own and stands in brackets.
    let port = match rest.rsplit_once(']') {
        Some((_, after)) => after.strip_prefix(':'),
        None => rest.split_once(':').map(|(_, port)| port),
    };
    match port {
        None => Ok(format!("{rest}:{DEFAULT_PORT}")),
        Some(port) if port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(rest.to_owned()),
        Some(_) => Err(bad("the port is not a number from 1 to 65535")),
    }
}

/// Where a controller listens unless configured otherwise.
const DEFAULT_PORT: u16 = 7470;

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn scratch(name: &str) -> PathBuf {
        let directory =
            std::env::temp_dir().join(format!("pronto-settings-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    const FULL: &str = "controllers = ['https://a:1']\ntenant = 'file'\n\
                        [tls]\nca = 'ca.crt'\ncert = '/abs/c.crt'\nkey = 'c.key'\n";

    #[test]
    fn a_flag_wins_over_the_named_file_and_that_over_the_users() {
        let directory = scratch("order");
        let named = write(&directory, "named.toml", "tenant = 'named'\n");
        let user = write(&directory, "user.toml", FULL);
        let mut args = ConnectionArgs {
            client_config: Some(named),
            ..ConnectionArgs::default()
        };
        let layers = files(&args, Some(&user)).unwrap();
        let settings = Settings::from_layers(&args, &layers).unwrap();
        assert_eq!(settings.tenant.as_deref(), Some("named"));
        assert_eq!(
            settings.controllers,
            ["a:1"],
            "what a file leaves out, the next fills in"
        );
        assert_eq!(
            settings.ca,
            directory.join("ca.crt"),
            "relative to its own file"
        );
        assert_eq!(settings.cert, Path::new("/abs/c.crt"));
        args.tenant = Some("flag".into());
        args.controllers = Some(vec!["b".into()]);
        let settings = Settings::from_layers(&args, &layers).unwrap();
        assert_eq!(settings.tenant.as_deref(), Some("flag"));
        assert_eq!(settings.controllers, ["b:7470"]);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_it_and_its_line() {
        let directory = scratch("unknown");
        let named = write(&directory, "c.toml", "tenant = 'x'\ncontrollerz = []\n");
        let args = ConnectionArgs {
            client_config: Some(named),
            ..ConnectionArgs::default()
        };
        let failure = files(&args, None).unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            text.contains("controllerz") && text.contains("line 2"),
            "{text}"
        );
        assert!(text.contains("c.toml"), "{text}");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_is_not_needed_may_be_broken() {
        let directory = scratch("broken");
        let named = write(&directory, "named.toml", FULL);
        let broken = write(&directory, "user.toml", "controllers = [");
        let args = ConnectionArgs {
            client_config: Some(named),
            ..ConnectionArgs::default()
        };
        assert!(files(&args, Some(&broken)).is_ok());
        assert!(files(&ConnectionArgs::default(), Some(&broken)).is_err());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_named_file_must_exist_and_the_others_need_not() {
        let args = ConnectionArgs {
            client_config: Some("/nonexistent/x.toml".into()),
            ..ConnectionArgs::default()
        };
        assert_eq!(files(&args, None).unwrap_err().exit, Exit::Usage);
        let none = ConnectionArgs::default();
        let missing = Path::new("/nonexistent/y.toml");
        let layers = files(&none, Some(missing)).unwrap();
        let failure = Settings::from_layers(&none, &layers);
        if layers.is_empty() {
            assert!(failure.unwrap_err().to_string().contains("pronto dev"));
        }
    }

    #[test]
    fn addresses_are_checked() {
        assert_eq!(authority("https://h").unwrap(), "h:7470");
        assert_eq!(authority("h:1/").unwrap(), "h:1");
        assert_eq!(authority("https://[::1]").unwrap(), "[::1]:7470");
        assert_eq!(authority("https://[::1]:9").unwrap(), "[::1]:9");
        for bad in [
            "http://h",
            "",
            "https://",
            "https://h/v1",
            "h:0",
            "h:x",
            "u@h",
        ] {
            assert!(authority(bad).is_err(), "{bad}");
        }
    }
}
