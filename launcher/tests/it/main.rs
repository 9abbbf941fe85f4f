//! Tests of the launcher against the real thing: real processes, a real shim, real control groups.

mod certs;
mod exec;
mod node;
mod qemu;
mod scheduler;
mod whole;
