//! The state outside the maps that the answer depends on.

use std::collections::BTreeSet;

use super::probe::Routes;
use crate::datapath::clock::Clock;
use crate::devices::Bare;

/// The state outside the maps that the answer depends on.
pub struct Surroundings<'a> {
    /// The current time.
    pub clock: Clock,
    /// The node's routing tables.
    pub routes: &'a dyn Routes,
    /// Index of the device that the packet arrives on; 0 if unknown.
    pub ingress: u32,
    /// Devices that carry no programs.
    pub bare: &'a BTreeSet<Bare>,
    /// Whether socket programs are attached.
    pub has_socket_programs: bool,
}

impl Surroundings<'_> {
    /// The device with this index, if it carries no programs.
    pub(super) fn bare_device(&self, index: u32) -> Option<&Bare> {
        self.bare.iter().find(|device| device.index == index)
    }
}
