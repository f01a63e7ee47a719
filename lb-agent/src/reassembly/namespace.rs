//! The network namespace. A temporary thread creates it, and file descriptors keep it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::links::Links;
use super::{Reassembly, ReassemblyError, failed};
use crate::datapath::defragmentation;
use crate::devices::REASSEMBLY_DEVICE;

/// Memory for incomplete datagrams, in bytes, for each family.
const MEMORY: &str = "67108864";
/// Timeout of incomplete datagrams, in seconds.
const PATIENCE: &str = "1";
/// Settings of the namespace. IPv6 is disabled because it would only send neighbour and router
/// discovery.
const SETTINGS: [(&str, &str); 10] = [
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/bridge/bridge-nf-call-iptables", "1"),
    ("net/bridge/bridge-nf-call-ip6tables", "1"),
    ("net/bridge/bridge-nf-call-arptables", "0"),
    ("net/ipv4/ipfrag_high_thresh", MEMORY),
    ("net/ipv4/ipfrag_time", PATIENCE),
    // The kernel must not limit how many fragments of other datagrams arrive in between.
    ("net/ipv4/ipfrag_max_dist", "0"),
    ("net/netfilter/nf_conntrack_frag6_high_thresh", MEMORY),
    ("net/netfilter/nf_conntrack_frag6_timeout", PATIENCE),
];
/// Exists if the kernel supports IPv6.
const IPV6: &str = "/proc/sys/net/ipv6";
/// The network namespace of this thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// Whether bridges pass packets to netfilter (module `br_netfilter`).
pub(super) fn has_bridge_netfilter() -> bool {
    Path::new("/proc/sys/net/bridge").exists()
}

/// Creates the namespace and the devices. Leaves the calling thread in the namespace.
pub(super) fn set_up() -> Result<Reassembly, ReassemblyError> {
    let host = own_namespace().map_err(failed("open the network namespace"))?;
    make_settings_writable().map_err(failed("mount a private proc file system"))?;
    let mut outside = Links::open().map_err(failed("open a netlink socket for devices"))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(failed("create a network namespace"))?;
    let namespace = own_namespace().map_err(failed("open the new network namespace"))?;
    let mut inside = Links::open().map_err(failed("open a netlink socket for devices"))?;
    // This step comes first, because it may load modules that provide some of the settings.
    let defragmentation = defragmentation::attach().map_err(failed("enable netfilter's reassembly"))?;
    for (name, value) in SETTINGS.into_iter().filter(|(name, _)| exists(name)) {
        set(name, value)?;
    }
    outside
        .make_pair(&namespace)
        .map_err(failed(format!("create the device {REASSEMBLY_DEVICE}")))?;

    setns(&host, CloneFlags::CLONE_NEWNET).map_err(failed("enter the network namespace"))?;
    let device =
        if_nametoindex(REASSEMBLY_DEVICE).map_err(failed(format!("find the device {REASSEMBLY_DEVICE}")))?;
    let own_ipv6 = format!("net/ipv6/conf/{REASSEMBLY_DEVICE}/disable_ipv6");
    if exists(&own_ipv6) {
        set(&own_ipv6, "1")?;
    }
    setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(failed("enter the new network namespace"))?;

    inside.make_bridge().map_err(failed("create a bridge"))?;
    outside
        .raise(device)
        .map_err(failed(format!("set up the device {REASSEMBLY_DEVICE}")))?;
    Ok(Reassembly {
        device,
        _namespace: namespace,
        _defragmentation: defragmentation,
    })
}

fn own_namespace() -> io::Result<OwnedFd> {
    File::open(OWN).map(OwnedFd::from)
}

/// In a container, `/proc/sys` may be read-only. This thread then gets a private mount.
fn make_settings_writable() -> nix::Result<()> {
    if !statvfs("/proc/sys")?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        NOTHING,
    )?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NOTHING)
}

/// Whether this kernel must have a setting. A kernel may lack IPv6.
fn exists(name: &str) -> bool {
    let is_ipv6 = name.contains("ipv6") || name.contains("frag6");
    !is_ipv6 || Path::new(IPV6).exists()
}

fn set(name: &str, value: &str) -> Result<(), ReassemblyError> {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).map_err(failed(format!("set {} to {value}", path.display())))
}
