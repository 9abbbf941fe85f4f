//! Privileges of root that a launcher gives up when it begins, for itself and for all that it starts.
//!
//! What no workload of a shared machine is to do, whatever its tenant may: change the running kernel,
//! its clock, its audit and its access rules, or turn the machine off. What remains is needed: to make
//! control groups and mounts, to become other users and to end their processes. Containers are the
//! engine's, and are not touched by this.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities,
};

const GIVEN_UP: CapabilitySet = CapabilitySet::SYS_MODULE
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::SYSLOG)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::MAC_OVERRIDE)
    .union(CapabilitySet::AUDIT_CONTROL)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::WAKE_ALARM)
    .union(CapabilitySet::BLOCK_SUSPEND);

/// Gives them up for this thread and those that it starts: to be called before there are others.
///
/// # Errors
/// If the kernel refuses, which it does not to who may change capabilities at all.
pub fn give_up() -> std::io::Result<()> {
    let mut mine = capabilities(None)?;
    if mine.effective.contains(CapabilitySet::SETPCAP) {
        for capability in GIVEN_UP.iter() {
            match remove_capability_from_bounding_set(capability) {
                // A kernel that does not know it.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    mine.effective.remove(GIVEN_UP);
    mine.permitted.remove(GIVEN_UP);
    mine.inheritable.remove(GIVEN_UP);
    Ok(set_capabilities(None, mine)?)
}
