//! Bugs that are planted on purpose, to show that the simulation would find them.
//!
//! Each sits in the simulation's shell around an unchanged core: it makes the shell do what a core
//! with that bug would have made it do. A planted bug must make some seed fail, and soon.
//!
//! A launcher that forgets its tombstones is not among them: sessions keep the order of what they
//! carry and are thrown away whole, so that no STOP overtakes its START in this world. Nor is a STOP
//! that is said once, since all work ends by itself here, nor a launcher that obeys a lower term, for
//! which 3,000 seeds had no use. The scripted tests of rules 5 and 7 break these by hand.

/// A bug to plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    /// The scheduler takes each status for one that counts every START that it has sent.
    SkipsAppliedSeq,
    /// The controller takes a report about any attempt for one about the current attempt.
    ForgetsAttemptCheck,
    /// The controller's disk says that a commit is durable before it is.
    AcknowledgesBeforeCommit,
    /// The controller gives an instance's quota back twice.
    ReleasesQuotaTwice,
    /// A restarted launcher starts what it finds ended again.
    RunsTwice,
    /// An end is reported once, and not kept.
    LosesEnds,
    /// A launcher's disk forgets the attempts that it accepted.
    ForgetsAccepted,
    /// A launcher's session epoch starts again at each start of its process.
    RepeatsSessionEpochs,
    /// The shim does not end `stop-after` work when its lease has run out.
    IgnoresFence,
    /// A launcher takes its leases for longer than they are.
    ProlongsLeases,
    /// An inventory says to cover STARTs that its node has not seen.
    PostdatesInventories,
    /// A store that was restored goes on with the numbers of its backup.
    RepeatsNumbers,
    /// The scheduler gives the first GPU of a node to everybody.
    GivesFirstGpu,
    /// The controller forgets on which nodes a workload may run.
    ForgetsConstraints,
    /// The scheduler says now and then twice where a START went.
    AnswersTwice,
    /// A launcher keeps a little of its memory back once it has run something.
    WithholdsRoom,
    /// The controller acknowledges no end.
    LosesAcks,
    /// The scheduler takes a launcher's word for who it is that reports.
    BelievesLiars,
    /// The controller takes every user for an administrator.
    ForgetsScope,
}

impl Plant {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::SkipsAppliedSeq,
        Self::ForgetsAttemptCheck,
        Self::AcknowledgesBeforeCommit,
        Self::ReleasesQuotaTwice,
        Self::RunsTwice,
        Self::LosesEnds,
        Self::ForgetsAccepted,
        Self::RepeatsSessionEpochs,
        Self::IgnoresFence,
        Self::ProlongsLeases,
        Self::PostdatesInventories,
        Self::RepeatsNumbers,
        Self::GivesFirstGpu,
        Self::ForgetsConstraints,
        Self::AnswersTwice,
        Self::WithholdsRoom,
        Self::LosesAcks,
        Self::BelievesLiars,
        Self::ForgetsScope,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SkipsAppliedSeq => "skips-applied-seq",
            Self::ForgetsAttemptCheck => "forgets-attempt-check",
            Self::AcknowledgesBeforeCommit => "acknowledges-before-commit",
            Self::ReleasesQuotaTwice => "releases-quota-twice",
            Self::RunsTwice => "runs-twice",
            Self::LosesEnds => "loses-ends",
            Self::ForgetsAccepted => "forgets-accepted",
            Self::RepeatsSessionEpochs => "repeats-session-epochs",
            Self::IgnoresFence => "ignores-fence",
            Self::ProlongsLeases => "prolongs-leases",
            Self::PostdatesInventories => "postdates-inventories",
            Self::RepeatsNumbers => "repeats-numbers",
            Self::GivesFirstGpu => "gives-first-gpu",
            Self::ForgetsConstraints => "forgets-constraints",
            Self::AnswersTwice => "answers-twice",
            Self::WithholdsRoom => "withholds-room",
            Self::LosesAcks => "loses-acks",
            Self::BelievesLiars => "believes-liars",
            Self::ForgetsScope => "forgets-scope",
        }
    }

    /// The bug with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plant| plant.name() == name)
    }
}
