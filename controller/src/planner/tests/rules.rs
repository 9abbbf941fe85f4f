//! The ten rules that make it exact, as far as they are the controller's, each by its number.

mod answers;
mod cluster;
mod fencing;
mod stores;
