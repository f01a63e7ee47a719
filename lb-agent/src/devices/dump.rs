//! Reads devices and addresses from the kernel.

use std::collections::BTreeMap;
use std::io;

use futures::StreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::{Address, DeviceError, Link};

/// How often to repeat a dump that concurrent changes interrupted. Each of those changes is also an
/// event, so a later round can complete the dump.
pub(super) const ATTEMPTS: usize = 5;

/// Link-layer types whose headers the programs cannot read.
const UNREADABLE: [LinkLayerType; 2] = [LinkLayerType::Infiniband, LinkLayerType::Ieee1394];

/// The netlink connection for dumps.
pub(super) struct Dumper {
    handle: Handle,
}

impl Dumper {
    /// Connects to the calling thread's network namespace.
    pub(super) fn connect() -> Result<Self, DeviceError> {
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(DeviceError::Open)?;
        // Otherwise an aborted dump would look complete.
        connection.set_forward_done(true);
        // The task ends when the handle is dropped.
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Returns all devices by index.
    pub(super) async fn links(&mut self) -> Result<BTreeMap<u32, Link>, DeviceError> {
        let mut request = LinkMessage::default();
        let without_statistics = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        request.attributes.push(without_statistics);
        let links = self
            .dump(
                "devices",
                RouteNetlinkMessage::GetLink(request),
                |message| match message {
                    RouteNetlinkMessage::NewLink(message) => vec![link(&message)],
                    _ => Vec::new(),
                },
            )
            .await?;
        Ok(links.into_iter().map(|link| (link.index, link)).collect())
    }

    /// Returns all addresses by the index of their device.
    pub(super) async fn addresses(&mut self) -> Result<BTreeMap<u32, Vec<Address>>, DeviceError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let found = self
            .dump("addresses", request, |message| match message {
                RouteNetlinkMessage::NewAddress(message) => {
                    let found = address(&message).map(|address| (message.header.index, address));
                    found.into_iter().collect()
                }
                _ => Vec::new(),
            })
            .await?;
        let mut addresses: BTreeMap<u32, Vec<Address>> = BTreeMap::new();
        for (device, address) in found {
            addresses.entry(device).or_default().push(address);
        }
        Ok(addresses)
    }

    async fn dump<T>(
        &mut self,
        what: &'static str,
        request: RouteNetlinkMessage,
        read: impl Fn(RouteNetlinkMessage) -> Vec<T>,
    ) -> Result<Vec<T>, DeviceError> {
        let mut found = Vec::new();
        for _ in 0..ATTEMPTS {
            let consistent;
            (found, consistent) = self
                .dump_once(request.clone(), &read)
                .await
                .map_err(|source| DeviceError::Dump { what, source })?;
            if consistent {
                break;
            }
        }
        Ok(found)
    }

    /// Also returns whether the dump is consistent, i.e. shows a single point in time.
    async fn dump_once<T>(
        &mut self,
        request: RouteNetlinkMessage,
        read: &impl Fn(RouteNetlinkMessage) -> Vec<T>,
    ) -> io::Result<(Vec<T>, bool)> {
        let mut request = NetlinkMessage::from(request);
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = self.handle.request(request).map_err(io::Error::other)?;
        let (mut found, mut consistent) = (Vec::new(), true);
        while let Some(answer) = answers.next().await {
            consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found.extend(read(message)),
                NetlinkPayload::Done(_) => return Ok((found, consistent)),
                NetlinkPayload::Error(ErrorMessage { code, .. }) => {
                    return Err(io::Error::from_raw_os_error(code.map_or(0, |code| -code.get())));
                }
                _ => {}
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn link(message: &LinkMessage) -> Link {
    let header = &message.header;
    let mut link = Link {
        index: header.index,
        up: header.flags.contains(LinkFlags::Up),
        loopback: header.flags.contains(LinkFlags::Loopback),
        ethernet: header.link_layer_type == LinkLayerType::Ether,
        unreadable: UNREADABLE.contains(&header.link_layer_type),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::LinkNetNsId(id) => link.link_netnsid = Some(*id),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::Address(address) if link.ethernet => link.address = address[..].try_into().ok(),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos).unwrap_or_default(),
            _ => {}
        }
    }
    link
}

fn kind(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn address(message: &AddressMessage) -> Option<Address> {
    const UNSTABLE: AddressFlags = AddressFlags::Secondary
        .union(AddressFlags::Deprecated)
        .union(AddressFlags::Tentative)
        .union(AddressFlags::Dadfailed);
    let (mut own, mut peer_or_own) = (None, None);
    let mut flags = header_flags(&message.header);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => own = Some(*address),
            AddressAttribute::Address(address) => peer_or_own = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(Address {
        // On a point-to-point device, the other attribute contains the peer's address.
        address: own.or(peer_or_own)?,
        global: message.header.scope == AddressScope::Universe,
        stable: !flags.intersects(UNSTABLE),
    })
}

fn header_flags(header: &AddressHeader) -> AddressFlags {
    AddressFlags::from_bits_retain(u32::from(header.flags.bits()))
}
