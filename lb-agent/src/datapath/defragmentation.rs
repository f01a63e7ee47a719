//! Enables netfilter's reassembly of fragments through links of programs that accept every packet.
//! Unlike firewall rules, these need no firewall module and create no conntrack entries.
#![expect(unsafe_code, reason = "aya does not support netfilter programs")]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use super::bpf::{Command, address, bpf, owned};

/// `BPF_PROG_TYPE_NETFILTER` (Linux 6.4).
const NETFILTER_PROGRAM: u32 = 32;
/// `BPF_NETFILTER`, an attach type.
const NETFILTER: u32 = 45;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const FAMILIES: [u32; 2] = [2, 10];
/// `NF_INET_PRE_ROUTING`
const PRE_ROUTING: u32 = 0;
/// After `NF_IP_PRI_CONNTRACK_DEFRAG` (-400), the priority of the reassembly that the flag enables.
const PRIORITY: i32 = -100;
/// `BPF_F_NETFILTER_IP_DEFRAG` (Linux 6.6)
const IP_DEFRAG: u32 = 1;
/// `r0 = NF_ACCEPT; exit` (`struct bpf_insn`).
const ACCEPT: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` uses.
#[repr(C)]
#[derive(Default)]
struct LoadAttribute {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    attach_type: u32,
}

/// The part that `BPF_LINK_CREATE` uses for netfilter.
#[repr(C)]
struct NetfilterLinkAttribute {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    family: u32,
    hook: u32,
    priority: i32,
    netfilter_flags: u32,
}

/// Attaches the programs in the calling thread's network namespace, until the links are closed.
pub(crate) fn attach() -> io::Result<Vec<OwnedFd>> {
    let program = load()?;
    FAMILIES.iter().map(|family| link(&program, *family)).collect()
}

fn load() -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attribute = LoadAttribute {
        kind: NETFILTER_PROGRAM,
        instruction_count: 2,
        instructions: address(ACCEPT.as_ptr()),
        license: address(license.as_ptr()),
        name: *b"lb_accept\0\0\0\0\0\0\0",
        attach_type: NETFILTER,
        ..LoadAttribute::default()
    };
    // SAFETY: the kernel reads two instructions and a nul-terminated text, which outlive the call.
    owned(unsafe { bpf(Command::ProgramLoad, &mut attribute) }?)
}

fn link(program: &OwnedFd, family: u32) -> io::Result<OwnedFd> {
    let mut attribute = NetfilterLinkAttribute {
        program: program.as_raw_fd().cast_unsigned(),
        target: 0,
        attach_type: NETFILTER,
        flags: 0,
        family,
        hook: PRE_ROUTING,
        priority: PRIORITY,
        netfilter_flags: IP_DEFRAG,
    };
    // SAFETY: the attribute contains only numbers. The descriptor is open.
    owned(unsafe { bpf(Command::LinkCreate, &mut attribute) }?)
}
