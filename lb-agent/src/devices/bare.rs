//! Devices that carry no programs although packets of other machines may arrive on them, and why.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::{Link, REASSEMBLY_DEVICE, Snapshot};

/// A device that is up and carries no programs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Bare {
    /// Its index.
    #[serde(skip)]
    pub index: u32,
    /// Its name.
    #[serde(rename = "device")]
    pub name: String,
    /// Why it carries no programs.
    pub why: Why,
}

/// Why a device carries no programs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Neither an address nor a route leads to other machines through it.
    LeadsNowhere,
    /// Its frames begin with a header that the programs cannot read.
    UnreadableHeader,
    /// Addresses and routes do not show whether Pods or clients are behind it.
    LeadsAnywhere,
    /// It is the port of a bridge or similar device, which carries no programs either.
    Switched,
    /// The command line selects other devices, or no agent has run since the device exists.
    NotChosen,
}

impl Why {
    /// A text for users.
    pub fn text(self) -> &'static str {
        match self {
            Self::LeadsNowhere => "it has no global address, and no route leads out through it",
            Self::UnreadableHeader => "its frames have a link-layer header other than Ethernet",
            Self::LeadsAnywhere => {
                "it may lead to this node's Pods or to clients: select it with --network-device or --pod-device"
            }
            Self::Switched => "it is the port of a device that carries no programs",
            Self::NotChosen => "--network-device or --pod-device select other devices, or no agent runs",
        }
    }
}

impl fmt::Display for Bare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.name, self.why.text())
    }
}

/// Returns the devices that are up and carry no programs. `carries` returns whether a device
/// carries them. The result excludes bridges whose ports carry programs, and ports of bridges that
/// carry them.
pub fn bare(snapshot: &Snapshot, carries: impl Fn(u32) -> bool) -> BTreeSet<Bare> {
    let is_bare = |link: &&Link| {
        link.up
            && !link.loopback
            && link.name != REASSEMBLY_DEVICE
            && !carries(link.index)
            && !is_covered(snapshot, &carries, link)
    };
    let links = snapshot.links.values().filter(is_bare);
    links
        .map(|link| Bare {
            index: link.index,
            name: link.name.clone(),
            why: why(snapshot, link),
        })
        .collect()
}

/// Whether programs see the packets of a device at another one: at its ports, or at the device that
/// it is a port of.
fn is_covered(snapshot: &Snapshot, carries: &impl Fn(u32) -> bool, link: &Link) -> bool {
    let above = snapshot.switch_of(link).map(|switch| switch.index);
    let has_seen_ports = || {
        let mut links = snapshot.links.values();
        links.any(|port| port.master == Some(link.index) && carries(port.index))
    };
    above.is_some_and(carries) || has_seen_ports()
}

fn why(snapshot: &Snapshot, link: &Link) -> Why {
    if link.unreadable {
        Why::UnreadableHeader
    } else if snapshot.switch_of(link).is_some() {
        Why::Switched
    } else if !snapshot.leads_out(link.index) {
        Why::LeadsNowhere
    } else if link.may_lead_anywhere() {
        Why::LeadsAnywhere
    } else {
        Why::NotChosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Address;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            up: true,
            ..Link::default()
        }
    }

    fn port(link: Link, master: u32) -> Link {
        Link {
            master: Some(master),
            ..link
        }
    }

    #[test]
    fn devices_without_programs_are_listed_with_a_reason() {
        let links = [
            Link {
                loopback: true,
                ..link(1, "lo", "")
            },
            link(2, "eth0", ""),
            link(3, "eth1", ""),
            Link {
                up: false,
                ..link(4, "eth2", "")
            },
            link(5, "ovs0", "openvswitch"),
            link(6, "eth3", ""),
            Link {
                unreadable: true,
                ..link(7, "ib0", "")
            },
            link(8, REASSEMBLY_DEVICE, "veth"),
        ];
        let address = Address {
            address: "192.0.2.1".parse().unwrap(),
            global: true,
            stable: true,
        };
        let snapshot = Snapshot {
            links: links.map(|link| (link.index, link)).into(),
            addresses: [(5, vec![address]), (6, vec![address])].into(),
            ..Snapshot::default()
        };
        let found = bare(&snapshot, |index| index == 2);
        let found: Vec<_> = found.into_iter().map(|bare| (bare.name, bare.why)).collect();
        let expected = [
            ("eth1", Why::LeadsNowhere),
            ("ovs0", Why::LeadsAnywhere),
            ("eth3", Why::NotChosen),
            ("ib0", Why::UnreadableHeader),
        ];
        assert_eq!(found, expected.map(|(name, why)| (name.to_owned(), why)));
    }

    #[test]
    fn a_bridge_with_programs_covers_its_ports_and_vice_versa() {
        let links = [
            link(2, "br0", "bridge"),
            port(link(3, "eth0", ""), 2),
            link(4, "cni0", "bridge"),
            port(link(5, "veth1", "veth"), 4),
            port(link(6, "patch", "veth"), 4),
        ];
        let snapshot = Snapshot {
            links: links.map(|link| (link.index, link)).into(),
            ..Snapshot::default()
        };
        let found = bare(&snapshot, |index| index == 2 || index == 5);
        let names: Vec<_> = found.into_iter().map(|bare| (bare.name, bare.why)).collect();
        assert_eq!(names, [("patch".to_owned(), Why::Switched)]);
    }
}
