//! The docker and qemu runtimes against the real things: a private Docker engine, and Debian's
//! kernel under emulation. Both come from `tests/fixtures`; where they can't be had, tests fail.

mod docker;
mod docker_faults;
mod node;
mod qemu;
