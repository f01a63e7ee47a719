//! The rules that determine which devices belong to Pods and which lead out of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Serialize;

use super::{Link, Snapshot};

/// The agent's own device, which leads to the kernel's reassembly ([`crate::reassembly`]).
pub const REASSEMBLY_DEVICE: &str = "lbfrag0";

/// The side of the node that a device is on. It determines the programs that the device carries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It leads to clients outside or to Pods of other nodes.
    Network,
    /// It is the host end of a Pod's veth pair.
    Pod,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Network => "network",
            Self::Pod => "Pod",
        })
    }
}

/// The programs that a device must carry.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Attachment {
    /// Name of the device.
    pub name: String,
    /// The kernel's type name of the device. Empty for hardware. `veth` and `tun` count as devices
    /// without native XDP.
    pub kind: String,
    /// If this number changes for an index, it is a different device that does not carry programs
    /// yet.
    #[serde(skip)]
    pub instance: u64,
    /// Its role.
    pub role: Role,
    /// Whether its packets begin with an Ethernet header. Otherwise they begin with the IP header.
    pub ethernet: bool,
}

/// The command-line options that select devices.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DeviceArguments {
    /// Devices towards clients and other nodes, as a pattern like `eth*` (may be repeated)
    /// [default: devices with an address or with a route out of the node, and overlays]
    #[arg(long, value_name = "GLOB")]
    pub network_device: Vec<Glob>,
    /// Host ends of the Pods' devices, as a pattern like `veth*` (may be repeated) [default: every
    /// veth whose peer is in another network namespace]
    #[arg(long, value_name = "GLOB")]
    pub pod_device: Vec<Glob>,
}

/// How to select devices. Patterns for a role replace the automatic selection for that role. A
/// device that matches both lists is a network device.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Names of the network devices.
    pub network: Option<GlobSet>,
    /// Names of the Pod devices.
    pub pod: Option<GlobSet>,
    /// Addresses of this node. Devices that have one of them are network devices.
    pub node_addresses: BTreeSet<IpAddr>,
}

impl DeviceOptions {
    /// Creates the options from the command line and the node's addresses.
    pub fn new(
        arguments: &DeviceArguments,
        node_addresses: BTreeSet<IpAddr>,
    ) -> Result<Self, globset::Error> {
        Ok(Self {
            network: glob_set(&arguments.network_device)?,
            pod: glob_set(&arguments.pod_device)?,
            node_addresses,
        })
    }
}

fn glob_set(globs: &[Glob]) -> Result<Option<GlobSet>, globset::Error> {
    if globs.is_empty() {
        return Ok(None);
    }
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(glob.clone());
    }
    builder.build().map(Some)
}

/// Returns every device that has a role, by index.
pub fn classify(snapshot: &Snapshot, options: &DeviceOptions) -> BTreeMap<u32, Attachment> {
    let rules = Rules::new(snapshot, options);
    snapshot
        .links
        .values()
        .filter_map(|link| Some((link.index, attachment(link, rules.role(link)?))))
        .collect()
}

fn attachment(link: &Link, role: Role) -> Attachment {
    Attachment {
        name: link.name.clone(),
        kind: link.kind.clone(),
        instance: link.instance,
        role,
        ethernet: link.ethernet,
    }
}

/// What must be known before roles can be determined.
struct Rules<'a> {
    snapshot: &'a Snapshot,
    options: &'a DeviceOptions,
    /// Devices with a default route or an address of the node. They are uplinks, whatever their
    /// type.
    uplinks: BTreeSet<u32>,
    /// Bridges that have a Pod's device as a port. A bridge floods frames with unknown destinations
    /// to these ports.
    pod_bridges: BTreeSet<u32>,
}

impl<'a> Rules<'a> {
    fn new(snapshot: &'a Snapshot, options: &'a DeviceOptions) -> Self {
        let mut rules = Self {
            snapshot,
            options,
            uplinks: uplinks(snapshot, options),
            pod_bridges: BTreeSet::new(),
        };
        let pods = snapshot.links.values().filter(|link| rules.belongs_to_pod(link));
        rules.pod_bridges = pods.filter_map(|link| link.master).collect();
        rules
    }

