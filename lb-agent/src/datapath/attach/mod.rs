//! Attaches the programs to devices and to the cgroup, and pins the links.
//!
//! A link that is pinned already is kept and gets the new program in one step, so that no packet
//! meets a device without program while one agent takes over from another.

mod cgroup;
pub(crate) mod clsact;
mod device;
pub(super) mod error;
mod inherited;
pub(crate) mod options;
pub(super) mod reassembly;
mod steps;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aya::Ebpf;
use nix::net::if_::{if_indextoname, if_nameindex};

use self::error::{AttachError, Failure};
use self::inherited::Inherited;
use self::options::{AttachOptions, TcAttach, XdpAttach};
use self::wanted::{DeviceProgram, Hook, programs_for};
use super::filters::xdp_programs;
use super::hook::{Direction, XdpMode};
use super::links::{Link, Place};
use super::object::program;
use super::pins::Pins;
use super::probe;
use crate::devices::Attachment;

/// Begins the pin names of the cgroup's links.
const CGROUP_PREFIX: &str = "cgroup-";

/// What is attached where.
#[derive(Debug)]
pub(super) struct Attacher {
    pins: Pins,
    options: AttachOptions,
    /// What this agent has attached its programs to, with the device's instance.
    devices: BTreeMap<DeviceProgram, u64>,
    /// Devices on which XDP was not only tried.
    with_xdp: BTreeSet<u32>,
    /// Whether the clsact filters of an earlier agent that are not wanted were removed.
    swept: bool,
    inherited: Inherited,
}

impl Attacher {
    /// Attaches nothing yet. What is pinned stays as it is until [`Self::set_devices`] and
    /// [`Self::set_cgroup`].
    pub(super) fn new(pins: Pins, options: AttachOptions) -> Result<Self, AttachError> {
        std::fs::create_dir_all(pins.links()).map_err(|source| AttachError::pins(&pins, source))?;
        let inherited = Inherited::find(&pins).map_err(|source| AttachError::pins(&pins, source))?;
        Ok(Self {
            pins,
            options,
            devices: BTreeMap::new(),
            with_xdp: BTreeSet::new(),
            swept: false,
            inherited,
        })
    }

    /// Forgets what is attached, so that the next calls attach the programs of a new object in its
    /// place.
    pub(super) fn renew(&mut self) {
        self.devices.clear();
        self.swept = false;
    }

    /// Attaches to these devices and to no others. Errors do not keep other devices from being
    /// attached; what failed is tried again by the next call.
    pub(super) fn set_devices(
        &mut self,
        ebpf: &mut Ebpf,
        devices: &BTreeMap<u32, Attachment>,
    ) -> Vec<AttachError> {
        let mut errors = Vec::new();
        let mut wanted = BTreeMap::new();
        let mut with_xdp = BTreeSet::new();
        let mut failed = BTreeSet::new();
        for (index, device) in devices {
            for program in programs_for(*index, device, self.options.xdp) {
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
        if let Err(source) = self.inherited.let_go(is_done) {
            errors.push(AttachError::pins(&self.pins, source));
        }
        self.with_xdp = with_xdp;
        errors
    }

    /// Indexes of the devices that carry the XDP program.
    pub(super) fn with_xdp(&self) -> &BTreeSet<u32> {
        &self.with_xdp
    }

    /// Removes the links and filters that are not wanted (any more), those of an earlier agent
    /// included, which may have attached the same programs in another way.
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
            .map_err(|source| AttachError::pins(&self.pins, source))?;
        for name in pinned
            .difference(&names)
            .filter(|name| !name.starts_with(CGROUP_PREFIX))
        {
            self.pins
                .remove_link(name)
                .map_err(|source| AttachError::pins(&self.pins, source))?;
        }
        Ok(())
    }

    /// Removes our clsact filters from all places but these. Filters have no pins that would tell
    /// where an earlier agent left some: the first time all devices are looked at.
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
            .map_err(|failure| AttachError::attach(program.program, format!("device {device}"), failure))
    }

    fn attach_here(&mut self, ebpf: &mut Ebpf, program: &DeviceProgram, device: &str) -> Result<(), Failure> {
        let path = self.pins.link(&program.pin_name());
        match program.kind {
            Hook::Tc(direction) if self.uses_clsact() => {
                clsact::attach(ebpf, program.program, program.index, device, direction)
            }
            Hook::Tc(direction) => {
                let old = self.inherited.link_at(&path, program.place())?;
                device::attach_tcx(
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
                device::attach_xdp(ebpf, device, mode, old, &path)
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
                device::is_first(&path, index, direction)
            }
        };
        // What cannot be asked is no reason to attach again and again.
        is_first.unwrap_or(true)
    }

    fn uses_clsact(&self) -> bool {
        self.options.tc == TcAttach::Clsact || !probe::has_tcx()
    }

    /// The link of XDP, of which a device has one program, whatever the mode: a link of the other
    /// mode goes. Until there is a new one TC takes its packets.
    fn find_xdp(&mut self, program: &DeviceProgram, mode: XdpMode) -> Result<Option<Link>, Failure> {
        let other = program.in_other_mode(mode);
        let present = xdp_programs()?.get(&program.index).and_then(|(mode, _)| *mode);
        let actual = match present {
            Some(present) if present != mode => &other,
            _ => program,
        };
        let path = self.pins.link(&actual.pin_name());
        let link = self.inherited.link_at(&path, program.place())?;
        if actual == program {
            return Ok(link);
        }
        drop(link);
        self.pins.remove_link(&other.pin_name())?;
        Ok(None)
    }

    /// Removes what agents of other layouts have left, if these programs have taken all of their
    /// places.
    pub(super) fn remove_leftovers(&self) -> Result<(), AttachError> {
        if !self.inherited.is_empty() {
            return Ok(());
        }
        self.pins
            .remove_others()
            .map_err(|source| AttachError::pins(&self.pins, source))
    }

    /// Attaches the socket programs to a cgroup, or detaches them.
    ///
    /// Where a link cannot be given another cgroup or program, the new one is made before the old
    /// one goes: for an instant both run, and the second finds an address that is translated
    /// already.
    pub(super) fn set_cgroup(&mut self, ebpf: &mut Ebpf, cgroup: Option<&Path>) -> Result<(), AttachError> {
        match cgroup {
            Some(path) => self.attach_cgroup(ebpf, path)?,
            None => {
                let pinned = self
                    .pins
                    .link_names()
                    .map_err(|source| AttachError::pins(&self.pins, source))?;
                for name in pinned.iter().filter(|name| name.starts_with(CGROUP_PREFIX)) {
                    self.pins
                        .remove_link(name)
                        .map_err(|source| AttachError::pins(&self.pins, source))?;
                }
            }
        }
        self.inherited
            .let_go(|place| matches!(place, Place::Cgroup { .. } | Place::Elsewhere))
            .map_err(|source| AttachError::pins(&self.pins, source))
    }

    fn attach_cgroup(&mut self, ebpf: &mut Ebpf, cgroup: &Path) -> Result<(), AttachError> {
        for (program, attach_type) in cgroup::PROGRAMS {
            let path = self.pins.link(&format!("{CGROUP_PREFIX}{program}"));
            cgroup::place(cgroup, attach_type)
                .map_err(Failure::from)
                .and_then(|place| self.inherited.link_at(&path, place))
                .and_then(|old| cgroup::attach(ebpf, program, cgroup, old, &path))
                .map_err(|failure| {
                    AttachError::attach(program, format!("cgroup {}", cgroup.display()), failure)
                })?;
        }
        Ok(())
    }
}
