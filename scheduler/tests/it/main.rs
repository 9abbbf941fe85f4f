//! Tests of the scheduler: the core behind a recording harness, and the daemon over real TLS.

#[macro_use]
mod harness;
mod accounting;
mod certs;
mod end_to_end;
mod forwarding;
mod hostile;
mod overload;
mod rules;
mod streams;
