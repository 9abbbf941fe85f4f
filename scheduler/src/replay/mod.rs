//! Replays of cluster traces through the very same node table, without processes.
