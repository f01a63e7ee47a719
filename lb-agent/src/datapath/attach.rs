//! Attaches the programs to devices and to the cgroup, and pins the links.
//!
//! A link that is pinned already is kept and gets the new program in one step, so that no packet meets a device
//! without program while one agent takes over from another.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::xdp::XdpLink;
use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    Xdp, XdpMode,
};
use nix::errno::Errno;
use nix::net::if_::{if_indextoname, if_nameindex};

use super::object::{LoadError, program};
use super::pins::Pins;
use crate::devices::{Attachment, Role};

/// How XDP is attached to network devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpAttach {
    /// In the driver where it can; not on veth, whose packets may carry partial checksums.
    #[default]
    Auto,
    /// In the driver; a device whose driver cannot is an error.
    Native,
    /// In the kernel's generic hook: for tests.
    Generic,
    /// Not at all: TC does its work.
    Off,
}

/// How TC programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TcAttach {
    /// By TCX links where the kernel has them (6.6), else as clsact filters.
    #[default]
    Auto,
    /// As clsact filters.
    Clsact,
}

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AttachOptions {
    /// XDP on network devices.
    pub xdp: XdpAttach,
    /// TC everywhere.
    pub tc: TcAttach,
}

/// Why a program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("cannot attach {program} to {target}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device or cgroup.
        target: String,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pins cannot be read or written.
    #[error("cannot change the pinned links in {directory}")]
    Pins {
        /// The directory.
        directory: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A program on a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct DeviceProgram {
    index: u32,
    program: &'static str,
    kind: Hook,
}

/// Where on a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Hook {
    Xdp(XdpModeName),
    Tc(Direction),
}

/// The mode is part of a link's name: a link keeps its mode for life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum XdpModeName {
    Native,
    Generic,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

impl XdpModeName {
    fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

impl DeviceProgram {
    /// Where in TC it is.
    fn place(&self) -> Option<(u32, Direction)> {
        match self.kind {
            Hook::Xdp(_) => None,
            Hook::Tc(direction) => Some((self.index, direction)),
        }
    }

    fn pin_name(&self) -> String {
        let Self { index, program, kind } = self;
        match kind {
            Hook::Xdp(XdpModeName::Native) => format!("{index}-{program}-native"),
            Hook::Xdp(XdpModeName::Generic) => format!("{index}-{program}-generic"),
            Hook::Tc(_) => format!("{index}-{program}"),
        }
    }
}

/// What is attached where.
#[derive(Debug)]
pub struct Attacher {
    pins: Pins,
    options: AttachOptions,
    /// What this agent has attached its programs to, with the device's instance.
    devices: BTreeMap<DeviceProgram, u64>,
    /// Devices on which XDP was not only tried.
    with_xdp: BTreeSet<u32>,
    /// Whether the clsact filters of an earlier agent that are not wanted were removed.
    swept: bool,
}

impl Attacher {
    /// Attaches nothing yet. What is pinned stays as it is until [`Self::set_devices`] and [`Self::set_cgroup`].
    pub fn new(pins: Pins, options: AttachOptions) -> Result<Self, AttachError> {
        std::fs::create_dir_all(pins.links()).map_err(|source| pins_error(&pins, source))?;
        Ok(Self {
            pins,
            options,
            devices: BTreeMap::new(),
            with_xdp: BTreeSet::new(),
            swept: false,
        })
    }

    /// Forgets what is attached, so that the next calls attach the programs of a new object in its place.
    pub fn renew(&mut self) {
        self.devices.clear();
        self.swept = false;
    }

