//! Ports of the node for a guest: free ones where the workload leaves the choice, and an early word
//! where one is taken.

use super::disk::rejected;
use pronto_payloads::instance::End;
use pronto_payloads::start::Port;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// The same ports without a 0. A port may still be taken between here and the emulator's own bind;
/// it says so then, and ends.
pub(super) fn resolve(ports: &[Port]) -> Result<Vec<Port>, End> {
    // Held until all are chosen, so that no two are the same.
    let (mut streams, mut datagrams) = (Vec::new(), Vec::new());
    ports
        .iter()
        .map(|port| {
            let address = (Ipv4Addr::UNSPECIFIED, port.host);
            let bound = if port.udp {
                UdpSocket::bind(address).and_then(|socket| {
                    let local = socket.local_addr();
                    datagrams.push(socket);
                    local
                })
            } else {
                TcpListener::bind(address).and_then(|socket| {
                    let local = socket.local_addr();
                    streams.push(socket);
                    local
                })
            };
            let local = bound.map_err(|error| {
                let protocol = if port.udp { "udp" } else { "tcp" };
                rejected(format!(
                    "{protocol} port {} of the node: {error}",
                    port.host
                ))
            })?;
            Ok(Port {
                host: local.port(),
                ..*port
            })
        })
        .collect()
}

/// Which ports were chosen, in words; none if the workload named all.
pub(super) fn chosen(asked: &[Port], resolved: &[Port]) -> Option<String> {
    let words: Vec<String> = asked
        .iter()
        .zip(resolved)
        .filter(|(asked, _)| asked.host == 0)
        .map(|(_, port)| {
            let protocol = if port.udp { "udp" } else { "tcp" };
            format!(
                "pronto: port {}/{protocol} is the node's port {}",
                port.guest, port.host
            )
        })
        .collect();
    (!words.is_empty()).then(|| words.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pronto_payloads::instance::EndCause;

    #[test]
    fn free_ports_are_chosen_and_taken_ones_named() {
        let any = Port {
            host: 0,
            guest: 80,
            udp: false,
        };
        let asked = [any, Port { guest: 81, ..any }, Port { udp: true, ..any }];
        let resolved = resolve(&asked).unwrap();
        assert!(resolved.iter().all(|port| port.host != 0));
        assert_ne!(resolved[0].host, resolved[1].host);
        let words = chosen(&asked, &resolved).unwrap();
        assert!(words.starts_with(&format!(
            "pronto: port 80/tcp is the node's port {}\n",
            resolved[0].host
        )));
        assert_eq!(chosen(&resolved, &resolved), None);

        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let host = taken.local_addr().unwrap().port();
        let end = resolve(&[Port { host, ..any }]).unwrap_err();
        assert_eq!(end.cause, EndCause::Rejected);
        assert!(
            end.message
                .starts_with(&format!("tcp port {host} of the node: "))
        );
    }
}
