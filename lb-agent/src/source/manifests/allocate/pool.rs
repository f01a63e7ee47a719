//! A pool of numbers. Each number is allocated to one Service.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::maglev::mix;
use crate::object::ObjectReference;
use crate::ports::NODE_PORTS;
use crate::service_cidr::ServiceCidr;

/// A value that a Service gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Value {
    /// A cluster IP.
    Address(IpAddr),
    /// A port of the nodes.
    Port(u16),
}

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Port(port) => port.fmt(formatter),
        }
    }
}

/// The size of a pool, and how many of its first numbers are left for manual choice. These are
/// allocated only when all others are in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) by_hand: u64,
    pub(super) size: u64,
}

impl Span {
    /// All numbers in the order in which they are tried.
    fn candidates(self, hash: u64) -> impl Iterator<Item = u64> {
        around(self.by_hand, self.size - self.by_hand, hash).chain(around(0, self.by_hand, hash))
    }
}

/// `count` numbers from `first` on. The hash chooses the first one.
fn around(first: u64, count: u64, hash: u64) -> impl Iterator<Item = u64> {
    let start = hash.checked_rem(count).unwrap_or_default();
    (start..count).chain(0..start).map(move |index| first + index)
}

/// A hash of a text. It must be the same in all versions and on all machines: allocations depend on
/// it.
pub(super) fn hash(text: &str) -> u64 {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes) {
            *to = *from;
        }
        u64::from_le_bytes(word)
    };
    let words = text.as_bytes().chunks(8).map(word);
    words.fold(0, |hash, word| mix(hash ^ word))
}

/// What the numbers of a pool mean.
#[derive(Clone, Copy, Debug)]
enum Meaning {
    Addresses(ServiceCidr),
    NodePorts,
}

/// A pool. Each of its numbers is allocated at most once.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    meaning: Meaning,
    span: Span,
    /// The numbers that a manifest names, with its Service.
    claimed: BTreeMap<u64, &'a ObjectReference>,
    /// The numbers that are allocated.
    given: BTreeMap<u64, &'a ObjectReference>,
    /// The numbers of deleted Services. They are allocated only when no other number is left.
    reserved: BTreeSet<u64>,
    /// Whether no number is left. It saves further searches.
    is_full: bool,
}

