//! The `ip` commands that connect the namespaces.
//!
//! ```text
//!  node-1 (eth0) --- u1 -+
//!                       br0 (gateway)   fabric   lxc-client-1 --- (eth0) client-1
//!  node-2 (eth0) --- u2 -+
//!    lxc-web-1 --- (eth0) web-1
//! ```

use super::address::{
    self, Addresses, GATEWAY, LEAF_GATEWAY, LEAF_GATEWAY_MAC, NODE_PREFIX4, NODE_PREFIX6, SILENT_MAC,
};
use super::namespace::Namespace;

/// The fabric's bridge, which connects the nodes.
pub(super) const BRIDGE: &str = "br0";

/// The MTU of links unless another one is needed.
pub(super) const MTU: u16 = 1500;

/// The device of a Pod or an outside client.
pub(super) const LEAF_DEVICE: &str = "eth0";

/// Port of VXLAN packets.
pub(super) const VXLAN_PORT: u16 = 4789;

/// A node's device towards the Pods of other nodes, if there is an overlay.
pub(super) const OVERLAY_DEVICE: &str = "vxlan0";

/// The MTU of the nodes' network minus the overlay's headers.
pub(super) const OVERLAY_MTU: u16 = 1450;

/// The MTU of links without Ethernet header: that of WireGuard.
const LAYER3_MTU: u16 = 1420;

/// Longest name of a device.
const DEVICE_NAME_MAX: usize = 15;

