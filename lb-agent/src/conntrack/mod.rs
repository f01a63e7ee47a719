//! Connections that another service proxy has begun, such as kube-proxy: the kernel's connection
//! tracking goes on with them, also when that proxy and its rules are gone.
//!
//! Before the programs are attached, each gets a flow that passes. A thread of its own then follows
//! them: it removes the flows of those that have ended, and itself ends with the last one.

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
/// How often is looked which connections have ended. Until then a new one of the same client's port
/// passes too.
const INTERVAL: Duration = Duration::from_secs(15);

/// Why such connections are not known.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The kernel does not list them.
    #[error("cannot list the connections that the kernel tracks (ctnetlink)")]
    List(#[source] io::Error),
    /// The flows.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The time that flows are noted with.
    #[error("cannot read the clock")]
    Clock(#[source] nix::Error),
    /// The thread.
    #[error("cannot start the thread that follows connections of another service proxy")]
    Thread(#[source] io::Error),
}

/// Connections of another service proxy that go on.
pub struct OtherConnections {
    flows: PassingFlows,
}

impl OtherConnections {
    /// With the maps pinned in `directory`, which have Services already.
    pub fn open(directory: &Path) -> Result<Self, ConntrackError> {
        Ok(Self {
            flows: PassingFlows::open(directory)?,
        })
    }

    /// Lets the packets of those pass that go on now. Returns how many there are.
    pub fn update(&mut self) -> Result<usize, ConntrackError> {
        let connections = dump::translated().map_err(ConntrackError::List)?;
        let clock = Clock::read().map_err(ConntrackError::Clock)?;
        Ok(self.flows.set(&connections, clock)?)
    }

    /// Starts the thread that follows them: first those that began while the programs were being
    /// attached.
    pub fn follow(mut self) -> Result<(), ConntrackError> {
        let run = move || match self.follow_to_the_end() {
            Ok(()) => tracing::debug!("all connections of another service proxy have ended"),
            Err(error) => tracing::warn!(
                "{}; connections of another service proxy are not followed: what uses the port of one that has ended \
                 passes until the agent is started again",
                describe(&error)
            ),
        };
        let thread = thread::Builder::new().name(THREAD.to_owned()).spawn(run);
        thread.map(drop).map_err(ConntrackError::Thread)
    }

    fn follow_to_the_end(&mut self) -> Result<(), ConntrackError> {
        self.flows.recall()?;
        while self.update()? > 0 {
            thread::sleep(INTERVAL);
        }
        Ok(())
    }
}
