//! The other end of a link on which XDP runs.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

use super::Lab;
use super::node::Node;
use crate::test_programs;

/// A link made ready for XDP, until this is dropped.
#[derive(Debug)]
pub struct XdpPeer {
    /// Detaches its program when dropped.
    _ebpf: Ebpf,
}

impl Lab {
    /// Makes the far end of a node's link such that XDP can do its work on the node's end.
    ///
    /// It finishes the checksums of what it sends, since XDP cannot know of partial ones. And it
    /// has an XDP program, without which a veth takes nothing that the other end's program sends.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn prepare_for_xdp(&self, node: &Node) -> Result<XdpPeer> {
        let device = node.host().far_device();
        self.fabric.offload(device, &["tx", "off", "gro", "on"])?;

        let mut ebpf = test_programs::open()?;
        let program: &mut Xdp = ebpf
            .program_mut(test_programs::EMPTY_XDP)
            .context("the object has no empty XDP program")?
            .try_into()?;
        self.fabric.run(|| {
            program.load()?;
            program.attach(device, XdpMode::Driver)?;
            Ok(())
        })?;
        Ok(XdpPeer { _ebpf: ebpf })
    }
}
