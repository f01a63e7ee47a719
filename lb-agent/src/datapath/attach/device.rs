//! Attaches programs to the hooks of devices by links. The caller finds existing links.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp};

use super::error::Failure;
use super::steps::{find, pin};
use crate::datapath::hook::{Direction, XdpMode};
use crate::datapath::links::{self, Link};
use crate::datapath::object::error::LoadError;
use crate::datapath::object::program;
use crate::datapath::pins;

/// Replaces the program of `old`, a link of this mode, or attaches the XDP program.
pub(super) fn attach_xdp(
    ebpf: &mut Ebpf,
    device: &str,
    mode: XdpMode,
    old: Option<Link>,
    path: &Path,
) -> Result<(), Failure> {
    let xdp: &mut Xdp = find(ebpf, program::XDP)?;
    if let Some(old) = old {
        match old.update(xdp.fd()?.as_fd()) {
            Ok(()) => return Ok(()),
            // For example, the device was removed. The old link has to go first, since the hook
            // takes only one program.
            Err(_) => pins::remove(path)?,
        }
    }
    let mode = match mode {
        XdpMode::Native => aya::programs::XdpMode::Driver,
        XdpMode::Generic => aya::programs::XdpMode::Skb,
    };
    let id = xdp.attach(device, mode)?;
    pin(xdp.take_link(id)?.try_into()?, path)
}

/// Replaces the program of `old`, or attaches a TC program before all others.
///
/// If other programs run before the old one, the new one is attached before them. Then the old one
/// is detached. Both run for a moment, and the second one finds addresses that are already
/// translated.
pub(super) fn attach_tcx(
    ebpf: &mut Ebpf,
    name: &str,
    device: &str,
    index: u32,
    direction: Direction,
    old: Option<Link>,
    path: &Path,
) -> Result<(), Failure> {
    let tc: &mut SchedClassifier = find(ebpf, name)?;
    if let Some(old) = &old {
        let id = old.info()?.program;
        let programs = links::tcx_programs(index, direction.tcx())?;
        let before = others_before(id, &programs);
        if before.is_empty() && old.update(tc.fd()?.as_fd()).is_ok() {
            return Ok(());
        }
        if !before.is_empty() {
            tracing::info!(device, ?direction, programs = ?before, "{name} is attached before the programs of others again");
        }
        if tc.info()?.id() == id {
            // A hook takes each program only once.
            tc.unload()?;
            tc.load().map_err(|error| LoadError::program(name, error))?;
        }
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = tc.attach_with_options(device, direction.attach_type(), order)?;
    pin(tc.take_link(id)?.try_into()?, path)
}

/// Attaches a TC program to a device's ingress, until the link is closed.
pub(super) fn attach_unpinned(ebpf: &mut Ebpf, name: &str, device: &str) -> Result<FdLink, Failure> {
    let tc: &mut SchedClassifier = find(ebpf, name)?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = tc.attach_with_options(device, TcAttachType::Ingress, order)?;
    Ok(tc.take_link(id)?.try_into()?)
}

/// Whether the program pinned at `path` runs before all others.
pub(super) fn is_first(path: &Path, index: u32, direction: Direction) -> io::Result<bool> {
    let id = Link::open(path)?.info()?.program;
    Ok(others_before(id, &links::tcx_programs(index, direction.tcx())?).is_empty())
}

/// The programs that run before `own`. Empty if `own` is not in the list, because its device was
/// removed.
fn others_before(own: u32, programs: &[u32]) -> &[u32] {
    let position = programs.iter().position(|id| *id == own);
    programs.get(..position.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_before_returns_the_programs_ahead_of_ours() {
        assert_eq!(others_before(3, &[3, 4]), [0; 0]);
        assert_eq!(others_before(3, &[1, 2, 3, 4]), [1, 2]);
        assert_eq!(others_before(3, &[1, 2]), [0; 0]);
        assert_eq!(others_before(3, &[]), [0; 0]);
    }
}
