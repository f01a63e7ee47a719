//! The system call bpf(2), for what aya cannot do.
#![expect(unsafe_code, reason = "aya has no function for these commands")]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// Commands of bpf(2) (`enum bpf_cmd`, include/uapi/linux/bpf.h).
#[derive(Clone, Copy)]
pub(super) enum Command {
    ProgramLoad = 5,
    ObjectGet = 7,
    ProgramGetFdById = 13,
    ObjectGetInfo = 15,
    ProgramQuery = 16,
    LookupBatch = 24,
    UpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// A pointer as the kernel takes it.
pub(super) fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// A descriptor that a command returned.
pub(super) fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(Errno::EBADF))?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls bpf(2).
///
/// # Safety
/// `T` is the part of `union bpf_attr` that the command uses, and what it points to is as the
/// command wants it.
pub(super) unsafe fn bpf<T>(command: Command, attribute: &mut T) -> nix::Result<libc::c_long> {
    // SAFETY: as the caller says; the kernel takes what is behind `T` for zero.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attribute,
            size_of::<T>(),
        )
    };
    Errno::result(result)
}
