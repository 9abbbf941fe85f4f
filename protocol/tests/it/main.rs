//! The crate from outside: sessions stepped against each other, hostile bytes, real TLS over
//! loopback, and PROTOCOL.md held against the code.

mod certs;
mod hostile;
mod links;
mod ops;
mod page;
mod sessions;
mod tls;
mod wires;
