//! Names of the maps, in the kernel and under the pin path.

/// Frontends of IPv4: [`super::FrontendKey`] to [`super::Frontend`].
pub const FRONTENDS4: &str = "FRONTENDS4";
/// Frontends of IPv6: [`super::FrontendKey`] to [`super::Frontend`].
pub const FRONTENDS6: &str = "FRONTENDS6";
/// Which destination addresses to look up: `u64` words of [`crate::filter`].
pub const FILTER: &str = "FILTER";
/// Which sources' packets to look up as replies: `u64` words of [`crate::filter`].
pub const REPLY_FILTER: &str = "REPLY_FILTER";
/// Where Service CIDRs are: one [`crate::cidr::Networks`].
pub const SERVICE_CIDRS: &str = "SERVICE_CIDRS";
/// Slots: index to [`super::Slot`].
pub const SLOTS: &str = "SLOTS";
/// Backends of IPv4: [`super::BackendId`] to [`super::Backend`].
pub const BACKENDS4: &str = "BACKENDS4";
/// Backends of IPv6: [`super::BackendId`] to [`super::Backend`].
pub const BACKENDS6: &str = "BACKENDS6";
/// Flows of IPv4: [`super::FlowKey`] to [`super::Flow`].
pub const FLOWS4: &str = "FLOWS4";
/// Flows of IPv6: [`super::FlowKey`] to [`super::Flow`].
pub const FLOWS6: &str = "FLOWS6";
/// Translated IPv4 sockets: [`super::SocketKey`] to [`super::Socket`].
pub const SOCKETS4: &str = "SOCKETS4";
/// Translated IPv6 sockets: [`super::SocketKey`] to [`super::Socket`].
pub const SOCKETS6: &str = "SOCKETS6";
/// Which client goes to which backend of an IPv4 Service: [`super::AffinityKey`] to
/// [`super::Affinity`].
pub const AFFINITY4: &str = "AFFINITY4";
/// Which client goes to which backend of an IPv6 Service: [`super::AffinityKey`] to
/// [`super::Affinity`].
pub const AFFINITY6: &str = "AFFINITY6";
/// Clients that may use a load balancer's IPv4 addresses: [`super::SourceRange`] to `u32`.
pub const SOURCE_RANGES4: &str = "SOURCE_RANGES4";
/// Clients that may use a load balancer's IPv6 addresses: [`super::SourceRange`] to `u32`.
pub const SOURCE_RANGES6: &str = "SOURCE_RANGES6";
/// Ports of IPv4 datagrams in fragments: [`super::FragmentKey`] to [`super::Fragment`].
pub const FRAGMENTS4: &str = "FRAGMENTS4";
/// Ports of IPv6 datagrams in fragments: [`super::FragmentKey`] to [`super::Fragment`].
pub const FRAGMENTS6: &str = "FRAGMENTS6";
/// The device that leads to the kernel's own reassembly. The kernel takes a device that vanishes
/// out of a map of devices, so that no packet is sent to it.
pub const REASSEMBLY: &str = "REASSEMBLY";
/// The index of that device for XDP, which only leaves fragments to TC: 0 if there is none. After
/// an agent was killed it may still stand here; then TC knows better. No map of devices: generic
/// XDP of Linux 5.10 takes no program that uses one (`generic_xdp_install`), and the kernel lets
/// programs of one type only use it (`bpf_prog_map_compatible`).
pub const XDP_REASSEMBLY: &str = "XDP_REASSEMBLY";
/// Fragments that may still be handed to the kernel's own reassembly, whoever sends them
/// ([`crate::budget::ALL_DETOURS`]): one [`crate::budget::Bucket`]. All CPUs share it without a
/// lock: two that count at once may count one for both.
pub const DETOURS: &str = "DETOURS";
/// Devices that packets to Pods of other nodes leave by: interface index to [`super::Device`].
pub const DEVICES: &str = "DEVICES";
/// Devices that XDP programs of other devices can send through: [`super::device_row`] to interface
/// index.
pub const XDP_DEVICES: &str = "XDP_DEVICES";
/// What is at the other end of devices: [`super::device_row`] to [`super::DeviceRole`].
pub const DEVICE_ROLES: &str = "DEVICE_ROLES";
/// Devices whose other end is in a Pod: [`super::device_row`] to interface index.
pub const POD_DEVICES: &str = "POD_DEVICES";
/// Which frames that a device receives XDP takes: [`super::device_row`] to [`super::DeviceLinks`].
pub const DEVICE_LINKS: &str = "DEVICE_LINKS";
/// Addresses of devices that take frames which come in by others: [`super::LinkAddress`] to `u32`.
pub const NODE_LINKS: &str = "NODE_LINKS";
/// Addresses of the node's devices, of both families: words of [`crate::address::Address::words`]
/// to `u32`.
pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
/// Network namespaces of others than the node, by their cookie: one of [`super::namespace_role`].
pub const NAMESPACES: &str = "NAMESPACES";
/// Names by service id: [`super::ServiceName`].
pub const SERVICE_NAMES: &str = "SERVICE_NAMES";
/// Counters by service id: [`super::ServiceStats`] for each CPU.
pub const SERVICE_STATS: &str = "SERVICE_STATS";
/// Counters by [`crate::reason::Reason`]: `u64` for each CPU.
pub const REASONS: &str = "REASONS";
/// How often clients may still be answered: [`crate::budget::Bucket`] by
/// [`crate::budget::Limit::bucket`], for each CPU.
pub const ANSWERS: &str = "ANSWERS";
/// What the programs were loaded with: one [`crate::settings::LoadedSettings`].
pub const SETTINGS: &str = "SETTINGS";
