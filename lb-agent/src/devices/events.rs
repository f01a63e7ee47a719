//! Change notifications from netlink. This module reads only the kind of an event. The current
//! state is dumped afterwards. So neither lost events nor unknown attributes of newer kernels can
//! cause errors.

use std::collections::BTreeSet;
use std::io;

use futures::FutureExt;
use nix::libc;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkBuffer;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::DeviceError;
use super::routes::is_default_route;

/// Larger than any message that the kernel sends.
const BUFFER_SIZE: usize = 64 * 1024;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Nexthop,
];

/// Route attributes (linux/rtnetlink.h) that contain its devices.
const RTA_OIF: u16 = libc::RTA_OIF;
const RTA_MULTIPATH: u16 = libc::RTA_MULTIPATH;
/// Message types of nexthop objects (linux/nexthop.h). A route may name its device only through
/// such an object.
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// What may have changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Changes {
    pub(super) links: bool,
    pub(super) addresses: bool,
    pub(super) default_routes: bool,
    /// The devices of routes that may be new.
    pub(super) routes: NewRoutes,
    /// Indices of deleted devices. Other devices may have the same indices by now.
    pub(super) deleted: BTreeSet<u32>,
}

/// The devices through which new routes may lead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NewRoutes {
    /// Through these devices.
    By(BTreeSet<u32>),
    /// Through any device.
    ByAny,
}

impl Default for NewRoutes {
    fn default() -> Self {
        Self::By(BTreeSet::new())
    }
}

impl NewRoutes {
    /// Whether a new route may lead through this device.
    pub(super) fn may_lead_by(&self, device: u32) -> bool {
        match self {
            Self::By(devices) => devices.contains(&device),
            Self::ByAny => true,
        }
    }

    /// Adds the devices of other routes.
    pub(super) fn join(&mut self, others: Self) {
        self.add(match others {
            Self::By(devices) => Some(devices.into_iter().collect()),
            Self::ByAny => None,
        });
    }

    fn add(&mut self, found: Option<Vec<u32>>) {
        match (found, self) {
            (Some(found), Self::By(devices)) => devices.extend(found),
            (None, known) => *known = Self::ByAny,
            (Some(_), Self::ByAny) => {}
        }
    }
}

impl Changes {
    /// The changes to assume if nothing is known.
    pub(super) fn everything() -> Self {
        Self {
            links: true,
            addresses: true,
            default_routes: true,
            routes: NewRoutes::ByAny,
            deleted: BTreeSet::new(),
        }
    }

    fn note_everything(&mut self) {
        let deleted = std::mem::take(&mut self.deleted);
        *self = Self {
            deleted,
            ..Self::everything()
        };
    }

    fn note_datagram(&mut self, mut datagram: &[u8]) {
        while !datagram.is_empty() {
            let Ok(message) = NetlinkBuffer::new_checked(datagram) else {
                return self.note_everything();
            };
            self.note_message(message.message_type(), message.payload());
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            let next = length.checked_next_multiple_of(4).unwrap_or(usize::MAX);
            datagram = datagram.get(next..).unwrap_or_default();
        }
    }

    fn note_message(&mut self, kind: u16, payload: &[u8]) {
        match kind {
            libc::RTM_NEWLINK => self.links = true,
            libc::RTM_DELLINK => {
                self.links = true;
                self.deleted.extend(deleted_device(payload));
            }
            libc::RTM_NEWADDR | libc::RTM_DELADDR => self.addresses = true,
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                self.default_routes |= is_default_route(payload);
                if kind == libc::RTM_NEWROUTE {
                    self.routes.add(devices_of_route(payload));
                }
            }
            RTM_NEWNEXTHOP => self.routes = NewRoutes::ByAny,
            RTM_DELNEXTHOP => {}
            _ => self.note_everything(),
        }
    }
}

