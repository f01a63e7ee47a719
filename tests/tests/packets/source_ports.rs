//! Source ports of connections that are forwarded to another node.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd};

use lb_agent::maps::Protocol;
use lb_common::host::only_ports;
use lb_common::packet::Verdict;
use lb_common::reason::Reason;
use lb_common::settings::SourcePorts;
use lb_tests::packet::build::see;
use lb_tests::packet::network::{Place, TestNetwork, serve_from};
use lb_tests::packet::world::{PROTOCOLS, World, at, first, is_given_out, keys, worlds};
use lb_tests::packet::{Datapath, datapath_with};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, socket,
};

/// Number of connections that one backend must support.
const CONNECTIONS: u16 = 55_000;

/// The source port that a client's first packet gets. `None` if it is dropped.
fn port_of(
    datapath: &mut Datapath,
    program: &str,
    world: &World,
    protocol: Protocol,
    client: u16,
) -> Option<u16> {
    let packet = first(protocol, world.client_at(client), world.vip).bytes();
    let (verdict, bytes) = datapath.verdict(program, &packet);
    (verdict == Verdict::Redirect).then(|| see(&bytes).source.port())
}

/// Runs a check with a Service whose only backend is on another node, with these source ports.
fn to_another_node(
    ports: SourcePorts,
    flows: u32,
    mut check: impl FnMut(&mut Datapath, &World, &'static str, Protocol),
) {
    let Some(mut datapath) = datapath_with(|settings| {
        settings.source_ports = ports;
        settings.tables.flows = flows;
    }) else {
        return;
    };
    let Some(_network) = TestNetwork::enter(&mut datapath) else {
        return;
    };
    serve_from(&mut datapath, Place::Back);
    for world in worlds() {
        for program in ["lb_xdp", "lb_tc_from_network"] {
            for protocol in PROTOCOLS {
                datapath.forget();
                check(&mut datapath, &world, program, protocol);
            }
        }
    }
}

#[test]
fn one_backend_has_55000_simultaneous_connections() {
    to_another_node(
        SourcePorts::DEFAULT,
        1 << 18,
        |datapath, world, program, protocol| {
            let mut ports = HashSet::new();
            for client in 1000..1000 + CONNECTIONS {
                let port = port_of(datapath, program, world, protocol, client);
                let port = port.unwrap_or_else(|| panic!("{program}: {} connections", client - 1000));
                assert!(port >= 1024 && ports.insert(port), "{port}");
                assert!(
                    client >= 6000 || is_given_out(port),
                    "{port}: ephemeral ports are used last"
                );
            }
        },
    );
}

/// The unspecified address of the family.
fn any(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A TCP and a UDP socket of the node at an address, connected to `peer`. Without a peer, the TCP
/// socket listens and the UDP socket is only bound.
fn sockets_at(address: SocketAddr, peer: Option<SocketAddr>) -> [OwnedFd; 2] {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    [SockType::Stream, SockType::Datagram].map(|kind| {
        let socket = socket(family, kind, SockFlag::SOCK_NONBLOCK, None).expect("a socket");
        let name = |address| SockaddrStorage::from(address);
        bind(socket.as_raw_fd(), &name(address)).expect("a port that is free");
        match peer {
            Some(peer) => {
                let connected = connect(socket.as_raw_fd(), &name(peer));
                assert!(matches!(connected, Ok(()) | Err(Errno::EINPROGRESS)));
            }
            None if kind == SockType::Stream => listen(&socket, Backlog::MAXCONN).expect("listens"),
            None => {}
        }
        socket
    })
}

/// The source ports that these clients get, sorted.
fn ports(
    datapath: &mut Datapath,
    program: &str,
    world: &World,
    protocol: Protocol,
    clients: Range<u16>,
) -> Vec<u16> {
    let given = clients.filter_map(|client| port_of(datapath, program, world, protocol, client));
    let mut given: Vec<u16> = given.collect();
    given.sort_unstable();
    given
}

#[test]
fn ports_of_sockets_are_not_allocated_to_clients() {
    to_another_node(
        only_ports(61_000, 4),
        1024,
        |datapath, world, program, protocol| {
            let (node, backend) = (world.back_address(), world.backend_at(Place::Back));
            for (address, peer) in [(any(node), None), (node, None), (node, Some(backend))] {
                let sockets = sockets_at(SocketAddr::new(address, 61_000), peer);
                let before = datapath.reason(Reason::NoSourcePort);
                let given = ports(datapath, program, world, protocol, 2000..2050);
                assert_eq!(
                    given,
                    [61_001, 61_002, 61_003],
                    "{program} {protocol} {address} {peer:?}"
                );
                assert_eq!(datapath.reason(Reason::NoSourcePort), before + 47);
                drop(sockets);
                assert_eq!(ports(datapath, program, world, protocol, 3000..3050), [61_000]);
                datapath.forget();
            }
        },
    );
}

#[test]
fn node_ports_are_not_allocated_to_clients() {
    to_another_node(
        only_ports(61_000, 4),
        1024,
        |datapath, world, program, protocol| {
            let node_port = SocketAddr::new(world.back_address(), 61_001);
            let service = if node_port.is_ipv4() { 3 } else { 4 };
            datapath.service(service, &keys(node_port), &[at(world.pod)]);
            let given = ports(datapath, program, world, protocol, 2000..2050);
            assert_eq!(given, [61_000, 61_002, 61_003], "{program} {protocol}");
        },
    );
}
