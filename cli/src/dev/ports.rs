//! Ports of a local cluster: free ones, kept so that a restart is found where it was.

use super::layout::Ports;
use crate::exit::Failure;
use anyhow::Context;
use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};

/// The ports that were used before where they are still free, others where not.
pub(crate) fn choose(before: Option<&Ports>, launchers: u16) -> Result<Ports, Failure> {
    let mut held = Held::default();
    let kept = |port: Option<u16>| port.unwrap_or(0);
    Ok(Ports {
        scheduler: held.take(kept(before.map(|ports| ports.scheduler)))?,
        scheduler_ops: held.take(kept(before.map(|ports| ports.scheduler_ops)))?,
        controller: held.take(kept(before.map(|ports| ports.controller)))?,
        launchers_ops: (0..usize::from(launchers))
            .map(|index| {
                held.take(kept(
                    before.and_then(|ports| ports.launchers_ops.get(index).copied()),
                ))
            })
            .collect::<Result<_, _>>()?,
    })
}

/// Listeners that keep their ports from being chosen twice, until all are chosen.
#[derive(Default)]
struct Held {
    listeners: Vec<TcpListener>,
    taken: HashSet<u16>,
}

impl Held {
    fn take(&mut self, wanted: u16) -> Result<u16, Failure> {
        let address = |port| (Ipv4Addr::LOCALHOST, port);
        let wanted = if self.taken.contains(&wanted) {
            0
        } else {
            wanted
        };
        let listener = TcpListener::bind(address(wanted))
            .or_else(|_| TcpListener::bind(address(0)))
            .context("there is no free port on 127.0.0.1")?;
        let port = listener
            .local_addr()
            .context("a listener has an address")?
            .port();
        self.taken.insert(port);
        self.listeners.push(listener);
        Ok(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_kept_where_they_are_free_and_distinct_always() {
        let first = choose(None, 3).unwrap();
        let again = choose(Some(&first), 3).unwrap();
        let all = |ports: &Ports| {
            let mut all = vec![ports.scheduler, ports.scheduler_ops, ports.controller];
            all.extend(&ports.launchers_ops);
            all
        };
        assert_eq!(all(&again).iter().collect::<HashSet<_>>().len(), 6);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let busy = Ports {
            controller: taken.local_addr().unwrap().port(),
            ..first
        };
        assert_ne!(choose(Some(&busy), 3).unwrap().controller, busy.controller);
    }
}
