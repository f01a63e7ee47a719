//! Source addresses that make a test run treat an IP packet like an Ethernet frame with an IP
//! packet. So the programs of devices without Ethernet headers can run on IP packets.
//!
//! A test run reads the ethertype behind the first twelve bytes (`bpf_prog_test_run_skb`,
//! net/bpf/test_run.c, Linux 6.18) and puts it into the program's context. In an IP packet, that is
//! a part of the source address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_tests::packet::network::Place;
use lb_tests::packet::world::{World, worlds};

/// The programs of devices without Ethernet headers.
pub(crate) const LAYER3: [&str; 3] = [
    "lb_tc_from_network_layer3",
    "lb_tc_from_pod_layer3",
    "lb_tc_to_layer3",
];

/// The ethertype of IPv6.
const IPV6: u16 = 0x86dd;

/// The addresses and routes of disguised addresses, in addition to the default routes.
pub(crate) const ROUTES: [&str; 10] = [
    "addr add 8.0.3.5/32 dev lo",
    "addr add fd00:3:86dd::5/128 dev lo nodad",
    "route add 8.0.1.0/24 via 172.16.0.2 dev back",
    "route add fd00:1:86dd::/64 via fd00:172::2 dev back",
    "route add 8.0.4.0/24 via 172.16.0.9 dev back",
    "route add fd00:4:86dd::/64 via fd00:172::9 dev back",
    "route add 8.0.5.0/24 via 172.16.0.2 dev back mtu lock 1300",
    "route add fd00:5:86dd::/64 via fd00:172::2 dev back mtu lock 1300",
    "route add unreachable 8.0.6.0/24",
    "route add unreachable fd00:6:86dd::/64",
];

/// Whether a program sees packets without an Ethernet header.
pub(crate) fn is_layer3(program: &str) -> bool {
    LAYER3.contains(&program)
}

/// The disguised form of an address.
fn disguised(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            // 0x0800, then the part that distinguishes the networks of the tests.
            let [_, b, c, d] = address.octets();
            Ipv4Addr::new(8, 0, if c == 0 { b } else { c }, d).into()
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, .., last] = address.segments();
            Ipv6Addr::new(a, b, IPV6, c, d, 0, 0, last).into()
        }
    }
}

fn is_disguised(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..2] == [8, 0],
        IpAddr::V6(address) => address.segments()[2] == IPV6,
    }
}

/// An address, disguised if `other` is.
pub(crate) fn like(other: IpAddr, address: IpAddr) -> IpAddr {
    if is_disguised(other) {
        disguised(address)
    } else {
        address
    }
}

/// The worlds with disguised addresses. The node's addresses stay.
pub(crate) fn disguised_worlds() -> [World; 2] {
    let hide = |address: SocketAddr| SocketAddr::new(disguised(address.ip()), address.port());
    worlds().map(|world| World {
        client: hide(world.client),
        vip: hide(world.vip),
        vip2: hide(world.vip2),
        pod: hide(world.pod),
        pod2: hide(world.pod2),
        node: world.node,
    })
}

/// All worlds.
pub(crate) fn everyone() -> Vec<World> {
    [worlds(), disguised_worlds()].concat()
}

/// A backend that is not marked as local.
pub(crate) fn backend_at(world: &World, place: Place) -> SocketAddr {
    let backend = world.backend_at(place);
    SocketAddr::new(like(world.vip.ip(), backend.ip()), backend.port())
}
