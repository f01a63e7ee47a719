//! Which programs a device carries, and at which of its hooks.

use super::options::XdpAttach;
use crate::datapath::hook::{Direction, XdpMode};
use crate::datapath::links::Place;
use crate::datapath::object::program;
use crate::devices::{Attachment, Role};

/// A program on a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct DeviceProgram {
    pub(super) index: u32,
    pub(super) program: &'static str,
    pub(super) kind: Hook,
}

/// A hook of a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Hook {
    Xdp(XdpMode),
    Tc(Direction),
}

impl DeviceProgram {
    /// Its place in TC.
    pub(super) fn in_tc(&self) -> Option<(u32, Direction)> {
        match self.kind {
            Hook::Xdp(_) => None,
            Hook::Tc(direction) => Some((self.index, direction)),
        }
    }

    /// The place of its link.
    pub(super) fn place(&self) -> Place {
        let device = self.index;
        match self.kind {
            Hook::Xdp(_) => Place::Xdp { device },
            Hook::Tc(direction) => Place::Tcx {
                device,
                attach_type: direction.tcx(),
            },
        }
    }

    /// The file name of its link's pin.
    pub(super) fn pin_name(&self) -> String {
        let Self { index, program, kind } = self;
        match kind {
            Hook::Xdp(XdpMode::Native) => format!("{index}-{program}-native"),
            Hook::Xdp(XdpMode::Generic) => format!("{index}-{program}-generic"),
            Hook::Tc(_) => format!("{index}-{program}"),
        }
    }

    /// The same program in the other mode of XDP.
    pub(super) fn in_other_mode(&self, mode: XdpMode) -> Self {
        Self {
            kind: Hook::Xdp(mode.other()),
            ..self.clone()
        }
    }
}

/// The programs that a device must carry.
pub(super) fn programs_for(index: u32, device: &Attachment, xdp: XdpAttach) -> Vec<DeviceProgram> {
    let tc = |program, direction| DeviceProgram {
        index,
        program,
        kind: Hook::Tc(direction),
    };
    match device.role {
        Role::Pod if !device.ethernet => vec![
            tc(program::TC_FROM_POD_LAYER3, Direction::Ingress),
            tc(program::TC_TO_LAYER3, Direction::Egress),
        ],
        Role::Network if !device.ethernet => vec![
            tc(program::TC_FROM_NETWORK_LAYER3, Direction::Ingress),
            tc(program::TC_TO_LAYER3, Direction::Egress),
        ],
        Role::Pod => vec![
            tc(program::TC_FROM_POD, Direction::Ingress),
            tc(program::TC_TO_POD, Direction::Egress),
        ],
        Role::Network => {
            let mut programs = vec![
                tc(program::TC_FROM_NETWORK, Direction::Ingress),
                tc(program::TC_TO_NETWORK, Direction::Egress),
            ];
            let mode = match xdp {
                XdpAttach::Auto if matches!(device.kind.as_str(), "veth" | "tun") => None,
                XdpAttach::Auto | XdpAttach::Native => Some(XdpMode::Native),
                XdpAttach::Generic => Some(XdpMode::Generic),
                XdpAttach::Off => None,
            };
            // XDP comes after TC's reply translation, so that requests are never translated without
            // it.
            programs.extend(mode.map(|mode| DeviceProgram {
                index,
                program: program::XDP,
                kind: Hook::Xdp(mode),
            }));
            programs
        }
    }
}
