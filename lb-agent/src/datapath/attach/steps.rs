//! Steps that all methods of attaching share: finding the program and pinning its link.

use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::programs::ProgramError;
use aya::programs::links::FdLink;

use super::error::Failure;
use crate::datapath::links::Link;
use crate::datapath::{object, pins};

/// Pins a new link in place of an old one.
pub(super) fn pin(link: FdLink, path: &Path) -> Result<(), Failure> {
    let mut new = path.as_os_str().to_owned();
    new.push("-new");
    pins::remove(new.as_ref())?;
    link.pin(&new)?;
    // See `pins::remove`: the old link is detached when this is closed.
    let _old = Link::open(path);
    Ok(std::fs::rename(new, path)?)
}

/// Returns the pinned link, if there is one. Removes anything else at that path.
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

/// Returns a program. Loads it if it is not loaded yet.
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
