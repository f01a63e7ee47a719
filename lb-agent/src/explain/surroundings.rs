//! What the answer depends on beside the maps.

use std::collections::BTreeSet;

use super::probe::Routes;
use crate::datapath::clock::Clock;
use crate::devices::Bare;

/// What the answer depends on beside the maps.
pub struct Surroundings<'a> {
    /// The time.
    pub clock: Clock,
    /// The node's routing tables.
    pub routes: &'a dyn Routes,
    /// Index of the device that the packet comes in by; 0 if that is not known.
    pub ingress: u32,
    /// The devices that carry no programs.
    pub bare: &'a BTreeSet<Bare>,
    /// Whether programs are attached to sockets.
    pub has_socket_programs: bool,
}

impl Surroundings<'_> {
    /// The device of an index, if it carries no programs.
    pub(super) fn bare_device(&self, index: u32) -> Option<&Bare> {
        self.bare.iter().find(|device| device.index == index)
    }
}
