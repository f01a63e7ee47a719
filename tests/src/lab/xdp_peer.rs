//! The other end of a link on which XDP runs.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

use super::Lab;
use super::node::Node;
use crate::test_programs;

/// A link that is prepared for XDP until this is dropped.
#[derive(Debug)]
pub struct XdpPeer {
    /// Detaches its program when dropped.
    _ebpf: Ebpf,
}

impl Lab {
    /// Prepares the far end of a node's link so that XDP works on the node's end.
    ///
    /// The far end computes complete checksums for the frames that it sends, because XDP cannot
    /// detect incomplete ones. It also has an XDP program, without which a veth does not accept
    /// frames that the program of the other end sends.
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
