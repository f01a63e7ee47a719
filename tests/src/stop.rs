//! Early termination: Ctrl-C must remove the lab too.

use std::fmt;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// How long to wait for a signal that a child process may have received before this one.
const GRACE: Duration = Duration::from_millis(200);

/// Reports a request to end the program.
#[derive(Debug)]
pub struct Stop {
    /// Keeps the channel open when there is no other sender.
    sender: Sender<()>,
    wishes: Receiver<()>,
}

/// The error of an operation that a request to end interrupted.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

impl Stop {
    /// A value that is never stopped by a signal.
    pub fn never() -> Self {
        let (sender, wishes) = mpsc::channel();
        Self { sender, wishes }
    }

    /// A value that SIGINT (Ctrl-C), SIGTERM and SIGHUP stop.
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
                    // An error means that the program is already ending.
                    let _ = sender.send(());
                }
            });
        });
        Ok(stop)
    }

    /// Waits for `time`.
    ///
    /// # Errors
    ///
    /// [`Interrupted`] as soon as the program is requested to end.
    pub fn pause(&self, time: Duration) -> Result<()> {
        match self.wishes.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(Interrupted.into()),
        }
    }

    /// The cause of an error. Ctrl-C also reaches the processes in the lab. If they ended because
    /// of it, the cause is [`Interrupted`].
    #[must_use]
    pub fn cause(&self, error: anyhow::Error) -> anyhow::Error {
        match error.is::<Interrupted>() {
            true => error,
            false => self.pause(GRACE).err().unwrap_or(error),
        }
    }

    /// Waits for Enter, or for a request to end.
    ///
    /// # Errors
    ///
    /// None: the channel stays open.
    pub fn wait_for_enter(&self) -> Result<()> {
        let sender = self.sender.clone();
        thread::spawn(move || {
            // At the end of the input only a signal counts.
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
