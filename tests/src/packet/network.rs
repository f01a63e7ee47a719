//! The node's routes in packet tests. The programs run in a network namespace with two devices:
//! `front` towards clients and `back` towards other nodes. All neighbours are static, and nothing
//! answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_agent::datapath::devices::DeviceTable;
use lb_agent::devices::{Address, Attachment, DeviceView, Link as Device, Role, Snapshot};
use nix::net::if_::if_nametoindex;

use super::Datapath;
use super::build::{Link, NODE, SENDER};
use super::world::{World, at, keys, worlds};
use crate::kernel;
use crate::lab::LoneNamespace;

/// The network. The thread that created it is inside until it is dropped.
#[derive(Debug)]
pub struct TestNetwork {
    alone: LoneNamespace,
    /// Index of the device towards clients. It has the node's addresses.
    pub front: u32,
    /// Index of the device towards other nodes.
    pub back: u32,
}

/// The place of a backend that is not marked as local.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Behind the device `back`.
    Back,
    /// Behind the device `front`, at which packets of clients arrive.
    Front,
    /// Behind `back`, along a route with an MTU of [`NARROW_MTU`].
    Narrow,
    /// Behind a router on `back` whose link-layer address is not known.
    Unresolved,
    /// On the node itself.
    Node,
    /// Behind an unreachable route.
    Unreachable,
}

/// Writes a Service for each family whose only backend is at `place` and not marked as local. Its
/// id is 1 for the first of [`worlds`], 2 for the second.
pub fn serve_from(datapath: &mut Datapath, place: Place) {
    for (service, world) in (1..).zip(worlds()) {
        datapath.service(service, &keys(world.vip), &[at(world.backend_at(place))]);
        datapath.change_backend(service * 100, |backend| backend.local = false);
    }
}

/// MTU of the route to [`Place::Narrow`].
pub const NARROW_MTU: u32 = 1300;

/// Link-layer addresses of packets that leave through `back`.
pub const BACK_LINK: Link = Link {
    destination: [2, 0, 0, 0, 0, 4],
    source: [2, 0, 0, 0, 0, 3],
};
/// Link-layer addresses of packets to clients.
pub const CLIENT_LINK: Link = Link {
    destination: SENDER,
    source: NODE,
};
/// Link-layer addresses of packets to [`Place::Front`].
pub const FRONT_LINK: Link = Link {
    destination: [2, 0, 0, 0, 0, 5],
    source: NODE,
};

/// Index of the loopback device of each namespace.
const LOOPBACK: u32 = 1;

/// Addresses of [`Place::Node`] in the programs' maps. The node has the first two; a test may add
/// the last two.
const NODE_ADDRESSES: [&str; 4] = ["10.3.0.5", "fd00:3::5", "8.0.3.5", "fd00:3:86dd::5"];

/// Index of a bridge that exists only in the programs' maps.
const BRIDGE: u32 = 1 << 20;

/// Commands of `ip` that create the network.
const LINES: [&str; 31] = [
    "link add front address 02:00:00:00:00:02 type veth peer name front-end",
    "link add back address 02:00:00:00:00:03 type veth peer name back-end",
    "link set lo up",
    "link set front up",
    "link set front-end up",
    "link set back up",
    "link set back-end up",
    // The node's addresses (`NODE4`, `NODE6`).
    "addr add 192.0.2.1/24 dev front",
    "addr add 2001:db8::1/64 dev front nodad",
    "addr add 172.16.0.1/24 dev back",
    "addr add fd00:172::1/64 dev back nodad",
    "addr add 10.3.0.5/32 dev lo",
    "addr add fd00:3::5/128 dev lo nodad",
    "neigh add 192.0.2.254 lladdr 02:00:00:00:00:01 dev front nud permanent",
    "neigh add 2001:db8::fe lladdr 02:00:00:00:00:01 dev front nud permanent",
    "neigh add 192.0.2.253 lladdr 02:00:00:00:00:05 dev front nud permanent",
    "neigh add 2001:db8::fd lladdr 02:00:00:00:00:05 dev front nud permanent",
    "neigh add 172.16.0.2 lladdr 02:00:00:00:00:04 dev back nud permanent",
    "neigh add fd00:172::2 lladdr 02:00:00:00:00:04 dev back nud permanent",
    "route add default via 192.0.2.254 dev front",
    "route add default via 2001:db8::fe dev front",
    "route add 10.1.0.0/16 via 172.16.0.2 dev back",
    "route add fd00:1::/64 via fd00:172::2 dev back",
    "route add 10.4.0.0/24 via 172.16.0.9 dev back",
    "route add fd00:4::/64 via fd00:172::9 dev back",
    "route add 10.5.0.0/24 via 172.16.0.2 dev back mtu lock 1300",
    "route add fd00:5::/64 via fd00:172::2 dev back mtu lock 1300",
    "route add unreachable 10.6.0.0/24",
    "route add unreachable fd00:6::/64",
    "route add 10.8.0.0/24 via 192.0.2.253 dev front",
    "route add fd00:8::/64 via 2001:db8::fd dev front",
];

