//! The measured cases: program, packets, and the expected result.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_agent::datapath::object::program;
use lb_agent::maps::Protocol;
use lb_agent::network::Family;

use super::plan::{End, EndAt, Order, Plan};
use crate::packet::build::{self, Build};
use crate::test_programs;

/// The number of random flows; a power of two.
pub(super) const ALL_FLOWS: u32 = 1 << 20;
/// Entries of the flow tables: two for each random flow from outside and from Pods, and room for
/// the flows that are opened during the measurements.
pub(super) const FLOW_ENTRIES: u32 = 8 * ALL_FLOWS;
/// The number of Services; a power of two.
pub(super) const SERVICES: u32 = 1 << 10;

/// Blocks of addresses, as their last 32-bit word: clients, VIPs, their Pods, and addresses without
/// a Service.
pub(super) mod block {
    /// Clients outside, of existing flows.
    pub(in crate::bench::packets) const CLIENTS: u32 = 0x0a40_0000;
    /// Pods as clients, of existing flows.
    pub(in crate::bench::packets) const POD_CLIENTS: u32 = 0x0a70_0000;
    /// Clients of flows that are opened during the measurements: one block for XDP and one for TC.
    pub(in crate::bench::packets) const NEW_CLIENTS: [u32; 2] = [0x0a50_0000, 0x0a60_0000];
    /// VIPs.
    pub(in crate::bench::packets) const VIPS: u32 = 0xac10_0000;
    /// Pods. The Pod of a Service has the same number as its VIP.
    pub(in crate::bench::packets) const PODS: u32 = 0xac14_0000;
    /// The VIP of the Service whose Pod is on another node.
    pub(in crate::bench::packets) const REMOTE_VIP: u32 = 0xac18_0000;
    /// The Pod on another node.
    pub(in crate::bench::packets) const REMOTE_POD: u32 = 0xac1c_0000;
    /// The node's address towards that Pod.
    pub(in crate::bench::packets) const NODE: u32 = 0xac1f_0001;
    /// Addresses that belong to no Service.
    pub(in crate::bench::packets) const FOREIGN: u32 = 0x6440_0000;
}
/// The port of the Services.
pub(super) const VIP_PORT: u16 = 80;
/// The port of the Pods.
pub(super) const POD_PORT: u16 = 8080;

/// The only source port that the programs allocate. It is the port of the first client, so that its
/// packets and their replies differ in addresses only.
pub(super) const TRANSLATED_PORT: u16 = 40_000;

/// The program that is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// XDP of a network device.
    Xdp,
    /// TC of a Pod's device, for packets that the Pod sends.
    FromPod,
    /// TC of a Pod's device, for packets that the Pod receives.
    ToPod,
}

impl Hook {
    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Xdp => program::XDP,
            Self::FromPod => program::TC_FROM_POD,
            Self::ToPod => program::TC_TO_POD,
        }
    }

    /// The empty program's name.
    pub fn empty(self) -> &'static str {
        match self {
            Self::Xdp => test_programs::EMPTY_XDP,
            Self::FromPod | Self::ToPod => test_programs::EMPTY_TC,
        }
    }
}

/// The packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traffic {
    /// Packets of existing flows: requests, or replies if the program sees replies.
    Established,
    /// The first packets of flows.
    New,
    /// Packets without a Service or a flow.
    Foreign,
    /// The first packets of connections without a Service.
    ForeignNew,
    /// Requests of an existing flow to a Pod on another node.
    SentOn,
    /// Replies of an existing flow from a Pod on another node.
    SentBack,
}

/// The number of flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flows {
    /// One flow: everything is in the CPU cache.
    One,
    /// `ALL_FLOWS`, in random order: no flow is in the CPU cache.
    Million,
}

