//! Probes what the running kernel supports.

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported};
use aya::util::KernelVersion;

/// A type of program that the agent loads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Program {
    /// At a TC hook.
    SchedClassifier,
    /// At XDP.
    Xdp,
    /// At a socket address hook of a cgroup.
    CgroupSockAddr,
}

/// A type of map that the agent creates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Map {
    /// Hash table that evicts the least recently used entry.
    LruHash,
}

/// A helper function that programs call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Helper {
    /// `bpf_jiffies64`
    Jiffies64,
    /// `bpf_get_netns_cookie`
    GetNetnsCookie,
    /// `bpf_set_retval`
    SetRetval,
}

/// Why support cannot be determined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// The process lacks the capabilities for the probe.
    #[error("needs the capabilities to load programs and create maps")]
    Forbidden,
    /// The kernel's answer was neither yes nor no.
    #[error("the kernel refused the probe")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<SyscallError> for ProbeError {
    fn from(error: SyscallError) -> Self {
        match error.io_error.kind() {
            std::io::ErrorKind::PermissionDenied => Self::Forbidden,
            _ => Self::Refused(Box::new(error)),
        }
    }
}

impl From<ProgramError> for ProbeError {
    fn from(error: ProgramError) -> Self {
        match error {
            ProgramError::SyscallError(error) => error.into(),
            error => Self::Refused(Box::new(error)),
        }
    }
}

/// Whether programs of this type load.
pub(crate) fn program(program: Program) -> Result<bool, ProbeError> {
    Ok(is_program_supported(program_type(program))?)
}

/// Whether maps of this type can be created.
pub(crate) fn map(map: Map) -> Result<bool, ProbeError> {
    Ok(is_map_supported(match map {
        Map::LruHash => MapType::LruHash,
    })?)
}

/// Whether programs of this type may call the helper.
pub(crate) fn helper(program: Program, helper: Helper) -> Result<bool, ProbeError> {
    let function = match helper {
        Helper::Jiffies64 => BpfHelper::BPF_FUNC_jiffies64,
        Helper::GetNetnsCookie => BpfHelper::BPF_FUNC_get_netns_cookie,
        Helper::SetRetval => BpfHelper::BPF_FUNC_set_retval,
    };
    Ok(is_helper_supported(program_type(program), function)?)
}

/// Whether the kernel is this version or newer.
pub(crate) fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|current| current >= KernelVersion::new(major, minor, 0))
}

/// Whether the kernel has TCX links (Linux 6.6).
pub(super) fn has_tcx() -> bool {
    kernel_at_least(6, 6)
}

fn program_type(program: Program) -> ProgramType {
    match program {
        Program::SchedClassifier => ProgramType::SchedClassifier,
        Program::Xdp => ProgramType::Xdp,
        Program::CgroupSockAddr => ProgramType::CgroupSockAddr,
    }
}
