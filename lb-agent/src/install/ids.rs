//! Tracks which ids are in use.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Allocates ids from 1, the lowest free one first, so that the used part of the arrays stays
/// dense.
#[derive(Debug)]
pub(super) struct Ids {
    /// The lowest id that was never allocated.
    next: u32,
    /// Free ids below `next`.
    free: BinaryHeap<Reverse<u32>>,
    /// The first id beyond the maps.
    end: u32,
}

impl Ids {
    /// Ids below `end`. Those in `used` (ascending) are allocated.
    pub(super) fn new(end: u32, used: impl Iterator<Item = u32>) -> Self {
        let mut ids = Self {
            next: 1,
            free: BinaryHeap::new(),
            end,
        };
        for id in used {
            ids.free.extend((ids.next..id.min(end)).map(Reverse));
            ids.next = ids.next.max(id.saturating_add(1));
        }
        ids
    }

    /// The number of free ids.
    pub(super) fn available(&self) -> usize {
        let never_used = self.end.saturating_sub(self.next);
        self.free.len() + usize::try_from(never_used).unwrap_or(usize::MAX)
    }

    /// Allocates an id.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        if let Some(Reverse(id)) = self.free.pop() {
            return Some(id);
        }
        let id = self.next;
        (id < self.end).then(|| {
            self.next = id + 1;
            id
        })
    }

    /// Frees an id. Ids beyond the maps, which were larger before, are forgotten.
    pub(super) fn release(&mut self, id: u32) {
        if (1..self.end).contains(&id) {
            self.free.push(Reverse(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_allocated_lowest_first_and_never_twice() {
        let mut ids = Ids::new(8, [2, 5].into_iter());
        assert_eq!(ids.available(), 5);
        assert_eq!(
            std::iter::from_fn(|| ids.allocate()).collect::<Vec<_>>(),
            [1, 3, 4, 6, 7]
        );
        ids.release(5);
        ids.release(2);
        assert_eq!(
            (ids.allocate(), ids.allocate(), ids.allocate()),
            (Some(2), Some(5), None)
        );
    }

    #[test]
    fn ids_beyond_smaller_maps_are_forgotten() {
        let mut ids = Ids::new(4, [2, 9].into_iter());
        assert_eq!(ids.available(), 2);
        ids.release(9);
        assert_eq!(
            (ids.allocate(), ids.allocate(), ids.allocate()),
            (Some(1), Some(3), None)
        );
    }
}
