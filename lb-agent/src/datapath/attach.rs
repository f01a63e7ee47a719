//! Attaches the programs to devices and to the cgroup, and pins the links.
//!
//! A link that is pinned already is kept and gets the new program in one step, so that no packet meets a device
//! without program while one agent takes over from another.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use nix::net::if_::{if_indextoname, if_nameindex};

use super::filters::xdp_programs;
use super::hooks::{self, Failure};
use super::links::{Link, Place, attach_type};
use super::object::program;
use super::pins::{self, Pins};
use super::{cgroup, clsact};
use crate::devices::{Attachment, Role};

/// How XDP is attached to network devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpAttach {
    /// In the driver where it can; not on veth, tun and tap, whose packets may carry partial checksums.
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
    #[error("cannot change the pins in {directory}")]
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
    Xdp(XdpMode),
    Tc(Direction),
}

/// The mode is part of a link's name: a link keeps its mode for life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum XdpMode {
    Native,
    Generic,
}

/// A direction of TC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    pub(super) fn tcx(self) -> u32 {
        match self {
            Self::Ingress => attach_type::TCX_INGRESS,
            Self::Egress => attach_type::TCX_EGRESS,
        }
    }
}

impl XdpMode {
    fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

impl DeviceProgram {
    /// Where in TC it is.
    fn in_tc(&self) -> Option<(u32, Direction)> {
        match self.kind {
            Hook::Xdp(_) => None,
            Hook::Tc(direction) => Some((self.index, direction)),
        }
    }

    /// Where its link is attached.
    fn place(&self) -> Place {
        let device = self.index;
        match self.kind {
            Hook::Xdp(_) => Place::Xdp { device },
            Hook::Tc(direction) => Place::Tcx {
                device,
                attach_type: direction.tcx(),
            },
        }
    }

