//! XDP, TC and the host build produce the same bytes from the same packet.

use std::hash::Hash;
use std::net::SocketAddr;

use lb_common::address::Address;
use lb_common::choose::Origin;
use lb_common::decide;
use lb_common::host::{Bytes, HostTables};
use lb_common::layout::{Backend, Frontend, FrontendKey, Region, Slot, backend_flags, backend_state, hook};
use lb_common::net::{Address4, Address6, Port, protocol};
use lb_common::packet::Verdict;
use lb_common::parse::IpHeader;
use lb_common::parse::{self, BEHIND_ETHERNET, NetworkHeader};
use lb_tests::packet::build::{Build, ack, syn, tcp, udp};
use lb_tests::packet::world::{DEVICES, World, at, keys, worlds};
use lb_tests::packet::{Datapath, datapath};

/// Tables of the host build for both families.
struct Host {
    tables4: HostTables<Address4>,
    tables6: HostTables<Address6>,
}

impl Host {
    /// For each family, a Service with one Pod at `vip` and one without endpoints at `vip2`.
    fn new() -> Self {
        let [world4, world6] = worlds();
        let ip4 = |socket: SocketAddr| match socket {
            SocketAddr::V4(socket) => Address4::from(*socket.ip()),
            SocketAddr::V6(_) => panic!("not IPv4"),
        };
        let ip6 = |socket: SocketAddr| match socket {
            SocketAddr::V6(socket) => Address6::from(*socket.ip()),
            SocketAddr::V4(_) => panic!("not IPv6"),
        };
        Self {
            tables4: tables(&world4, ip4),
            tables6: tables(&world6, ip6),
        }
    }

    /// The verdict for a packet at a hook, and its bytes afterwards.
    fn run(&self, hook: u8, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let mut bytes = Bytes::from(packet.to_vec());
        let verdict = match parse::network(&bytes) {
            NetworkHeader::V4 => decide(&mut bytes, &self.tables4, hook),
            NetworkHeader::V6 => decide(&mut bytes, &self.tables6, hook),
            NetworkHeader::Other => Verdict::Pass,
        };
        (verdict, bytes.bytes)
    }
}

fn decide<A: IpHeader + Hash>(bytes: &mut Bytes, tables: &HostTables<A>, hook: u8) -> Verdict {
    if hook != hook::EGRESS {
        decide::enter(bytes, tables, BEHIND_ETHERNET, Origin::Outside)
    } else {
        decide::leave(bytes, tables, BEHIND_ETHERNET, Origin::Outside)
    }
}

fn tables<A: Address + Hash>(world: &World, ip: impl Fn(SocketAddr) -> A) -> HostTables<A> {
    let mut tables = HostTables::default();
    for (service, vip, length) in [(1, world.vip, 1), (2, world.vip2, 0)] {
        let region = Region { base: 1, length };
        for protocol in [protocol::TCP, protocol::UDP] {
            let key = FrontendKey {
                address: ip(vip),
                port: Port::new(vip.port()),
                protocol,
                pad: 0,
            };
            let frontend = Frontend {
                service,
                cluster: region,
                local: region,
                ..Frontend::default()
            };
            tables.frontends.insert(key, frontend);
        }
    }
    let backend = Backend {
        address: ip(world.pod),
        port: Port::new(world.pod.port()),
        state: backend_state::ACTIVE,
        flags: backend_flags::LOCAL,
        generation: 1,
        service: 1,
    };
    tables.backends.insert(1, backend);
    tables.slots.insert(
        1,
        Slot {
            backend: 1,
            generation: 1,
        },
    );
    tables
}

/// The same Services in the kernel.
fn kernel(datapath: &mut Datapath) {
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.pod)]);
        datapath.service(service + 10, &keys(world.vip2), &[]);
    }
}

/// Variants of a packet: with VLAN tags, options, padding, and other payloads.
fn variants(packet: &Build, is_ipv4: bool) -> Vec<Vec<u8>> {
    let optional = packet.clone().vlans(&[5]);
    let optional = if is_ipv4 {
        optional.options(&[1; 8])
    } else {
        optional.extension(60, &[0; 6])
    };
    vec![
        packet.bytes(),
        packet.clone().vlans(&[5]).bytes(),
        packet.clone().vlans(&[5, 6]).bytes(),
        packet.clone().payload(&[]).bytes(),
        packet.clone().payload(&[0xff; 33]).bytes(),
        packet.clone().fragment(0, true).bytes(),
        optional.bytes(),
        [packet.bytes(), vec![0; 9]].concat(),
    ]
}

#[test]
fn every_hook_produces_the_same_bytes() {
    let Some(mut datapath) = datapath() else { return };
    kernel(&mut datapath);
    let host = Host::new();
    for world in worlds() {
        let (client, vip) = (world.client, world.vip);
        let requests = [
            syn(client, vip),
            udp(client, vip),
            udp(client, vip).without_checksum(),
            ack(client, vip),
            ack(client, vip).flags(|header| header.fin = true),
            syn(client, world.vip2),
            ack(client, world.vip2),
            tcp(client, world.vip2).flags(|header| header.fin = true),
            tcp(client, world.vip2).flags(|header| header.rst = true),
            udp(client, world.vip2),
            syn(client, world.pod2),
        ];
        let replies = [
            ack(world.pod, client),
            udp(world.pod, client),
            udp(world.pod, client).without_checksum(),
            udp(world.pod2, client),
        ];
        for (hook, packets) in [(hook::INGRESS_OUTSIDE, &requests[..]), (hook::EGRESS, &replies)] {
            for packet in packets.iter().flat_map(|packet| variants(packet, vip.is_ipv4())) {
                let (verdict, bytes) = host.run(hook, &packet);
                for device in DEVICES {
                    let program = if hook != hook::EGRESS {
                        device.ingress
                    } else {
                        device.egress
                    };
                    let (in_kernel, kernel_bytes) = datapath.verdict(program, &packet);
                    assert_eq!(in_kernel, verdict, "{program}: {packet:02x?}");
                    // The bytes of a dropped packet do not matter.
                    if verdict != Verdict::Drop {
                        assert_eq!(
                            kernel_bytes, bytes,
                            "{program}: {packet:02x?} -> {kernel_bytes:02x?}"
                        );
                    }
                }
            }
        }
    }
}
