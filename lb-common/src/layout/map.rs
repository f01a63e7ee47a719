//! Names of the maps, in the kernel and under the pin path.

/// Frontends of IPv4: [`super::FrontendKey`] to [`super::Frontend`].
pub const FRONTENDS4: &str = "FRONTENDS4";
/// Frontends of IPv6: [`super::FrontendKey`] to [`super::Frontend`].
pub const FRONTENDS6: &str = "FRONTENDS6";
/// The filter of destination addresses: `u64` words of [`crate::filter`].
pub const FILTER: &str = "FILTER";
/// The filter of the sources of replies: `u64` words of [`crate::filter`].
pub const REPLY_FILTER: &str = "REPLY_FILTER";
/// Service CIDRs: one [`crate::cidr::Networks`].
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
/// Affinity of clients of IPv4 Services: [`super::AffinityKey`] to [`super::Affinity`].
pub const AFFINITY4: &str = "AFFINITY4";
/// Affinity of clients of IPv6 Services: [`super::AffinityKey`] to [`super::Affinity`].
pub const AFFINITY6: &str = "AFFINITY6";
/// Clients that may use a load balancer's IPv4 addresses: [`super::SourceRange`] to `u32`.
pub const SOURCE_RANGES4: &str = "SOURCE_RANGES4";
/// Clients that may use a load balancer's IPv6 addresses: [`super::SourceRange`] to `u32`.
pub const SOURCE_RANGES6: &str = "SOURCE_RANGES6";
/// IPv4 datagrams in fragments: [`super::FragmentKey`] to [`super::Fragment`].
pub const FRAGMENTS4: &str = "FRAGMENTS4";
/// IPv6 datagrams in fragments: [`super::FragmentKey`] to [`super::Fragment`].
pub const FRAGMENTS6: &str = "FRAGMENTS6";
/// The device that leads to the kernel's own reassembly. If a device disappears, the kernel removes
/// it from a map of devices, so that no packet is sent to it.
pub const REASSEMBLY: &str = "REASSEMBLY";
/// The index of that device for XDP, which only leaves fragments to TC; 0 if there is none. It may
/// be stale after an agent was killed. TC then uses [`REASSEMBLY`], which is not. This is not a map
/// of devices: generic XDP of Linux 5.10 rejects programs that use one (`generic_xdp_install`), and
/// the kernel lets only programs of one type use it (`bpf_prog_map_compatible`).
pub const XDP_REASSEMBLY: &str = "XDP_REASSEMBLY";
/// The rate limit of fragments that are handed to the kernel's own reassembly, for all senders
/// together ([`crate::budget::ALL_DETOURS`]): one [`crate::budget::Bucket`]. All CPUs share it
/// without a lock: if two CPUs count at the same time, one count may be lost.
pub const DETOURS: &str = "DETOURS";
/// Devices through which packets to Pods of other nodes leave: interface index to
/// [`super::Device`].
pub const DEVICES: &str = "DEVICES";
/// Devices that XDP programs of other devices can send through: [`super::device_row`] to interface
/// index.
pub const XDP_DEVICES: &str = "XDP_DEVICES";
/// What is at the other end of devices: [`super::device_row`] to [`super::DeviceRole`].
pub const DEVICE_ROLES: &str = "DEVICE_ROLES";
/// Devices whose other end is in a Pod: [`super::device_row`] to interface index.
pub const POD_DEVICES: &str = "POD_DEVICES";
/// Link-layer addresses of the frames that XDP handles on a device: [`super::device_row`] to
/// [`super::DeviceLinks`].
pub const DEVICE_LINKS: &str = "DEVICE_LINKS";
/// Link-layer addresses of devices that accept frames which come in through other devices:
/// [`super::LinkAddress`] to `u32`.
pub const NODE_LINKS: &str = "NODE_LINKS";
/// IP addresses of the node's devices, of both families: words of
/// [`crate::address::Address::words`] to `u32`.
pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
/// Network namespaces other than the node's, by cookie: one of [`super::namespace_role`].
pub const NAMESPACES: &str = "NAMESPACES";
/// Names by service id: [`super::ServiceName`].
pub const SERVICE_NAMES: &str = "SERVICE_NAMES";
/// Counters by service id: [`super::ServiceStats`] for each CPU.
pub const SERVICE_STATS: &str = "SERVICE_STATS";
/// Counters by [`crate::reason::Reason`]: `u64` for each CPU.
pub const REASONS: &str = "REASONS";
/// Rate limits of answers: [`crate::budget::Bucket`] by [`crate::budget::Limit::bucket`], for each
/// CPU.
pub const ANSWERS: &str = "ANSWERS";
/// What the programs were loaded with: one [`crate::settings::LoadedSettings`].
pub const SETTINGS: &str = "SETTINGS";