    /// Attaches to these devices and to no others. Errors do not keep other devices from being attached; what
    /// failed is tried again by the next call.
    pub fn set_devices(&mut self, ebpf: &mut Ebpf, devices: &BTreeMap<u32, Attachment>) -> Vec<AttachError> {
        let mut errors = Vec::new();
        let mut wanted = BTreeMap::new();
        let mut with_xdp = BTreeSet::new();
        for (index, device) in devices {
            for program in self.programs_for(*index, device) {
                wanted.insert(program, device);
            }
        }
        for (program, device) in &wanted {
            if self.devices.get(program) == Some(&device.instance) {
                if self.with_xdp.contains(&program.index) && program.program == program::XDP {
                    with_xdp.insert(program.index);
                }
                continue;
            }
            match self.attach(ebpf, program, &device.name) {
                Ok(()) => {
                    self.devices.insert(program.clone(), device.instance);
                    if program.program == program::XDP {
                        with_xdp.insert(program.index);
                    }
                }
                // XDP in the driver is an opportunity, not a need.
                Err(error) if self.options.xdp == XdpAttach::Auto && program.program == program::XDP => {
                    tracing::info!(device = device.name, %error, "no native XDP on this device: TC takes its packets");
                    self.devices.insert(program.clone(), device.instance);
                }
                Err(error) => {
                    self.devices.remove(program);
                    errors.push(error);
                }
            }
        }
        if let Err(error) = self.detach_others(&wanted.into_keys().collect()) {
            errors.push(error);
        }
        self.with_xdp = with_xdp;
        errors
    }

    /// Indexes of the devices that carry the XDP program.
    pub fn with_xdp(&self) -> &BTreeSet<u32> {
        &self.with_xdp
    }

    fn programs_for(&self, index: u32, device: &Attachment) -> Vec<DeviceProgram> {
        let tc = |program, direction| DeviceProgram {
            index,
            program,
            kind: Hook::Tc(direction),
        };
        match device.role {
            Role::Pod if !device.ethernet => vec![
                tc(program::TC_FROM_POD_LAYER3, Direction::Ingress),
                tc(program::TC_TO_LAYER3, Direction::Egress),
            ],
            Role::Network if !device.ethernet => vec![
                tc(program::TC_FROM_NETWORK_LAYER3, Direction::Ingress),
                tc(program::TC_TO_LAYER3, Direction::Egress),
            ],
            Role::Pod => vec![
                tc(program::TC_FROM_POD, Direction::Ingress),
                tc(program::TC_TO_POD, Direction::Egress),
            ],
            Role::Network => {
                let mut programs = vec![
                    tc(program::TC_FROM_NETWORK, Direction::Ingress),
                    tc(program::TC_TO_NETWORK, Direction::Egress),
                ];
                let mode = match self.options.xdp {
                    XdpAttach::Auto if device.kind == "veth" => None,
                    XdpAttach::Auto | XdpAttach::Native => Some(XdpModeName::Native),
                    XdpAttach::Generic => Some(XdpModeName::Generic),
                    XdpAttach::Off => None,
                };
                let xdp = |mode| DeviceProgram {
                    index,
                    program: program::XDP,
                    kind: Hook::Xdp(mode),
                };
                // After TC's reply translation: a request is never translated without it.
                programs.extend(mode.map(xdp));
                programs
            }
        }
    }

    /// Removes the links and filters that are not wanted (any more), those of an earlier agent included, which may have
    /// attached the same programs in another way.
    fn detach_others(&mut self, wanted: &BTreeSet<DeviceProgram>) -> Result<(), AttachError> {
        let (filters, links): (Vec<_>, Vec<_>) = wanted
            .iter()
            .partition(|program| matches!(program.kind, Hook::Tc(_)) && self.uses_clsact());
        self.remove_other_filters(&filters.into_iter().filter_map(DeviceProgram::place).collect());
        self.devices.retain(|program, _| wanted.contains(program));

        let names: BTreeSet<String> = links.into_iter().map(DeviceProgram::pin_name).collect();
        let pinned = self
            .pins
            .link_names()
            .map_err(|source| pins_error(&self.pins, source))?;
        for name in pinned
            .difference(&names)
            .filter(|name| !name.starts_with(CGROUP_PREFIX))
        {
            self.pins
                .remove_link(name)
                .map_err(|source| pins_error(&self.pins, source))?;
        }
        Ok(())
    }

    /// Removes our clsact filters from all places but these. Filters have no pins that would tell where an earlier
    /// agent left some: the first time all devices are looked at.
    fn remove_other_filters(&mut self, wanted: &BTreeSet<(u32, Direction)>) {
        let candidates: BTreeSet<(u32, Direction)> = if self.swept {
            if !self.uses_clsact() {
                return;
            }
            self.devices.keys().filter_map(DeviceProgram::place).collect()
        } else {
            let Ok(devices) = if_nameindex() else { return };
            devices
                .iter()
                .flat_map(|device| Direction::BOTH.map(|direction| (device.index(), direction)))
                .collect()
        };
        self.swept = true;
        for (index, direction) in candidates.difference(wanted) {
            // A device that is gone has taken its filters along.
            if let Ok(device) = if_indextoname(*index) {
                remove_filter(&device.to_string_lossy(), *direction);
            }
        }
    }

