//! The program of the device that leads to the kernel's own reassembly ([`crate::reassembly`]).

use aya::Ebpf;
use aya::programs::links::FdLink;

use super::device::attach_unpinned;
use super::error::AttachError;
use crate::datapath::object::program;
use crate::devices::{REASSEMBLY_DEVICE, Snapshot};

/// The device, and the link of its program. That is not pinned, as the device goes with the agent.
#[derive(Default)]
pub(in crate::datapath) struct ReassemblyHook {
    device: u32,
    link: Option<FdLink>,
    /// Whether the link's program is that of an object which another has replaced.
    is_old: bool,
}

impl ReassemblyHook {
    /// The next [`Self::attach`] is to attach to this device; 0 for none.
    pub(in crate::datapath) fn set_device(&mut self, device: u32) {
        *self = Self {
            device,
            ..Self::default()
        };
    }

    /// The next [`Self::attach`] is to attach the program of a new object.
    pub(in crate::datapath) fn renew(&mut self) {
        self.is_old = true;
    }

    /// Attaches the program, if that is not done yet. Returns the device; 0 if there is none.
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
                 are lost until the agent starts anew"
            );
            self.set_device(0);
            return Ok(0);
        }
        if self.link.is_none() || self.is_old {
            let link = attach_unpinned(ebpf, program::TC_FROM_REASSEMBLY, REASSEMBLY_DEVICE);
            // The old one, if there is one, goes after the new one has come.
            self.link = Some(link.map_err(|failure| {
                let target = format!("device {REASSEMBLY_DEVICE}");
                AttachError::attach(program::TC_FROM_REASSEMBLY, target, failure)
            })?);
            self.is_old = false;
        }
        Ok(self.device)
    }
}
