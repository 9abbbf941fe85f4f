//! x
mod console;
mod machine;
pub mod probe;
mod qmp;
mod seed;