    fn role(&self, link: &Link) -> Option<Role> {
        if link.loopback || link.name == REASSEMBLY_DEVICE {
            return None;
        }
        if let Some(role) = self.named_role(link) {
            return Some(role);
        }
        let role = self.automatic_role(link)?;
        let list = match role {
            Role::Network => &self.options.network,
            Role::Pod => &self.options.pod,
        };
        list.is_none().then_some(role)
    }

    fn named_role(&self, link: &Link) -> Option<Role> {
        let is_named =
            |globs: &Option<GlobSet>| globs.as_ref().is_some_and(|globs| globs.is_match(&link.name));
        if is_named(&self.options.network) {
            return Some(Role::Network);
        }
        is_named(&self.options.pod).then_some(Role::Pod)
    }

    fn automatic_role(&self, link: &Link) -> Option<Role> {
        let switch = self.snapshot.switch_of(link);
        // The bridge or bond sees all packets of its ports. With programs on both, packets would be
        // processed twice.
        if switch.is_some_and(|switch| self.sees_packets_of_ports(switch)) {
            return None;
        }
        if link.unreadable {
            return None;
        }
        // This includes veth devices: in labs and kind clusters, the node's uplink is one.
        if self.uplinks.contains(&link.index) {
            return Some(Role::Network);
        }
        // Every namespace has unused tunnel devices that the kernel created. Those are down.
        if is_overlay(&link.kind) && link.up {
            return Some(Role::Network);
        }
        // The device may be down, so that it has its programs before the Pod's first packet.
        if is_pair_with_pod(link) {
            return Some(Role::Pod);
        }
        if link.may_lead_anywhere() {
            return None;
        }
        let leads_out = match switch {
            // A bridge with Pods leads out through its other ports, so these carry the programs.
            Some(bridge) => self.pod_bridges.contains(&bridge.index) && self.snapshot.leads_out(bridge.index),
            None => !self.pod_bridges.contains(&link.index) && self.snapshot.leads_out(link.index),
        };
        leads_out.then_some(Role::Network)
    }

    /// Whether the programs belong on this device rather than on its ports.
    fn sees_packets_of_ports(&self, switch: &Link) -> bool {
        let index = switch.index;
        let leads_out = || self.snapshot.leads_out(index) && !self.pod_bridges.contains(&index);
        matches!(switch.kind.as_str(), "bridge" | "bond" | "team")
            && (self.uplinks.contains(&index) || leads_out())
    }

    /// Whether a device belongs to a Pod, unless its bridge carries the programs.
    fn belongs_to_pod(&self, link: &Link) -> bool {
        match self.named_role(link) {
            Some(role) => role == Role::Pod,
            None => {
                self.options.pod.is_none() && is_pair_with_pod(link) && !self.uplinks.contains(&link.index)
            }
        }
    }
}

/// Indices of the devices with a default route or an address of the node.
fn uplinks(snapshot: &Snapshot, options: &DeviceOptions) -> BTreeSet<u32> {
    let routes = snapshot.default_routes.iter().map(|route| route.device);
    let addresses = snapshot.addresses.iter().filter_map(|(&device, addresses)| {
        addresses
            .iter()
            .any(|address| options.node_addresses.contains(&address.address))
            .then_some(device)
    });
    routes.chain(addresses).collect()
}

fn is_pair_with_pod(link: &Link) -> bool {
    link.kind == "veth" && link.link_netnsid.is_some()
}

fn is_overlay(kind: &str) -> bool {
    matches!(
        kind,
        "vxlan"
            | "geneve"
            | "ipip"
            | "sit"
            | "ip6tnl"
            | "gre"
            | "gretap"
            | "ip6gre"
            | "ip6gretap"
            | "wireguard"
    )
}

#[cfg(test)]
mod tests;
