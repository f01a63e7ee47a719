//! What netlink reports as changed. Only the kind of an event is read here, not its contents: what is true is
//! dumped afterwards. So neither lost events nor attributes that a newer kernel adds can mislead.

use std::collections::BTreeSet;
use std::io;

use futures::FutureExt;
use nix::libc;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkBuffer;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::DeviceError;

/// Larger than any message the kernel sends.
const BUFFER_SIZE: usize = 64 * 1024;

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// What may have changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Changes {
    pub(super) links: bool,
    pub(super) addresses: bool,
    pub(super) default_routes: bool,
    /// Indexes of devices that went away; others may have the same indexes by now.
    pub(super) deleted: BTreeSet<u32>,
}

impl Changes {
    /// When nothing is known.
    pub(super) fn everything() -> Self {
        Self {
            links: true,
            addresses: true,
            default_routes: true,
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
            // A node may have very many other routes, which come and go with Pods or with a routing protocol.
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE if is_default_route(payload) => {
                self.default_routes = true
            }
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {}
            _ => self.note_everything(),
        }
    }
}

/// The index in a `struct ifinfomsg`, unless the message is about a port that left its bridge.
fn deleted_device(payload: &[u8]) -> Option<u32> {
    let (&family, index) = (payload.first()?, payload.get(4..8)?);
    let index = u32::from_ne_bytes(index.try_into().ok()?);
    (i32::from(family) == libc::AF_UNSPEC).then_some(index)
}

/// Whether a `struct rtmsg` has destination prefix length 0.
fn is_default_route(payload: &[u8]) -> bool {
    payload.get(1).is_none_or(|&prefix_length| prefix_length == 0)
}

/// The socket that events arrive at.
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

    /// Waits for an event, then takes all that have queued up. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Changes, DeviceError> {
        let mut changes = Changes::default();
        self.buffer.clear();
        let mut received = self.socket.recv(&mut self.buffer).await;
        loop {
            self.note(received, &mut changes)?;
            self.buffer.clear();
            // tokio's budget for one task ends this loop if events never end.
            match self.socket.recv(&mut self.buffer).now_or_never() {
                Some(next) => received = next,
                None => return Ok(changes),
            }
        }
    }

    fn note(&self, received: io::Result<()>, changes: &mut Changes) -> Result<(), DeviceError> {
        match received {
            Ok(()) => changes.note_datagram(&self.buffer),
            // The socket's buffer overflowed: events are lost.
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

    #[test]
    fn routes_to_pods_are_ignored() {
        let changes = noted(&message(libc::RTM_NEWROUTE, &[2, 32, 0, 0]));
        assert_eq!(changes, Changes::default());
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
    fn what_cannot_be_read_may_be_anything() {
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
