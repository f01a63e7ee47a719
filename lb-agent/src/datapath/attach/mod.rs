//! Attaches the programs to devices and to the cgroup, and pins the links.
//!
//! A pinned link is kept, and its program is replaced atomically. So a device is never without a
//! program while one agent replaces another.

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

/// The prefix of the pin names of the cgroup's links.
const CGROUP_PREFIX: &str = "cgroup-";

/// Attaches programs, and keeps track of what is attached.
#[derive(Debug)]
pub(super) struct Attacher {
    pins: Pins,
    options: AttachOptions,
    /// The programs that this agent has attached, with the device's instance.
    devices: BTreeMap<DeviceProgram, u64>,
    /// Devices to which XDP is attached. On others it may have been tried without success.
    with_xdp: BTreeSet<u32>,
    /// Whether the unwanted clsact filters of an earlier agent were removed.
    swept: bool,
    inherited: Inherited,
}

impl Attacher {
    /// Attaches nothing yet. Pinned links stay unchanged until [`Self::set_devices`] and
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

    /// Forgets what is attached, so that the next calls replace all programs with those of a new
    /// object.
    pub(super) fn renew(&mut self) {
        self.devices.clear();
        self.swept = false;
    }

    /// Attaches to these devices and detaches from all others. An error on one device does not
    /// affect other devices. The next call retries what failed.
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
                // Native XDP is an optimization, so its absence is not an error.
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
        if let Err(source) = self.inherited.detach_at(is_done) {
            errors.push(AttachError::pins(&self.pins, source));
        }
        self.with_xdp = with_xdp;
        errors
    }

    /// Indices of the devices that carry the XDP program.
    pub(super) fn with_xdp(&self) -> &BTreeSet<u32> {
        &self.with_xdp
    }

    /// Removes links and filters that are not wanted (any more). That includes those of an earlier
    /// agent, which may have attached the same programs by another method.
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

    /// Removes the agent's clsact filters from all places except these. Filters have no pins that
    /// show where an earlier agent left some, so the first call checks all devices.
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
            // The kernel removes the filters of a deleted device.
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

    /// Whether an attached program still runs first. Programs of others may have been attached
    /// before it.
    fn is_in_place(&self, program: &DeviceProgram) -> bool {
        let is_first = match program.in_tc() {
            None => Ok(true),
            Some((index, direction)) if self.uses_clsact() => clsact::is_first(index, direction),
            Some((index, direction)) => {
                let path = self.pins.link(&program.pin_name());
                device::is_first(&path, index, direction)
            }
        };
        // If the order cannot be read, the agent does not attach again, to avoid endless attempts.
        is_first.unwrap_or(true)
    }

    fn uses_clsact(&self) -> bool {
        self.options.tc == TcAttach::Clsact || !probe::has_tcx()
    }

    /// Returns the XDP link. A device has one XDP program, whatever its mode, so a link of the
    /// other mode is removed. TC handles the device's packets until there is a new one.
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

    /// Removes the pins of agents with other layouts, once all of their programs are replaced.
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
    /// If a link cannot get another cgroup or program, the new link is created before the old one
    /// is removed. Both run for a moment, and the second one finds an address that is already
    /// translated.
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
            .detach_at(|place| matches!(place, Place::Cgroup { .. } | Place::Elsewhere))
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
