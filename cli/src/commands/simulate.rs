//! `pronto simulate`: the front end of the scheduler's replay of cluster traces.

use pronto_scheduler::table::{Fit, Spread};

/// Which of the nodes that fit is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FitName {
    /// The first.
    First,
    /// The least fragmented of the first few.
    Few,
}

impl FitName {
    /// As the table knows it.
    pub(crate) const fn fit(self, choices: u8) -> Fit {
        match self {
            Self::First => Fit::First,
            Self::Few => Fit::Few { choices },
        }
    }

    /// As it stands in reports.
    pub(crate) fn words(self, choices: u8) -> String {
        match self {
            Self::First => "first".to_owned(),
            Self::Few => format!("few of {choices}"),
        }
    }
}

/// How the most recently used node is avoided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SpreadName {
    /// Until a report has counted its last START.
    Settle,
    /// The very last node only.
    Skip,
    /// Each search begins after the last node used.
    Rotate,
}

impl SpreadName {
    /// As the table knows it.
    pub(crate) const fn spread(self) -> Spread {
        match self {
            Self::Settle => Spread::Settle,
            Self::Skip => Spread::Skip,
            Self::Rotate => Spread::Rotate,
        }
    }

    /// As it stands in reports.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Settle => "settle",
            Self::Skip => "skip",
            Self::Rotate => "rotate",
        }
    }
}
