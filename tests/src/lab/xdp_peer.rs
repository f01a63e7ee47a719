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

    /// The agent's object with small private maps, and no program loaded. `purpose` must be unique.
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
        // No other process needs these maps.
        fs::remove_dir_all(&pins).with_context(|| format!("remove {}", pins.display()))?;
        Ok(ebpf)
    }
}
