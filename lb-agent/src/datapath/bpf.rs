//! The bpf(2) system call, for commands that aya does not offer.
#![expect(unsafe_code, reason = "aya has no function for these commands")]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// Commands of bpf(2) (`enum bpf_cmd`,
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>).
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

/// A pointer in the form that the kernel reads.
pub(super) fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// Takes ownership of a file descriptor that a command returned.
pub(super) fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(Errno::EBADF))?;
    // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Calls bpf(2).
///
/// # Safety
/// `T` must be the part of `union bpf_attr` that the command uses. All pointers in it must be valid
/// for the command.
pub(super) unsafe fn bpf<T>(command: Command, attribute: &mut T) -> nix::Result<libc::c_long> {
    // SAFETY: the caller guarantees it. The kernel treats all bytes after `T` as zero.
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
