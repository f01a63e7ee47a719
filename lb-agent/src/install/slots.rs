//! Tracks which parts of the slots array are in use.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::layout::Region;

/// Allocates regions of an array. It uses the start of the smallest gap that is large enough.
#[derive(Debug)]
pub(super) struct SlotAllocator {
    /// Base to length of each gap. Gaps never touch.
    gaps: BTreeMap<u32, u32>,
    /// The gaps, ordered by length.
    by_length: BTreeSet<(u32, u32)>,
}

impl SlotAllocator {
    /// An array of `size` free slots.
    pub(super) fn new(size: u32) -> Self {
        let mut allocator = Self {
            gaps: BTreeMap::new(),
            by_length: BTreeSet::new(),
        };
        allocator.insert(0, size);
        allocator
    }

    /// Allocates a region. `None` if no gap is large enough. Length 0 yields the empty region.
    pub(super) fn allocate(&mut self, length: u32) -> Option<Region> {
        if length == 0 {
            return Some(Region::default());
        }
        let (found, base) = self.by_length.range((length, 0)..).next().copied()?;
        self.remove(base, found);
        self.insert(base + length, found - length);
        Some(Region { base, length })
    }

    /// Allocates a specific region. Returns false if it is not completely free.
    pub(super) fn take(&mut self, region: Region) -> bool {
        let Some(end) = region.base.checked_add(region.length) else {
            return false;
        };
        let gap = self
            .gaps
            .range(..=region.base)
            .next_back()
            .map(|(base, length)| (*base, *length));
        let Some((base, length)) = gap.filter(|(base, length)| region.length > 0 && end <= base + length)
        else {
            return false;
        };
        self.remove(base, length);
        self.insert(base, region.base - base);
        self.insert(end, base + length - end);
        true
    }

    /// Frees a region.
    pub(super) fn free(&mut self, region: Region) {
        if region.length == 0 {
            return;
        }
        let (mut base, mut length) = (region.base, region.length);
        let before = self
            .gaps
            .range(..base)
            .next_back()
            .map(|(base, length)| (*base, *length));
        if let Some((before, its_length)) = before.filter(|(before, its_length)| before + its_length == base)
        {
            self.remove(before, its_length);
            base = before;
            length += its_length;
        }
        if let Some(its_length) = self.gaps.get(&(base + length)).copied() {
            self.remove(base + length, its_length);
            length += its_length;
        }
        self.insert(base, length);
    }

    fn insert(&mut self, base: u32, length: u32) {
        if length > 0 {
            self.gaps.insert(base, length);
            self.by_length.insert((length, base));
        }
    }

    fn remove(&mut self, base: u32, length: u32) {
        self.gaps.remove(&base);
        self.by_length.remove(&(length, base));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u32 = 64;

    #[derive(Clone, Debug)]
    enum Step {
        Allocate(u32),
        Free(usize),
        Take(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20_u32).prop_map(Step::Allocate),
            any::<usize>().prop_map(Step::Free),
            (0..SIZE + 5, 0..20_u32).prop_map(|(base, length)| Step::Take(base, length)),
        ]
    }

    fn is_free(held: &[Region], region: Region) -> bool {
        region.base + region.length <= SIZE
            && held.iter().all(|other| {
                region.base + region.length <= other.base || other.base + other.length <= region.base
            })
    }

    proptest! {
        #[test]
        fn regions_are_disjoint_and_gaps_are_found(steps in prop::collection::vec(step(), 1..100)) {
            let mut allocator = SlotAllocator::new(SIZE);
            let mut held: Vec<Region> = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate(length) => match allocator.allocate(length) {
                        Some(region) => {
                            prop_assert_eq!(region.length, length);
                            if length > 0 {
                                prop_assert!(is_free(&held, region));
                                held.push(region);
                            }
                        }
                        None => {
                            let fits = |base| is_free(&held, Region { base, length });
                            prop_assert!(!(0..SIZE).any(fits));
                        }
                    },
                    Step::Free(which) if !held.is_empty() => {
                        allocator.free(held.swap_remove(which % held.len()));
                    }
                    Step::Free(_) => {}
                    Step::Take(base, length) => {
                        let region = Region { base, length };
                        let expected = length > 0 && is_free(&held, region);
                        prop_assert_eq!(allocator.take(region), expected);
                        if expected {
                            held.push(region);
                        }
                    }
                }
            }
            for region in held {
                allocator.free(region);
            }
            prop_assert_eq!(allocator.allocate(SIZE), Some(Region { base: 0, length: SIZE }));
        }
    }

    #[test]
    fn regions_may_end_at_the_largest_index() {
        let mut allocator = SlotAllocator::new(u32::MAX);
        assert!(!allocator.take(Region {
            base: u32::MAX,
            length: 2
        }));
        assert!(allocator.take(Region {
            base: u32::MAX - 1,
            length: 1
        }));
        assert_eq!(
            allocator.allocate(u32::MAX - 1),
            Some(Region {
                base: 0,
                length: u32::MAX - 1
            })
        );
        assert_eq!(allocator.allocate(1), None);
    }
}
