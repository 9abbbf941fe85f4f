//! The terminal: progress, colours and hints, none of which a pipe or a script ever sees.

use super::tell;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};

/// Whether people watch stderr.
pub(crate) fn watched() -> bool {
    stderr().is_terminal()
}

/// Whether stderr may have colours: a terminal, and `NO_COLOR` unset or empty.
pub(crate) fn coloured() -> bool {
    watched() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A line to people about what goes on; silence where nobody watches.
pub(crate) fn note(text: &str) {
    if !watched() {
        return;
    }
    if coloured() {
        tell!("\u{1b}[2m{text}\u{1b}[0m");
    } else {
        tell!("{text}");
    }
}

/// A progress bar over `length` things; it draws on a terminal only.
pub(crate) fn progress(length: u64, what: &'static str) -> ProgressBar {
    let target = if watched() {
        ProgressDrawTarget::stderr_with_hz(10)
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    let style = if coloured() {
        "{prefix:>10} [{bar:40.green}] {pos}/{len} {msg}"
    } else {
        "{prefix:>10} [{bar:40}] {pos}/{len} {msg}"
    };
    // The template is a constant; indicatif checks it in this module's test.
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(what);
    bar
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_progress_bar_counts_without_a_terminal() {
        let bar = super::progress(3, "done");
        bar.inc(2);
        assert_eq!((bar.position(), bar.length()), (2, Some(3)));
    }
}
