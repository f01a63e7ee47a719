//! Reads the hooks of devices over netlink: clsact filters and XDP programs.

use std::collections::BTreeMap;
use std::io;

use rtnetlink::packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::hook::{Direction, XdpMode};
use crate::netlink::Connection;

/// `ETH_P_ALL`: a filter for all packets.
const ALL_PROTOCOLS: u16 = 3;

/// A filter of a clsact queueing discipline.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Filter {
    /// Filters with lower numbers run first.
    pub(super) priority: u16,
    /// Whether it runs for all packets.
    pub(super) for_all: bool,
    /// Its handle within this priority. 0 stands for the priority itself.
    pub(super) handle: u32,
    /// `bpf`, `flower` and so on. All filters of a priority have the same kind.
    pub(super) kind: String,
    /// The name of a BPF filter.
    pub(super) name: Option<String>,
    /// The id of its program.
    pub(super) program: Option<u32>,
    /// Its chain. Chains other than the first run only if a filter jumps to them.
    pub(super) chain: u32,
}

/// The filters of a device in the order of execution. Empty if the device has no clsact qdisc or
/// does not exist.
pub(super) fn filters(device: u32, direction: Direction) -> io::Result<Vec<Filter>> {
    let mut message = TcMessage::default();
    message.header.index = device.cast_signed();
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: match direction {
            Direction::Ingress => TcHandle::MIN_INGRESS,
            Direction::Egress => TcHandle::MIN_EGRESS,
        },
    };
    let mut netlink = Connection::open(NETLINK_ROUTE)?;
    netlink.send(
        RouteNetlinkMessage::GetTrafficFilter(message),
        NLM_F_REQUEST | NLM_F_DUMP,
    )?;
    let mut found = Vec::new();
    while !netlink.receive(|filter: Filter| found.push(filter))? {}
    found.retain(|filter| filter.chain == 0);
    Ok(found)
}

/// The XDP programs of all devices, by device index: the mode and the program's id.
pub(super) fn xdp_programs() -> io::Result<BTreeMap<u32, (Option<XdpMode>, u32)>> {
    let mut netlink = Connection::open(NETLINK_ROUTE)?;
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    netlink.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut found = BTreeMap::new();
    let mut take = |message| {
        if let RouteNetlinkMessage::NewLink(link) = message
            && let Some(program) = xdp_program(&link)
        {
            found.insert(link.header.index, program);
        }
    };
    while !netlink.receive(&mut take)? {}
    Ok(found)
}

fn xdp_program(link: &LinkMessage) -> Option<(Option<XdpMode>, u32)> {
    let attributes = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(attributes) => Some(attributes),
        _ => None,
    })?;
    let program = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })?;
    let mode = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(XdpAttached::Driver) => Some(XdpMode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
        _ => None,
    });
    Some((mode, program))
}

/// `TCA_KIND` and so on
/// (<https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/rtnetlink.h>).
mod attribute {
    pub(super) const KIND: u16 = 1;
    pub(super) const OPTIONS: u16 = 2;
    pub(super) const CHAIN: u16 = 11;
    pub(super) const BPF_NAME: u16 = 7;
    pub(super) const BPF_ID: u16 = 11;
}

/// Parsed here, because filters of other kinds may have options that the crate cannot parse.
impl NetlinkDeserializable for Filter {
    type Error = DecodeError;

    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        /// `struct tcmsg`: family and padding, then these four words.
        const HEADER: usize = 20;
        let word = |at: usize| number(payload.get(at..at + 4).unwrap_or_default());
        let (handle, info) = (word(8), word(16));
        let protocol = u16::try_from(info & u32::from(u16::MAX)).unwrap_or_default();
        let mut filter = Self {
            priority: u16::try_from(info >> u16::BITS).unwrap_or_default(),
            for_all: u16::from_be(protocol) == ALL_PROTOCOLS,
            handle,
            ..Self::default()
        };
        let attributes = payload.get(HEADER..).unwrap_or_default();
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            match attribute.kind() {
                attribute::KIND => filter.kind = text(attribute.value()),
                attribute::CHAIN => filter.chain = number(attribute.value()),
                attribute::OPTIONS if filter.kind == "bpf" => filter.read_options(attribute.value())?,
                _ => {}
            }
        }
        Ok(filter)
    }
}

impl Filter {
    fn read_options(&mut self, options: &[u8]) -> Result<(), DecodeError> {
        for option in NlasIterator::new(options) {
            let option = option?;
            match option.kind() {
                attribute::BPF_NAME => self.name = Some(text(option.value())),
                attribute::BPF_ID => self.program = Some(number(option.value())),
                _ => {}
            }
        }
        Ok(())
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

fn text(bytes: &[u8]) -> String {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(handle: u32, priority: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let info = u32::from(priority) << 16 | u32::from(ALL_PROTOCOLS.to_be());
        let words = [0, 7, handle, 0xffff_fff2, info];
        let header = words.map(u32::to_ne_bytes).concat();
        [header, attributes.concat()].concat()
    }

    fn read(payload: &[u8]) -> Result<Filter, DecodeError> {
        Filter::deserialize(&NetlinkHeader::default(), payload)
    }

    #[test]
    fn a_bpf_filter_is_read() {
        let options = [
            attribute(attribute::BPF_NAME, b"other\0"),
            attribute(attribute::BPF_ID, &9_u32.to_ne_bytes()),
        ];
        let attributes = [
            attribute(attribute::KIND, b"bpf\0"),
            attribute(attribute::OPTIONS, &options.concat()),
        ];
        let expected = Filter {
            priority: 5,
            for_all: true,
            handle: 2,
            kind: "bpf".to_owned(),
            name: Some("other".to_owned()),
            program: Some(9),
            chain: 0,
        };
        assert_eq!(read(&message(2, 5, &attributes)).unwrap(), expected);
    }

    #[test]
    fn options_of_other_filter_kinds_are_ignored() {
        let attributes = [
            attribute(attribute::KIND, b"flower\0"),
            attribute(attribute::OPTIONS, b"\x03\x00\x07\x00"),
            attribute(attribute::CHAIN, &4_u32.to_ne_bytes()),
        ];
        let filter = read(&message(1, 1, &attributes)).unwrap();
        assert_eq!((filter.kind.as_str(), filter.chain), ("flower", 4));
        assert_eq!((filter.name, filter.program), (None, None));
        // Truncated messages have no numbers, and nothing is read past their end.
        assert_eq!(read(&[0; 3]).unwrap().handle, 0);
        assert!(read(&message(1, 1, &[vec![9, 0, 1, 0]])).is_err());
    }
}