/// Why a Service does not keep a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lost<'a> {
    /// The manifest of this Service names the value.
    Claimed(&'a ObjectReference),
    /// The value is also allocated to this Service.
    Taken(&'a ObjectReference),
    /// The value is no longer in the range.
    OutOfRange,
}

impl<'a> Pool<'a> {
    pub(super) fn of_addresses(cidr: ServiceCidr) -> Self {
        Self::new(Meaning::Addresses(cidr), cidr.span())
    }

    /// As in the API server, up to 128 of the first NodePorts are left for manual choice
    /// (KEP-3668).
    pub(super) fn of_node_ports() -> Self {
        let size = u64::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
        let by_hand = (size / 32).clamp(16, 128);
        Self::new(Meaning::NodePorts, Span { by_hand, size })
    }

    fn new(meaning: Meaning, span: Span) -> Self {
        Self {
            meaning,
            span,
            claimed: BTreeMap::new(),
            given: BTreeMap::new(),
            reserved: BTreeSet::new(),
            is_full: false,
        }
    }

    fn index(&self, value: Value) -> Option<u64> {
        match (self.meaning, value) {
            (Meaning::Addresses(cidr), Value::Address(address)) => cidr.index(address),
            (Meaning::NodePorts, Value::Port(port)) if NODE_PORTS.contains(&port) => {
                Some(u64::from(port - NODE_PORTS.start()))
            }
            _ => None,
        }
    }

    fn value(&self, index: u64) -> Value {
        match self.meaning {
            Meaning::Addresses(cidr) => Value::Address(cidr.address(index)),
            Meaning::NodePorts => {
                let offset = u16::try_from(index).unwrap_or_default();
                Value::Port(NODE_PORTS.start() + offset)
            }
        }
    }

    /// Claims a value that the manifest of `service` names.
    pub(super) fn claim(&mut self, value: Value, service: &'a ObjectReference) {
        if let Some(index) = self.index(value) {
            self.claimed.entry(index).or_insert(service);
        }
    }

    /// Lets `service` keep a value that it had.
    pub(super) fn keep(&mut self, value: Value, service: &'a ObjectReference) -> Result<(), Lost<'a>> {
        let index = self.index(value).ok_or(Lost::OutOfRange)?;
        if let Some(claimant) = self.claimed.get(&index) {
            return Err(Lost::Claimed(claimant));
        }
        if let Some(other) = self.given.get(&index) {
            return Err(Lost::Taken(other));
        }
        self.given.insert(index, service);
        Ok(())
    }

    /// Reserves a value of a deleted Service while other values are free.
    pub(super) fn reserve(&mut self, value: Value) {
        self.reserved.extend(self.index(value));
    }

    /// Whether no Service has the value.
    pub(super) fn is_free(&self, value: Value) -> bool {
        self.index(value).is_some_and(|index| self.is_free_at(index))
    }

    fn is_free_at(&self, index: u64) -> bool {
        !self.claimed.contains_key(&index) && !self.given.contains_key(&index)
    }

    /// Allocates a new value for `service`; `None` if no value is left.
    pub(super) fn give(&mut self, service: &'a ObjectReference, hash: u64) -> Option<Value> {
        if self.is_full {
            return None;
        }
        let mut candidates = self.span.candidates(hash);
        let mut index = candidates.find(|index| self.is_free_at(*index) && !self.reserved.contains(index));
        if index.is_none() {
            self.reserved.clear();
            index = self.span.candidates(hash).find(|index| self.is_free_at(*index));
        }
        match index {
            Some(index) => self.given.insert(index, service),
            None => {
                self.is_full = true;
                return None;
            }
        };
        index.map(|index| self.value(index))
    }

    /// Describes why no value is left, and what to do.
    pub(super) fn full_message(&self) -> String {
        match self.meaning {
            Meaning::Addresses(cidr) => format!(
                "no address is left for it in {cidr}, which has {}: name a larger network with --service-cidr, or remove \
                 Services",
                self.span.size
            ),
            Meaning::NodePorts => format!(
                "no NodePort is left for it of the {} in {}-{}: remove Services, or set \
                 allocateLoadBalancerNodePorts of load balancers to false",
                self.span.size,
                NODE_PORTS.start(),
                NODE_PORTS.end()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_tried_once_and_the_manual_ones_last() {
        for (by_hand, size) in [(0, 1), (0, 14), (16, 30), (16, 17)] {
            let span = Span { by_hand, size };
            for hash in [0, 1, 13, 16, u64::MAX] {
                let candidates: Vec<u64> = span.candidates(hash).collect();
                let distinct: BTreeSet<u64> = candidates.iter().copied().collect();
                assert_eq!(distinct, (0..size).collect(), "{span:?} {hash}");
                assert_eq!(candidates.len(), distinct.len(), "{span:?} {hash}");
                let upper = usize::try_from(size - by_hand).unwrap();
                assert!(
                    candidates[..upper].iter().all(|index| *index >= by_hand),
                    "{span:?} {hash}"
                );
            }
        }
    }

    #[test]
    fn the_hash_of_a_text_never_changes() {
        let found = ["", "default/web/IPv4", "default/web/IPv6", "default/web/80"].map(hash);
        let expected = [
            0,
            17_499_334_002_245_210_817,
            165_946_871_920_543_793,
            1_162_861_149_645_549_032,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn automatic_node_ports_begin_at_30086() {
        let pool = Pool::of_node_ports();
        assert_eq!(pool.value(pool.span.by_hand), Value::Port(30_086));
        assert_eq!(pool.value(pool.span.size - 1), Value::Port(32_767));
    }
}