    fn attach(&self, ebpf: &mut Ebpf, program: &DeviceProgram, device: &str) -> Result<(), AttachError> {
        let name = program.pin_name();
        let result = match program.kind {
            Hook::Xdp(mode) => self.attach_xdp(ebpf, program, device, mode),
            Hook::Tc(direction) if self.uses_clsact() => {
                attach_clsact(ebpf, program.program, device, direction)
            }
            Hook::Tc(direction) => self.attach_tcx(ebpf, program.program, &name, device, direction),
        };
        result.map_err(|source| AttachError::Attach {
            program: program.program,
            target: format!("device {device}"),
            source: source.into(),
        })
    }

    fn uses_clsact(&self) -> bool {
        self.options.tc == TcAttach::Clsact || !super::has_tcx()
    }

    fn attach_xdp(
        &self,
        ebpf: &mut Ebpf,
        program: &DeviceProgram,
        device: &str,
        mode: XdpModeName,
    ) -> Result<(), Failure> {
        let xdp: &mut Xdp = find(ebpf, program::XDP)?;
        let path = self.pins.link(&program.pin_name());
        if let Some(old) = pinned(&path)? {
            match XdpLink::try_from(old)
                .map_err(Failure::from)
                .and_then(|link| Ok(xdp.attach_to_link(link)?))
            {
                Ok(id) => return close(xdp.take_link(id)),
                Err(error) if error.is_dead_link() => std::fs::remove_file(&path)?,
                Err(error) => return Err(error),
            }
        }
        // A device has one XDP program, whatever the mode; until the new one is there TC takes its packets.
        let other = DeviceProgram {
            kind: Hook::Xdp(mode.other()),
            ..program.clone()
        };
        self.pins.remove_link(&other.pin_name())?;
        let mode = match mode {
            XdpModeName::Native => XdpMode::Driver,
            XdpModeName::Generic => XdpMode::Skb,
        };
        let id = xdp.attach(device, mode)?;
        let link: FdLink = xdp.take_link(id)?.try_into()?;
        link.pin(&path)?;
        Ok(())
    }

