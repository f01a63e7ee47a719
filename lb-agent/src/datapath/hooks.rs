//! Puts programs on the hooks of devices by links. The caller finds the links that are there already.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp};

use super::attach::{Direction, XdpMode};
use super::links::{self, Link};
use super::object::{self, LoadError, program};
use super::pins;

/// What can go wrong on the way.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("the embedded object has no program {0}")]
    Missing(String),
}

impl Direction {
    /// As aya has it.
    pub(super) fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// Puts the XDP program in the place of `old`, a link of this mode, or attaches it.
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
            // Such as a device that has gone meanwhile. There is room for one program only.
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

/// Puts a TC program in the place of `old`, or attaches it before all others.
///
/// One that others run before is attached anew, before them, and then the old one goes. For an instant both run: the
/// second finds addresses that are translated already.
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
            tracing::info!(device, ?direction, programs = ?before, "{name} goes before the programs of others again");
        }
        if tc.info()?.id() == id {
            // A hook takes a program once.
            tc.unload()?;
            tc.load().map_err(|error| LoadError::program(name, error))?;
        }
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = tc.attach_with_options(device, direction.attach_type(), order)?;
    pin(tc.take_link(id)?.try_into()?, path)
}

/// Attaches a TC program to what a device receives, until the link is closed.
pub(super) fn attach_unpinned(ebpf: &mut Ebpf, name: &str, device: &str) -> Result<FdLink, Failure> {
    let tc: &mut SchedClassifier = find(ebpf, name)?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = tc.attach_with_options(device, TcAttachType::Ingress, order)?;
    Ok(tc.take_link(id)?.try_into()?)
}

/// Whether the program that is pinned there runs before all others.
pub(super) fn is_first(path: &Path, index: u32, direction: Direction) -> io::Result<bool> {
    let id = Link::open(path)?.info()?.program;
    Ok(others_before(id, &links::tcx_programs(index, direction.tcx())?).is_empty())
}

/// Those of the programs that run before `own`. Empty if `own` is not among them: its device is gone.
fn others_before(own: u32, programs: &[u32]) -> &[u32] {
    let position = programs.iter().position(|id| *id == own);
    programs.get(..position.unwrap_or_default()).unwrap_or_default()
}

/// Pins a new link, in the place of an old one.
pub(super) fn pin(link: FdLink, path: &Path) -> Result<(), Failure> {
    let mut new = path.as_os_str().to_owned();
    new.push("-new");
    pins::remove(new.as_ref())?;
    link.pin(&new)?;
    // See `pins::remove`: what was here is detached when this is closed.
    let _old = Link::open(path);
    Ok(std::fs::rename(new, path)?)
}

/// A pinned link, if there is one. What is in its place but is no link goes.
pub(super) fn pinned(path: &Path) -> Result<Option<Link>, Failure> {
    match Link::open(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Ok(None),
            io::ErrorKind::InvalidData | io::ErrorKind::PermissionDenied => {
                pins::remove(path)?;
                Ok(None)
            }
            _ => Err(error.into()),
        },
    }
}

/// A program, loaded if it was not needed before.
pub(super) fn find<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Failure>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| Failure::Missing(name.to_owned()))?;
    if program.fd().is_err() {
        object::load_program(name, program)?;
    }
    Ok(program.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_before() {
        assert_eq!(others_before(3, &[3, 4]), [0; 0]);
        assert_eq!(others_before(3, &[1, 2, 3, 4]), [1, 2]);
        assert_eq!(others_before(3, &[1, 2]), [0; 0]);
        assert_eq!(others_before(3, &[]), [0; 0]);
    }
}