const SYSCTLS: [(&str, &str); 2] = [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

impl TestNetwork {
    /// Creates the network and moves the calling thread into it, until it is dropped. The programs'
    /// maps get its devices, and packets arrive at `front`. XDP programs can also send through
    /// `back`. Returns `None` on kernels that cannot run these tests.
    pub fn enter(datapath: &mut Datapath) -> Option<Self> {
        if !kernel::needs("5.14", "devices in test runs of XDP programs") {
            return None;
        }
        let alone = LoneNamespace::enter("packets").expect("a network namespace");
        let namespace = alone.namespace();
        namespace.sysctl(&SYSCTLS).expect("the node forwards");
        namespace.ip(&LINES).expect("devices and routes");
        let index = |name: &str| if_nametoindex(name).expect("the device is there");
        let network = Self {
            front: index("front"),
            back: index("back"),
            alone,
        };
        network.tell(datapath, &[network.front, network.back]);
        datapath.device = network.front;
        Some(network)
    }

    /// Writes the devices into the programs' maps. XDP programs of other devices can send through
    /// those in `transmitting`.
    pub fn tell(&self, datapath: &Datapath, transmitting: &[u32]) {
        let view = DeviceView {
            snapshot: self.snapshot(),
            attachments: BTreeMap::new(),
        };
        let mut table = DeviceTable::open(datapath.pins.path()).expect("the maps are pinned");
        let transmitting = transmitting.iter().copied().collect();
        table
            .set(&view, &transmitting, datapath.maps.filter())
            .expect("the map accepts it");
    }

    /// Writes the roles of devices into the programs' maps.
    pub fn attach(&self, datapath: &Datapath, roles: &[(u32, Role)]) {
        let mut snapshot = self.snapshot();
        for link in snapshot.links.values_mut() {
            link.master = None;
        }
        let attachment = |role| Attachment {
            name: String::new(),
            kind: "veth".to_owned(),
            instance: 0,
            role,
            ethernet: true,
        };
        let view = DeviceView {
            snapshot,
            attachments: roles
                .iter()
                .map(|(index, role)| (*index, attachment(*role)))
                .collect(),
        };
        let mut table = DeviceTable::open(datapath.pins.path()).expect("the maps are pinned");
        let both = [self.front, self.back].into();
        table
            .set(&view, &both, datapath.maps.filter())
            .expect("the map accepts it");
    }

    /// Removes all devices from the programs' maps.
    pub fn forget_links(&self, datapath: &Datapath) {
        let mut table = DeviceTable::open(datapath.pins.path()).expect("the maps are pinned");
        let nothing = DeviceView::default();
        table
            .set(&nothing, &BTreeSet::new(), datapath.maps.filter())
            .expect("the map accepts it");
    }

    fn snapshot(&self) -> Snapshot {
        let link = |index, address: Link| Device {
            index,
            up: true,
            ethernet: true,
            address: Some(address.source),
            master: Some(BRIDGE),
            ..Device::default()
        };
        // The tests' packets have this destination address at every device.
        let bridge = Device {
            index: BRIDGE,
            kind: "bridge".to_owned(),
            up: true,
            ethernet: true,
            address: Some(NODE),
            ..Device::default()
        };
        let loopback = Device {
            index: LOOPBACK,
            up: true,
            loopback: true,
            ..Device::default()
        };
        let address = |text: &str| Address {
            address: text.parse().expect("an address"),
            global: true,
            stable: true,
        };
        // `front` has no addresses in the maps, so the programs use the node's.
        let node = NODE_ADDRESSES.map(address).to_vec();
        let back = vec![address("172.16.0.1"), address("fd00:172::1")];
        Snapshot {
            links: [
                loopback,
                bridge,
                link(self.front, FRONT_LINK),
                link(self.back, BACK_LINK),
            ]
            .map(|link| (link.index, link))
            .into(),
            addresses: [(LOOPBACK, node), (self.back, back)].into(),
            ..Snapshot::default()
        }
    }

    /// Runs lines of `ip` commands.
    pub fn ip(&self, lines: &[&str]) {
        self.alone.namespace().ip(lines).expect("the kernel accepts them");
    }

    /// Sets variables below `/proc/sys/net`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) {
        self.alone
            .namespace()
            .sysctl(settings)
            .expect("the kernel accepts them");
    }
}

impl World {
    /// A backend that is not marked as local.
    pub fn backend_at(&self, place: Place) -> SocketAddr {
        let is_ipv4 = self.vip.is_ipv4();
        let (v4, v6) = match place {
            Place::Back => ("10.1.0.5", "fd00:1::5"),
            Place::Node => ("10.3.0.5", "fd00:3::5"),
            Place::Unresolved => ("10.4.0.5", "fd00:4::5"),
            Place::Narrow => ("10.5.0.5", "fd00:5::5"),
            Place::Unreachable => ("10.6.0.5", "fd00:6::5"),
            Place::Front => ("10.8.0.5", "fd00:8::5"),
        };
        let address: IpAddr = if is_ipv4 { v4 } else { v6 }.parse().expect("an address");
        SocketAddr::new(address, self.pod.port())
    }

    /// A client at the other end of `front`, as a Pod is at the other end of its device.
    pub fn neighbour(&self) -> SocketAddr {
        let text = if self.vip.is_ipv4() {
            "192.0.2.77"
        } else {
            "2001:db8::77"
        };
        SocketAddr::new(text.parse().expect("an address"), self.client.port())
    }

    /// The address to which clients are masqueraded in packets that leave through `back`.
    pub fn back_address(&self) -> IpAddr {
        let text = if self.vip.is_ipv4() {
            "172.16.0.1"
        } else {
            "fd00:172::1"
        };
        text.parse().expect("an address")
    }
}
