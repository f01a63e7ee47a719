//! The features and how the agent detects them.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::{fs, iter};

use super::feature::{Feature, Found};
use crate::datapath::carriers::Carriers;
use crate::datapath::foreign::foreign_programs;
use crate::datapath::pins::Pins;
use crate::datapath::probe::{self, Helper, Map, Program};
use crate::devices::{self, Bare, DeviceOptions};
use crate::maps::Protocol;
use crate::mounts::{self, Mount};
use crate::{namespace, privileges, sockets};

const NO_SOCKET_HOOKS: &str =
    "processes of this host cannot reach Services; connections of Pods are translated at their devices";

/// Checks all features that the agent uses.
///
/// `pin_path` is the directory in which the agent pins maps, programs and links.
pub(super) fn features(pin_path: &Path) -> Vec<Feature> {
    let mounts = mounts::mounts();
    let pins = Pins::new(pin_path);
    iter::empty()
        .chain(basics(pin_path, &mounts))
        .chain(maps())
        .chain(device_programs())
        .chain([device_hooks(&pins)])
        .chain([bare_devices(&pins)])
        .chain(socket_programs(&mounts))
        .chain(socket_destruction())
        .chain(host())
        .collect()
}

fn basics(pin_path: &Path, mounts: &io::Result<Vec<Mount>>) -> [Feature; 3] {
    [
        Feature::required("kernel version", "all programs", kernel_version()).since("5.10"),
        Feature::required(
            "capabilities",
            "loading and attaching programs",
            held(&privileges::DATAPATH),
        ),
        Feature::required(
            "bpf file system",
            "maps and programs that outlive the agent",
            in_mounts(mounts, |mounts| bpf_file_system(mounts, pin_path)),
        )
        .since("4.4"),
    ]
}

fn maps() -> [Feature; 2] {
    [
        Feature::required("LRU hash maps", "flows", probe::map(Map::LruHash).into()).since("4.10"),
        Feature::optional(
            "memory of maps",
            "map memory that is charged to the memory cgroup",
            "the agent lifts its limit of locked memory, which needs CAP_SYS_RESOURCE",
            version(5, 11),
        )
        .since("5.11"),
    ]
}

fn device_programs() -> [Feature; 5] {
    let clock = probe::helper(Program::SchedClassifier, Helper::Jiffies64);
    [
        Feature::required(
            "TC programs",
            "translation at devices",
            probe::program(Program::SchedClassifier).into(),
        )
        .since("4.1"),
        Feature::required("bpf_jiffies64", "the age of flows", clock.into()).since("5.6"),
        Feature::optional(
            "TCX links",
            "TC programs that coexist with those of others and are replaced in place",
            "the agent uses clsact filters through netlink",
            version(6, 6),
        )
        .since("6.6"),
        Feature::optional(
            "XDP programs",
            "traffic from outside, before the network stack",
            "TC translates this traffic, at a higher cost per packet",
            probe::program(Program::Xdp).into(),
        )
        .since("4.8"),
        Feature::optional(
            "XDP links",
            "XDP programs that are replaced in place",
            "the agent attaches XDP programs through netlink",
            version(5, 9),
        )
        .since("5.9"),
    ]
}

/// Checks whether other software has programs on the devices, including devices that the agent does
/// not use.
fn device_hooks(pins: &Pins) -> Feature {
    let (found, programs) = match foreign_programs(pins) {
        Ok(programs) if programs.is_empty() => (Found::present(""), programs),
        Ok(programs) => {
            let shown: Vec<String> = programs
                .iter()
                .map(|program| format!("{} at {program}", program.title()))
                .collect();
            (Found::absent(shown.join("; ")), programs)
        }
        Err(error) => (Found::unknown(error), Vec::new()),
    };
    let feature = Feature::optional(
        "devices without programs of others",
        "the agent's programs see every packet",
        "a foreign program at XDP or before the agent's decides which packets the agent's sees; one after it sees \
         translated packets",
        found,
    );
    Feature { programs, ..feature }
}

/// Checks whether all devices carry the programs, or would carry them if an agent ran.
fn bare_devices(pins: &Pins) -> Feature {
    let found = match find_bare(pins) {
        Ok(devices) if devices.is_empty() => Found::present(""),
        Ok(devices) => {
            let shown: Vec<String> = devices.iter().map(Bare::to_string).collect();
            Found::absent(shown.join("; "))
        }
        Err(error) => Found::unknown(error),
    };
    Feature::optional(
        "programs at all devices",
        "clients behind every device",
        "packets that arrive on or leave through these devices are not translated",
        found,
    )
}