/// The index in a `struct ifinfomsg`. `None` if the message is about a port that left its bridge.
fn deleted_device(payload: &[u8]) -> Option<u32> {
    let (&family, index) = (payload.first()?, payload.get(4..8)?);
    let index = u32::from_ne_bytes(index.try_into().ok()?);
    (i32::from(family) == libc::AF_UNSPEC).then_some(index)
}

/// The devices of a route. Empty if the route does not lead to other machines. `None` if the route
/// does not show its devices.
fn devices_of_route(payload: &[u8]) -> Option<Vec<u32>> {
    const RTN_UNICAST: u8 = libc::RTN_UNICAST;
    let (&kind, mut rest) = (payload.get(7)?, payload.get(12..)?);
    if kind != RTN_UNICAST {
        return Some(Vec::new());
    }
    let mut devices = Vec::new();
    while let Some((attribute, value, after)) = split_attribute(rest) {
        match attribute {
            RTA_OIF => devices.push(u32::from_ne_bytes(value.try_into().ok()?)),
            RTA_MULTIPATH => devices.extend(devices_of_hops(value)),
            _ => {}
        }
        rest = after;
    }
    (!devices.is_empty()).then_some(devices)
}

/// The devices of a list of `struct rtnexthop`: length (2 bytes), flags, weight, device index (4
/// bytes), attributes.
fn devices_of_hops(mut hops: &[u8]) -> Vec<u32> {
    let mut devices = Vec::new();
    while let Some((&[a, b, _, _, c, d, e, f], _)) = hops.split_first_chunk() {
        devices.push(u32::from_ne_bytes([c, d, e, f]));
        let length = usize::from(u16::from_ne_bytes([a, b])).max(8);
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    devices
}

/// Splits off the first attribute: length including this header (2 bytes), kind (2 bytes), value.
fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let &[a, b, c, d] = bytes.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes([a, b]));
    let value = bytes.get(4..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([c, d]), value, rest))
}

