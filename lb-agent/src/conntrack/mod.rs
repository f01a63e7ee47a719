//! Connections that another service proxy such as kube-proxy has translated. The kernel's conntrack
//! keeps translating them even after that proxy and its rules are removed.
//!
//! Before the programs are attached, each of these connections gets a flow that passes. A dedicated
//! thread then tracks them and removes the flows of ended connections. The thread ends with the
//! last connection.

mod dump;

use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::datapath::clock::Clock;
use crate::datapath::passing::PassingFlows;
use crate::describe;
use crate::maps::MapError;

/// Name of the thread.
const THREAD: &str = "conntrack";
/// How often to check for ended connections. Until then, a new connection from the same client port
/// passes too.
const INTERVAL: Duration = Duration::from_secs(15);

/// Why these connections are not tracked.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The kernel does not list them.
    #[error("cannot list the connections that the kernel tracks (ctnetlink)")]
    List(#[source] io::Error),
    /// The flows cannot be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The time for the flows cannot be read.
    #[error("cannot read the clock")]
    Clock(#[source] nix::Error),
    /// The thread cannot be started.
    #[error("cannot start the thread that tracks connections of another service proxy")]
    Thread(#[source] io::Error),
}

/// Open connections of another service proxy.
pub struct OtherConnections {
    flows: PassingFlows,
}

impl OtherConnections {
    /// Opens the maps pinned in `directory`. They must already contain the Services.
    pub fn open(directory: &Path) -> Result<Self, ConntrackError> {
        Ok(Self {
            flows: PassingFlows::open(directory)?,
        })
    }

    /// Lets the packets of the currently open connections pass. Returns the number of connections.
    pub fn update(&mut self) -> Result<usize, ConntrackError> {
        let connections = dump::translated().map_err(ConntrackError::List)?;
        let clock = Clock::read().map_err(ConntrackError::Clock)?;
        Ok(self.flows.set(&connections, clock)?)
    }

    /// Starts the thread that tracks the connections. It first adds those that began while the
    /// programs were being attached.
    pub fn follow(mut self) -> Result<(), ConntrackError> {
        let run = move || match self.follow_until_all_ended() {
            Ok(()) => tracing::debug!("all connections of another service proxy have ended"),
            Err(error) => tracing::warn!(
                "{}; connections of another service proxy are not tracked: new connections from the port of an ended one \
                 pass until the agent restarts",
                describe(&error)
            ),
        };
        let thread = thread::Builder::new().name(THREAD.to_owned()).spawn(run);
        thread.map(drop).map_err(ConntrackError::Thread)
    }

    fn follow_until_all_ended(&mut self) -> Result<(), ConntrackError> {
        self.flows.recall()?;
        while self.update()? > 0 {
            thread::sleep(INTERVAL);
        }
        Ok(())
    }
}
