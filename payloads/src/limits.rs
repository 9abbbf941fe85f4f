//! Limits on what a payload may hold, each with its reason.
//!
//! They bound what a hostile or broken peer can make a daemon keep in memory, and they are the
//! numbers that a user's error message names.

/// A name (tenant, workload, instance, node, label key): a DNS label and some air.
pub const NAME_BYTES: usize = 63;
/// A label's value, an image reference, a user name: longer than any in use.
pub const VALUE_BYTES: usize = 255;
/// A path on a node: Linux's own `PATH_MAX`.
pub const PATH_BYTES: usize = 4096;
/// A sentence for people, such as a refusal's reason.
pub const TEXT_BYTES: usize = 1024;
/// One argument or one environment value: half of Linux's `MAX_ARG_STRLEN`.
pub const ARGUMENT_BYTES: usize = 65_536;
/// Arguments of one command.
pub const ARGUMENTS: usize = 1024;
/// Environment variables of one workload.
pub const ENVIRONMENT: usize = 256;
/// Labels of one node, constraints of one demand.
pub const LABELS: usize = 64;
/// Distinct named resources of one node or demand.
pub const RESOURCES: usize = 16;
/// GPU devices of one node: twice the largest machines sold.
pub const GPUS: usize = 32;
/// Nodes that a retry asks to avoid: more would make a small cluster unusable.
pub const AVOIDED_NODES: usize = 8;
/// Mounts or published ports of one workload.
pub const MOUNTS: usize = 32;
/// Cloud-init user-data: what the NoCloud seed is made from.
pub const USER_DATA_BYTES: usize = 65_536;
/// Owners (controller stores) known to one launcher.
pub const OWNERS: usize = 16;
/// Instances in one page of an inventory or of node statistics: a page stays below 1 MiB.
pub const PAGE: usize = 512;
/// Nodes in one page of a node list or in one batch of statistics. Nodes with many labels or
/// instances fill a page sooner: [`PAGE_BYTES`] ends it as well.
pub const NODE_PAGE: usize = 256;
/// Encoded bytes at which a page of nodes, of an inventory or of statistics is ended: with the
/// largest entry behind it (a node with 512 usages) it stays below the 1 MiB of its operand.
pub const PAGE_BYTES: usize = 900 * 1024;
/// What a controller's START may take: the operand's 256 KiB less the largest stamp, so that every
/// START which a scheduler accepts can be forwarded.
pub const START_BYTES: usize = 256 * 1024 - STAMP_BYTES;
/// The largest [`StartStamp`](crate::place::StartStamp): three counters and a share of each device.
pub const STAMP_BYTES: usize = 3 * 8 + 8 + GPUS * 4;
/// The largest [`FromNode`](crate::control::FromNode). What a launcher says and the scheduler forwards
/// behind one takes so much less than its operand's limit, so that all of it can be forwarded.
pub const FROM_NODE_BYTES: usize = 8 + NAME_BYTES;
/// Counted reasons in one EXPLAIN reply: one for each kind and dimension.
pub const REASONS: usize = 64;