impl Flows {
    /// The number of flows.
    pub(super) fn count(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Million => ALL_FLOWS,
        }
    }

    /// The numbers of flows that are measured for this traffic. A flow can be opened only once.
    pub(super) fn of(traffic: Traffic) -> impl Iterator<Item = Self> {
        [Self::One, Self::Million]
            .into_iter()
            .filter(move |flows| match traffic {
                Traffic::New => *flows == Self::Million,
                Traffic::SentOn | Traffic::SentBack => *flows == Self::One,
                Traffic::Established | Traffic::Foreign | Traffic::ForeignNew => true,
            })
    }
}

/// One kind of packet at one program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// The program.
    pub hook: Hook,
    /// The packets.
    pub traffic: Traffic,
    /// Their transport protocol.
    pub protocol: Protocol,
    /// Their IP version.
    pub family: Family,
    /// Whether TCP segments open a connection: the SYN of a request, or the SYN-ACK of a reply.
    opens: bool,
}

/// The cases of TCP: everything is measured.
const TCP_CASES: &[(Hook, Traffic)] = &[
    (Hook::Xdp, Traffic::Established),
    (Hook::Xdp, Traffic::New),
    (Hook::Xdp, Traffic::Foreign),
    (Hook::Xdp, Traffic::SentOn),
    (Hook::Xdp, Traffic::SentBack),
    (Hook::FromPod, Traffic::Established),
    (Hook::FromPod, Traffic::New),
    (Hook::FromPod, Traffic::Foreign),
    (Hook::FromPod, Traffic::ForeignNew),
    (Hook::ToPod, Traffic::Established),
    (Hook::ToPod, Traffic::Foreign),
];
/// The cases of UDP, which differs in the treatment of checksums.
const UDP_CASES: &[(Hook, Traffic)] = &[
    (Hook::Xdp, Traffic::Established),
    (Hook::Xdp, Traffic::New),
    (Hook::Xdp, Traffic::SentOn),
    (Hook::Xdp, Traffic::SentBack),
    (Hook::FromPod, Traffic::Established),
    (Hook::ToPod, Traffic::Established),
];

impl Case {
    /// The cases of a protocol.
    pub(super) fn all(protocol: Protocol) -> impl Iterator<Item = Self> {
        let cases = match protocol {
            Protocol::Tcp => TCP_CASES,
            Protocol::Udp => UDP_CASES,
            Protocol::Sctp => &[],
        };
        let family_cases = move |family| {
            let case = move |&(hook, traffic)| Self {
                hook,
                traffic,
                protocol,
                family,
                opens: matches!(traffic, Traffic::New | Traffic::ForeignNew),
            };
            cases.iter().map(case)
        };
        Family::ALL.into_iter().flat_map(family_cases)
    }

    /// The packets that open the existing flows of the measurements: requests, replies, and
    /// acknowledgements of the clients.
    pub(super) fn openings(protocol: Protocol) -> impl Iterator<Item = [(Self, Plan); 3]> {
        let openings = move |family| {
            let case = |hook, traffic, opens| Self {
                hook,
                traffic,
                protocol,
                family,
                opens,
            };
            // The flows of the measurements are opened in another order, by other clients.
            let new = |hook, client| {
                let case = case(hook, Traffic::New, true);
                let plan = case.plan(Flows::Million);
                (case, Plan { client, ..plan })
            };
            let reply = case(Hook::ToPod, Traffic::Established, true);
            let plan = reply.plan(Flows::Million);
            let reply_to = |client| (reply, Plan { client, ..plan });
            let all = |case: Self| (case, case.plan(Flows::Million));
            let one = |case: Self| (case, case.plan(Flows::One));
            [
                [
                    new(Hook::Xdp, block::CLIENTS),
                    reply_to(block::CLIENTS),
                    all(case(Hook::Xdp, Traffic::Established, false)),
                ],
                [
                    new(Hook::FromPod, block::POD_CLIENTS),
                    reply_to(block::POD_CLIENTS),
                    all(case(Hook::FromPod, Traffic::Established, false)),
                ],
                [
                    one(case(Hook::Xdp, Traffic::SentOn, true)),
                    one(case(Hook::Xdp, Traffic::SentBack, true)),
                    one(case(Hook::Xdp, Traffic::SentOn, false)),
                ],
            ]
        };
        Family::ALL.into_iter().flat_map(openings)
    }