    fn attach_tcx(
        &self,
        ebpf: &mut Ebpf,
        program: &str,
        name: &str,
        device: &str,
        direction: Direction,
    ) -> Result<(), Failure> {
        let tc = find_tc(ebpf, program)?;
        let path = self.pins.link(name);
        if let Some(old) = pinned(&path)? {
            let link = SchedClassifierLink::try_from(old).map_err(Failure::from);
            match link.and_then(|link| Ok(tc.attach_to_link(link)?)) {
                Ok(id) => return close(tc.take_link(id)),
                Err(error) if error.is_dead_link() => std::fs::remove_file(&path)?,
                Err(error) => return Err(error),
            }
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = tc.attach_with_options(device, direction.attach_type(), order)?;
        let link: FdLink = tc.take_link(id)?.try_into()?;
        link.pin(&path)?;
        Ok(())
    }

    /// Attaches the socket programs to a cgroup, or detaches them.
    ///
    /// The new links are made before the old ones go: for an instant both run, and the second finds an address that
    /// is translated already.
    pub fn set_cgroup(&mut self, ebpf: &mut Ebpf, cgroup: Option<&Path>) -> Result<(), AttachError> {
        let Some(path) = cgroup else {
            let pinned = self
                .pins
                .link_names()
                .map_err(|source| pins_error(&self.pins, source))?;
            for name in pinned.iter().filter(|name| name.starts_with(CGROUP_PREFIX)) {
                self.pins
                    .remove_link(name)
                    .map_err(|source| pins_error(&self.pins, source))?;
            }
            return Ok(());
        };
        for program in program::SOCKETS.into_iter().chain([program::SOCKET_RELEASE]) {
            self.attach_cgroup(ebpf, program, path)
                .map_err(|source| AttachError::Attach {
                    program,
                    target: format!("cgroup {}", path.display()),
                    source: source.into(),
                })?;
        }
        Ok(())
    }

    fn attach_cgroup(&self, ebpf: &mut Ebpf, program: &str, cgroup: &Path) -> Result<(), Failure> {
        let directory = std::fs::File::open(cgroup)?;
        // The other modes are refused for links, which are always "multi".
        let mode = CgroupAttachMode::Single;
        let link: FdLink = if program == program::SOCKET_RELEASE {
            let socket: &mut CgroupSock = find(ebpf, program)?;
            let id = socket.attach(directory, mode)?;
            socket.take_link(id)?.try_into()?
        } else {
            let socket: &mut CgroupSockAddr = find(ebpf, program)?;
            let id = socket.attach(directory, mode)?;
            socket.take_link(id)?.try_into()?
        };
        let path = self.pins.link(&format!("{CGROUP_PREFIX}{program}"));
        let new = self.pins.link(&format!("{CGROUP_PREFIX}{program}-new"));
        self.pins.remove_link(&format!("{CGROUP_PREFIX}{program}-new"))?;
        link.pin(&new)?;
        std::fs::rename(new, path)?;
        Ok(())
    }
}

/// Begins the pin names of the cgroup's links.
const CGROUP_PREFIX: &str = "cgroup-";

/// Priority and handle of our clsact filters: fixed, so that the next agent finds them.
const CLSACT_PRIORITY: u16 = 0x6c62;
const CLSACT_HANDLE: (u16, u16) = (0, 1);

fn clsact_link(device: &str, direction: Direction) -> io::Result<SchedClassifierLink> {
    let handle = TcHandle::new(CLSACT_HANDLE.0, CLSACT_HANDLE.1);
    SchedClassifierLink::attached(device, direction.attach_type(), CLSACT_PRIORITY, handle, None)
}

/// Attaches or replaces a clsact filter. It belongs to the device and needs no pin.
fn attach_clsact(ebpf: &mut Ebpf, program: &str, device: &str, direction: Direction) -> Result<(), Failure> {
    let tc = find_tc(ebpf, program)?;
    // A qdisc that is there already is what is needed; without one the next call fails and says so.
    let _ = qdisc_add_clsact(device);
    let id = match tc.attach_to_link(clsact_link(device, direction)?) {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions {
                priority: CLSACT_PRIORITY,
                handle: TcHandle::new(CLSACT_HANDLE.0, CLSACT_HANDLE.1),
                classid: None,
            };
            tc.attach_with_options(device, direction.attach_type(), TcAttachOptions::Netlink(options))?
        }
    };
    // Dropping the link would remove the filter.
    std::mem::forget(tc.take_link(id)?);
    Ok(())
}

/// Removes our clsact filters of a device; returns how many there were.
pub fn remove_clsact(device: &str) -> usize {
    Direction::BOTH
        .into_iter()
        .filter(|direction| remove_filter(device, *direction))
        .count()
}

/// Removes our clsact filter of one direction; returns whether there was one.
fn remove_filter(device: &str, direction: Direction) -> bool {
    clsact_link(device, direction).is_ok_and(|link| aya::programs::links::Link::detach(link).is_ok())
}

/// Closes a link that is pinned: the pin keeps it.
fn close<L>(link: Result<L, ProgramError>) -> Result<(), Failure> {
    drop(link?);
    Ok(())
}

/// A pinned link, if there is one.
fn pinned(path: &Path) -> Result<Option<FdLink>, Failure> {
    match PinnedLink::from_pin(path) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A TC program, loaded if it was not needed before.
fn find_tc<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Failure> {
    let program: &mut SchedClassifier = find(ebpf, name)?;
    if program.fd().is_err() {
        program.load().map_err(|error| LoadError::program(name, error))?;
    }
    Ok(program)
}

fn find<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Failure>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| Failure::Missing(name.to_owned()))?;
    Ok(program.try_into()?)
}

fn pins_error(pins: &Pins, source: io::Error) -> AttachError {
    AttachError::Pins {
        directory: pins.links().display().to_string(),
        source,
    }
}

/// What can go wrong on the way.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the embedded object has no program {0}")]
    Missing(String),
}

impl Failure {
    /// Whether the link's device is gone: the kernel keeps such a link until its pin goes.
    fn is_dead_link(&self) -> bool {
        let Self::Program(ProgramError::SyscallError(error)) = self else {
            return matches!(self, Self::Link(LinkError::InvalidLink));
        };
        error.io_error.raw_os_error() == Some(Errno::ENOLINK as i32)
    }
}
