//! What all ways of attaching have in common: the program is found, and its link pinned.

use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::programs::ProgramError;
use aya::programs::links::FdLink;

use super::error::Failure;
use crate::datapath::links::Link;
use crate::datapath::{object, pins};

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
