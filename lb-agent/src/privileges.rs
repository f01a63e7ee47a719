//! Capabilities of the commands. Each command reports the capabilities that it lacks. The agent
//! drops those that it does not need.
//!
//! The sets below were determined by running a small agent under `setpriv --bounding-set` on Linux
//! 6.18. The results are the same for root and for other users:
//!
//! - With [`DATAPATH`], the agent can load, attach (XDP, TCX, clsact, cgroup) and replace programs,
//!   and can pin them in a bpffs that is already mounted.
//! - Without CAP_BPF, no map can be created.
//! - Without CAP_NET_ADMIN, no program can be loaded.
//! - Without CAP_PERFMON, small programs can be loaded. The verifier then forbids whatever could
//!   leak a kernel address and inserts guards against speculative execution. Programs become
//!   slower, and the verifier may reject larger ones.
//!
//! The agent opens maps by their pins, because a lookup by id needs CAP_SYS_ADMIN. CAP_SYS_ADMIN
//! implies CAP_BPF and CAP_PERFMON, for container runtimes that do not know these yet.

use std::fmt::Write;

pub use caps::Capability;
use caps::{CapSet, CapsHashSet};

/// Needed to load, attach and detach programs, and to create, read and write maps.
pub const DATAPATH: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
];

/// Needed to destroy sockets in all network namespaces: to enter the namespaces, to find the
/// sockets of other users' processes, and to destroy them. CAP_SYS_ADMIN also allows reading and
/// writing maps.
pub const ALL_SOCKETS: [Capability; 3] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_NET_ADMIN,
];

/// Needed to destroy sockets in the agent's own network namespace: to read pinned maps, and to
/// destroy.
pub const OWN_SOCKETS: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// Needed to reconnect sockets of other users' processes. Without it the agent destroys such
/// sockets.
pub const CONNECT_AGAIN: [Capability; 1] = [Capability::CAP_SYS_PTRACE];

/// Needed to read and write pinned maps.
pub const MAPS: [Capability; 1] = [Capability::CAP_BPF];

/// Why a command lacks capabilities or cannot drop those that it does not need.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Some capabilities are missing.
    #[error("{}", missing_message(.command, .missing))]
    Missing {
        /// The command that needs them.
        command: &'static str,
        /// The missing capabilities.
        missing: Vec<Capability>,
    },
    /// The capabilities of this process cannot be read.
    #[error("cannot read the capabilities of this process")]
    Read(#[source] caps::errors::CapsError),
    /// A capability cannot be dropped.
    #[error("cannot drop {capability} from the {set} set")]
    Drop {
        /// The capability.
        capability: Capability,
        /// The set that contains it.
        set: String,
        /// The kernel's error.
        #[source]
        source: caps::errors::CapsError,
    },
}

fn missing_message(command: &str, missing: &[Capability]) -> String {
    let names: Vec<_> = missing.iter().map(Capability::to_string).collect();
    let short: Vec<_> = names.iter().map(|name| name.trim_start_matches("CAP_")).collect();
    let mut message = format!("`lb-agent {command}` lacks {}: run it as root", names.join(", "));
    let _ = write!(
        message,
        ", grant it to the binary (`setcap {}+ep lb-agent`)",
        names.join(",").to_lowercase()
    );
    let _ = write!(
        message,
        " or to the container (`securityContext.capabilities.add: [{}]`)",
        short.join(", ")
    );
    message
}