    fn pin_name(&self) -> String {
        let Self { index, program, kind } = self;
        match kind {
            Hook::Xdp(XdpMode::Native) => format!("{index}-{program}-native"),
            Hook::Xdp(XdpMode::Generic) => format!("{index}-{program}-generic"),
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
    /// Links that agents of other layouts have pinned, until these programs are in their places.
    inherited: Vec<(PathBuf, Place)>,
}

impl Attacher {
    /// Attaches nothing yet. What is pinned stays as it is until [`Self::set_devices`] and [`Self::set_cgroup`].
    pub fn new(pins: Pins, options: AttachOptions) -> Result<Self, AttachError> {
        std::fs::create_dir_all(pins.links()).map_err(|source| pins_error(&pins, source))?;
        let inherited = inherited(&pins).map_err(|source| pins_error(&pins, source))?;
        Ok(Self {
            pins,
            options,
            devices: BTreeMap::new(),
            with_xdp: BTreeSet::new(),
            swept: false,
            inherited,
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
        let mut failed = BTreeSet::new();
        for (index, device) in devices {
            for program in self.programs_for(*index, device) {
                wanted.insert(program, device);
            }
        }
        for (program, device) in &wanted {
            if self.devices.get(program) == Some(&device.instance) && self.is_in_place(program) {
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
                    failed.insert(program.place());
                    errors.push(error);
                }
            }
        }
        if let Err(error) = self.detach_others(&wanted.into_keys().collect()) {
            errors.push(error);
        }
        let is_done =
            |place: &Place| matches!(place, Place::Xdp { .. } | Place::Tcx { .. }) && !failed.contains(place);
        if let Err(error) = self.let_go(is_done) {
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
                    XdpAttach::Auto if matches!(device.kind.as_str(), "veth" | "tun") => None,
                    XdpAttach::Auto | XdpAttach::Native => Some(XdpMode::Native),
                    XdpAttach::Generic => Some(XdpMode::Generic),
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
        self.remove_other_filters(&filters.into_iter().filter_map(DeviceProgram::in_tc).collect());
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
            self.devices.keys().filter_map(DeviceProgram::in_tc).collect()
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
                clsact::detach(*index, &device.to_string_lossy(), *direction);
            }
        }
    }

    fn attach(&mut self, ebpf: &mut Ebpf, program: &DeviceProgram, device: &str) -> Result<(), AttachError> {
        self.attach_here(ebpf, program, device)
            .map_err(|source| AttachError::Attach {
                program: program.program,
                target: format!("device {device}"),
                source: source.into(),
            })
    }

    fn attach_here(&mut self, ebpf: &mut Ebpf, program: &DeviceProgram, device: &str) -> Result<(), Failure> {
        let path = self.pins.link(&program.pin_name());
        match program.kind {
            Hook::Tc(direction) if self.uses_clsact() => {
                clsact::attach(ebpf, program.program, program.index, device, direction)
            }
            Hook::Tc(direction) => {
                let old = self.find(&path, program.place())?;
                hooks::attach_tcx(
                    ebpf,
                    program.program,
                    device,
                    program.index,
                    direction,
                    old,
                    &path,
                )
            }
            Hook::Xdp(mode) => {
                let old = self.find_xdp(program, mode)?;
                hooks::attach_xdp(ebpf, device, mode, old, &path)
            }
        }
    }

    /// Whether a program that was attached is where it was put: others may have got in front of it.
    fn is_in_place(&self, program: &DeviceProgram) -> bool {
        let is_first = match program.in_tc() {
            None => Ok(true),
            Some((index, direction)) if self.uses_clsact() => clsact::is_first(index, direction),
            Some((index, direction)) => {
                let path = self.pins.link(&program.pin_name());
                hooks::is_first(&path, index, direction)
            }
        };
        // What cannot be asked is no reason to attach again and again.
        is_first.unwrap_or(true)
    }

    fn uses_clsact(&self) -> bool {
        self.options.tc == TcAttach::Clsact || !super::has_tcx()
    }

    /// The link at this place: pinned under this path, or by an agent of another layout, whose pin moves there.
    fn find(&mut self, path: &Path, place: Place) -> Result<Option<Link>, Failure> {
        let own = hooks::pinned(path)?;
        if let Some(link) = own
            && link.info()?.place == place
        {
            return Ok(Some(link));
        }
        let Some(found) = self.inherited.iter().position(|(_, other)| *other == place) else {
            return Ok(None);
        };
        let (other, _) = self.inherited.swap_remove(found);
        std::fs::rename(other, path)?;
        hooks::pinned(path)
    }

    /// The same for XDP, of which a device has one program, whatever the mode: a link of the other mode goes. Until there
    /// is a new one TC takes its packets.
    fn find_xdp(&mut self, program: &DeviceProgram, mode: XdpMode) -> Result<Option<Link>, Failure> {
        let other = DeviceProgram {
            kind: Hook::Xdp(mode.other()),
            ..program.clone()
        };
        let present = xdp_programs()?.get(&program.index).and_then(|(mode, _)| *mode);
        let actual = match present {
            Some(present) if present != mode => &other,
            _ => program,
        };
        let link = self.find(&self.pins.link(&actual.pin_name()), program.place())?;
        if actual == program {
            return Ok(link);
        }
        drop(link);
        self.pins.remove_link(&other.pin_name())?;
        Ok(None)
    }

    /// Detaches links of other layouts at these places.
    fn let_go(&mut self, is_done: impl Fn(&Place) -> bool) -> Result<(), AttachError> {
        let (done, others) = std::mem::take(&mut self.inherited)
            .into_iter()
            .partition(|(_, place)| is_done(place));
        self.inherited = others;
        for (path, _) in done {
            pins::remove(&path).map_err(|source| pins_error(&self.pins, source))?;
        }
        Ok(())
    }

    /// Removes what agents of other layouts have left, if these programs have taken all of their places.
    pub fn remove_leftovers(&self) -> Result<(), AttachError> {
        if !self.inherited.is_empty() {
            return Ok(());
        }
        self.pins
            .remove_others()
            .map_err(|source| pins_error(&self.pins, source))
    }

    /// Attaches the socket programs to a cgroup, or detaches them.
    ///
    /// Where a link cannot be given another cgroup or program, the new one is made before the old one goes: for an
    /// instant both run, and the second finds an address that is translated already.
    pub fn set_cgroup(&mut self, ebpf: &mut Ebpf, cgroup: Option<&Path>) -> Result<(), AttachError> {
        match cgroup {
            Some(path) => self.attach_cgroup(ebpf, path)?,
            None => {
                let pinned = self
                    .pins
                    .link_names()
                    .map_err(|source| pins_error(&self.pins, source))?;
                for name in pinned.iter().filter(|name| name.starts_with(CGROUP_PREFIX)) {
                    self.pins
                        .remove_link(name)
                        .map_err(|source| pins_error(&self.pins, source))?;
                }
            }
        }
        self.let_go(|place| matches!(place, Place::Cgroup { .. } | Place::Elsewhere))
    }

    fn attach_cgroup(&mut self, ebpf: &mut Ebpf, cgroup: &Path) -> Result<(), AttachError> {
        for (program, attach_type) in cgroup::PROGRAMS {
            let path = self.pins.link(&format!("{CGROUP_PREFIX}{program}"));
            cgroup::place(cgroup, attach_type)
                .map_err(Failure::from)
                .and_then(|place| self.find(&path, place))
                .and_then(|old| cgroup::attach(ebpf, program, cgroup, old, &path))
                .map_err(|source| AttachError::Attach {
                    program,
                    target: format!("cgroup {}", cgroup.display()),
                    source: source.into(),
                })?;
        }
        Ok(())
    }
}

/// Begins the pin names of the cgroup's links.
const CGROUP_PREFIX: &str = "cgroup-";

/// The links that agents of other layouts have pinned, and where they are attached.
fn inherited(pins: &Pins) -> io::Result<Vec<(PathBuf, Place)>> {
    let mut found = Vec::new();
    for path in pins.other_files()? {
        if let Ok(link) = Link::open(&path) {
            found.push((path, link.info()?.place));
        }
    }
    Ok(found)
}

pub(super) fn pins_error(pins: &Pins, source: io::Error) -> AttachError {
    AttachError::Pins {
        directory: pins.root().display().to_string(),
        source,
    }
}
