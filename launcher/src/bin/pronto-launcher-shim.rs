//! The shim alone, as a small program of its own: what `pronto launcher-shim` runs.

fn main() {
    std::process::exit(pronto_launcher::shim::main(std::env::args_os().skip(1)));
}
