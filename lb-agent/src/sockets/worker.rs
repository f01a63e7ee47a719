//! The closer's thread.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use super::diag::{Connected, Diag, can_destroy};
use super::holders::Holders;
use super::namespaces::{Namespaces, Visit};
use super::pending::Pending;
use super::wanted::Wanted;
use super::{CloserOptions, Reach, rest};
use crate::datapath::sockets::{Served, SocketMaps, SocketRow};
use crate::describe;
use crate::maps::Protocol;

/// The state of the thread.
pub(super) struct Worker {
    options: CloserOptions,
    /// Protocols whose sockets can be closed.
    closable: Vec<Protocol>,
    maps: Option<SocketMaps>,
    pending: Pending,
}

/// Why a search was aborted.
#[derive(Debug, thiserror::Error)]
enum SearchError {
    #[error(transparent)]
    Maps(#[from] crate::maps::MapError),
    #[error("cannot open the agent's network namespace")]
    Own(#[source] io::Error),
    #[error("cannot return to the agent's network namespace")]
    Return(#[source] io::Error),
}

impl Worker {
    pub(super) fn new(options: CloserOptions) -> Self {
        let wanted = [Protocol::Tcp, Protocol::Udp].into_iter();
        let wanted = wanted.filter(|protocol| options.tcp || *protocol != Protocol::Tcp);
        Self {
            closable: wanted.filter(|protocol| is_supported(*protocol)).collect(),
            options,
            maps: None,
            pending: Pending::default(),
        }
    }

    /// Executes orders until the order channel is closed.
    pub(super) fn run(mut self, orders: &Receiver<()>) {
        while wait(orders, self.pending.take_due()) {
            let start = Instant::now();
            match self.search() {
                Ok(()) => {}
                Err(error @ SearchError::Return(_)) => {
                    tracing::error!(
                        "{}; sockets of removed backends are not closed any more: restart the agent",
                        describe(&error)
                    );
                    return;
                }
                Err(error) => {
                    tracing::warn!("sockets of removed backends are not closed: {}", describe(&error));
                }
            }
            rest(start);
        }
    }

    /// Handles all sockets without a backend, and deletes the rows of handled sockets.
    fn search(&mut self) -> Result<(), SearchError> {
        let maps = match &mut self.maps {
            Some(maps) => maps,
            none => none.insert(SocketMaps::open(&self.options.maps)?),
        };
        let mut left = maps.stranded()?;
        left.retain(|row| row.protocol == Protocol::Udp || self.closable.contains(&row.protocol));
        let found = match left.is_empty() {
            true => Found::default(),
            false => find(self.options.reach, &left, maps, &self.closable)?,
        };
        // Rows of sockets that wait for a first backend stay until the socket is closed.
        left.retain(|row| !found.waiting.contains(row));
        for row in found.closed.iter().chain(&found.connected) {
            left.remove(row);
            maps.remove(row)?;
        }
        for row in self.pending.update(&left, found.complete, Instant::now()) {
            maps.remove(&row)?;
        }
        found.log();
        Ok(())
    }
}

/// The result of a search.
#[derive(Debug, Default)]
struct Found {
    /// Rows whose sockets were closed.
    closed: Vec<SocketRow>,
    /// Rows whose sockets were reconnected.
    connected: Vec<SocketRow>,
    /// Rows whose sockets wait for a first backend.
    waiting: HashSet<SocketRow>,
    /// The number of searched namespaces.
    namespaces: usize,
    /// Whether every namespace was searched that could contain such sockets.
    complete: bool,
}

impl Found {
    fn log(&self) {
        let number = |protocol| self.closed.iter().filter(|row| row.protocol == protocol).count();
        if !self.closed.is_empty() {
            tracing::info!(
                tcp = number(Protocol::Tcp),
                udp = number(Protocol::Udp),
                namespaces = self.namespaces,
                "closed sockets whose backend was removed"
            );
        }
        if !self.connected.is_empty() {
            tracing::info!(
                udp = self.connected.len(),
                "connected sockets without a backend to their Services again"
            );
        }
    }
}

fn find(
    reach: Reach,
    rows: &HashSet<SocketRow>,
    maps: &SocketMaps,
    closable: &[Protocol],
) -> Result<Found, SearchError> {
    let mut wanted = Wanted::new(rows.iter().copied());
    let mut found = Found::default();
    let mut look = || handle_sockets_here(&mut wanted, maps, closable, &mut found);
    // Only the node's own sockets can be connected without a backend.
    let only_own = reach == Reach::OwnNamespace || rows.iter().all(SocketRow::has_no_backend);
    let visit = if only_own {
        Visit::of_one(look())
    } else {
        let namespaces = Namespaces::of_this_thread().map_err(SearchError::Own)?;
        namespaces.visit(look).map_err(SearchError::Return)?
    };
    found.namespaces = visit.visited;
    found.complete = reach == Reach::Node && !visit.failed;
    Ok(found)
}

/// Handles the wanted sockets of the thread's namespace. Breaks once none is left.
fn handle_sockets_here(
    wanted: &mut Wanted,
    maps: &SocketMaps,
    closable: &[Protocol],
    found: &mut Found,
) -> io::Result<ControlFlow<()>> {
    let mut diag = Diag::open()?;
    for listing in wanted.listings().clone() {
        let mut sockets = Vec::new();
        for socket in diag.list(&listing)? {
            let Some(row) = wanted.row(&socket) else {
                continue;
            };
            // The socket may have been connected again meanwhile.
            if !maps.holds(&row).map_err(io::Error::other)? {
                continue;
            }
            let served = maps.served(&row).map_err(io::Error::other)?;
            if row.has_no_backend() && served != Served::Backend {
                wanted.remove(&row);
                found.waiting.insert(row);
                continue;
            }
            let goes_on = row.protocol == Protocol::Udp && served != Served::NoFrontend;
            sockets.push((row, socket, goes_on));
        }
        let going_on = sockets.iter().filter(|(.., goes_on)| *goes_on);
        let holders = Holders::of(going_on.map(|(_, socket, _)| socket));
        for (row, socket, goes_on) in &sockets {
            if *goes_on && connect_again(&holders, socket, row) {
                if row.has_no_backend() && maps.holds(row).map_err(io::Error::other)? {
                    // The programs rejected it for another reason and wrote the row again.
                    found.waiting.insert(*row);
                } else {
                    found.connected.push(*row);
                }
            } else if closable.contains(&row.protocol) && close(&mut diag, socket, row) {
                found.closed.push(*row);
            } else {
                continue;
            }
            wanted.remove(row);
        }
    }
    Ok(match wanted.is_empty() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })
}

/// Reconnects a UDP socket to its frontend. Returns false if it stays unchanged.
fn connect_again(holders: &Holders, socket: &Connected, row: &SocketRow) -> bool {
    match holders.connect_again(socket, row.named) {
        Ok(()) => {
            tracing::debug!(?row, "connected a socket again");
            true
        }
        Err(error) => {
            tracing::debug!(%error, ?row, "cannot connect a socket again");
            false
        }
    }
}

/// Destroys a socket. Returns false if it stays unchanged.
fn close(diag: &mut Diag, socket: &Connected, row: &SocketRow) -> bool {
    match diag.destroy(socket) {
        Ok(is_closed) => {
            tracing::debug!(?row, is_closed, "closed a socket");
            is_closed
        }
        Err(error) => {
            // Some kinds of sockets cannot be destroyed, such as subflows of Multipath TCP.
            tracing::warn!(%error, ?row, "cannot close a socket whose backend was removed");
            false
        }
    }
}

/// Waits for an order or until `due`. Returns false once the order channel is closed.
fn wait(orders: &Receiver<()>, due: Option<Instant>) -> bool {
    let Some(due) = due else {
        return orders.recv().is_ok();
    };
    let timeout = due.saturating_duration_since(Instant::now());
    orders.recv_timeout(timeout) != Err(RecvTimeoutError::Disconnected)
}

/// Whether this kernel can destroy sockets of this protocol. Logs a warning if not.
fn is_supported(protocol: Protocol) -> bool {
    let reason = match can_destroy(protocol) {
        Ok(true) => return true,
        Ok(false) => "this kernel cannot do it (see `lb-agent check`)".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(
        "{protocol} sockets that are connected to a removed backend are not closed, and wait for their own timeouts: \
         {reason}"
    );
    false
}
