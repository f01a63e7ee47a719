//! Creates the devices over netlink.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use crate::devices::REASSEMBLY_DEVICE;
use crate::netlink::Connection;

/// The peer of [`REASSEMBLY_DEVICE`].
const PORT: &str = "f0";
/// The bridge. [`PORT`] is its only port.
const BRIDGE: &str = "br0";
/// Link-layer addresses of the devices. Frames to be reassembled have other addresses, since the
/// bridge would consume frames that are addressed to it.
const ADDRESSES: [[u8; 6]; 3] = [
    [0x02, 0xfb, 0, 0, 0, 1],
    [0x02, 0xfb, 0, 0, 0, 2],
    [0x02, 0xfb, 0, 0, 0, 3],
];
/// The largest possible packet fits.
const MTU: u32 = 65_535;
/// How often to retry after the removal of a leftover device. The device of an agent that has just
/// ended may disappear at the same time.
const ATTEMPTS: u32 = 10;

/// A netlink connection for the devices of the namespace in which it was opened.
pub(super) struct Links(Connection);

impl Links {
    pub(super) fn open() -> io::Result<Self> {
        Connection::open(NETLINK_ROUTE).map(Self)
    }

    /// Creates the pair of devices, one end in this namespace and one in another. Removes a
    /// leftover pair first.
    pub(super) fn make_pair(&mut self, namespace: &OwnedFd) -> io::Result<()> {
        let [own, other, _] = ADDRESSES;
        let peer = message([
            LinkAttribute::IfName(PORT.to_owned()),
            LinkAttribute::Address(other.to_vec()),
            LinkAttribute::Mtu(MTU),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        ]);
        let pair = message([
            LinkAttribute::IfName(REASSEMBLY_DEVICE.to_owned()),
            LinkAttribute::Address(own.to_vec()),
            LinkAttribute::Mtu(MTU),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        let mut result = Ok(());
        for _ in 0..ATTEMPTS {
            self.remove_leftover()?;
            result = self.create(pair.clone());
            match &result {
                Err(error) if is(error, Errno::EEXIST) => {}
                _ => break,
            }
        }
        result
    }

    fn remove_leftover(&mut self) -> io::Result<()> {
        let device = message([LinkAttribute::IfName(REASSEMBLY_DEVICE.to_owned())]);
        match self.ask(RouteNetlinkMessage::DelLink(device), 0) {
            Err(error) if is(&error, Errno::ENODEV) => Ok(()),
            result => result,
        }
    }

    /// Creates the bridge that sends back what its only port receives. The calling thread must be
    /// in the same namespace.
    pub(super) fn make_bridge(&mut self) -> io::Result<()> {
        let [_, _, address] = ADDRESSES;
        self.create(message([
            LinkAttribute::IfName(BRIDGE.to_owned()),
            LinkAttribute::Address(address.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::StpState(BridgeStpState::Disabled),
                    InfoBridge::MulticastSnooping(false),
                    InfoBridge::ForwardDelay(0),
                ])),
            ]),
        ]))?;
        let (bridge, port) = (if_nametoindex(BRIDGE)?, if_nametoindex(PORT)?);
        self.change(port, [LinkAttribute::Controller(bridge)], LinkFlags::empty())?;
        let behaviour = LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(true),
                InfoBridgePort::Learning(false),
            ])),
        ]);
        self.change(port, [behaviour], LinkFlags::empty())?;
        self.change(bridge, [LinkAttribute::Mtu(MTU)], LinkFlags::Up)?;
        self.change(port, [], LinkFlags::Up)
    }

    /// Sets a device up, without ARP.
    pub(super) fn raise(&mut self, device: u32) -> io::Result<()> {
        self.change(device, [], LinkFlags::Up | LinkFlags::Noarp)
    }

    fn create(&mut self, device: LinkMessage) -> io::Result<()> {
        self.ask(RouteNetlinkMessage::NewLink(device), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Changes the attributes of a device and sets flags.
    fn change<const N: usize>(
        &mut self,
        device: u32,
        attributes: [LinkAttribute; N],
        flags: LinkFlags,
    ) -> io::Result<()> {
        let mut message = message(attributes);
        message.header.index = device;
        message.header.flags = flags;
        message.header.change_mask = flags;
        self.ask(RouteNetlinkMessage::NewLink(message), 0)
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.0.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        while !self.0.receive(|_: RouteNetlinkMessage| {})? {}
        Ok(())
    }
}

fn message<const N: usize>(attributes: [LinkAttribute; N]) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = attributes.into();
    message
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}
