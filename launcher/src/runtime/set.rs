//! The runtimes of one launcher, by kind.

use super::{Kind, Runtime};
use std::sync::Arc;

/// Runtimes that this launcher has, offered now or not.
#[derive(Clone, Debug, Default)]
pub struct Runtimes(Vec<Arc<dyn Runtime>>);

impl Runtimes {
    /// Adds one.
    pub fn add(&mut self, runtime: Arc<dyn Runtime>) {
        self.0.push(runtime);
    }

    /// The one of this kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Option<&Arc<dyn Runtime>> {
        self.0.iter().find(|runtime| runtime.kind() == kind)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Runtime>> {
        self.0.iter()
    }
}
