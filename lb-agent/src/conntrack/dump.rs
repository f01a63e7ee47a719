//! Lists translated connections in the kernel's conntrack table (`ctnetlink`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol as Number,
    Status, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use crate::datapath::passing::Translated;
use crate::maps::Protocol;
use crate::netlink::Connection;

/// Lists the connections that are still open, in the calling thread's network namespace.
///
/// # Errors
/// The kernel's error, such as [`io::ErrorKind::InvalidInput`] if it does not support `ctnetlink`.
pub(super) fn translated() -> io::Result<Vec<Translated>> {
    let mut found = Vec::new();
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        let mut connection = Connection::open(NETLINK_NETFILTER)?;
        let header = NetfilterHeader::new(family, 0, 0);
        let question = NetfilterMessage::new(header, ConntrackMessage::Get(Vec::new()));
        connection.send(question, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut take = |message: NetfilterMessage| {
            if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner {
                found.extend(of_entry(&attributes));
            }
        };
        while !connection.receive(&mut take)? {}
    }
    Ok(found)
}

/// The connection of an entry, if it was translated and is still open.
fn of_entry(attributes: &[ConntrackAttribute]) -> Option<Translated> {
    let (mut original, mut reply, mut tcp_state, mut status) = (None, None, None, Status::empty());
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = Ends::of(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = Ends::of(tuple),
            ConntrackAttribute::CtaStatus(found) => status = *found,
            ConntrackAttribute::CtaProtoInfo(infos) => tcp_state = state_of(infos),
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    // This also detects IPVS, which does not set a NAT status.
    let is_translated = original.destination != reply.source;
    let goes_on = tcp_state.map_or(status.contains(Status::SeenReply), is_open);
    (is_translated && goes_on).then_some(Translated {
        protocol: original.protocol,
        client: original.source,
        frontend: original.destination,
        backend: reply.source,
    })
}

/// Whether a TCP connection in this state has been answered and has not been closed by both sides
/// (`enum tcp_conntrack`,
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/netfilter/nf_conntrack_tcp.h>):
/// SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT and LAST_ACK.
fn is_open(state: u8) -> bool {
    (2..=6).contains(&state)
}

fn state_of(infos: &[ProtoInfo]) -> Option<u8> {
    let tcp = infos.iter().find_map(|info| match info {
        ProtoInfo::TCP(tcp) => Some(tcp),
        _ => None,
    });
    tcp?.iter().find_map(|info| match info {
        ProtoInfoTCP::State(state) => Some(*state),
        _ => None,
    })
}

fn known(number: Number) -> Option<Protocol> {
    match number {
        Number::Tcp => Some(Protocol::Tcp),
        Number::Udp => Some(Protocol::Udp),
        Number::Sctp => Some(Protocol::Sctp),
        _ => None,
    }
}

/// Both ends of one direction.
struct Ends {
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Ends {
    fn of(tuple: &[Tuple]) -> Option<Self> {
        let mut addresses: [Option<IpAddr>; 2] = [None; 2];
        let mut ports: [Option<u16>; 2] = [None; 2];
        let mut protocol = None;
        for part in tuple {
            match part {
                Tuple::Ip(parts) => {
                    for part in parts {
                        match part {
                            IPTuple::SourceAddress(address) => addresses[0] = Some(*address),
                            IPTuple::DestinationAddress(address) => addresses[1] = Some(*address),
                            _ => {}
                        }
                    }
                }
                Tuple::Proto(parts) => {
                    for part in parts {
                        match part {
                            ProtoTuple::Protocol(number) => protocol = known(*number),
                            ProtoTuple::SourcePort(port) => ports[0] = Some(*port),
                            ProtoTuple::DestinationPort(port) => ports[1] = Some(*port),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        let end = |at: usize| Some(SocketAddr::new(addresses[at]?, ports[at]?));
        Some(Self {
            protocol: protocol?,
            source: end(0)?,
            destination: end(1)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = "198.51.100.7:40000";
    const VIP: &str = "10.96.0.10:80";
    const POD: &str = "10.65.1.5:8080";

    fn tuple(number: Number, source: &str, destination: &str) -> Vec<Tuple> {
        let [source, destination]: [SocketAddr; 2] = [source, destination].map(|end| end.parse().unwrap());
        vec![
            Tuple::Ip(vec![
                IPTuple::SourceAddress(source.ip()),
                IPTuple::DestinationAddress(destination.ip()),
            ]),
            Tuple::Proto(vec![
                ProtoTuple::Protocol(number),
                ProtoTuple::SourcePort(source.port()),
                ProtoTuple::DestinationPort(destination.port()),
            ]),
        ]
    }

    fn entry(number: Number, answers: &str, status: Status, state: Option<u8>) -> Vec<ConntrackAttribute> {
        let mut attributes = vec![
            ConntrackAttribute::CtaTupleOrig(tuple(number, CLIENT, VIP)),
            ConntrackAttribute::CtaTupleReply(tuple(number, answers, CLIENT)),
            ConntrackAttribute::CtaStatus(status),
        ];
        attributes.extend(state.map(|state| {
            ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![ProtoInfoTCP::State(state)])])
        }));
        attributes
    }

    #[test]
    fn answered_tcp_connections_that_are_not_closed_are_listed() {
        let of_state = |state| of_entry(&entry(Number::Tcp, POD, Status::SeenReply, Some(state)));
        let open: Vec<u8> = (0..10).filter(|state| of_state(*state).is_some()).collect();
        assert_eq!(open, [2, 3, 4, 5, 6]);
        let expected = Translated {
            protocol: Protocol::Tcp,
            client: CLIENT.parse().unwrap(),
            frontend: VIP.parse().unwrap(),
            backend: POD.parse().unwrap(),
        };
        assert_eq!(of_state(3), Some(expected));
    }

    #[test]
    fn answered_udp_flows_are_listed() {
        let of_status = |status| of_entry(&entry(Number::Udp, POD, status, None));
        assert_eq!(of_status(Status::Confirmed | Status::DstNat), None);
        let found = of_status(Status::Confirmed | Status::SeenReply).unwrap();
        assert_eq!(found.protocol, Protocol::Udp);
    }

    #[test]
    fn untranslated_connections_are_not_listed() {
        assert_eq!(
            of_entry(&entry(Number::Tcp, VIP, Status::SeenReply, Some(3))),
            None
        );
        assert_eq!(of_entry(&entry(Number::Icmp, POD, Status::SeenReply, None)), None);
        assert_eq!(of_entry(&[]), None);
    }
}
