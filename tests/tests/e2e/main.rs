//! End-to-end tests on the built binary: a real cluster, real processes, real certificates.
//!
//! Nothing here reaches into a daemon; each test does what a user would do, and looks at what a
//! user would see. What a workload did is proven by what it wrote, not by what Pronto says of it.
//! Only `samples` reads configurations, as the daemons do.

mod bursts;
mod chaos;
mod cluster;
mod commands;
mod daily;
mod engines;
mod evidence;
mod failover;
mod faults;
mod network;
mod peers;
mod recovery;
mod relay;
mod rig;
mod samples;
