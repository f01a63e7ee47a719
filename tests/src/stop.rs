//! Ending early: Ctrl-C must remove the lab too.

use std::fmt;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// How much later than others this process may notice a signal.
const GRACE: Duration = Duration::from_millis(200);

/// Tells that a program is to end.
#[derive(Debug)]
pub struct Stop {
    /// Kept, so that the channel stays open when nobody else can send.
    sender: Sender<()>,
    wishes: Receiver<()>,
}

/// The error of what was told to end.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Stop {
    /// Nothing ends it early.
    pub fn never() -> Self {
        let (sender, wishes) = mpsc::channel();
        Self { sender, wishes }
    }

    /// Ctrl-C, SIGTERM, or the terminal's end.
    ///
    /// # Errors
    ///
    /// If signals cannot be received.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::never();
        let sender = stop.sender.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        drop(entered);
        thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hang_up.recv() => {}
                    }
                    // Nobody listens any more: the program is at its end.
                    let _ = sender.send(());
                }
            });
        });
        Ok(stop)
    }

    /// Lets some time pass.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] as soon as the program is to end.
    pub fn pause(&self, time: Duration) -> Result<()> {
        match self.wishes.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Interrupted.into()),
        }
    }

    /// The cause of an error. Ctrl-C reaches what runs in the lab too: that it has ended is then no
    /// failure.
    #[must_use]
    pub fn cause(&self, error: anyhow::Error) -> anyhow::Error {
        match error.is::<Interrupted>() {
            true => error,
            false => self.pause(GRACE).err().unwrap_or(error),
        }
    }

    /// Waits for Enter, or for a wish to end.
    ///
    /// # Errors
    ///
    /// None: the channel stays open.
    pub fn wait_for_enter(&self) -> Result<()> {
        let sender = self.sender.clone();
        thread::spawn(move || {
            // At the end of the input nobody can press Enter: only a signal counts.
            if io::stdin()
                .read_line(&mut String::new())
                .is_ok_and(|read| read > 0)
            {
                let _ = sender.send(());
            }
        });
        self.wishes.recv().context("wait for Enter")
    }
}
