//! Replays of cluster traces through the very same node table, without processes.
//!
//! It is how the packing of the table's fits and spreads is measured and compared with other
//! policies, and what `pronto simulate` runs. It decides nothing that the table does not decide, and
//! knows no sessions: READYs arrive when the configuration says so.

mod burst;
mod cluster;
mod plot;
mod policies;
mod rng;
mod simulate;
mod synthetic;
#[cfg(test)]
mod tests;
mod timed;
mod trace;

pub use burst::{BurstSpread, burst_spread};
pub use plot::plot_svg;
pub use policies::Policy;
pub use rng::Rng;
pub use simulate::{Chooser, Order, Percentages, Run, SimulateConfig, SimulateReport, simulate};
pub use synthetic::synthetic_openb;
pub use timed::Waiting;
pub use trace::{TaskTimes, Trace, TraceError, TraceNode, TraceTask};
