//! Payload tests: golden bytes, hostile bytes, limits, and PROTOCOL.md held against the code.
//!
//! The second implementation that the golden bytes are decoded by is [`reference`]: it knows only
//! what the tables of PROTOCOL.md say ([`page`]), so a page, a struct or an encoding that changes
//! alone is found.

mod allocation;
mod document;
mod example;
mod golden;
mod hostile;
#[path = "../../../fuzz/src/kept.rs"]
mod kept;
mod limits;
mod page;
mod reference;
mod registry;
mod replay;
mod samples;
#[path = "../../../fuzz/src/targets.rs"]
mod targets;