    /// The required limit, in nanoseconds over the empty program.
    pub fn limit(&self, flows: Flows) -> Option<u32> {
        match (self.hook, self.traffic, flows) {
            (Hook::Xdp, Traffic::Established, Flows::One) => Some(70),
            (Hook::Xdp, Traffic::Established, Flows::Million) => Some(560),
            (Hook::Xdp, Traffic::New, _) => Some(1000),
            (Hook::FromPod, Traffic::Established, Flows::One) => Some(200),
            (_, Traffic::Foreign, _) => Some(60),
            (_, Traffic::SentOn | Traffic::SentBack, _) => Some(120),
            _ => None,
        }
    }

    /// The plan of the packets to send.
    pub(super) fn plan(&self, flows: Flows) -> Plan {
        let (service, service_port) = self.service_end();
        let addresses = match self.traffic {
            Traffic::Foreign | Traffic::ForeignNew => ALL_FLOWS,
            Traffic::Established | Traffic::New => SERVICES,
            Traffic::SentOn | Traffic::SentBack => 1,
        };
        let [source, destination] = self.ends_at();
        let (client_at, service_at) = match self.is_reply() {
            true => (destination, source),
            false => (source, destination),
        };
        let (hops_at, hops) = self.hops();
        Plan {
            state: 0,
            order: self.order(),
            flow_mask: flows.count() - 1,
            service_mask: addresses - 1,
            client: self.clients(),
            service,
            service_port,
            hops,
            hops_at,
            client_at,
            service_at,
        }
    }

    /// Whether the packets are replies.
    fn is_reply(&self) -> bool {
        self.hook == Hook::ToPod || self.traffic == Traffic::SentBack
    }

    /// The last word of the first client's address.
    fn clients(&self) -> u32 {
        match (self.traffic, self.hook) {
            (Traffic::New, Hook::Xdp) => block::NEW_CLIENTS[0],
            (Traffic::New, Hook::FromPod | Hook::ToPod) => block::NEW_CLIENTS[1],
            (Traffic::SentBack, _) => block::NODE,
            (Traffic::Established, Hook::FromPod | Hook::ToPod) => block::POD_CLIENTS,
            (Traffic::Established | Traffic::Foreign | Traffic::ForeignNew | Traffic::SentOn, _) => {
                block::CLIENTS
            }
        }
    }

    /// The flows are opened in another order than they are used in. Entries that are created in
    /// sequence are neighbours in memory, so the CPU would prefetch them.
    fn order(&self) -> Order {
        match self.traffic {
            Traffic::New => Order {
                multiplier: 22_695_477,
                increment: 1,
            },
            _ => Order {
                multiplier: 1_664_525,
                increment: 1_013_904_223,
            },
        }
    }

    /// The first address and the port of the service's end, before the program.
    fn service_end(&self) -> (u32, u16) {
        match (self.traffic, self.hook) {
            (Traffic::Foreign | Traffic::ForeignNew, _) => (block::FOREIGN, VIP_PORT),
            (Traffic::SentOn, _) => (block::REMOTE_VIP, VIP_PORT),
            (Traffic::SentBack, _) => (block::REMOTE_POD, POD_PORT),
            (_, Hook::ToPod) => (block::PODS, POD_PORT),
            _ => (block::VIPS, VIP_PORT),
        }
    }

    /// The first address and the port of the service's end, after the program.
    pub(super) fn translated_end(&self) -> (u32, u16) {
        match (self.traffic, self.hook) {
            (Traffic::Foreign | Traffic::ForeignNew, _) => self.service_end(),
            (Traffic::SentOn, _) => (block::REMOTE_POD, POD_PORT),
            (Traffic::SentBack, _) => (block::REMOTE_VIP, VIP_PORT),
            (_, Hook::ToPod) => (block::VIPS, VIP_PORT),
            _ => (block::PODS, POD_PORT),
        }
    }

