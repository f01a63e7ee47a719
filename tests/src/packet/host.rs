//! The programs' decision code compiled for the host, with copies of the kernel's tables.

use std::hash::Hash;
use std::net::IpAddr;

use aya::Pod;
use aya::maps::{Array, MapData};
use lb_agent::maps::Maps as _;
use lb_common::address::Address;
use lb_common::choose::Origin;
use lb_common::decide;
use lb_common::host::{Bytes, HostRoute, HostTables, SenderNetwork};
use lb_common::layout::{Backend, Frontend, FrontendKey};
use lb_common::map::FamilySpecs as _;
use lb_common::net::{Address4, Address6};
use lb_common::packet::{Hop, Route, Sender, Verdict};
use lb_common::parse::IpHeader;
use lb_common::parse::{self, BEHIND_ETHERNET, NetworkHeader};
use lb_common::settings::Lifetimes;
use lb_common::settings::SourcePorts;

use super::build::{Link, NODE};
use super::{Datapath, LINK, NODE4, NODE6};

/// The host build for both families.
pub struct Host {
    tables4: HostTables<Address4>,
    tables6: HostTables<Address6>,
    routes: Vec<HostRoute>,
    senders4: Vec<SenderNetwork>,
    senders6: Vec<SenderNetwork>,
}

/// The surroundings that the host build assumes.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// Source ports that may be allocated.
    pub source_ports: SourcePorts,
    /// Lifetimes of idle flows, in seconds.
    pub lifetimes: Lifetimes,
    /// Addresses of the device through which packets are forwarded.
    pub device: [IpAddr; 2],
}

impl Host {
    /// Copies a datapath's frontend, slot and backend rows.
    pub fn new(datapath: &Datapath, surroundings: &Surroundings) -> Self {
        let [IpAddr::V4(device4), IpAddr::V6(device6)] = surroundings.device else {
            panic!("an address of each family: {surroundings:?}");
        };
        let maps = [Address4::FRONTENDS.name, Address4::BACKENDS.name];
        let mut tables4 = tables::<Address4>(datapath, maps, surroundings);
        let maps = [Address6::FRONTENDS.name, Address6::BACKENDS.name];
        let mut tables6 = tables::<Address6>(datapath, maps, surroundings);
        (tables4.settings.node_address4, tables4.device_address) = (NODE4.into(), device4.into());
        (tables6.settings.node_address6, tables6.device_address) = (NODE6.into(), device6.into());
        Self {
            tables4,
            tables6,
            routes: Vec::new(),
            senders4: Vec::new(),
            senders6: Vec::new(),
        }
    }

    /// Sets the place of the senders in a network. Networks that were added before take precedence.
    pub fn senders(&mut self, address: IpAddr, prefix: u32, sender: Sender) {
        let words = |bits: u128| {
            let bytes = bits.to_be_bytes();
            let words = bytes.chunks_exact(4);
            let words: Vec<u32> = words
                .map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")))
                .collect();
            words.try_into().expect("four words")
        };
        let (senders, bits) = match address {
            IpAddr::V4(address) => (&mut self.senders4, u128::from(address.to_bits()) << 96),
            IpAddr::V6(address) => (&mut self.senders6, address.to_bits()),
        };
        senders.push(SenderNetwork {
            network: words(bits),
            mask: words(u128::MAX.checked_shl(128 - prefix).unwrap_or(0)),
            sender,
        });
    }

    /// Adds a client to a set of source ranges.
    pub fn allow(&mut self, set: u32, client: IpAddr) {
        match client {
            IpAddr::V4(client) => self.tables4.allowed.push((set, client.into())),
            IpAddr::V6(client) => self.tables6.allowed.push((set, client.into())),
        }
    }

