//! Finds the network namespaces of this node that may belong to Pods. A dedicated thread enters
//! each of them.
//!
//! ```text
//! devices changed, or timeout -> order -> devices and addresses of each namespace
//!   -> the agent's loop decides which belong to Pods
//! ```
//! The kernel does not announce new network namespaces or their addresses. But it announces the
//! node's end of a new Pod's device. The device appears before its address, so the thread soon
//! searches again if a namespace has no address yet.

use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::namespaces::Namespaces;
use super::place::{self, Place};
use super::{ThreadError, rest, start_thread};
use crate::{describe, namespace, privileges};

/// Name of the thread.
const THREAD: &str = "pod-finder";
/// The delay before the next search if a namespace has no address yet. It doubles each time.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest time without a search. Addresses may change, and other kinds of devices may move,
/// without an event.
const LATE: Duration = Duration::from_secs(60);

/// The network namespaces with devices that lead out, except the node's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// The namespaces.
    pub places: Vec<Place>,
    /// Whether some namespaces could not be examined.
    pub failed: bool,
}

/// Sends orders to the thread. The thread ends when this is dropped.
#[derive(Debug)]
pub struct Finder {
    orders: SyncSender<()>,
    found: watch::Receiver<Option<Found>>,
}

impl Finder {
    /// Starts the thread, which searches immediately. Returns `None` if the kernel has no namespace
    /// cookies, or if capabilities are missing. The closer reports missing capabilities.
    pub fn start() -> Result<Option<Self>, ThreadError> {
        let may = privileges::require("run", &privileges::ALL_SOCKETS).is_ok();
        if !may || !is_possible() {
            return Ok(None);
        }
        // The queue holds one order. It also stands for all later orders until the thread takes it.
        let (orders, receiver) = mpsc::sync_channel(1);
        let (publisher, found) = watch::channel(None);
        start_thread(THREAD, privileges::ALL_SOCKETS.to_vec(), move || {
            if let Err(error) = run(&receiver, &publisher) {
                tracing::error!(
                    "cannot return to the agent's network namespace: {}; connections of new Pods are translated at their \
                     devices, not at their sockets: restart the agent",
                    describe(&error)
                );
            }
        })?;
        Ok(Some(Self { orders, found }))
    }

    /// Orders a search. Returns immediately.
    pub fn look(&self) {
        // A queued order covers this one. If the thread has ended, it has logged why.
        let _ = self.orders.try_send(());
    }

    /// The latest result. `None` before the first search ends.
    pub fn found(&mut self) -> watch::Ref<'_, Option<Found>> {
        self.found.borrow_and_update()
    }

    /// Whether the first search has ended, or will never take place.
    pub fn has_looked(&self) -> bool {
        self.found.borrow().is_some() || self.found.has_changed().is_err()
    }

    /// Waits for a different result.
    pub async fn changed(&mut self) {
        if self.found.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Whether the kernel has network namespace cookies.
pub(super) fn is_possible() -> bool {
    namespace::cookie().is_ok_and(|cookie| cookie.is_some())
}

/// Searches until the order channel is closed. Fails if the thread cannot return to its own
/// namespace.
fn run(orders: &Receiver<()>, publisher: &watch::Sender<Option<Found>>) -> io::Result<()> {
    let namespaces = Namespaces::of_this_thread()?;
    let mut delay = FIRST_DELAY;
    loop {
        let start = Instant::now();
        let found = find(&namespaces)?;
        let is_settled = found.places.iter().all(|place| !place.addresses.is_empty());
        tracing::debug!(namespaces = found.places.len(), took = ?start.elapsed(), is_settled, "looked for Pods");
        publisher.send_if_modified(|published| {
            let is_new = published.as_ref() != Some(&found);
            *published = Some(found);
            is_new
        });
        rest(start);
        let timeout = if is_settled { LATE } else { delay };
        delay = match orders.recv_timeout(timeout) {
            Ok(()) => FIRST_DELAY,
            Err(RecvTimeoutError::Timeout) => (delay * 2).min(LATE),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
    }
}

fn find(namespaces: &Namespaces) -> io::Result<Found> {
    let node = namespaces.own();
    let mut places = Vec::new();
    let mut is_own = true;
    let visit = namespaces.visit(|| {
        // The node's own namespace comes first.
        if !std::mem::take(&mut is_own) {
            places.extend(place::look(node)?);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    // The order of names and processes differs between searches.
    places.sort_unstable_by_key(|place: &Place| place.cookie);
    Ok(Found {
        places,
        failed: visit.failed,
    })
}
