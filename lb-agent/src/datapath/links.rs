//! BPF links, opened by their pins: finds where they are attached and replaces their programs.
#![expect(
    unsafe_code,
    reason = "aya neither shows where a link is attached nor replaces programs of cgroups"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::bpf::{Command, address, bpf, owned};

/// Kinds of links (`enum bpf_link_type`).
mod kind {
    pub(super) const CGROUP: u32 = 3;
    pub(super) const XDP: u32 = 6;
    pub(super) const TCX: u32 = 11;
}

/// Where programs are attached (`enum bpf_attach_type`).
pub(super) mod attach_type {
    /// TC ingress of a device.
    pub(in crate::datapath) const TCX_INGRESS: u32 = 46;
    /// TC egress of a device.
    pub(in crate::datapath) const TCX_EGRESS: u32 = 47;
}

/// A link, held open.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

/// The kernel's description of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkInfo {
    /// The id of its program.
    pub(super) program: u32,
    /// Where the program runs.
    pub(super) place: Place,
}

/// Where a link is attached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Place {
    /// XDP of the device with this index. 0 if the device was removed.
    Xdp {
        /// Index of the device.
        device: u32,
    },
    /// TCX of a device.
    Tcx {
        /// Index of the device. 0 if it was removed.
        device: u32,
        /// [`attach_type`].
        attach_type: u32,
    },
    /// A hook of a cgroup.
    Cgroup {
        /// The cgroup's id: the inode number of its directory.
        group: u64,
        /// `enum bpf_attach_type`.
        attach_type: u32,
    },
    /// A place to which this agent attaches nothing.
    Elsewhere,
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET` uses.
#[repr(C)]
struct PathAttribute {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part that `BPF_OBJ_GET_INFO_BY_FD` uses.
#[repr(C)]
struct InfoAttribute {
    fd: u32,
    length: u32,
    info: u64,
}

/// The part that `BPF_LINK_UPDATE` uses.
#[repr(C)]
struct UpdateAttribute {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The part that `BPF_PROG_QUERY` uses.
#[repr(C)]
struct QueryAttribute {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
}

/// The part that `BPF_PROG_GET_FD_BY_ID` uses.
#[repr(C)]
struct IdAttribute {
    id: u32,
    next_id: u32,
    flags: u32,
}

/// The first part of `struct bpf_link_info`. The words depend on the kind. For a cgroup they are
/// its id and the attach type; for a device, its index and the attach type.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    words: [u32; 4],
}

/// The first part of `struct bpf_prog_info` (Linux 4.15).
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    instructions: [u64; 2],
    load_time: u64,
    user: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

impl Link {
    /// Opens the link pinned at `path`.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if nothing is pinned there. [`io::ErrorKind::InvalidData`] if
    /// something other than a link is.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mut attribute = PathAttribute {
            path: address(name.as_ptr()),
            fd: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads the path, which outlives the call.
        let fd = unsafe { bpf(Command::ObjectGet, &mut attribute) }?;
        let fd = owned(fd)?;
        if !is_link(&fd)? {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self(fd))
    }

    /// Describes the link.
    pub(super) fn info(&self) -> io::Result<LinkInfo> {
        let mut raw = RawLinkInfo::default();
        info(&self.0, &mut raw)?;
        let [first, second, third, _] = raw.words;
        Ok(LinkInfo {
            program: raw.program,
            place: match raw.kind {
                kind::XDP => Place::Xdp { device: first },
                kind::TCX => Place::Tcx {
                    device: first,
                    attach_type: second,
                },
                kind::CGROUP => {
                    let [a, b, c, d] = first.to_ne_bytes();
                    let [e, f, g, h] = second.to_ne_bytes();
                    Place::Cgroup {
                        group: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
                        attach_type: third,
                    }
                }
                _ => Place::Elsewhere,
            },
        })
    }

    /// Replaces the link's program atomically: each packet or call runs either the old or the new
    /// one.
    ///
    /// # Errors
    /// `ENOLINK` if the device or cgroup was removed.
    pub(super) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attribute = UpdateAttribute {
            link: self.0.as_raw_fd().cast_unsigned(),
            program: program.as_raw_fd().cast_unsigned(),
            flags: 0,
            old_program: 0,
        };
        // SAFETY: the attribute contains only numbers. Both descriptors are open.
        unsafe { bpf(Command::LinkUpdate, &mut attribute) }?;
        Ok(())
    }
}

/// The ids of the programs at a device's TCX hook, in the order of execution.
pub(super) fn tcx_programs(device: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    /// The kernel's limit (`BPF_MPROG_MAX`).
    const MAX: u32 = 64;
    let mut programs = vec![0_u32; MAX as usize];
    let mut attribute = QueryAttribute {
        target: device,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        programs: address(programs.as_mut_ptr()),
        count: MAX,
        pad: 0,
    };
    // SAFETY: the kernel writes at most `count` numbers to `programs`. It has that many elements
    // and outlives the call.
    unsafe { bpf(Command::ProgramQuery, &mut attribute) }?;
    programs.truncate(attribute.count as usize);
    Ok(programs)
}

/// Returns a program's name, truncated to 15 characters. `None` if the kernel refuses: a lookup of
/// a program by id needs `CAP_SYS_ADMIN`.
pub(super) fn program_name(id: u32) -> Option<String> {
    let mut attribute = IdAttribute {
        id,
        next_id: 0,
        flags: 0,
    };
    // SAFETY: the attribute contains only numbers.
    let fd = unsafe { bpf(Command::ProgramGetFdById, &mut attribute) }.ok()?;
    let mut raw = RawProgramInfo::default();
    info(&owned(fd).ok()?, &mut raw).ok()?;
    let name = raw.name.split(|byte| *byte == 0).next()?;
    let name = String::from_utf8_lossy(name).into_owned();
    (!name.is_empty()).then_some(name)
}

/// Whether the descriptor is a link. Maps and programs can be pinned too, and their info looks
/// similar.
fn is_link(fd: &OwnedFd) -> io::Result<bool> {
    let what = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let what = what.to_string_lossy();
    Ok(what.contains("bpf_link") || what.contains("bpf-link"))
}

fn info<T>(fd: &OwnedFd, into: &mut T) -> io::Result<()> {
    let mut attribute = InfoAttribute {
        fd: fd.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<T>()).unwrap_or_default(),
        info: address(&raw mut *into),
    };
    // SAFETY: the kernel writes at most `length` bytes of plain numbers to `into`, which outlives
    // the call.
    unsafe { bpf(Command::ObjectGetInfo, &mut attribute) }?;
    Ok(())
}
