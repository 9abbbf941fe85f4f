//! Parts of a spec in one word, as flags and workload files have them alike.

use crate::units;
use pronto_controller::api::types as api;

/// `keep` or `stop-after:DURATION`.
pub(crate) fn on_disconnect(text: &str) -> Result<api::OnDisconnectSpec, String> {
    let accepted = || "accepted: keep, or stop-after:DURATION such as stop-after:30s".to_owned();
    match text.split_once(':') {
        None if text == "keep" => Ok(api::OnDisconnectSpec::Keep),
        Some(("stop-after", duration)) => units::duration_ms(duration.trim())
            .map(api::OnDisconnectSpec::StopAfterMs)
            .map_err(|_| accepted()),
        _ => Err(accepted()),
    }
}

/// `never`, `on-failure[:LIMIT]` or `always[:LIMIT]`.
pub(crate) fn restart(text: &str) -> Result<api::RestartPolicy, String> {
    let accepted = || "accepted: never, on-failure, always, each with :LIMIT if wanted".to_owned();
    let (mode, limit) = match text.split_once(':') {
        None => (text, None),
        Some((mode, limit)) => (mode, Some(limit.parse::<u32>().map_err(|_| accepted())?)),
    };
    let default = api::RestartPolicy::default();
    let (mode, limit) = match mode {
        "never" if limit.is_none() => (api::RestartMode::Never, default.limit),
        "on-failure" => (api::RestartMode::OnFailure, limit.or(default.limit)),
        // A service that is to run for ever is not given up after a few ends.
        "always" => (api::RestartMode::Always, limit),
        _ => return Err(accepted()),
    };
    Ok(api::RestartPolicy {
        mode,
        limit,
        ..default
    })
}

/// `[HOST:]GUEST[/udp]`.
pub(crate) fn port(text: &str) -> Result<api::PortSpec, String> {
    let accepted =
        || "accepted: GUEST, HOST:GUEST or HOST:GUEST/udp with ports below 65536".to_owned();
    let (ports, udp) = match text.split_once('/') {
        None => (text, false),
        Some((ports, "udp")) => (ports, true),
        Some((ports, "tcp")) => (ports, false),
        Some(_) => return Err(accepted()),
    };
    let (host, guest) = ports.split_once(':').unwrap_or(("0", ports));
    let host = host.parse().map_err(|_| accepted())?;
    let guest = guest
        .parse()
        .ok()
        .filter(|&guest| guest > 0)
        .ok_or_else(accepted)?;
    Ok(api::PortSpec { host, guest, udp })
}

/// `SOURCE:TARGET[:ro]`.
pub(crate) fn mount(text: &str) -> Result<api::MountSpec, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, read_only) = match parts[..] {
        [source, target] => (source, target, false),
        [source, target, "ro"] => (source, target, true),
        [source, target, "rw"] => (source, target, false),
        _ => return Err("accepted: SOURCE:TARGET or SOURCE:TARGET:ro".to_owned()),
    };
    if !source.starts_with('/') || !target.starts_with('/') {
        return Err("accepted: absolute paths on both sides".to_owned());
    }
    Ok(api::MountSpec {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_parsed() {
        let stop_after = api::OnDisconnectSpec::StopAfterMs(30_000);
        assert_eq!(on_disconnect("stop-after:30s"), Ok(stop_after));
        assert_eq!(on_disconnect("keep"), Ok(api::OnDisconnectSpec::Keep));
        assert!(on_disconnect("stop-after").is_err() && on_disconnect("keep:1s").is_err());
        let three = restart("on-failure").unwrap();
        assert_eq!(
            (three.mode, three.limit),
            (api::RestartMode::OnFailure, Some(3))
        );
        assert_eq!(restart("always").unwrap().limit, None);
        assert_eq!(restart("on-failure:7").unwrap().limit, Some(7));
        assert!(restart("never:1").is_err() && restart("sometimes").is_err());
    }

    #[test]
    fn ports_and_mounts_are_parsed() {
        assert_eq!(
            port("80"),
            Ok(api::PortSpec {
                host: 0,
                guest: 80,
                udp: false
            })
        );
        assert_eq!(
            port("8080:80/udp"),
            Ok(api::PortSpec {
                host: 8080,
                guest: 80,
                udp: true
            })
        );
        assert!(port("0").is_err() && port("70000").is_err() && port("80/sctp").is_err());
        assert!(mount("/a:/b:ro").unwrap().read_only);
        assert!(mount("a:/b").is_err() && mount("/a").is_err() && mount("/a:/b:x").is_err());
    }
}
