//! Addresses of clients, frontends and Pods in packet tests, and the programs of each kind of
//! device.

use std::net::{IpAddr, SocketAddr};

use lb_agent::maps::{FrontendKey, Protocol};
use lb_common::settings::SourcePorts;

use super::build::{self, Build};
use super::{NODE4, NODE6};

/// The ingress and egress programs of one kind of device.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Sees packets that enter the stack.
    pub ingress: &'static str,
    /// Sees packets that leave the stack.
    pub egress: &'static str,
}

/// A network device with XDP, a network device without XDP, and a Pod's device.
pub const DEVICES: [Device; 3] = [
    Device {
        ingress: "lb_xdp",
        egress: "lb_tc_to_network",
    },
    Device {
        ingress: "lb_tc_from_network",
        egress: "lb_tc_to_network",
    },
    POD_DEVICE,
];

/// The host side of a Pod's device.
pub const POD_DEVICE: Device = Device {
    ingress: "lb_tc_from_pod",
    egress: "lb_tc_to_pod",
};

/// Every packet program.
pub const PROGRAMS: [&str; 5] = [
    "lb_xdp",
    "lb_tc_from_network",
    "lb_tc_from_pod",
    "lb_tc_to_network",
    "lb_tc_to_pod",
];

/// Addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// A client.
    pub client: SocketAddr,
    /// A frontend.
    pub vip: SocketAddr,
    /// Another frontend.
    pub vip2: SocketAddr,
    /// A Pod.
    pub pod: SocketAddr,
    /// Another Pod.
    pub pod2: SocketAddr,
    /// The node.
    pub node: IpAddr,
}

/// The addresses of both families.
pub fn worlds() -> [World; 2] {
    let socket = |text: &str| text.parse().expect("a socket address");
    [
        World {
            client: socket("198.51.100.7:40000"),
            vip: socket("10.96.0.10:80"),
            vip2: socket("10.96.0.11:443"),
            pod: socket("10.1.0.5:8080"),
            pod2: socket("10.1.0.6:8080"),
            node: NODE4.into(),
        },
        World {
            client: socket("[2001:db8:1::7]:40000"),
            vip: socket("[fd00:96::10]:80"),
            vip2: socket("[fd00:96::11]:443"),
            pod: socket("[fd00:1::5]:8080"),
            pod2: socket("[fd00:1::6]:8080"),
            node: NODE6.into(),
        },
    ]
}

impl World {
    /// The client with another port.
    pub fn client_at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.client.ip(), port)
    }
}

/// TCP and UDP.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// The frontend keys of an address for both protocols.
pub fn keys(address: SocketAddr) -> [FrontendKey; 2] {
    PROTOCOLS.map(|protocol| FrontendKey::Port(address.ip(), address.port(), protocol))
}

/// A backend's address in the form that [`super::Datapath::service`] needs.
pub fn at(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip(), address.port())
}

/// Types of SCTP chunks (RFC 9260 section 3.2).
pub mod chunk {
    /// Payload.
    pub const DATA: u8 = 0;
    /// Requests an association.
    pub const INIT: u8 = 1;
    /// The answer to [`INIT`].
    pub const INIT_ACK: u8 = 2;
    /// Ends an association immediately.
    pub const ABORT: u8 = 6;
    /// The last chunk of an association.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// The first packet of a connection: SYN, INIT or a datagram.
pub fn first(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Build {
    match protocol {
        Protocol::Tcp => build::syn(source, destination),
        Protocol::Udp => build::udp(source, destination),
        Protocol::Sctp => build::sctp(source, destination, chunk::INIT),
    }
}

/// A backend's answer to the first packet of a connection.
pub fn answer(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Build {
    match protocol {
        Protocol::Tcp => build::syn_ack(source, destination),
        Protocol::Udp => build::udp(source, destination),
        Protocol::Sctp => build::sctp(source, destination, chunk::INIT_ACK),
    }
}

/// A later packet of a connection.
pub fn data(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Build {
    match protocol {
        Protocol::Tcp => build::ack(source, destination),
        Protocol::Udp => build::udp(source, destination),
        Protocol::Sctp => build::sctp(source, destination, chunk::DATA),
    }
}

/// Whether the datapath allocates a source port before those of the ephemeral range.
pub fn is_given_out(port: u16) -> bool {
    let SourcePorts { all, local } = SourcePorts::DEFAULT;
    all.contains(port) && !local.contains(port)
}
