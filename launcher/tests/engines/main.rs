//! The docker and qemu runtimes against the real things: a private Docker engine, and Debian's
//! kernel under emulation, which also serves to test processes under control groups of version 2. Both
//! come from `tests/fixtures`; where they can't be had, tests fail.

mod cgroup2;
mod docker;
mod docker_faults;
mod full_disk;
mod node;
mod pull;
mod qemu;