/// Variables below `/proc/sys/net` of every namespace, which must be set before it has devices.
/// Without duplicate address detection an IPv6 address is usable immediately.
pub(super) const SYSCTLS: [(&str, &str); 4] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// The same for namespaces that forward.
pub(super) const FORWARDING_SYSCTLS: [(&str, &str); 2] =
    [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// The same for the namespace that distributes flows over several next hops: by addresses and
/// ports.
pub(super) const SHARING_SYSCTLS: [(&str, &str); 2] = [
    ("ipv4/fib_multipath_hash_policy", "1"),
    ("ipv6/fib_multipath_hash_policy", "1"),
];

/// The same for nodes: the strictest reverse path filter, which many distributions set.
pub(super) const NODE_SYSCTLS: [(&str, &str); 2] = [
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
];

/// Name of the device on the other side of the link of a Pod or an outside client.
pub(super) fn leaf_host_device(name: &str) -> Option<String> {
    let device = format!("lxc-{name}");
    (device.len() <= DEVICE_NAME_MAX).then_some(device)
}

/// Name of the fabric's end of a node's link.
pub(super) fn node_far_device(index: u8) -> String {
    format!("u{index}")
}

/// In the fabric: the network of the nodes.
pub(super) fn fabric() -> Vec<String> {
    vec![
        "link set lo up".to_owned(),
        format!("link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0"),
        format!("address add {}/{NODE_PREFIX4} dev {BRIDGE}", GATEWAY.ipv4),
        format!("address add {}/{NODE_PREFIX6} dev {BRIDGE} nodad", GATEWAY.ipv6),
        format!("link set {BRIDGE} up"),
    ]
}

/// In the fabric: the link to a new node.
pub(super) fn fabric_to_node(index: u8, node: &Namespace) -> [String; 2] {
    let device = node_far_device(index);
    [
        format!("link add {device} type veth peer name eth0 netns {}", node.name()),
        format!("link set {device} master {BRIDGE} up"),
    ]
}

/// In a new node: its address.
pub(super) fn node(index: u8) -> Vec<String> {
    let addresses = address::node(index);
    vec![
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("address add {}/{NODE_PREFIX4} dev eth0", addresses.ipv4),
        format!("address add {}/{NODE_PREFIX6} dev eth0 nodad", addresses.ipv6),
        format!("route add default via {} dev eth0", GATEWAY.ipv4),
        format!("route add ::/0 via {} dev eth0", GATEWAY.ipv6),
    ]
}

/// In the fabric and in the other nodes: the routes to the Pods of a node.
pub(super) fn routes_to_pods(node: u8) -> [String; 2] {
    let (cidr4, cidr6) = address::pod_cidrs(node);
    routes(&[cidr4, cidr6], address::node(node))
}

/// Name of a device without Ethernet header that leads to a node or an outside client.
pub(super) fn layer3_device(to: &str) -> String {
    format!("tun-{to}")
}

/// In a node: such a device towards an outside client.
pub(super) fn host_to_tun(device: &str) -> [String; 1] {
    [format!("link set {device} mtu {LAYER3_MTU} up")]
}

/// In a node: a device with Ethernet headers towards an outside client.
pub(super) fn host_to_tap(device: &str) -> [String; 1] {
    [format!(
        "link set {device} address {LEAF_GATEWAY_MAC} mtu {MTU} up"
    )]
}

/// In a node: adds or deletes the routes to the networks of an outside client, in a table that
/// rules select for it.
pub(super) fn to_second_client(
    change: &str,
    device: &str,
    networks: &[String],
    table: Option<u32>,
) -> Vec<String> {
    let route = |to: &String| match table {
        Some(table) => vec![
            format!("route {change} {to} dev {device} table {table}"),
            format!("rule {change} to {to} lookup {table}"),
        ],
        None => vec![format!("route {change} {to} dev {device}")],
    };
    networks.iter().flat_map(route).collect()
}

/// The addresses and routes of that client.
pub(super) fn layer3_leaf(addresses: Addresses) -> Vec<String> {
    let [add4, add6] = leaf_addresses(addresses);
    vec![
        "link set lo up".to_owned(),
        format!("link set {LEAF_DEVICE} mtu {LAYER3_MTU} up"),
        add4,
        add6,
        format!("route add default dev {LEAF_DEVICE}"),
        format!("route add ::/0 dev {LEAF_DEVICE}"),
    ]
}

/// In a node: the routes to the Pods of another node through such a device.
pub(super) fn layer3_to_node(device: &str, node: u8, other: u8) -> Vec<String> {
    let (own, peer) = (address::layer3(node), address::layer3(other));
    let (cidr4, cidr6) = address::pod_cidrs(other);
    vec![
        format!("link set {device} mtu {LAYER3_MTU} up"),
        format!("address add {} peer {} dev {device}", own.ipv4, peer.ipv4),
        format!("address add {} peer {} dev {device} nodad", own.ipv6, peer.ipv6),
        format!("route replace {cidr4} dev {device}"),
        format!("route replace {cidr6} dev {device}"),
    ]
}

/// The routes to two networks, IPv4 and IPv6.
pub(super) fn routes([network4, network6]: &[String; 2], via: Addresses) -> [String; 2] {
    let Addresses { ipv4, ipv6 } = via;
    [
        format!("route add {network4} via {ipv4}"),
        format!("route add {network6} via {ipv6}"),
    ]
}

/// In a node: its overlay device. Its packets have no outer UDP checksum, as RFC 7348 recommends:
/// its value would depend on whether the inner checksum is complete.
pub(super) fn overlay(index: u8) -> [String; 4] {
    let Addresses { ipv4, ipv6 } = address::overlay(index);
    let (mac, local) = (address::overlay_mac(index), address::node(index).ipv4);
    [
        format!(
            "link add {OVERLAY_DEVICE} address {mac} mtu {OVERLAY_MTU} type vxlan id 1 dstport {VXLAN_PORT} \
             local {local} dev eth0 nolearning noudpcsum"
        ),
        format!("link set {OVERLAY_DEVICE} up"),
        format!("address add {ipv4}/{NODE_PREFIX4} dev {OVERLAY_DEVICE}"),
        format!("address add {ipv6}/{NODE_PREFIX6} dev {OVERLAY_DEVICE} nodad"),
    ]
}

/// In a node: the routes through the overlay to the Pods of another node.
pub(super) fn overlay_to_pods(node: u8) -> [String; 4] {
    let Addresses { ipv4, ipv6 } = address::overlay(node);
    let (cidr4, cidr6) = address::pod_cidrs(node);
    let mac = address::overlay_mac(node);
    [
        format!("neighbour add {ipv4} lladdr {mac} dev {OVERLAY_DEVICE} nud permanent"),
        format!("neighbour add {ipv6} lladdr {mac} dev {OVERLAY_DEVICE} nud permanent"),
        format!("route add {cidr4} via {ipv4}"),
        format!("route add {cidr6} via {ipv6}"),
    ]
}

/// The corresponding `bridge` command, with the node at which the packets leave the overlay.
pub(super) fn overlay_exit(node: u8) -> String {
    format!(
        "fdb append {} dev {OVERLAY_DEVICE} dst {}",
        address::overlay_mac(node),
        address::node(node).ipv4
    )
}

/// On the host of a Pod (its node) or of an outside client (the fabric): a link and one route per
/// family, without a bridge.
pub(super) fn host_to_leaf(device: &str, leaf: &Namespace, mtu: u16, addresses: Addresses) -> Vec<String> {
    vec![
        format!(
            "link add {device} address {LEAF_GATEWAY_MAC} mtu {mtu} type veth peer name {LEAF_DEVICE} mtu {mtu} netns {}",
            leaf.name()
        ),
        format!("link set {device} up"),
        format!("route add {} dev {device} scope link", addresses.ipv4),
        format!("route add {} dev {device}", addresses.ipv6),
    ]
}

/// In a Pod or an outside client: its addresses and routes.
pub(super) fn leaf(addresses: Addresses) -> Vec<String> {
    let Addresses { ipv4, ipv6 } = LEAF_GATEWAY;
    let [add4, add6] = leaf_addresses(addresses);
    vec![
        "link set lo up".to_owned(),
        format!("link set {LEAF_DEVICE} up"),
        add4,
        add6,
        format!("neighbour add {ipv4} lladdr {LEAF_GATEWAY_MAC} dev {LEAF_DEVICE} nud permanent"),
        format!("neighbour add {ipv6} lladdr {LEAF_GATEWAY_MAC} dev {LEAF_DEVICE} nud permanent"),
        format!("route add {ipv4} dev {LEAF_DEVICE} scope link"),
        format!("route add default via {ipv4} dev {LEAF_DEVICE}"),
        format!("route add ::/0 via {ipv6} dev {LEAF_DEVICE}"),
    ]
}

fn leaf_addresses(addresses: Addresses) -> [String; 2] {
    [
        format!("address add {}/32 dev {LEAF_DEVICE}", addresses.ipv4),
        format!("address add {}/128 dev {LEAF_DEVICE} nodad", addresses.ipv6),
    ]
}

/// In a Pod whose kernel must not have the Pod's addresses.
pub(super) fn silent_leaf() -> [String; 1] {
    [format!("link set {LEAF_DEVICE} address {SILENT_MAC} up")]
}

/// On the node of that Pod: neighbour entries, because its kernel does not answer neighbour
/// requests.
pub(super) fn host_to_silent_leaf(device: &str, addresses: Addresses) -> [String; 2] {
    addresses
        .both()
        .map(|address| format!("neighbour add {address} lladdr {SILENT_MAC} dev {device} nud permanent"))
}
