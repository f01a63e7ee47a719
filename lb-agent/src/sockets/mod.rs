//! Work in the network namespaces of Pods. The agent finds these namespaces, because only sockets
//! in them and in the node's namespace are translated ([`Finder`], [`roles()`]). It also handles
//! client sockets whose backend was removed ([`Closer`]).
//!
//! A socket that was translated at `connect` sends directly to its backend. No program sees its
//! packets, so its process is not notified when the backend is removed. A dedicated thread, the
//! socket closer, searches for such sockets in every network namespace of the node. It destroys
//! them, so that the process's next call fails with `ECONNABORTED`. If possible, it reconnects UDP
//! sockets to the frontend instead, because their processes may ignore errors for years. It does
//! the same with UDP sockets that had no backend when they were connected, once there is one.
//!
//! ```text
//! objects changed -> order -> rows without a backend -> sockets with their cookies and peers
//!   -> connect, or SOCK_DESTROY
//! ```
//! Only sockets with a row are affected. A socket that connected to a Pod's own address has no row.

mod diag;
mod finder;
mod holders;
mod namespaces;
mod pending;
mod place;
mod roles;
mod wanted;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

pub use diag::can_destroy;
pub use finder::{Finder, Found};
pub use place::Place;
pub use roles::roles;

use crate::privileges::{self, Capability, PrivilegeError};
use worker::Worker;

/// Name of the thread.
const THREAD: &str = "socket-closer";
/// A thread pauses after a search for this multiple of the search's duration. This bounds its CPU
/// usage even if something changes all the time.
const REST: u32 = 9;
/// The longest pause.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// The namespaces in which sockets are closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// All network namespaces of the node.
    Node,
    /// The agent's own network namespace.
    OwnNamespace,
}

/// Options of the closer.
#[derive(Clone, Debug)]
pub struct CloserOptions {
    /// Where sockets are closed.
    pub reach: Reach,
    /// Whether TCP sockets are closed in addition to UDP sockets.
    pub tcp: bool,
    /// The directory of the pinned maps. They may be created after the closer starts, but before
    /// the first order.
    pub maps: PathBuf,
}

/// Why a thread that enters network namespaces is not running.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The thread cannot be started.
    #[error("cannot start the thread {name}")]
    Start {
        /// Its name.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The thread's capabilities cannot be dropped.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
}

/// Sends orders to the thread. The thread ends when this is dropped.
#[derive(Debug)]
pub struct Closer {
    orders: SyncSender<()>,
    /// The number of changes to frontends and backends at the last order.
    ordered: Option<u64>,
}

impl Closer {
    /// Starts the thread. It keeps only the capabilities that it needs, independently of the
    /// calling thread. If it lacks the capabilities for other namespaces, it closes only sockets in
    /// its own namespace and logs a warning.
    pub fn start(options: CloserOptions) -> Result<Self, ThreadError> {
        let options = CloserOptions {
            reach: possible(options.reach),
            ..options
        };
        // The queue holds one order. It also stands for all later orders until the thread takes it.
        let (orders, receiver) = mpsc::sync_channel(1);
        let kept = [capabilities(options.reach), &privileges::CONNECT_AGAIN].concat();
        start_thread(THREAD, kept, move || Worker::new(options).run(&receiver))?;
        Ok(Self {
            orders,
            ordered: None,
        })
    }

    /// Orders a search if `changed` differs from the last call. `changed` is the number of
    /// frontends and backends changed so far. The first call always orders a search, because
    /// backends may have been removed while no agent was running. Returns immediately.
    pub fn follow(&mut self, changed: u64) {
        if self.ordered != Some(changed) {
            self.ordered = Some(changed);
            // A queued order covers this one. If the thread has ended, it has logged why.
            let _ = self.orders.try_send(());
        }
    }
}

/// Starts a thread that keeps these capabilities, if it has them, and drops all others. It is
/// independent of what the calling thread drops later.
fn start_thread(
    name: &'static str,
    kept: Vec<Capability>,
    run: impl FnOnce() + Send + 'static,
) -> Result<(), ThreadError> {
    let (started, start) = mpsc::channel();
    let failed = |source| ThreadError::Start { name, source };
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let dropped = privileges::drop_others(&kept);
            let is_ready = dropped.is_ok();
            if started.send(dropped).is_ok() && is_ready {
                run();
            }
        })
        .map_err(failed)?;
    Ok(start.recv().map_err(io::Error::other).map_err(failed)??)
}

/// Pauses after a search that began at `start`.
fn rest(start: Instant) {
    thread::sleep(start.elapsed().saturating_mul(REST).min(LONGEST_REST));
}

/// The reach that the available capabilities allow.
fn possible(wanted: Reach) -> Reach {
    match privileges::require("run", capabilities(wanted)) {
        Err(error) if wanted == Reach::Node => {
            tracing::warn!("{error}; until then {}", without_other_namespaces());
            Reach::OwnNamespace
        }
        _ => wanted,
    }
}

/// The consequences if other network namespaces cannot be entered.
fn without_other_namespaces() -> &'static str {
    if finder::is_possible() {
        "connections of Pods are translated at their devices, not at their sockets, and sockets that were translated before are \
         not closed when their backend is removed"
    } else {
        "sockets of Pods that are connected to a removed backend are not closed, and wait for their own timeouts"
    }
}

fn capabilities(reach: Reach) -> &'static [privileges::Capability] {
    match reach {
        Reach::Node => &privileges::ALL_SOCKETS,
        Reach::OwnNamespace => &privileges::OWN_SOCKETS,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;

    fn closer() -> (Closer, Receiver<()>) {
        let (orders, receiver) = mpsc::sync_channel(1);
        (
            Closer {
                orders,
                ordered: None,
            },
            receiver,
        )
    }

    #[test]
    fn the_first_call_and_every_change_send_an_order() {
        let (mut closer, orders) = closer();
        closer.follow(0);
        assert_eq!(orders.try_iter().count(), 1);
        closer.follow(0);
        assert_eq!(orders.try_iter().count(), 0);
        closer.follow(2);
        assert_eq!(orders.try_iter().count(), 1);
        closer.follow(2);
        assert_eq!(orders.try_iter().count(), 0);
    }

    #[test]
    fn a_queued_order_covers_later_ones() {
        let (mut closer, orders) = closer();
        for changed in 0..10 {
            closer.follow(changed);
        }
        assert_eq!(orders.try_iter().count(), 1);
        drop(orders);
        // The thread has ended.
        closer.follow(10);
    }
}
