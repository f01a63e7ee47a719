//! The kernel side: loads the programs, owns the maps, attaches programs and pins maps and links.
//! No other module uses aya.
//!
//! Each module uses only modules in the lines above its own:
//! ```text
//! bpf clock convert family probe
//! batch links object
//! defragmentation hook pinned pins
//! counters device_maps filter filters live namespaces pin_lock sizes sockets
//! attach carriers devices passing readings
//! foreign maps
//! ```

pub(crate) mod attach;
mod batch;
mod bpf;
pub(crate) mod carriers;
pub mod clock;
pub(crate) mod convert;
pub mod counters;
pub(crate) mod defragmentation;
mod device_maps;
pub mod devices;
mod family;
pub mod filter;
mod filters;
pub(crate) mod foreign;
mod hook;
mod links;
pub mod live;
pub mod maps;
pub mod namespaces;
pub mod object;
pub mod passing;
pub mod pin_lock;
mod pinned;
pub mod pins;
pub(crate) mod probe;
pub(crate) mod readings;
pub(crate) mod sizes;
pub mod sockets;

use std::collections::BTreeMap;
use std::path::Path;

use aya::Ebpf;
use lb_common::map;

use self::attach::Attacher;
use self::attach::error::AttachError;
use self::attach::options::AttachOptions;
use self::attach::reassembly::ReassemblyHook;
use self::devices::DeviceTable;
use self::filter::Filter;
use self::namespaces::NamespaceTable;
use self::object::error::LoadError;
use self::object::layouts::other_sizes;
use self::object::settings::Settings;
use self::pins::Pins;
use crate::devices::DeviceView;
use crate::maps::MapError;

/// The loaded programs, their attachments and the maps about devices and namespaces.
pub(crate) struct Datapath {
    ebpf: Ebpf,
    attacher: Attacher,
    devices: DeviceTable,
    namespaces: NamespaceTable,
    reassembly: ReassemblyHook,
    settings: Settings,
    pins: Pins,
}

impl Datapath {
    /// Loads the programs. They use the pinned maps; missing maps are created. Programs that an
    /// earlier agent attached keep running until [`Self::set_devices`] and [`Self::set_cgroup`]
    /// replace them.
    ///
    /// Maps of another layout cannot be read. The programs that use them also keep running until
    /// they are replaced.
    pub(crate) fn load(
        settings: Settings,
        pins: Pins,
        options: AttachOptions,
    ) -> Result<Self, DatapathError> {
        // This map's device does not outlive an earlier agent. The kernel also lets a program use a
        // device map only if the program is like the first one that used it.
        pins::remove(&pins.maps().join(map::REASSEMBLY.name))
            .map_err(|error| AttachError::pins(&pins, error))?;
        let ebpf = match object::load(&settings, &pins.maps()) {
            Err(error @ LoadError::Layout { .. }) => {
                tracing::warn!("{error}: all maps are created anew");
                pins.set_maps_aside()
                    .map_err(|error| AttachError::pins(&pins, error))?;
                object::load(&settings, &pins.maps())?
            }
            loaded => loaded?,
        };
        let sizes = other_sizes(&settings, &pins.maps());
        if !sizes.is_empty() {
            tracing::warn!(
                name_size_wanted = ?sizes,
                "the pinned maps keep their sizes: run `lb-agent cleanup` before the agent to change them"
            );
        }
        let others = pins.others().map_err(|error| AttachError::pins(&pins, error))?;
        if !others.is_empty() {
            tracing::warn!(
                directory = %pins.root().display(),
                ?others,
                "an agent with another layout of the maps ran here: connections that are open through Services are lost, \
                 as this agent cannot read its maps"
            );
        }
        let attacher = Attacher::new(pins.clone(), options)?;
        let mut devices = DeviceTable::open(&pins.maps())?;
        devices.set_reassembly(0)?;
        Ok(Self {
            ebpf,
            attacher,
            devices,
            namespaces: NamespaceTable::open(&pins.maps())?,
            reassembly: ReassemblyHook::default(),
            settings,
            pins,
        })
    }

    /// The settings that the programs were loaded with.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Loads the programs again with other settings. The next [`Self::set_devices`] and
    /// [`Self::set_cgroup`] replace the old ones.
    pub(crate) fn reload(&mut self, settings: Settings) -> Result<(), DatapathError> {
        self.ebpf = object::load(&settings, &self.pins.maps())?;
        self.settings = settings;
        self.attacher.renew();
        self.reassembly.renew();
        Ok(())
    }

    /// Sets the device that leads to the kernel's own reassembly. After the next
    /// [`Self::set_devices`], the programs send fragments to it that arrive before the first
    /// fragment of their datagram.
    pub(crate) fn use_reassembly(&mut self, device: u32) {
        self.reassembly.set_device(device);
    }

    /// Stops the programs from using the reassembly device, which disappears with the agent.
    pub(crate) fn leave_reassembly(&mut self) -> Result<(), DatapathError> {
        Ok(self.devices.set_reassembly(0)?)
    }

    /// Attaches programs to the devices that have a role, detaches them from all others, and writes
    /// the maps about devices. The next call retries what failed.
    pub(crate) fn set_devices(&mut self, view: &DeviceView, filter: &Filter) -> Vec<DatapathError> {
        let errors = self.attacher.set_devices(&mut self.ebpf, &view.attachments);
        let mut errors: Vec<DatapathError> = errors.into_iter().map(DatapathError::from).collect();
        if let Err(error) = self.devices.set(view, self.attacher.with_xdp(), filter) {
            errors.push(error.into());
        }
        // This step is last: packets return from reassembly through devices that the rows written
        // above describe.
        let attached = self.reassembly.attach(&mut self.ebpf, &view.snapshot);
        if let Err(error) = self.devices.set_reassembly(*attached.as_ref().unwrap_or(&0)) {
            errors.push(error.into());
        }
        errors.extend(attached.err().map(DatapathError::from));
        errors
    }

    /// Writes the roles of this node's network namespaces for the socket programs
    /// ([`NamespaceTable::set`]).
    pub(crate) fn set_namespaces(&mut self, roles: BTreeMap<u64, u32>, all: bool) -> Result<(), MapError> {
        self.namespaces.set(roles, all)
    }

    /// Removes the pins of agents with other map layouts, once these programs have replaced theirs.
    pub(crate) fn remove_leftovers(&self) -> Result<(), AttachError> {
        self.attacher.remove_leftovers()
    }

    /// Attaches the socket programs to a cgroup, or detaches them.
    pub(crate) fn set_cgroup(&mut self, cgroup: Option<&Path>) -> Result<(), AttachError> {
        self.attacher.set_cgroup(&mut self.ebpf, cgroup)
    }
}

/// Why programs, maps or links could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatapathError {
    /// Loading programs or creating maps failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Attaching programs failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Writing the maps about devices failed.
    #[error(transparent)]
    Map(#[from] MapError),
}
