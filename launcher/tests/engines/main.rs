//! The docker and qemu runtimes against the real things: a private Docker engine, and Debian's
//! kernel under emulation. Both come from `tests/fixtures`; where they can't be had, tests fail.
//!
//! The shim of virtual machines is this test program itself, started again: see [`shim`].

mod docker;
mod docker_faults;
mod node;
mod qemu;

/// Not a test of anything when the harness runs it: as a shim, it is started with the shim's
/// settings as last argument, and turns into one.
#[test]
fn shim() {
    let settings = std::env::args_os().last().expect("a program has a name");
    if settings.as_encoded_bytes().starts_with(b"{") {
        std::process::exit(pronto_launcher::shim::main([settings]));
    }
}
