//! The terminal that a person sits at.

use std::io;

use anyhow::Context;
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr};

/// As long as it lives, standard input passes every key as it is.
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// # Errors
    /// Standard input is no terminal.
    pub(super) fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(io::stdin()).context("Cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("Cannot change the terminal's settings")?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // What was printed last goes out first, by the old settings. It fails if the terminal has gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
        eprintln!();
    }
}

/// Its size, where it has one.
pub(super) fn size() -> Option<Winsize> {
    tcgetwinsize(io::stdin()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0)
}