    /// Adds a route to a destination, with these link-layer addresses if they are known. An MTU of
    /// 0 means no limit.
    pub fn way(&mut self, destination: IpAddr, route: Route, link: Link, mtu: u32) {
        let link = [link.destination, link.source].concat();
        let words = link.chunks_exact(4);
        let link: Vec<u32> = words
            .map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")))
            .collect();
        let destination = match destination {
            IpAddr::V4(address) => Address4::from(address).words(),
            IpAddr::V6(address) => Address6::from(address).words(),
        };
        self.routes.push(HostRoute {
            destination,
            route,
            hop: Hop {
                device: 1,
                mtu,
                link: link.try_into().expect("three words"),
            },
        });
    }

    /// Removes all flows and other state of earlier packets.
    pub fn forget(&self) {
        self.tables4.forget();
        self.tables6.forget();
    }

    /// The verdict of a program for a packet, and the packet afterwards.
    pub fn run(&self, program: &str, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let mut bytes = Bytes {
            routes: self.routes.clone(),
            resolves_neighbours: program != "lb_xdp",
            is_for_other: !is_layer3(program) && packet.get(..6) != Some(&NODE),
            ..Bytes::from(packet.to_vec())
        };
        let network = if is_layer3(program) {
            network_in_context(packet)
        } else {
            parse::network(&bytes)
        };
        // As in the kernel, where the tests refill the buckets of answers.
        self.tables4.budgets.borrow_mut().clear();
        self.tables6.budgets.borrow_mut().clear();
        bytes.senders = match network {
            NetworkHeader::V4 => self.senders4.clone(),
            NetworkHeader::V6 => self.senders6.clone(),
            NetworkHeader::Other => Vec::new(),
        };
        let verdict = match network {
            NetworkHeader::V4 => decide(&mut bytes, &self.tables4, program),
            NetworkHeader::V6 => decide(&mut bytes, &self.tables6, program),
            NetworkHeader::Other => Verdict::Pass,
        };
        (verdict, bytes.bytes)
    }
}

/// Whether a program sees packets without an Ethernet header.
fn is_layer3(program: &str) -> bool {
    program.ends_with("_layer3")
}

/// The IP version that a test run puts into a program's context: the ethertype, if the packet were
/// an Ethernet frame.
fn network_in_context(packet: &[u8]) -> NetworkHeader {
    match packet.get(LINK..LINK + 2) {
        Some(&[first, second]) => parse::network_of(u16::from_ne_bytes([first, second])),
        _ => NetworkHeader::Other,
    }
}

fn decide<A: IpHeader + Hash>(bytes: &mut Bytes, tables: &HostTables<A>, program: &str) -> Verdict {
    let network = if is_layer3(program) { 0 } else { BEHIND_ETHERNET };
    match program {
        "lb_xdp" | "lb_tc_from_network" | "lb_tc_from_network_layer3" => {
            decide::enter(bytes, tables, network, Origin::Outside)
        }
        "lb_tc_from_pod" | "lb_tc_from_pod_layer3" => decide::enter(bytes, tables, network, Origin::Inside),
        _ => decide::leave(bytes, tables, network, Origin::Outside),
    }
}

/// Copies the rows of a family.
fn tables<A: Address + Hash>(
    datapath: &Datapath,
    [frontends, backends]: [&str; 2],
    surroundings: &Surroundings,
) -> HostTables<A>
where
    FrontendKey<A>: Pod,
    Backend<A>: Pod,
{
    let image = datapath.maps.image().expect("the maps are readable");
    let rows: Array<MapData, Backend<A>> = datapath.pinned(backends).try_into().expect("an array");
    let row = |id| (id, rows.get(&id, 0).expect("a row"));
    let ids = if A::IS_IPV6 {
        &image.backends6
    } else {
        &image.backends4
    };
    let frontends = datapath.table::<FrontendKey<A>, Frontend>(frontends);
    let mut tables = HostTables::default();
    tables.frontends = frontends.iter().map(|row| row.expect("a row")).collect();
    tables.slots = image.slots.into_iter().collect();
    tables.backends = ids.keys().copied().map(row).collect();
    tables.settings.source_ports = surroundings.source_ports;
    tables.settings.lifetimes = surroundings.lifetimes.rows();
    tables
}
