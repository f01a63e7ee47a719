//! The kernel side: loads the programs, owns the maps, attaches and pins. The only module that names aya.

pub mod attach;
mod batch;
pub mod clock;
mod device_maps;
pub mod devices;
mod filter;
pub mod live;
pub mod maps;
pub mod object;
pub mod pins;
pub mod probe;
pub mod readings;
pub mod sockets;

use std::path::Path;

use aya::Ebpf;

use self::attach::{AttachError, AttachOptions, Attacher};
use self::devices::DeviceTable;
use self::object::{LoadError, Settings};
use self::pins::Pins;
use crate::devices::View;
use crate::maps::MapError;

/// The loaded programs and where they are attached.
pub struct Datapath {
    ebpf: Ebpf,
    attacher: Attacher,
    devices: DeviceTable,
    settings: Settings,
    pins: Pins,
}

impl Datapath {
    /// Loads the programs, with the maps that are pinned or new ones. What an earlier agent attached goes on running
    /// until [`Self::set_devices`] and [`Self::set_cgroup`] put these programs in its place.
    pub fn load(settings: Settings, pins: Pins, options: AttachOptions) -> Result<Self, DatapathError> {
        let ebpf = object::load(&settings, &pins.maps())?;
        let attacher = Attacher::new(pins.clone(), options)?;
        let devices = DeviceTable::open(&pins.maps())?;
        Ok(Self {
            ebpf,
            attacher,
            devices,
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

    /// Attaches to the devices that have a role, and to no others, and tells the programs of all. What failed is tried
    /// again by the next call.
    pub fn set_devices(&mut self, view: &View) -> Vec<DatapathError> {
        let errors = self.attacher.set_devices(&mut self.ebpf, &view.attachments);
        let mut errors: Vec<DatapathError> = errors.into_iter().map(DatapathError::from).collect();
        if let Err(error) = self.devices.set(view, self.attacher.with_xdp()) {
            errors.push(error.into());
        }
        errors
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
    /// What the programs know of the devices.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Whether the kernel has TCX links (Linux 6.6).
fn has_tcx() -> bool {
    probe::kernel_at_least(6, 6)
}