/// The socket that receives events.
pub(super) struct Events {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Events {
    /// Subscribes to the events of the calling thread's network namespace.
    pub(super) fn subscribe() -> Result<Self, DeviceError> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(DeviceError::Open)?;
        let groups = GROUPS
            .iter()
            .fold(0, |groups, &group| groups | 1 << (group as u32 - 1));
        let address = SocketAddr::new(0, groups);
        socket.socket_mut().bind(&address).map_err(DeviceError::Open)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(BUFFER_SIZE),
        })
    }

    /// Waits for an event, then takes all queued events. Cancel safe: no event is lost if the
    /// future is dropped.
    pub(super) async fn next(&mut self) -> Result<Changes, DeviceError> {
        let mut changes = Changes::default();
        self.buffer.clear();
        let mut received = self.socket.recv(&mut self.buffer).await;
        loop {
            self.note(received, &mut changes)?;
            self.buffer.clear();
            // tokio's cooperative budget ends this loop if events never stop.
            match self.socket.recv(&mut self.buffer).now_or_never() {
                Some(next) => received = next,
                None => return Ok(changes),
            }
        }
    }

    fn note(&self, received: io::Result<()>, changes: &mut Changes) -> Result<(), DeviceError> {
        match received {
            Ok(()) => changes.note_datagram(&self.buffer),
            // The socket's receive buffer overflowed, and events were lost.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changes.note_everything(),
            Err(error) => return Err(DeviceError::Events(error)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn noted(datagram: &[u8]) -> Changes {
        let mut changes = Changes::default();
        changes.note_datagram(datagram);
        changes
    }

    fn link_payload(family: u8, index: u32) -> Vec<u8> {
        let mut payload = vec![family, 0, 0, 0];
        payload.extend(index.to_ne_bytes());
        payload.resize(16, 0);
        payload
    }

    #[test]
    fn each_kind_of_event_marks_its_table() {
        let links = noted(&message(libc::RTM_NEWLINK, &link_payload(0, 7)));
        assert!(links.links && !links.addresses && !links.default_routes && links.deleted.is_empty());
        let addresses = noted(&message(libc::RTM_DELADDR, &[0; 8]));
        assert!(!addresses.links && addresses.addresses && !addresses.default_routes);
        let routes = noted(&message(libc::RTM_NEWROUTE, &[2, 0, 0, 0]));
        assert!(!routes.links && !routes.addresses && routes.default_routes);
    }

    /// A new route of this kind with attributes. The destination has a 32-bit prefix.
    fn route(kind: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut payload = vec![2, 32, 0, 0, 0, 0, 0, kind, 0, 0, 0, 0];
        for (attribute, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap();
            payload.extend(length.to_ne_bytes());
            payload.extend(attribute.to_ne_bytes());
            payload.extend(*value);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
        message(libc::RTM_NEWROUTE, &payload)
    }

    fn by(devices: &[u32]) -> NewRoutes {
        NewRoutes::By(devices.iter().copied().collect())
    }

    #[test]
    fn events_of_other_routes_only_record_the_devices() {
        let device = 7_u32.to_ne_bytes();
        let one = noted(&route(1, &[(libc::RTA_TABLE, &[9]), (RTA_OIF, &device)]));
        let expected = Changes {
            routes: by(&[7]),
            ..Changes::default()
        };
        assert_eq!(one, expected);
        let mut hops = vec![16, 0, 0, 0, 7, 0, 0, 0, 8, 0, 5, 0, 1, 2, 3, 4];
        hops.extend([8, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(noted(&route(1, &[(RTA_MULTIPATH, &hops)])).routes, by(&[7, 9]));
        // Blackhole routes, and the node's own addresses.
        for kind in [libc::RTN_BLACKHOLE, libc::RTN_LOCAL] {
            assert_eq!(noted(&route(kind, &[(RTA_OIF, &device)])), Changes::default());
        }
        let mut gone = route(1, &[(RTA_OIF, &device)]);
        gone[4..6].copy_from_slice(&libc::RTM_DELROUTE.to_ne_bytes());
        assert_eq!(noted(&gone), Changes::default());
    }

    #[test]
    fn a_route_with_a_nexthop_object_may_lead_through_any_device() {
        const RTA_NH_ID: u16 = 30;
        let only_number = route(1, &[(RTA_NH_ID, &[1, 0, 0, 0])]);
        for event in [only_number, message(RTM_NEWNEXTHOP, &[0; 8])] {
            let expected = Changes {
                routes: NewRoutes::ByAny,
                ..Changes::default()
            };
            assert_eq!(noted(&event), expected);
        }
        assert_eq!(noted(&message(RTM_DELNEXTHOP, &[0; 8])), Changes::default());
        // A truncated route may lead anywhere.
        assert_eq!(noted(&route(1, &[(RTA_OIF, &[1])])).routes, NewRoutes::ByAny);
    }

    #[test]
    fn deleted_devices_are_remembered_but_not_ports_that_left_a_bridge() {
        let mut datagram = message(libc::RTM_DELLINK, &link_payload(0, 7));
        let bridge_family = u8::try_from(libc::AF_BRIDGE).unwrap();
        datagram.extend(message(libc::RTM_DELLINK, &link_payload(bridge_family, 8)));
        datagram.extend(message(libc::RTM_DELLINK, &link_payload(0, 9)));
        assert_eq!(noted(&datagram).deleted, BTreeSet::from([7, 9]));
    }

    #[test]
    fn unreadable_events_count_as_changes_of_everything() {
        assert_eq!(noted(&[1, 2, 3]), Changes::everything());
        let mut cut = message(libc::RTM_NEWADDR, &[0; 8]);
        cut.truncate(20);
        assert_eq!(noted(&cut), Changes::everything());
        assert_eq!(noted(&message(4711, &[])), Changes::everything());
        let mut empty = message(libc::RTM_NEWADDR, &[]);
        empty[..4].fill(0);
        assert_eq!(noted(&empty), Changes::everything());
    }
}
