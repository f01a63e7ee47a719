//! Programs that are attached to the devices of a namespace.

use std::process::Command;

use anyhow::{Result, bail};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::net::if_::if_nametoindex;

use super::namespace::Namespace;

/// The number of programs at a device.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Attached {
    /// At TCX ingress.
    pub tcx_ingress: usize,
    /// At TCX egress.
    pub tcx_egress: usize,
    /// BPF filters at clsact ingress.
    pub clsact_ingress: usize,
    /// BPF filters at clsact egress.
    pub clsact_egress: usize,
}

impl Attached {
    /// One program per direction by TCX.
    pub const TCX: Self = Self {
        tcx_ingress: 1,
        tcx_egress: 1,
        clsact_ingress: 0,
        clsact_egress: 0,
    };

    /// One program per direction by clsact.
    pub const CLSACT: Self = Self {
        tcx_ingress: 0,
        tcx_egress: 0,
        clsact_ingress: 1,
        clsact_egress: 1,
    };

    /// No program.
    pub const NOTHING: Self = Self {
        tcx_ingress: 0,
        tcx_egress: 0,
        clsact_ingress: 0,
        clsact_egress: 0,
    };
}

impl Namespace {
    /// The number of programs at a device, by any owner.
    ///
    /// # Errors
    ///
    /// If there is no such device or the kernel has no TCX.
    pub fn attached(&self, device: &str) -> Result<Attached> {
        self.run(|| {
            let tcx =
                |direction| Ok::<_, anyhow::Error>(SchedClassifier::query_tcx(device, direction)?.1.len());
            Ok(Attached {
                tcx_ingress: tcx(TcAttachType::Ingress)?,
                tcx_egress: tcx(TcAttachType::Egress)?,
                clsact_ingress: filters(device, "ingress")?,
                clsact_egress: filters(device, "egress")?,
            })
        })
    }

    /// The index of a device.
    ///
    /// # Errors
    ///
    /// If there is no device of that name.
    pub fn device_index(&self, device: &str) -> Result<u32> {
        self.run(|| Ok(if_nametoindex(device)?))
    }
}

/// The number of BPF filters that `tc` shows.
fn filters(device: &str, direction: &str) -> Result<usize> {
    let output = Command::new("tc")
        .args(["filter", "show", "dev", device, direction])
        .output()?;
    if !output.status.success() {
        bail!(
            "tc filter show dev {device} {direction}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let shown = String::from_utf8_lossy(&output.stdout);
    Ok(shown
        .lines()
        .filter(|line| line.contains(" bpf ") && line.contains(" handle "))
        .count())
}
