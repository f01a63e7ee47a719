//! Attaches the socket programs to a cgroup.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr};

use super::error::Failure;
use super::steps::{find, pin};
use crate::datapath::links::{Link, Place};
use crate::datapath::object::program;

/// The programs and their cgroup hooks (`enum bpf_attach_type`,
/// <https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/bpf.h>).
pub(super) const PROGRAMS: [(&str, u32); 9] = {
    let [
        connect4,
        connect6,
        sendmsg4,
        sendmsg6,
        recvmsg4,
        recvmsg6,
        getpeername4,
        getpeername6,
    ] = program::SOCKETS;
    [
        (connect4, 10),
        (connect6, 11),
        (sendmsg4, 14),
        (sendmsg6, 15),
        (recvmsg4, 19),
        (recvmsg6, 20),
        (getpeername4, 29),
        (getpeername6, 30),
        (program::SOCKET_RELEASE, 34),
    ]
};

/// A hook of the cgroup with this directory.
pub(super) fn place(cgroup: &Path, attach_type: u32) -> io::Result<Place> {
    Ok(Place::Cgroup {
        group: fs::metadata(cgroup)?.ino(),
        attach_type,
    })
}

/// Replaces the program of the link `old`, or attaches the program.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    name: &str,
    cgroup: &Path,
    old: Option<Link>,
    path: &Path,
) -> Result<(), Failure> {
    // The kernel rejects the flags of other modes for links, which always allow several programs.
    let mode = CgroupAttachMode::Single;
    let link: FdLink = if name == program::SOCKET_RELEASE {
        let socket: &mut CgroupSock = find(ebpf, name)?;
        if old.is_some_and(|old| updated(&old, socket.fd())) {
            return Ok(());
        }
        let id = socket.attach(File::open(cgroup)?, mode)?;
        socket.take_link(id)?.try_into()?
    } else {
        let socket: &mut CgroupSockAddr = find(ebpf, name)?;
        if old.is_some_and(|old| updated(&old, socket.fd())) {
            return Ok(());
        }
        let id = socket.attach(File::open(cgroup)?, mode)?;
        socket.take_link(id)?.try_into()?
    };
    pin(link, path)
}

/// Replaces the program of the link. Returns whether that succeeded.
fn updated(link: &Link, program: Result<&aya::programs::ProgramFd, aya::programs::ProgramError>) -> bool {
    program.is_ok_and(|program| link.update(program.as_fd()).is_ok())
}
