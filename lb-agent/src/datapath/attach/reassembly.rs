//! The program of the device that leads to the kernel's own reassembly ([`crate::reassembly`]).

use aya::Ebpf;
use aya::programs::links::FdLink;

use super::device::attach_unpinned;
use super::error::AttachError;
use crate::datapath::object::program;
use crate::devices::{REASSEMBLY_DEVICE, Snapshot};

/// The device, and the link of its program. The link is not pinned, because the device does not
/// outlive the agent.
#[derive(Default)]
pub(in crate::datapath) struct ReassemblyHook {
    device: u32,
    link: Option<FdLink>,
    /// Whether the link's program belongs to an object that has been replaced.
    is_old: bool,
}

impl ReassemblyHook {
    /// Makes the next [`Self::attach`] attach to this device. 0 for none.
    pub(in crate::datapath) fn set_device(&mut self, device: u32) {
        *self = Self {
            device,
            ..Self::default()
        };
    }

    /// Makes the next [`Self::attach`] attach the program of a new object.
    pub(in crate::datapath) fn renew(&mut self) {
        self.is_old = true;
    }

    /// Attaches the program, unless it is attached already. Returns the device, or 0 if there is
    /// none.
    pub(in crate::datapath) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        devices: &Snapshot,
    ) -> Result<u32, AttachError> {
        if self.device == 0 {
            return Ok(0);
        }
        if !devices.links.contains_key(&self.device) {
            tracing::warn!(
                "the device {REASSEMBLY_DEVICE} was removed: datagrams whose later fragments arrive before the first one \
                 are lost until the agent restarts"
            );
            self.set_device(0);
            return Ok(0);
        }
        if self.link.is_none() || self.is_old {
            let link = attach_unpinned(ebpf, program::TC_FROM_REASSEMBLY, REASSEMBLY_DEVICE);
            // An old link is closed after the new one exists.
            self.link = Some(link.map_err(|failure| {
                let target = format!("device {REASSEMBLY_DEVICE}");
                AttachError::attach(program::TC_FROM_REASSEMBLY, target, failure)
            })?);
            self.is_old = false;
        }
        Ok(self.device)
    }
}
