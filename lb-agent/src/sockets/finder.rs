//! Finds the network namespaces of this node that may be Pods': on a thread of its own, which
//! enters each of them.
//!
//! ```text
//! devices changed, or it is time -> order -> what is in each namespace
//!   -> the agent's loop decides which are Pods'
//! ```
//! A namespace is nothing that the kernel announces, nor are its addresses; but the node's end of a
//! new Pod's device is. The device comes before its address, so the thread looks again soon at what
//! has none yet.

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
/// How soon it looks again where a device has no address yet. Each time without one doubles it.
const SOON: Duration = Duration::from_millis(100);
/// How long it looks nowhere at most: addresses may change, and other kinds of devices move,
/// without a sign.
const LATE: Duration = Duration::from_secs(60);

/// The network namespaces that devices lead out of, without the node's own.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Each of them.
    pub places: Vec<Place>,
    /// Whether others could not be looked at.
    pub failed: bool,
}

/// Gives orders to the thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Finder {
    orders: SyncSender<()>,
    found: watch::Receiver<Option<Found>>,
}

impl Finder {
    /// Starts the thread, which looks at once. `None` where the kernel tells no network namespaces
    /// apart, and without the capabilities, which the closer says.
    pub fn start() -> Result<Option<Self>, ThreadError> {
        let may = privileges::require("run", &privileges::ALL_SOCKETS).is_ok();
        if !may || !is_possible() {
            return Ok(None);
        }
        // An order that waits stands for all that come before it is taken.
        let (orders, receiver) = mpsc::sync_channel(1);
        let (publisher, found) = watch::channel(None);
        start_thread(THREAD, privileges::ALL_SOCKETS.to_vec(), move || {
            if let Err(error) = run(&receiver, &publisher) {
                tracing::error!(
                    "cannot return to the own network namespace: {}; connections of new Pods are translated at their \
                     devices, not at their sockets: restart the agent",
                    describe(&error)
                );
            }
        })?;
        Ok(Some(Self { orders, found }))
    }

    /// Has it look again, and soon where something is to come. Does not wait for it.
    pub fn look(&self) {
        // If an order waits already, this is part of it; a thread that has ended said why.
        let _ = self.orders.try_send(());
    }

    /// What it has found last; nothing before it has looked for the first time.
    pub fn found(&mut self) -> watch::Ref<'_, Option<Found>> {
        self.found.borrow_and_update()
    }

    /// Whether it has looked, or never will.
    pub fn has_looked(&self) -> bool {
        self.found.borrow().is_some() || self.found.has_changed().is_err()
    }

    /// Waits until it has found something else.
    pub async fn changed(&mut self) {
        if self.found.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Whether the kernel tells network namespaces apart.
pub(super) fn is_possible() -> bool {
    namespace::cookie().is_ok_and(|cookie| cookie.is_some())
}

/// Looks until nobody can give orders any more; fails if the thread cannot return to its own
/// namespace.
fn run(orders: &Receiver<()>, publisher: &watch::Sender<Option<Found>>) -> io::Result<()> {
    let namespaces = Namespaces::of_this_thread()?;
    let mut delay = SOON;
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
            Ok(()) => SOON,
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
        // It comes first.
        if !std::mem::take(&mut is_own) {
            places.extend(place::look(node)?);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    // As they come, names and processes have an order of their own each time.
    places.sort_unstable_by_key(|place: &Place| place.cookie);
    Ok(Found {
        places,
        failed: visit.failed,
    })
}
