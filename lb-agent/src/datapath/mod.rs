//! The kernel side: loads the programs, owns the maps, attaches and pins. The only module that names aya.

pub mod attach;
pub mod maps;
pub mod object;
pub mod pins;
pub mod probe;
mod slots;

use std::collections::BTreeMap;
use std::path::Path;

use aya::Ebpf;

use self::attach::{AttachError, AttachOptions, Attacher};
use self::object::{LoadError, Settings};
use self::pins::Pins;
use crate::devices::Attachment;

/// The loaded programs and where they are attached.
#[derive(Debug)]
pub struct Datapath {
    ebpf: Ebpf,
    attacher: Attacher,
    settings: Settings,
    pins: Pins,
}

impl Datapath {
    /// Loads the programs, with the maps that are pinned or new ones. What an earlier agent attached goes on running
    /// until [`Self::set_devices`] and [`Self::set_cgroup`] put these programs in its place.
    pub fn load(settings: Settings, pins: Pins, options: AttachOptions) -> Result<Self, DatapathError> {
        let ebpf = object::load(&settings, &pins.maps())?;
        let attacher = Attacher::new(pins.clone(), options)?;
        Ok(Self {
            ebpf,
            attacher,
            settings,
            pins,
        })
    }

    /// The settings that the programs were loaded with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Loads the programs again with other settings; the next [`Self::set_devices`] and [`Self::set_cgroup`] put them
    /// in the place of the old ones.
    pub fn reload(&mut self, settings: Settings) -> Result<(), DatapathError> {
        self.ebpf = object::load(&settings, &self.pins.maps())?;
        self.settings = settings;
        self.attacher.renew();
        Ok(())
    }

    /// Attaches to these devices and to no others. What failed is tried again by the next call.
    pub fn set_devices(&mut self, devices: &BTreeMap<u32, Attachment>) -> Vec<AttachError> {
        self.attacher.set_devices(&mut self.ebpf, devices)
    }

    /// Attaches the socket programs to a cgroup, or detaches them.
    pub fn set_cgroup(&mut self, cgroup: Option<&Path>) -> Result<(), AttachError> {
        self.attacher.set_cgroup(&mut self.ebpf, cgroup)
    }
}

/// Why the kernel side is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// Programs or maps.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Links.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// Whether the kernel has TCX links (Linux 6.6).
fn has_tcx() -> bool {
    probe::kernel_at_least(6, 6)
}