/// Returns an error if `command` does not have all capabilities that it needs.
pub fn require(command: &'static str, needed: &[Capability]) -> Result<(), PrivilegeError> {
    let held = read(CapSet::Effective)?;
    let missing: Vec<_> = needed
        .iter()
        .copied()
        .filter(|&capability| holder(&held, capability).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(PrivilegeError::Missing { command, missing })
}

/// Drops all capabilities except those in `keep`. Capabilities that the process does not have are
/// ignored. Capabilities are per thread, so call this while the process has only one thread.
/// Without CAP_SETPCAP the bounding set does not change. That set only limits what programs started
/// by this process can gain.
pub fn drop_others(keep: &[Capability]) -> Result<(), PrivilegeError> {
    let held = read(CapSet::Effective)?;
    let keep = keep
        .iter()
        .filter_map(|&capability| holder(&held, capability))
        .collect();
    // Changes of the bounding set need CAP_SETPCAP, which is dropped below.
    if held.contains(&Capability::CAP_SETPCAP) {
        retain(CapSet::Bounding, &keep)?;
    }
    // The effective set must always be a subset of the permitted set, so it shrinks first.
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        retain(set, &keep)?;
    }
    Ok(())
}

fn retain(set: CapSet, keep: &CapsHashSet) -> Result<(), PrivilegeError> {
    for &capability in read(set)?.difference(keep) {
        caps::drop(None, set, capability).map_err(|source| PrivilegeError::Drop {
            capability,
            set: format!("{set:?}").to_lowercase(),
            source,
        })?;
    }
    Ok(())
}

fn read(set: CapSet) -> Result<CapsHashSet, PrivilegeError> {
    caps::read(None, set).map_err(PrivilegeError::Read)
}

/// Returns the held capability that grants `capability`: the capability itself, or the one that it
/// was split off from.
fn holder(held: &CapsHashSet, capability: Capability) -> Option<Capability> {
    let stand_in = match capability {
        Capability::CAP_BPF | Capability::CAP_PERFMON => Some(Capability::CAP_SYS_ADMIN),
        _ => None,
    };
    [Some(capability), stand_in]
        .into_iter()
        .flatten()
        .find(|candidate| held.contains(candidate))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Runs `test` in a separate thread, since capabilities are per thread.
    fn in_thread(test: impl FnOnce() + Send + 'static) {
        thread::spawn(test).join().unwrap();
    }

    #[test]
    fn the_message_names_command_capabilities_and_remedies() {
        in_thread(|| {
            drop_others(&[]).unwrap();
            let error = require("run", &DATAPATH).unwrap_err();
            assert_eq!(
                error.to_string(),
                "`lb-agent run` lacks CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: run it as root, grant it to the binary \
                 (`setcap cap_bpf,cap_net_admin,cap_perfmon+ep lb-agent`) or to the container \
                 (`securityContext.capabilities.add: [BPF, NET_ADMIN, PERFMON]`)"
            );
        });
    }

    #[test]
    fn drop_others_removes_capabilities_from_every_set() {
        in_thread(|| {
            let keep = [Capability::CAP_NET_ADMIN];
            let before = read(CapSet::Effective).unwrap();
            drop_others(&keep).unwrap();
            let expected: CapsHashSet = keep.into_iter().filter(|kept| before.contains(kept)).collect();
            assert_eq!(read(CapSet::Effective).unwrap(), expected);
            assert_eq!(read(CapSet::Permitted).unwrap(), expected);
            assert!(read(CapSet::Inheritable).unwrap().is_subset(&expected));
            assert!(read(CapSet::Ambient).unwrap().is_subset(&expected));
            if before.contains(&Capability::CAP_SETPCAP) {
                assert!(read(CapSet::Bounding).unwrap().is_subset(&expected));
            }
        });
    }

    #[test]
    fn a_command_without_needs_is_always_granted() {
        in_thread(|| {
            drop_others(&[]).unwrap();
            require("check", &[]).unwrap();
        });
    }

    #[test]
    fn cap_sys_admin_implies_capabilities_split_off_from_it() {
        let admin = CapsHashSet::from([Capability::CAP_SYS_ADMIN]);
        assert_eq!(
            holder(&admin, Capability::CAP_BPF),
            Some(Capability::CAP_SYS_ADMIN)
        );
        assert_eq!(holder(&admin, Capability::CAP_NET_ADMIN), None);
        let both = CapsHashSet::from([Capability::CAP_SYS_ADMIN, Capability::CAP_BPF]);
        assert_eq!(holder(&both, Capability::CAP_BPF), Some(Capability::CAP_BPF));
    }
}
