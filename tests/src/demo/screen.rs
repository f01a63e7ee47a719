//! What the demo shows: text, and a table that is redrawn in its place if somebody looks at it.

use std::env;
use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Standard output.
#[derive(Debug)]
pub struct Screen {
    /// The part that is redrawn; draws nothing where standard output is no terminal.
    live: ProgressBar,
    has_colours: bool,
}

impl Screen {
    /// Standard output as it is.
    ///
    /// # Errors
    ///
    /// If the style is not understood.
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

    /// Prints text for good.
    pub(super) fn print(&self, text: &str) {
        println!("{text}");
    }

    /// Shows a text until the next one.
    pub(super) fn show(&self, text: String) {
        self.live.set_message(text);
        self.live.tick();
    }

    /// Puts a text for good where others were shown for a while.
    pub(super) fn keep(&self, text: &str) {
        self.live.set_message("");
        self.live.suspend(|| println!("{text}"));
    }

    /// The last word.
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
