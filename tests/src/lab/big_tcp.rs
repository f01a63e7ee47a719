//! Devices whose TCP segments may exceed the length field of an IP header ("BIG TCP").

use anyhow::{Context, Result};
use nix::net::if_::if_nameindex;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkUnspec};

use super::Lab;
use super::machine::Machine;
use super::namespace::Namespace;

/// Largest size in bytes of a segment before GSO and after GRO.
const LARGEST: u32 = 150_000;

impl Lab {
    /// Allows all devices of the fabric, the nodes and these machines to send and merge TCP
    /// segments above 64 KiB, in both IP versions (Linux 6.3).
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn allow_big_tcp(&self, machines: &[&Machine]) -> Result<()> {
        allow(self.fabric())?;
        let nodes = self.nodes();
        let hosts = nodes.iter().map(|node| node.host());
        hosts
            .chain(machines.iter().copied())
            .try_for_each(|machine| allow(machine.namespace()))
    }
}

fn allow(namespace: &Namespace) -> Result<()> {
    namespace.run(|| {
        let devices = if_nameindex().context("list the devices")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
            // Ends when the handle is dropped.
            tokio::spawn(connection);
            for device in devices.iter() {
                let changed = set_sizes(&handle, device.index()).await;
                changed.with_context(|| format!("let {device:?} send segments of {LARGEST} bytes"))?;
            }
            Ok(())
        })
    })
}

async fn set_sizes(handle: &Handle, device: u32) -> Result<(), rtnetlink::Error> {
    let sizes = [
        LinkAttribute::GsoMaxSize(LARGEST),
        LinkAttribute::GroMaxSize(LARGEST),
        LinkAttribute::GsoIpv4MaxSize(LARGEST),
        LinkAttribute::GroIpv4MaxSize(LARGEST),
    ];
    let mut message = LinkUnspec::new_with_index(device);
    for size in sizes {
        message = message.append_extra_attribute(size);
    }
    handle.link().change(message.build()).execute().await
}
