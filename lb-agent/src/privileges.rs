//! What the commands may do: each says what it lacks, and the agent gives up what it does not need.
//!
//! Found by running a small agent under `setpriv --bounding-set` on Linux 6.18, with the same
//! result for root and for another user: [`DATAPATH`] loads, attaches (XDP, TCX, clsact, cgroup)
//! and replaces programs and pins them in a bpffs that is mounted already; without CAP_BPF no map
//! can be created, without CAP_NET_ADMIN no program loaded. Small programs load without
//! CAP_PERFMON, but then the verifier forbids what could leak a kernel address and inserts guards
//! against speculation: slower, and larger programs may be refused. Maps are opened by their pins,
//! as looking them up by id takes CAP_SYS_ADMIN. CAP_SYS_ADMIN stands in for CAP_BPF and
//! CAP_PERFMON, as in container runtimes older than these.

use std::fmt::Write;

pub use caps::Capability;
use caps::{CapSet, CapsHashSet};

/// To load, attach and detach programs, and to create, read and write maps.
pub const DATAPATH: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
];

/// To destroy sockets in all network namespaces: to enter them, to find those of other users'
/// processes, and to destroy. CAP_SYS_ADMIN also reads and writes maps.
pub const ALL_SOCKETS: [Capability; 3] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_NET_ADMIN,
];

/// To destroy sockets in the own network namespace: with pinned maps, and to destroy.
pub const OWN_SOCKETS: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// To connect sockets of other users' processes again. Without it they are destroyed.
pub const CONNECT_AGAIN: [Capability; 1] = [Capability::CAP_SYS_PTRACE];

/// To read and write pinned maps.
pub const MAPS: [Capability; 1] = [Capability::CAP_BPF];

/// Why a command cannot do its work or give up what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Some capabilities are missing.
    #[error("{}", missing_message(.command, .missing))]
    Missing {
        /// The command that needs them.
        command: &'static str,
        /// Those that are missing.
        missing: Vec<Capability>,
    },
    /// The capabilities of this process cannot be read.
    #[error("cannot read the capabilities of this process")]
    Read(#[source] caps::errors::CapsError),
    /// A capability cannot be given up.
    #[error("cannot drop {capability} from the {set} set")]
    Drop {
        /// The capability.
        capability: Capability,
        /// The set that it is in.
        set: String,
        /// What the kernel said.
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

/// Whether `command` has all capabilities that it needs.
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

/// Gives up all capabilities but those in `keep`, as far as they are held. Capabilities belong to
/// threads: to be called before there is a second one. Without CAP_SETPCAP the bounding set stays
/// as it is; it only says what a program started from here could have.
pub fn drop_others(keep: &[Capability]) -> Result<(), PrivilegeError> {
    let held = read(CapSet::Effective)?;
    let keep = keep
        .iter()
        .filter_map(|&capability| holder(&held, capability))
        .collect();
    // Dropping from the bounding set takes a capability that is gone afterwards.
    if held.contains(&Capability::CAP_SETPCAP) {
        retain(CapSet::Bounding, &keep)?;
    }
    // What is effective must be permitted at every moment.
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

/// Which of the capabilities that are held grants `capability`: itself, or the one it was split off
/// from.
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

    /// Runs `test` in a thread of its own, since capabilities belong to threads.
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
    fn what_is_not_kept_is_gone_from_every_set() {
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
    fn nothing_is_always_granted() {
        in_thread(|| {
            drop_others(&[]).unwrap();
            require("check", &[]).unwrap();
        });
    }

    #[test]
    fn cap_sys_admin_stands_in_for_those_split_off() {
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