    /// The client's end after the program.
    pub(super) fn translated_client(&self, client: End) -> End {
        let address = match self.traffic {
            Traffic::SentOn => block::NODE,
            Traffic::SentBack => block::CLIENTS,
            _ => client.address,
        };
        End { address, ..client }
    }

    /// The action of the empty program: pass to the stack.
    pub(super) fn empty_action(&self) -> u32 {
        match self.hook {
            // XDP_PASS (include/uapi/linux/bpf.h)
            Hook::Xdp => 2,
            // TC_ACT_UNSPEC (include/uapi/linux/pkt_cls.h)
            Hook::FromPod | Hook::ToPod => u32::MAX,
        }
    }

    /// The action that all of the packets must get.
    pub(super) fn action(&self) -> u32 {
        match self.traffic {
            // XDP_REDIRECT (include/uapi/linux/bpf.h)
            Traffic::SentOn | Traffic::SentBack => 4,
            _ => self.empty_action(),
        }
    }

    /// The empty program's name. Forwarded packets are compared with one that also does a FIB
    /// lookup.
    pub(super) fn empty(&self) -> &'static str {
        match self.traffic {
            Traffic::SentOn | Traffic::SentBack => test_programs::EMPTY_ROUTE_XDP,
            _ => self.hook.empty(),
        }
    }

    /// Offset and value of the word with the hop limit and the protocol.
    fn hops(&self) -> (u32, u16) {
        const HOPS: u8 = 64;
        let protocol = self.protocol.number();
        match self.family {
            Family::V4 => (22, u16::from_ne_bytes([HOPS, protocol])),
            Family::V6 => (20, u16::from_ne_bytes([protocol, HOPS])),
        }
    }

    /// A packet of this kind; the generator writes addresses and ports into it.
    pub(super) fn template(&self) -> Vec<u8> {
        let end = |last| SocketAddr::new(address(self.family, last), 1);
        let (source, destination) = (end(block::CLIENTS), end(block::VIPS));
        let packet: Build = match (self.protocol, self.traffic) {
            (Protocol::Udp | Protocol::Sctp, _) => build::udp(source, destination),
            (Protocol::Tcp, _) if !self.opens => build::ack(source, destination),
            (Protocol::Tcp, _) if self.is_reply() => build::syn_ack(source, destination),
            (Protocol::Tcp, _) => build::syn(source, destination),
        };
        packet.bytes()
    }

    /// Offsets of the source's and the destination's fields.
    fn ends_at(&self) -> [EndAt; 2] {
        match self.family {
            Family::V4 => [
                EndAt {
                    address: 26,
                    port: 34,
                },
                EndAt {
                    address: 30,
                    port: 36,
                },
            ],
            Family::V6 => [
                EndAt {
                    address: 34,
                    port: 54,
                },
                EndAt {
                    address: 50,
                    port: 56,
                },
            ],
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.traffic, self.hook) {
            (Traffic::Established, Hook::ToPod) => "reply",
            (Traffic::Established, _) => "established",
            (Traffic::New, _) => "new flow",
            (Traffic::Foreign, Hook::ToPod) => "not a reply",
            (Traffic::Foreign, _) => "not a Service",
            (Traffic::ForeignNew, _) => "SYN, not a Service",
            (Traffic::SentOn, _) => "to another node",
            (Traffic::SentBack, _) => "back from there",
        };
        write!(formatter, "{} {what}", self.protocol)
    }
}

/// The address of a family that ends in this word. All addresses of a family have the same prefix.
pub(super) fn address(family: Family, last: u32) -> IpAddr {
    let last = Ipv4Addr::from_bits(last);
    match family {
        Family::V4 => last.into(),
        Family::V6 => Ipv6Addr::from_bits((0xfd00 << 112) | u128::from(last.to_bits())).into(),
    }
}
