//! What a workload asks for and what a node has: the dimensions of placement.
//!
//! Units: CPU in thousandths of a core, memory and disk in MiB (binary), GPUs as whole devices or
//! as thousandths of **one** device. Named resources are countable and mean what a cluster's
//! administrator says they mean (licences, FPGAs, ports).

use crate::codec::{Invalid, Payload, check_len, check_name, check_value};
use crate::limits;
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::hint::select_unpredictable;

/// A whole GPU in `gpu_millis`.
pub const GPU_MILLIS: u16 = 1000;

/// A countable resource by name.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
pub struct Resource {
    pub name: String,
    pub count: u32,
}

/// What one instance needs of its node. All of it is exact: a node never promises it twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Demand {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    /// Whole devices; excludes `gpu_millis`.
    pub gpus: u16,
    /// A share of one device, below [`GPU_MILLIS`]; excludes `gpus`.
    pub gpu_millis: u16,
    /// Sorted by name, names distinct, counts above zero.
    pub resources: Vec<Resource>,
}

/// What a node can give: in HELLO its whole allocatable capacity, in READY what of it is free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Capacity {
    /// Thousandths of a core.
    pub cpu_millis: u32,
    pub memory_mib: u32,
    pub disk_mib: u32,
    /// Free thousandths of each device, by device index.
    pub gpu_millis: Vec<u16>,
    /// Sorted by name, names distinct; a count may be 0.
    pub resources: Vec<Resource>,
}

/// What a node must be for an instance to be placed on it. All constraints of a demand must hold.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// This node, by name.
    Node(String),
    /// A label of the node has this value.
    Label { key: String, value: String },
}

/// A runtime that a node may offer and a workload needs.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// A process in its own session and cgroup.
    Exec,
    /// A container of a Docker engine.
    Docker,
    /// A virtual machine.
    Qemu,
    /// Nothing runs; it ends after a given time. For load tests and simulation.
    Sim,
}

impl Runtime {
    /// Every runtime, in the order of their codes.
    pub const ALL: [Self; 4] = [Self::Exec, Self::Docker, Self::Qemu, Self::Sim];

    /// The runtime's name as users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Docker => "docker",
            Self::Qemu => "qemu",
            Self::Sim => "sim",
        }
    }
}

impl Demand {
    /// The demand as free thousandths of devices: (how many devices, how much of each).
    ///
    /// Without a branch: the kind of the next demand can't be predicted, and a search is not much
    /// longer than what a wrong guess costs.
    #[inline]
    #[must_use]
    pub fn gpu_shape(&self) -> (u16, u16) {
        let is_share = (self.gpus == 0) & (self.gpu_millis > 0);
        let devices = self.gpus + u16::from(is_share);
        let each = select_unpredictable(self.gpus > 0, GPU_MILLIS, self.gpu_millis);
        (devices, each)
    }

    /// All GPU thousandths together: the unit of a GPU quota.
    #[must_use]
    pub fn gpu_total_millis(&self) -> u32 {
        let (devices, each) = self.gpu_shape();
        u32::from(devices) * u32::from(each)
    }
}

fn check_resources(resources: &[Resource]) -> Result<(), Invalid> {
    check_len("resources", resources.len(), limits::RESOURCES)?;
    for resource in resources {
        check_name("resource name", &resource.name)?;
    }
    if resources
        .windows(2)
        .any(|pair| pair[0].name >= pair[1].name)
    {
        return Err(Invalid::new(
            "resources",
            "distinct names in ascending order",
        ));
    }
    Ok(())
}

impl Payload for Demand {
    fn check(&self) -> Result<(), Invalid> {
        if self.gpus > 0 && self.gpu_millis > 0 {
            return Err(Invalid::new(
                "gpus",
                "either whole devices or a share of one, not both",
            ));
        }
        if self.gpu_millis >= GPU_MILLIS {
            return Err(Invalid::new(
                "gpu_millis",
                "a share below 1000 of one device",
            ));
        }
        if usize::from(self.gpus) > limits::GPUS {
            return Err(Invalid::new("gpus", "at most 32 devices"));
        }
        if self.resources.iter().any(|resource| resource.count == 0) {
            return Err(Invalid::new("resource count", "a whole number from 1"));
        }
        check_resources(&self.resources)
    }
}

impl Payload for Capacity {
    fn check(&self) -> Result<(), Invalid> {
        check_len("GPU devices", self.gpu_millis.len(), limits::GPUS)?;
        if self.gpu_millis.iter().any(|&free| free > GPU_MILLIS) {
            return Err(Invalid::new("gpu_millis", "0 to 1000 for each device"));
        }
        check_resources(&self.resources)
    }
}

impl Payload for Constraint {
    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Node(name) => check_name("node", name),
            Self::Label { key, value } => {
                check_name("label key", key)?;
                check_value("label value", value)
            }
        }
    }
}