fn find_bare(pins: &Pins) -> anyhow::Result<BTreeSet<Bare>> {
    if pins.maps().exists() {
        return Ok(Carriers::read(pins)?.bare(&devices::look_without_default_routes()?));
    }
    let snapshot = devices::look()?;
    let chosen = devices::classify(&snapshot, &DeviceOptions::default());
    Ok(devices::bare(&snapshot, |index| chosen.contains_key(&index)))
}

fn socket_programs(mounts: &io::Result<Vec<Mount>>) -> [Feature; 5] {
    let cookie = probe::helper(Program::CgroupSockAddr, Helper::GetNetnsCookie);
    let retval = probe::helper(Program::CgroupSockAddr, Helper::SetRetval);
    [
        Feature::optional(
            "cgroup v2",
            "translation at sockets",
            NO_SOCKET_HOOKS,
            in_mounts(mounts, cgroup2),
        )
        .since("4.5"),
        Feature::optional(
            "socket programs",
            "translation at sockets",
            NO_SOCKET_HOOKS,
            probe::program(Program::CgroupSockAddr).into(),
        )
        .since("4.17"),
        Feature::optional(
            "bpf_get_netns_cookie",
            "distinguishing Pods from processes of this host at sockets",
            NO_SOCKET_HOOKS,
            cookie.into(),
        )
        .since("5.7"),
        Feature::optional(
            "SO_NETNS_COOKIE",
            "identifying this host's network namespace if it is not the initial one; distinguishing Pods from other \
             containers",
            "the agent treats the initial network namespace as this host's and all others as Pods'",
            namespace::cookie().map(|cookie| cookie.is_some()).into(),
        )
        .since("5.14"),
        Feature::optional(
            "bpf_set_retval",
            "immediate \"connection refused\" for Services without endpoints",
            "connect fails with \"operation not permitted\" instead",
            retval.into(),
        )
        .since("5.18"),
    ]
}

/// Features for closing sockets that are translated to a removed backend.
fn socket_destruction() -> [Feature; 3] {
    const NEEDED_FOR: &str = "an immediate error for a process whose socket is connected to a removed Pod";
    const WITHOUT: &str = "the process waits for its own timeout, or indefinitely";
    [
        Feature::optional(
            "TCP socket destruction",
            NEEDED_FOR,
            WITHOUT,
            destruction(Protocol::Tcp),
        )
        .since("4.5"),
        Feature::optional(
            "UDP socket destruction",
            NEEDED_FOR,
            WITHOUT,
            destruction(Protocol::Udp),
        )
        .since("4.9"),
        Feature::optional(
            "capabilities for sockets",
            "closing and translating sockets of Pods",
            "connections of Pods are translated at their devices",
            held(&privileges::ALL_SOCKETS),
        ),
    ]
}

fn host() -> [Feature; 4] {
    [
        Feature::optional(
            "kernel BTF",
            "diagnosis of programs and maps with bpftool",
            "no effect on the agent",
            kernel_btf(),
        )
        .since("5.4"),
        Feature::optional(
            "JIT compiler",
            "programs that run as machine code",
            "every packet costs several times as much CPU time",
            sysctl("net.core.bpf_jit_enable"),
        )
        .since("4.1"),
        Feature::optional(
            "IPv4 forwarding",
            "packets to and from Pods",
            "the network stack drops IPv4 packets between devices",
            sysctl("net.ipv4.ip_forward"),
        ),
        Feature::optional(
            "IPv6 forwarding",
            "packets to and from Pods",
            "the network stack drops IPv6 packets between devices",
            sysctl("net.ipv6.conf.all.forwarding"),
        ),
    ]
}

fn kernel_version() -> Found {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match probe::kernel_at_least(5, 10) {
        true => Found::present(release),
        false => Found::absent(format!("this is {release}")),
    }
}

/// For features that the loader also detects by the kernel version.
fn version(major: u8, minor: u8) -> Found {
    match probe::kernel_at_least(major, minor) {
        true => Found::present(""),
        false => Found::absent(""),
    }
}

