//! Placeholder
pub mod replay;
pub mod table;
