//! The maps. The agent may choose other sizes when it loads the programs.

mod family;
mod spec;

use core::ptr::NonNull;

use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, DevMap, HashMap, PerCpuArray};
use lb_common::address::Address;
use lb_common::budget::{ALL_DETOURS, Bucket, Limit};
use lb_common::cidr;
use lb_common::filter::Position;
use lb_common::flow::FlowEntry;
use lb_common::layout::{
    Affinity, AffinityKey, Backend, BackendId, Device, DeviceLinks, DeviceRole, FlowKey, Fragment,
    FragmentKey, Frontend, FrontendKey, LinkAddress, ServiceId, ServiceName, ServiceStats, Slot, Socket,
    SocketKey, SourceRange, device_row, namespace_role,
};
use lb_common::map;
use lb_common::net::Port;
use lb_common::reason::Reason;
use lb_common::settings::LoadedSettings;

use self::spec::{array, device_map, hash, per_cpu_array};

pub use self::family::FamilyMaps;

#[map]
static FILTER: Array<u64> = array(&map::FILTER);
#[map]
static REPLY_FILTER: Array<u64> = array(&map::REPLY_FILTER);
#[map]
static SERVICE_CIDRS: Array<cidr::ServiceCidrs> = array(&map::SERVICE_CIDRS);
#[map]
static SLOTS: Array<Slot> = array(&map::SLOTS);
#[map]
static REASSEMBLY: DevMap = device_map(&map::REASSEMBLY);
#[map]
static XDP_REASSEMBLY: Array<u32> = array(&map::XDP_REASSEMBLY);
#[map]
static DETOURS: Array<Bucket> = array(&map::DETOURS);
#[map]
static DEVICES: HashMap<u32, Device> = hash(&map::DEVICES);
#[map]
static XDP_DEVICES: Array<u32> = array(&map::XDP_DEVICES);
#[map]
static DEVICE_ROLES: Array<DeviceRole> = array(&map::DEVICE_ROLES);
#[map]
static POD_DEVICES: Array<u32> = array(&map::POD_DEVICES);
#[map]
static DEVICE_LINKS: Array<DeviceLinks> = array(&map::DEVICE_LINKS);
#[map]
static NODE_LINKS: HashMap<LinkAddress, u32> = hash(&map::NODE_LINKS);
#[map]
static NODE_ADDRESSES: HashMap<[u32; 4], u32> = hash(&map::NODE_ADDRESSES);
#[map]
static NAMESPACES: HashMap<u64, u32> = hash(&map::NAMESPACES);
#[map]
static SERVICE_NAMES: HashMap<ServiceId, ServiceName> = hash(&map::SERVICE_NAMES);
#[map]
static SERVICE_STATS: PerCpuArray<ServiceStats> = per_cpu_array(&map::SERVICE_STATS);
#[map]
static REASONS: PerCpuArray<u64> = per_cpu_array(&map::REASONS);
#[map]
static ANSWERS: PerCpuArray<Bucket> = per_cpu_array(&map::ANSWERS);
#[map]
static SETTINGS: Array<LoadedSettings> = array(&map::SETTINGS);

/// Returns true if the bit for packets to an address is set.
#[inline(always)]
pub fn filter(address: impl Address) -> bool {
    is_set(&FILTER, Position::of(address))
}

/// Returns true if the bit for replies from an address and port is set.
#[inline(always)]
pub fn reply_filter(address: impl Address, port: Port) -> bool {
    is_set(&REPLY_FILTER, Position::of_replies(address, port))
}

/// Returns true if an address may be in a Service CIDR.
#[inline(always)]
pub fn may_be_service(address: impl Address) -> bool {
    SERVICE_CIDRS
        .get(0)
        .is_some_and(|networks| networks.may_contain(address))
}

#[inline(always)]
fn is_set(filter: &Array<u64>, position: Position) -> bool {
    filter
        .get(position.word)
        .is_some_and(|word| word & position.bit != 0)
}

/// The flow with this key.
#[inline(always)]
pub fn flow<A: FamilyMaps>(key: &FlowKey<A>) -> Option<FlowEntry<A>> {
    let entry = NonNull::new(A::flows().get_ptr_mut(key)?)?;
    // SAFETY: the kernel keeps a map value's memory readable and writable until the program
    // returns.
    Some(unsafe { FlowEntry::new(entry) })
}

/// The frontend row with this key.
#[inline(always)]
pub fn frontend<A: FamilyMaps>(key: &FrontendKey<A>) -> Option<Frontend> {
    // SAFETY: the map does not preallocate, so a row's memory is not reused before the program
    // returns.
    unsafe { A::frontends().get(key) }.copied()
}

/// The slot at this index.
#[inline(always)]
pub fn slot(index: u32) -> Option<Slot> {
    SLOTS.get(index).copied()
}

/// The backend row with this id.
#[inline(always)]
pub fn backend<A: FamilyMaps>(id: BackendId) -> Option<Backend<A>> {
    A::backends().get(id).copied()
}

/// The row of a socket and an address.
#[inline(always)]
pub fn socket<A: FamilyMaps>(key: &SocketKey<A>) -> Option<Socket<A>> {
    // SAFETY: copied immediately. If another program gives the row to another socket meanwhile,
    // `generation` and the next system call of that socket correct the result.
    unsafe { A::sockets().get(key) }.copied()
}

/// The backend that a client stays with.
#[inline(always)]
pub fn affinity<A: FamilyMaps>(key: &AffinityKey<A>) -> Option<Affinity> {
    // SAFETY: copied immediately. If the row goes to another client meanwhile, this client uses the
    // other one's backend once.
    unsafe { A::affinity().get(key) }.copied()
}

