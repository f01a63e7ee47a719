//! A network namespace, described by its devices that lead to the node and their addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use crate::namespace;
use crate::netlink::Connection;

/// A network namespace with devices that lead out of it, to the node or to hardware.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The kernel's cookie of the namespace.
    pub cookie: u64,
    /// The addresses of these devices.
    pub addresses: BTreeSet<IpAddr>,
    /// The indices of their peers in the node's own namespace.
    pub node_devices: BTreeSet<u32>,
}

/// The attributes of a device that determine where it leads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Device {
    index: u32,
    is_loopback: bool,
    /// The kernel's type name. Empty for hardware.
    kind: String,
    /// The index of its peer or lower device.
    link: Option<u32>,
    /// The id of the namespace of that device, if it is a different one.
    link_namespace: Option<i32>,
}

impl Device {
    /// Whether the device leads to the namespace with this id, or is hardware.
    ///
    /// Devices that lead elsewhere or nowhere may have addresses that are valid only there. For
    /// example, the bridge of a cluster inside a container has an address of that cluster's Pod
    /// CIDR, which may be this cluster's Pod CIDR too.
    fn leads_out(&self, node: Option<i32>) -> bool {
        match self.link_namespace {
            Some(_) => self.link_namespace == node,
            None => self.kind.is_empty() && !self.is_loopback,
        }
    }
}

/// Describes the calling thread's namespace. `None` if no device leads out of it. `node` is the
/// node's own namespace.
pub(super) fn look(node: BorrowedFd<'_>) -> io::Result<Option<Place>> {
    let mut netlink = Connection::open(NETLINK_ROUTE)?;
    let mut devices = devices(&mut netlink)?;
    // The kernel assigns the node's namespace an id during the device dump, if a device leads
    // there.
    let node = id_of(&mut netlink, node)?;
    devices.retain(|device| device.leads_out(node));
    if devices.is_empty() {
        return Ok(None);
    }
    let Some(cookie) = namespace::cookie()? else {
        return Ok(None);
    };
    let of_devices: BTreeSet<u32> = devices.iter().map(|device| device.index).collect();
    let ends = devices.iter().filter(|device| device.link_namespace.is_some());
    Ok(Some(Place {
        cookie,
        addresses: addresses(&mut netlink, &of_devices)?,
        node_devices: ends.filter_map(|device| device.link).collect(),
    }))
}

fn devices(netlink: &mut Connection) -> io::Result<Vec<Device>> {
    let mut request = LinkMessage::default();
    let without_statistics = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    request.attributes.push(without_statistics);
    let mut found = Vec::new();
    netlink.send(RouteNetlinkMessage::GetLink(request), NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut take = |message| {
        if let RouteNetlinkMessage::NewLink(link) = message {
            found.push(device(&link));
        }
    };
    while !netlink.receive(&mut take)? {}
    Ok(found)
}

fn device(link: &LinkMessage) -> Device {
    let mut device = Device {
        index: link.header.index,
        is_loopback: link.header.flags.contains(LinkFlags::Loopback),
        ..Device::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => device.link = Some(*index),
            LinkAttribute::LinkNetNsId(id) => device.link_namespace = Some(*id),
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                device.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    device
}

/// The id of a namespace as seen from the connection's namespace. `None` if it has none.
fn id_of(netlink: &mut Connection, namespace: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let descriptor = namespace.as_raw_fd().cast_unsigned();
    let mut request = NsidMessage::default();
    request.attributes.push(NsidAttribute::Fd(descriptor));
    let mut id = None;
    netlink.send(RouteNetlinkMessage::GetNsId(request), NLM_F_REQUEST | NLM_F_ACK)?;
    let mut take = |message| {
        if let RouteNetlinkMessage::NewNsId(answer) = message {
            id = answer.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) => Some(*id),
                _ => None,
            });
        }
    };
    while !netlink.receive(&mut take)? {}
    // -1 means no id.
    Ok(id.filter(|id| *id >= 0))
}

/// The addresses of these devices that other machines can send to.
fn addresses(netlink: &mut Connection, devices: &BTreeSet<u32>) -> io::Result<BTreeSet<IpAddr>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    netlink.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut found = BTreeSet::new();
    let mut take = |message| {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && devices.contains(&message.header.index)
        {
            found.extend(address(&message).filter(is_global));
        }
    };
    while !netlink.receive(&mut take)? {}
    Ok(found)
}

fn address(message: &AddressMessage) -> Option<IpAddr> {
    let find = |is: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(is);
    // On a point-to-point device, the other attribute contains the peer's address.
    let own = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    own.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn is_global(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: &str, link_namespace: Option<i32>) -> Device {
        Device {
            kind: kind.to_owned(),
            link_namespace,
            ..Device::default()
        }
    }

    #[test]
    fn devices_to_the_node_and_hardware_lead_out() {
        let node = Some(3);
        for kind in ["veth", "macvlan", "ipvlan", "netkit"] {
            assert!(device(kind, Some(3)).leads_out(node), "{kind}");
            assert!(!device(kind, Some(4)).leads_out(node), "{kind}");
            assert!(!device(kind, Some(3)).leads_out(None), "{kind}");
            assert!(!device(kind, None).leads_out(node), "{kind}");
        }
        assert!(device("", None).leads_out(node));
        assert!(device("", None).leads_out(None));
        for kind in ["bridge", "dummy", "vxlan", "wireguard"] {
            assert!(!device(kind, None).leads_out(node), "{kind}");
        }
        let loopback = Device {
            is_loopback: true,
            ..device("", None)
        };
        assert!(!loopback.leads_out(node));
    }
}