fn destruction(protocol: Protocol) -> Found {
    match sockets::can_destroy(protocol) {
        Ok(true) => Found::present(""),
        Ok(false) => Found::absent(
            "the kernel was built without CONFIG_INET_DIAG_DESTROY or CONFIG_INET_UDP_DIAG, or its module is missing",
        ),
        Err(error) => Found::unknown(error),
    }
}

fn held(needed: &[privileges::Capability]) -> Found {
    match privileges::require("run", needed) {
        Ok(()) => Found::present(""),
        Err(missing @ privileges::PrivilegeError::Missing { .. }) => Found::absent(missing.to_string()),
        Err(error) => Found::unknown(error),
    }
}

fn in_mounts(mounts: &io::Result<Vec<Mount>>, find: impl FnOnce(&[Mount]) -> Found) -> Found {
    match mounts {
        Ok(mounts) => find(mounts),
        Err(error) => Found::unknown(anyhow::anyhow!("cannot read the mounts: {error}")),
    }
}

fn bpf_file_system(mounts: &[Mount], pin_path: &Path) -> Found {
    match mounts::mount_of(mounts, pin_path) {
        Some(mount) if mount.kind == "bpf" => Found::present(format!("at {}", mount.point.display())),
        _ => {
            let point = pin_path.parent().unwrap_or(pin_path).display();
            Found::absent(format!(
                "{} is not in a bpf file system: `mount -t bpf bpf {point}`",
                pin_path.display()
            ))
        }
    }
}

fn cgroup2(mounts: &[Mount]) -> Found {
    let Some(point) = mounts::cgroup2(mounts) else {
        return Found::absent("`mount -t cgroup2 none /sys/fs/cgroup`, or boot without cgroup v1");
    };
    let shown = point.display();
    match mounts::partial_cgroup2(point) {
        Ok(None) => Found::present(format!("at {shown}")),
        Ok(Some(why)) => Found::absent(why),
        Err(error) => Found::unknown(anyhow::anyhow!("cannot examine {shown}: {error}")),
    }
}

fn kernel_btf() -> Found {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    match fs::exists(PATH) {
        Ok(true) => Found::present(PATH),
        Ok(false) => Found::absent("the kernel was built without CONFIG_DEBUG_INFO_BTF"),
        Err(error) => Found::unknown(anyhow::anyhow!("cannot look for {PATH}: {error}")),
    }
}

/// Checks whether a sysctl is on, i.e. not 0.
fn sysctl(name: &str) -> Found {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    match fs::read_to_string(&path) {
        Ok(value) if value.trim() == "0" => Found::absent(format!("`sysctl -w {name}=1`")),
        Ok(value) => Found::present(format!("{name}={}", value.trim())),
        Err(error) => Found::unknown(anyhow::anyhow!("cannot read {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::feature::Availability;

    #[test]
    fn the_pin_path_must_be_in_a_bpf_file_system() {
        let mount = |point: &str, kind: &str| Mount {
            point: point.into(),
            kind: kind.to_owned(),
        };
        let mut mounts = vec![mount("/", "ext4"), mount("/sys", "sysfs")];
        let pin_path = Path::new("/sys/fs/bpf/lb-agent");
        let found = bpf_file_system(&mounts, pin_path);
        assert_eq!(found.state, Availability::Absent);
        assert_eq!(
            found.detail,
            "/sys/fs/bpf/lb-agent is not in a bpf file system: `mount -t bpf bpf /sys/fs/bpf`"
        );
        mounts.push(mount("/sys/fs/bpf", "bpf"));
        let found = bpf_file_system(&mounts, pin_path);
        assert_eq!(
            (found.state, found.detail.as_str()),
            (Availability::Present, "at /sys/fs/bpf")
        );
    }

    #[test]
    fn sysctls_are_read_and_missing_ones_are_unknown() {
        assert_eq!(sysctl("kernel.pid_max").state, Availability::Present);
        assert_eq!(sysctl("lb.no_such_setting").state, Availability::Unknown);
    }

    #[test]
    fn a_missing_cgroup2_is_reported_with_the_remedy() {
        let found = cgroup2(&[]);
        assert_eq!(found.state, Availability::Absent);
        assert!(found.detail.contains("mount -t cgroup2"));
    }

    #[test]
    fn every_feature_is_listed_once() {
        let features = features(Path::new("/sys/fs/bpf/lb-agent"));
        let names: BTreeSet<_> = features.iter().map(|feature| feature.name).collect();
        assert_eq!(names.len(), features.len());
    }
}
