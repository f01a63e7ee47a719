//! Services of all kinds, in the kernel's tables and in the host's.

use std::net::SocketAddr;

use lb_agent::maps::{FrontendKey, Protocol};
use lb_common::host::only_ports;
use lb_common::layout::{Frontend, frontend_flags};
use lb_common::packet::{Route, Sender};
use lb_common::settings::Lifetimes;
use lb_common::settings::SourcePorts;
use lb_tests::packet::Datapath;
use lb_tests::packet::host::{Host, Surroundings};
use lb_tests::packet::network::{BACK_LINK, CLIENT_LINK, NARROW_MTU, Place};
use lb_tests::packet::world::{World, at, worlds};

use super::disguise::{backend_at, everyone};

/// A single port, so that the allocation is deterministic.
pub(crate) const PORTS: SourcePorts = only_ports(61_000, 1);
/// Longer than any test takes.
const SECONDS: u32 = 1_000_000;
pub(crate) const LIFETIMES: Lifetimes = Lifetimes {
    tcp_established: SECONDS,
    tcp_opening: SECONDS,
    tcp_half_closed: SECONDS,
    tcp_closing: SECONDS,
    tcp_reset: SECONDS,
    udp_answered: SECONDS,
    udp_unanswered: SECONDS,
};
/// The set of source ranges.
const SET: u32 = 9;

pub(crate) const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What is behind a port of the VIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Behind {
    /// A Pod of this node.
    Pod,
    /// Two Pods, with session affinity.
    Affinity,
    /// A Pod, restricted to the set of source ranges.
    Restricted,
    /// Nothing.
    Nothing,
    /// A backend that is not marked as local.
    Remote(Place),
}

/// Ports of the VIP, which are also the ports of the backends.
pub(crate) const SERVICES: [(u16, Behind); 9] = [
    (8080, Behind::Pod),
    (8081, Behind::Affinity),
    (8082, Behind::Restricted),
    (8083, Behind::Nothing),
    (8084, Behind::Remote(Place::Back)),
    (8085, Behind::Remote(Place::Narrow)),
    (8086, Behind::Remote(Place::Unresolved)),
    (8087, Behind::Remote(Place::Unreachable)),
    (8088, Behind::Remote(Place::Node)),
];

pub(crate) fn with_port(address: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), port)
}

/// The backends of a port.
pub(crate) fn backends(world: &World, port: u16, behind: Behind) -> Vec<SocketAddr> {
    let addresses = match behind {
        Behind::Pod | Behind::Restricted => vec![world.pod],
        Behind::Affinity => vec![world.pod, world.pod2],
        Behind::Nothing => vec![],
        Behind::Remote(place) => vec![backend_at(world, place)],
    };
    addresses.into_iter().map(|pod| with_port(pod, port)).collect()
}

/// Writes all Services, and the wildcard rows of two VIPs: one answers echo requests.
pub(crate) fn serve(datapath: &mut Datapath) {
    let mut service = 0;
    for world in everyone() {
        for (port, behind) in SERVICES {
            service += 1;
            let vip = with_port(world.vip, port);
            let keys = ALL.map(|protocol| FrontendKey::Port(vip.ip(), port, protocol));
            let pods: Vec<_> = backends(&world, port, behind).into_iter().map(at).collect();
            datapath.service(service, &keys, &pods);
            let mut row = Datapath::row(service, u32::try_from(pods.len()).expect("few"));
            match behind {
                Behind::Affinity => row.affinity_seconds = SECONDS,
                Behind::Restricted => row.source_ranges = SET,
                Behind::Remote(_) => {
                    datapath.change_backend(service * 100, |backend| backend.local = false);
                }
                Behind::Pod | Behind::Nothing => {}
            }
            for key in keys {
                datapath.frontend(key, row);
            }
        }
        for (vip, flags) in [(world.vip, frontend_flags::ECHO), (world.vip2, 0)] {
            let value = Frontend {
                flags: frontend_flags::WILDCARD | flags,
                ..Frontend::default()
            };
            datapath.frontend(FrontendKey::Wildcard(vip.ip()), value);
        }
        datapath.allow(SET, world.client.ip(), if world.vip.is_ipv4() { 32 } else { 128 });
    }
}

/// The places of senders according to the routes. The first network that contains a sender applies.
const SENDERS: [(&str, Sender); 28] = [
    ("172.16.0.1/32", Sender::Node),
    ("10.3.0.5/32", Sender::Node),
    ("8.0.3.5/32", Sender::Node),
    ("192.0.2.0/24", Sender::Here),
    ("172.16.0.0/24", Sender::Here),
    ("10.1.0.0/16", Sender::Here),
    ("10.4.0.0/24", Sender::Here),
    ("10.5.0.0/24", Sender::Here),
    ("10.6.0.0/24", Sender::Here),
    ("8.0.1.0/24", Sender::Here),
    ("8.0.4.0/23", Sender::Here),
    ("8.0.6.0/24", Sender::Here),
    ("0.0.0.0/0", Sender::Behind),
    ("fd00:172::1/128", Sender::Node),
    ("fd00:3::5/128", Sender::Node),
    ("fd00:3:86dd::5/128", Sender::Node),
    ("2001:db8::/64", Sender::Here),
    ("fd00:172::/64", Sender::Here),
    ("fe80::/64", Sender::Here),
    ("fd00:1::/64", Sender::Here),
    ("fd00:4::/64", Sender::Here),
    ("fd00:5::/64", Sender::Here),
    ("fd00:6::/64", Sender::Here),
    ("fd00:1:86dd::/64", Sender::Here),
    ("fd00:4:86dd::/64", Sender::Here),
    ("fd00:5:86dd::/64", Sender::Here),
    ("fd00:6:86dd::/64", Sender::Here),
    ("::/0", Sender::Behind),
];

/// The same code on the host, with the same tables and routes.
pub(crate) fn host(datapath: &Datapath) -> Host {
    let device = worlds().map(|world| world.back_address());
    let surroundings = Surroundings {
        source_ports: PORTS,
        lifetimes: LIFETIMES,
        device,
    };
    let mut host = Host::new(datapath, &surroundings);
    for (network, sender) in SENDERS {
        let (address, prefix) = network.split_once('/').expect("a prefix");
        let prefix = prefix.parse().expect("a number");
        host.senders(address.parse().expect("an address"), prefix, sender);
    }
    for world in everyone() {
        host.allow(SET, world.client.ip());
        host.way(world.client.ip(), Route::Ready, CLIENT_LINK, 0);
        let mut way = |place, route, mtu| host.way(backend_at(&world, place).ip(), route, BACK_LINK, mtu);
        way(Place::Back, Route::Ready, 0);
        way(Place::Narrow, Route::Ready, NARROW_MTU);
        way(Place::Unresolved, Route::Unresolved, 0);
        way(Place::Unreachable, Route::None, 0);
        way(Place::Node, Route::Local, 0);
    }
    host
}
