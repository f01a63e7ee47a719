//! The other end of a link on which XDP runs.

use std::fs;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};
use lb_agent::datapath::object;
use lb_agent::datapath::object::settings::{DEFAULT_TABLES, Settings, TableSizes};
use lb_agent::maps::Capacity;

use super::Lab;
use super::node::Node;

/// Passes every packet.
const PROGRAM: &str = "lb_empty_xdp";

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

        let mut ebpf = self.object(&format!("{device}-xdp-peer"))?;
        let program: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .with_context(|| format!("the agent's object has no {PROGRAM}"))?
            .try_into()?;
        self.fabric.run(|| {
            program.load()?;
            program.attach(device, XdpMode::Driver)?;
            Ok(())
        })?;
        Ok(XdpPeer { _ebpf: ebpf })
    }

    /// The agent's object with small maps that nobody else has, and no program loaded. `purpose` is
    /// unlike any other.
    pub(super) fn object(&self, purpose: &str) -> Result<Ebpf> {
        let settings = Settings {
            capacity: Capacity {
                frontends: 2,
                slots: 2,
                backends: 2,
                services: 2,
                source_ranges: 2,
            },
            tables: TableSizes {
                flows: 64,
                ..DEFAULT_TABLES
            },
            ..Settings::default()
        };
        let pins = self.bpf_file_system.join(self.id.part(purpose));
        let ebpf = object::prepare(&settings, &pins)?;
        // Nobody else needs these maps.
        fs::remove_dir_all(&pins).with_context(|| format!("remove {}", pins.display()))?;
        Ok(ebpf)
    }
}
