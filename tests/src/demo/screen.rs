//! The demo's output: text, and a table that is redrawn in place on a terminal.

use std::env;
use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Standard output.
#[derive(Debug)]
pub struct Screen {
    /// The part that is redrawn. It draws nothing if standard output is not a terminal.
    live: ProgressBar,
    has_colours: bool,
}

impl Screen {
    /// Creates a screen on standard output.
    ///
    /// # Errors
    ///
    /// If the style cannot be parsed.
    pub fn new() -> anyhow::Result<Self> {
        let live = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        live.set_style(ProgressStyle::with_template("{msg}")?);
        Ok(Self {
            live,
            has_colours: io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none(),
        })
    }

    /// Starts a part of the demo.
    pub(super) fn heading(&self, text: &str) {
        println!("\n{}", self.coloured("1", text));
    }

    /// Prints text permanently.
    pub(super) fn print(&self, text: &str) {
        println!("{text}");
    }

    /// Shows a temporary text until the next one.
    pub(super) fn show(&self, text: String) {
        self.live.set_message(text);
        self.live.tick();
    }

    /// Replaces the temporary text by a permanent one.
    pub(super) fn keep(&self, text: &str) {
        self.live.set_message("");
        self.live.suspend(|| println!("{text}"));
    }

    /// Prints the final result.
    pub(super) fn verdict(&self, is_good: bool, text: &str) {
        println!("\n{}", self.coloured(if is_good { "1;32" } else { "1;31" }, text));
    }

    fn coloured(&self, code: &str, text: &str) -> String {
        match self.has_colours {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}
