//! Which ids are in use.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Hands out the ids from 1, the lowest free one first: the used part of the arrays stays dense.
#[derive(Debug)]
pub(super) struct Ids {
    /// The lowest id that was never handed out.
    next: u32,
    /// Ids below `next` that are free.
    free: BinaryHeap<Reverse<u32>>,
    /// The first id that the maps do not have.
    end: u32,
}

impl Ids {
    /// Ids below `end`, of which those in `used` (ascending) are taken.
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

    /// How many are free.
    pub(super) fn available(&self) -> usize {
        let never_used = self.end.saturating_sub(self.next);
        self.free.len() + usize::try_from(never_used).unwrap_or(usize::MAX)
    }

    /// A free id.
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

    /// Gives an id back. One that the maps do not have (they were larger before) is forgotten.
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
    fn lowest_first_and_none_twice() {
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
    fn maps_that_became_smaller() {
        let mut ids = Ids::new(4, [2, 9].into_iter());
        assert_eq!(ids.available(), 2);
        ids.release(9);
        assert_eq!(
            (ids.allocate(), ids.allocate(), ids.allocate()),
            (Some(1), Some(3), None)
        );
    }
}
