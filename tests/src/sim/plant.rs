//! Bugs that are planted on purpose, to show that the simulation would find them.
//!
//! Each sits in the simulation's shell around an unchanged core: it makes the shell do what a core
//! with that bug would have made it do. A planted bug must make some seed fail, and soon.

/// A bug to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// A launcher says that it has applied STARTs that it has not seen.
    AppliedSeqTooHigh,
    /// A launcher runs a START that it has run before.
    RunsTwice,
    /// The controller's disk says that a commit is durable before it is.
    AcknowledgesBeforeCommit,
    /// A launcher's disk forgets the attempts that it accepted.
    ForgetsAccepted,
    /// A launcher drops its tombstones.
    ForgetsTombstones,
    /// An end that was reported is not repeated, and not kept.
    LosesEnds,
    /// A launcher's session epoch starts again at each start of its process.
    RepeatsSessionEpochs,
    /// The shim does not end `stop-after` work when its lease has run out.
    IgnoresFence,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::AppliedSeqTooHigh,
        Self::RunsTwice,
        Self::AcknowledgesBeforeCommit,
        Self::ForgetsAccepted,
        Self::ForgetsTombstones,
        Self::LosesEnds,
        Self::RepeatsSessionEpochs,
        Self::IgnoresFence,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AppliedSeqTooHigh => "applied-seq-too-high",
            Self::RunsTwice => "runs-twice",
            Self::AcknowledgesBeforeCommit => "acknowledges-before-commit",
            Self::ForgetsAccepted => "forgets-accepted",
            Self::ForgetsTombstones => "forgets-tombstones",
            Self::LosesEnds => "loses-ends",
            Self::RepeatsSessionEpochs => "repeats-session-epochs",
            Self::IgnoresFence => "ignores-fence",
        }
    }

    /// The bug with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plant| plant.name() == name)
    }
}
