//! The crate from outside: the store on real files, the API over real TLS, and a controller beside
//! a scheduler that is played by hand.

mod api;
mod certs;
mod client;
mod fake;
mod roles;
mod store;
mod streams;
