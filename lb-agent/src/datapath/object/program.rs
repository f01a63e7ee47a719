//! Names of the kernel programs.

/// XDP on network devices. The agent loads it with the first device that supports it.
pub const XDP: &str = "lb_xdp";
/// TC ingress of network devices.
pub(in crate::datapath) const TC_FROM_NETWORK: &str = "lb_tc_from_network";
/// TC egress of network devices.
pub(in crate::datapath) const TC_TO_NETWORK: &str = "lb_tc_to_network";
/// TC ingress of the host side of Pod devices.
pub const TC_FROM_POD: &str = "lb_tc_from_pod";
/// TC egress of the host side of Pod devices.
pub const TC_TO_POD: &str = "lb_tc_to_pod";
/// The programs that translate the addresses in system calls of sockets.
pub(in crate::datapath) const SOCKETS: [&str; 8] = [
    "lb_connect4",
    "lb_connect6",
    "lb_sendmsg4",
    "lb_sendmsg6",
    "lb_recvmsg4",
    "lb_recvmsg6",
    "lb_getpeername4",
    "lb_getpeername6",
];
/// The kernel calls it when a socket is closed.
pub(in crate::datapath) const SOCKET_RELEASE: &str = "lb_sock_release";
/// Like [`TC_FROM_NETWORK`], for devices whose packets begin with the IP header.
pub(in crate::datapath) const TC_FROM_NETWORK_LAYER3: &str = "lb_tc_from_network_layer3";
/// Like [`TC_FROM_POD`], for devices whose packets begin with the IP header.
pub(in crate::datapath) const TC_FROM_POD_LAYER3: &str = "lb_tc_from_pod_layer3";
/// TC egress of devices whose packets begin with the IP header.
pub(in crate::datapath) const TC_TO_LAYER3: &str = "lb_tc_to_layer3";
/// TC ingress of the device that leads to the kernel's own reassembly. The agent loads it with that
/// device.
pub(in crate::datapath) const TC_FROM_REASSEMBLY: &str = "lb_tc_from_reassembly";
/// Programs for devices whose packets begin with the IP header. The agent loads them with the first
/// such device.
pub(super) const LAYER3: [&str; 3] = [TC_FROM_NETWORK_LAYER3, TC_FROM_POD_LAYER3, TC_TO_LAYER3];
/// The prefix of the names of the TC programs.
pub(in crate::datapath) const TC_PREFIX: &str = "lb_tc_";
