//! The CPU time of a local cluster, process by process.

use crate::dev::{layout::Layout, supervisor};
use crate::exit::Failure;
use anyhow::Context;
use std::collections::BTreeMap;
use std::time::Duration;

/// Linux counts CPU time to user space in hundredths of a second on every architecture that we run
/// on (USER_HZ, proc(5)).
const TICKS_PER_SECOND: u32 = 100;

/// CPU time so far of each process of the cluster, and of this one.
pub(super) fn spent(layout: &Layout) -> Result<BTreeMap<String, Duration>, Failure> {
    let record = supervisor::read_record(layout).context("the cluster keeps no record")?;
    let mut spent = BTreeMap::new();
    for child in record.children {
        spent.insert(child.name, of(child.process.pid)?);
    }
    for launcher in layout.launchers() {
        let text = std::fs::read_to_string(launcher.shim_pid()).unwrap_or_default();
        if let Some(pid) = text
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok())
        {
            *spent.entry("shims".to_owned()).or_default() += of(pid)?;
        }
    }
    let own = i32::try_from(std::process::id()).context("a pid beyond 2^31")?;
    spent.insert("client".to_owned(), of(own)?);
    Ok(spent)
}

/// User and system time of a process, its ended threads included: proc(5), fields 14 and 15.
fn of(pid: i32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} of the cluster is gone"))?;
    // The name in the second field may hold anything; the third follows its last bracket.
    let (_, fields) = stat.rsplit_once(") ").context("no process status")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |field: usize| {
        fields
            .get(field - 3)
            .and_then(|text| text.parse::<u64>().ok())
    };
    let ticks = ticks(14).zip(ticks(15)).context("no CPU times")?;
    Ok(Duration::from_secs(ticks.0 + ticks.1) / TICKS_PER_SECOND)
}
