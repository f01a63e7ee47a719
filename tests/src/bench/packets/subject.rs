//! The programs that are measured, with Services in their maps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use aya::Ebpf;
use aya::programs::ProgramFd;
use lb_agent::datapath::counters::Counters;
use lb_agent::datapath::devices::DeviceTable;
use lb_agent::datapath::filter::Filter;
use lb_agent::datapath::maps::KernelMaps;
use lb_agent::datapath::object::settings::{DEFAULT_CAPACITY, DEFAULT_TABLES, Settings, TableSizes};
use lb_agent::datapath::object::{self, program};
use lb_agent::devices::{Address, DeviceView, Link, Snapshot};
use lb_agent::maps::{Backend, BackendState, FrontendKey, MapOp, Maps as _, Protocol};
use lb_agent::network::Family;
use lb_common::host::only_ports;
use lb_common::layout::{Frontend, Region, Slot, frontend_flags};
use nix::net::if_::if_nametoindex;

use super::case::{FLOW_ENTRIES, POD_PORT, SERVICES, TRANSLATED_PORT, VIP_PORT, address, block};
use super::generator::fd;
use crate::lab::{LoneNamespace, PinDirectory};
use crate::packet::{NODE4, NODE6, build};

/// The programs, their maps and counters.
pub(super) struct Subject {
    ebpf: Ebpf,
    counters: Counters,
    connections: u64,
    _route: NodeRoute,
    _pins: PinDirectory,
}

/// Index of a device that exists only in the programs' maps.
const NEXT_HOP: u32 = 1 << 20;

/// The route to other nodes: a device in a network namespace. The calling thread is in it until
/// this is dropped.
struct NodeRoute {
    _alone: LoneNamespace,
}

impl NodeRoute {
    fn make(maps: &Path, filter: &Filter) -> Self {
        let alone = LoneNamespace::enter("bench").expect("a network namespace");
        let namespace = alone.namespace();
        let lines = [
            // The ingress device of TC packets. It has their destination address.
            "link set lo address 02:00:00:00:00:02 up",
            "link add front type veth peer name front-end",
            "link set front up",
            "link set front-end up",
            "addr add 192.0.2.1/24 dev front",
            "addr add 2001:db8::1/64 dev front nodad",
            "neigh add 192.0.2.254 lladdr 02:00:00:00:00:01 dev front nud permanent",
            "neigh add 2001:db8::fe lladdr 02:00:00:00:00:01 dev front nud permanent",
            "route add default via 192.0.2.254 dev front",
            "route add default via 2001:db8::fe dev front",
        ];
        let forwarding = [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];
        namespace.sysctl(&forwarding).expect("the node forwards");
        namespace.ip(&lines).expect("a device and routes");
        let index = if_nametoindex("front").expect("the device is there");
        let link = Link {
            index,
            up: true,
            ethernet: true,
            ..Link::default()
        };
        let addresses = Family::ALL.map(|family| Address {
            address: address(family, block::NODE),
            global: true,
            stable: true,
        });
        // The ingress device has the destination address of the packets.
        let loopback = Link {
            index: 1,
            address: Some(build::NODE),
            master: Some(NEXT_HOP),
            ..link.clone()
        };
        // A forwarded packet is sent again unchanged, for the next hop.
        let next_hop = Link {
            index: NEXT_HOP,
            address: Some(build::SENDER),
            ..link.clone()
        };
        let links = [loopback, next_hop, link];
        let snapshot = Snapshot {
            links: links.map(|link| (link.index, link)).into(),
            addresses: [(index, addresses.to_vec())].into(),
            ..Snapshot::default()
        };
        let mut table = DeviceTable::open(maps).expect("the maps are pinned");
        let view = DeviceView {
            snapshot,
            attachments: BTreeMap::new(),
        };
        table
            .set(&view, &[index].into(), filter)
            .expect("the map accepts it");
        Self { _alone: alone }
    }
}

impl Subject {
    /// Loads the programs and writes [`SERVICES`] Services with one Pod each.
    pub(super) fn new() -> Self {
        let pins = PinDirectory::new("bench").expect("a bpf file system");
        let directory = pins.path();
        let settings = Settings {
            node_address4: Some(NODE4),
            node_address6: Some(NODE6),
            capacity: DEFAULT_CAPACITY,
            tables: TableSizes {
                flows: FLOW_ENTRIES,
                ..DEFAULT_TABLES
            },
            source_ports: only_ports(TRANSLATED_PORT, 1),
            ..Settings::default()
        };
        let mut ebpf = object::load(&settings, directory).expect("the programs load");
        let xdp = ebpf
            .program_mut(program::XDP)
            .expect("the object has the program");
        object::load_program(program::XDP, xdp).expect("the program loads");
        let mut maps = KernelMaps::open(directory).expect("the maps are pinned");
        for service in 0..SERVICES {
            let end = |family, block| address(family, block + service);
            let ends = |family| [end(family, block::VIPS), end(family, block::PODS)];
            write_service(&mut maps, service, true, ends);
        }
        let ends = |family| [block::REMOTE_VIP, block::REMOTE_POD].map(|last| address(family, last));
        write_service(&mut maps, SERVICES, false, ends);
        let route = NodeRoute::make(directory, maps.filter());
        let counters = Counters::open(directory).expect("the counters are pinned");
        Self {
            ebpf,
            counters,
            connections: 0,
            _route: route,
            _pins: pins,
        }
    }

    /// A program, for the array of the packet generator.
    pub(super) fn fd(&self, program: &str) -> &ProgramFd {
        fd(&self.ebpf, program)
    }

    /// Asserts the number of connections that were opened since the last call.
    pub(super) fn expect_new_connections(&mut self, expected: u32, after: &str) {
        let stats = (1..=SERVICES).map(|id| self.counters.service(id).expect("the counters are readable"));
        let connections = stats.map(|stats| stats.connections).sum();
        let before = std::mem::replace(&mut self.connections, connections);
        assert_eq!(
            connections - before,
            u64::from(expected),
            "connections of {after}"
        );
    }
}

/// Writes the rows of a Service in both families, as the agent would. `ends` are its VIP and its
/// Pod. `local` means that the Pod is on this node.
fn write_service(maps: &mut KernelMaps, service: u32, local: bool, ends: impl Fn(Family) -> [IpAddr; 2]) {
    let mut apply = |operation| maps.apply(&operation).expect("the map accepts it");
    // Id 0 is never valid.
    let id = service + 1;
    apply(MapOp::SetSlots {
        base: service,
        slots: vec![Slot {
            backend: id,
            generation: 1,
        }],
    });
    let region = Region {
        base: service,
        length: 1,
    };
    let frontend = Frontend {
        service: id,
        cluster: region,
        local: region,
        ..Frontend::default()
    };
    let wildcard = Frontend {
        flags: frontend_flags::WILDCARD,
        ..Frontend::default()
    };
    for family in Family::ALL {
        let [vip, pod] = ends(family);
        let backend = Backend {
            address: pod,
            port: POD_PORT,
            state: BackendState::Active,
            local,
            in_cluster: true,
            in_local: true,
            generation: 1,
            service: id,
        };
        apply(MapOp::SetBackend { id, backend });
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            apply(MapOp::SetFrontend {
                key: FrontendKey::Port(vip, VIP_PORT, protocol),
                value: frontend,
            });
        }
        apply(MapOp::SetFrontend {
            key: FrontendKey::Wildcard(vip),
            value: wildcard,
        });
    }
}
