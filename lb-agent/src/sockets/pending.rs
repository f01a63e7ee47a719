//! Rows of removed backends whose sockets were not found.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::datapath::sockets::SocketRow;

/// The longest time between the translation of a socket and its appearance in the kernel's list.
/// Both happen in the same system call.
const GRACE: Duration = Duration::from_secs(1);

/// Rows without a socket, and since when. Most of their sockets are closed or were never connected.
/// But a socket may also be about to connect.
#[derive(Debug, Default)]
pub(super) struct Pending {
    since: HashMap<SocketRow, Instant>,
    due: Option<Instant>,
}

impl Pending {
    /// Records the rows that a search has left. If the search was `complete`, returns old rows,
    /// which can be deleted because no socket will appear for them.
    pub(super) fn update(
        &mut self,
        left: &HashSet<SocketRow>,
        complete: bool,
        now: Instant,
    ) -> Vec<SocketRow> {
        self.since.retain(|row, _| left.contains(row));
        for row in left {
            self.since.entry(*row).or_insert(now);
        }
        let is_old = |since: &Instant| *since + GRACE <= now;
        let young = self.since.values().filter(|since| !is_old(since));
        self.due = young.min().map(|since| *since + GRACE);
        if !complete {
            return Vec::new();
        }
        let old = self.since.extract_if(|_, since| is_old(since));
        old.map(|(row, _)| row).collect()
    }

    /// When to search again for the sockets of rows that were new in the last search. Other rows
    /// wait for the next removal of a backend.
    pub(super) fn take_due(&mut self) -> Option<Instant> {
        self.due.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::Protocol;

    fn rows(cookies: &[u64]) -> HashSet<SocketRow> {
        let row = |cookie: &u64| SocketRow {
            cookie: *cookie,
            protocol: Protocol::Tcp,
            peer: "10.0.0.1:80".parse().unwrap(),
            named: "10.96.0.1:80".parse().unwrap(),
            names_backend: false,
            backend: 1,
            generation: 1,
        };
        cookies.iter().map(row).collect()
    }

    fn update(pending: &mut Pending, left: &[u64], complete: bool, now: Instant) -> HashSet<SocketRow> {
        pending.update(&rows(left), complete, now).into_iter().collect()
    }

    #[test]
    fn a_row_is_searched_for_again_before_it_is_deleted() {
        let start = Instant::now();
        let mut pending = Pending::default();
        assert_eq!(update(&mut pending, &[1, 2], true, start), rows(&[]));
        assert_eq!(pending.take_due(), Some(start + GRACE));
        // The socket of one row was found meanwhile, and another row is new.
        let later = start + GRACE / 2;
        assert_eq!(update(&mut pending, &[1, 3], true, later), rows(&[]));
        let due = pending.take_due().unwrap();
        assert_eq!(due, start + GRACE);
        assert_eq!(update(&mut pending, &[1, 3], true, due), rows(&[1]));
        assert_eq!(pending.take_due(), Some(later + GRACE));
        assert_eq!(update(&mut pending, &[3], true, later + GRACE), rows(&[3]));
        assert_eq!(pending.take_due(), None);
    }

    #[test]
    fn rows_stay_while_not_everything_can_be_searched() {
        let start = Instant::now();
        let mut pending = Pending::default();
        assert_eq!(update(&mut pending, &[1], false, start), rows(&[]));
        assert_eq!(update(&mut pending, &[1], false, start + GRACE), rows(&[]));
        // One additional search is enough. The next one follows a removal.
        assert_eq!(pending.take_due(), None);
        assert_eq!(update(&mut pending, &[1], true, start + 2 * GRACE), rows(&[1]));
    }
}