/// Returns true if a set of source ranges contains an address.
#[inline(always)]
pub fn allows<A: FamilyMaps>(set: u32, address: A) -> bool {
    let bits = SourceRange::<A>::SET_BITS + 8 * size_of::<A>() as u32;
    let range = SourceRange {
        set,
        network: address,
    };
    A::source_ranges().get(Key::new(bits, range)).is_some()
}

/// The fragment row of a datagram.
#[inline(always)]
pub fn fragment<A: FamilyMaps>(key: &FragmentKey<A>) -> Option<Fragment> {
    // SAFETY: copied immediately. If the row goes to another datagram meanwhile, this fragment gets
    // the wrong ports, and the receiver's reassembly drops it.
    unsafe { A::fragments().get(key) }.copied()
}

/// The row of a device.
#[inline(always)]
pub fn device(index: u32) -> Option<Device> {
    // SAFETY: the map does not preallocate, so a row's memory is not reused before the program
    // returns.
    unsafe { DEVICES.get(&index) }.copied()
}

/// Returns true if XDP programs of other devices can send through a device.
#[inline(always)]
pub fn transmits(index: u32) -> bool {
    contains_device(&XDP_DEVICES, index)
}

/// What is at the other end of a device: one of [`lb_common::layout::device_role`], or 0.
#[inline(always)]
pub fn role_of(index: u32) -> u32 {
    DEVICE_ROLES
        .get(device_row(index))
        .map_or(0, |row| if row.index == index { row.role } else { 0 })
}

/// The bridge or bond that a device is a port of, else the device itself.
#[inline(always)]
pub fn master_of(index: u32) -> u32 {
    DEVICE_ROLES
        .get(device_row(index))
        .map_or(index, |row| if row.index == index { row.master } else { index })
}

/// Returns true if the other end of a device is in a Pod.
#[inline(always)]
pub fn leads_to_pod(index: u32) -> bool {
    contains_device(&POD_DEVICES, index)
}

/// Returns true if a frame with this destination that came in through a device is for the device
/// itself, or for the bridge or bond that it is a port of.
#[inline(always)]
pub fn is_link_of(index: u32, address: LinkAddress) -> bool {
    DEVICE_LINKS
        .get(device_row(index))
        .is_some_and(|row| row.index == index && (row.addresses[0] == address || row.addresses[1] == address))
}

/// Returns true if the address belongs to a device that accepts frames which come in through other
/// devices.
#[inline(always)]
pub fn is_node_link(address: &LinkAddress) -> bool {
    NODE_LINKS.get_ptr(address).is_some()
}

/// Returns true if a device of the node has the IP address with these words.
#[inline(always)]
pub fn is_node_address(words: &[u32; 4]) -> bool {
    NODE_ADDRESSES.get_ptr(words).is_some()
}

/// Returns true if a network namespace is known to be that of a Pod of the cluster.
#[inline(always)]
pub fn is_of_pod(cookie: u64) -> bool {
    // SAFETY: the map does not preallocate, so a row's memory is not reused before the program
    // returns.
    unsafe { NAMESPACES.get(&cookie) }.is_some_and(|role| *role == namespace_role::POD)
}

#[inline(always)]
fn contains_device(devices: &Array<u32>, index: u32) -> bool {
    devices
        .get(device_row(index))
        .is_some_and(|known| *known == index)
}

/// Counts a connection of a Service.
#[inline(always)]
pub fn count_connection(service: ServiceId) {
    if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
        // SAFETY: the value is this CPU's own.
        unsafe { (*stats).connections += 1 }
    }
}

/// Counts a first packet that found no usable backend.
#[inline(always)]
pub fn count_rejected(service: ServiceId) {
    if let Some(stats) = SERVICE_STATS.get_ptr_mut(service) {
        // SAFETY: the value is this CPU's own.
        unsafe { (*stats).rejected += 1 }
    }
}

/// Takes an answer to a client out of its bucket. Returns false if the bucket is empty.
#[inline(always)]
pub fn take_answer(client: impl Address, limit: Limit, now: u64, jiffies_per_second: u32) -> bool {
    let Some(bucket) = ANSWERS.get_ptr_mut(limit.bucket(client)) else {
        return false;
    };
    // SAFETY: the value is this CPU's own.
    unsafe { (*bucket).take(now, jiffies_per_second, limit.rate()) }
}

/// The index of the device that leads to the kernel's own reassembly; 0 if there is none.
#[inline(always)]
pub fn reassembly_device() -> u32 {
    REASSEMBLY.get_ifindex(0).unwrap_or(0)
}

/// As [`reassembly_device`], for XDP. The device may no longer exist.
#[inline(always)]
pub fn xdp_reassembly_device() -> u32 {
    XDP_REASSEMBLY.get(0).map_or(0, |index| *index)
}

/// Takes a fragment for the kernel's own reassembly out of the bucket that all senders share.
/// Returns false if the bucket is empty.
#[inline(always)]
pub fn take_detour(now: u64, jiffies_per_second: u32) -> bool {
    let Some(bucket) = DETOURS.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the value consists of numbers. If another CPU writes some of them meanwhile, the
    // count is slightly wrong.
    unsafe { (*bucket).take(now, jiffies_per_second, ALL_DETOURS) }
}

/// The link-layer address of the frames that a device receives for the node.
#[inline(always)]
pub fn link_of(index: u32) -> Option<LinkAddress> {
    let row = DEVICE_LINKS.get(device_row(index))?;
    (row.index == index).then_some(row.addresses[1])
}

/// Counts a packet by the reason why it was not translated.
#[inline(always)]
pub fn count_reason(reason: Reason) {
    if let Some(count) = REASONS.get_ptr_mut(reason.index()) {
        // SAFETY: the value is this CPU's own.
        unsafe { *count += 1 }
    }
}
