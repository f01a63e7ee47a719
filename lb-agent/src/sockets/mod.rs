//! What the agent does in the network namespaces of Pods: it finds them, since only their sockets
//! and the node's are translated ([`Finder`], [`roles()`]), and looks after the sockets of clients
//! whose backend was removed ([`Closer`]).
//!
//! A socket that was translated at `connect` sends straight to its backend: no program sees its
//! packets, so nothing tells its owner that the backend is gone. A thread of its own, the socket
//! closer, does: it looks for such sockets in every network namespace of the node and destroys
//! them, so that the owner's next call fails with `ECONNABORTED`. Those of UDP it connects to the
//! frontend again instead, where it can: their owners may go on for years without a look at errors.
//! So it does with those that found no backend when they were connected, once there is one.
//!
//! ```text
//! objects changed -> order -> rows without a backend -> sockets with their cookies and peers
//!   -> connect, or SOCK_DESTROY
//! ```
//! The rows are the proof: a socket that connected to a Pod's own address has none and is left
//! alone.

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
/// How much longer than a search a thread rests after it: whatever changes all the time, it does
/// not take a CPU.
const REST: u32 = 9;
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Whose sockets are closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Those in all network namespaces of the node.
    Node,
    /// Those in the agent's own network namespace.
    OwnNamespace,
}

/// What the closer does.
#[derive(Clone, Debug)]
pub struct CloserOptions {
    /// Whose sockets are closed.
    pub reach: Reach,
    /// Whether TCP sockets are, beside those of UDP.
    pub tcp: bool,
    /// The directory of the pinned maps. They need not be there before the first order.
    pub maps: PathBuf,
}

/// Why a thread that enters network namespaces does not run.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The thread.
    #[error("cannot start the thread {name}")]
    Start {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The privileges that the thread does not need.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
}

/// Gives orders to the thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Closer {
    orders: SyncSender<()>,
    /// How many frontends and backends had been changed at the last order.
    ordered: Option<u64>,
}

impl Closer {
    /// Starts the thread. It keeps the capabilities it needs and no others, whatever the calling
    /// thread drops or keeps afterwards. Without those for other namespaces it closes sockets of
    /// its own namespace only, and says so.
    pub fn start(options: CloserOptions) -> Result<Self, ThreadError> {
        let options = CloserOptions {
            reach: possible(options.reach),
            ..options
        };
        // An order that waits stands for all that come before it is taken.
        let (orders, receiver) = mpsc::sync_channel(1);
        let kept = [capabilities(options.reach), &privileges::CONNECT_AGAIN].concat();
        start_thread(THREAD, kept, move || Worker::new(options).run(&receiver))?;
        Ok(Self {
            orders,
            ordered: None,
        })
    }

    /// Has sockets looked after if `changed`, the number of frontends and backends that were
    /// changed so far, is another one than before; the first time in any case, since backends may
    /// have been removed while no agent ran. Does not wait for it.
    pub fn follow(&mut self, changed: u64) {
        if self.ordered != Some(changed) {
            self.ordered = Some(changed);
            // If an order waits already, this is part of it; a thread that has ended said why.
            let _ = self.orders.try_send(());
        }
    }
}

/// Starts a thread with these capabilities, as far as they are held, and no others, whatever the
/// calling thread drops or keeps afterwards.
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

/// Rests after a search that began then.
fn rest(start: Instant) {
    thread::sleep(start.elapsed().saturating_mul(REST).min(LONGEST_REST));
}

/// What can be reached with the capabilities there are.
fn possible(wanted: Reach) -> Reach {
    match privileges::require("run", capabilities(wanted)) {
        Err(error) if wanted == Reach::Node => {
            tracing::warn!("{error}; until then {}", without_other_namespaces());
            Reach::OwnNamespace
        }
        _ => wanted,
    }
}

/// What follows if other network namespaces cannot be entered.
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
    fn the_first_time_and_every_change_are_orders() {
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
    fn an_order_that_waits_stands_for_those_after_it() {
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
