//! What the agent needs of an IP version to use its maps.

use std::net::IpAddr;

use lb_common::map::FamilySpecs;
use lb_common::pod::PlainAddress;

/// An address of the IP version whose maps contain it.
pub trait MapFamily: FamilySpecs + PlainAddress + Into<IpAddr> {}

impl<A: FamilySpecs + PlainAddress + Into<IpAddr>> MapFamily for A {}
