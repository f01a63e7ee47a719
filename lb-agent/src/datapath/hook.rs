//! The hooks of a device: XDP in one of its modes, TC in one of its directions.

use aya::programs::TcAttachType;

use super::links::attach_type;

/// The mode of XDP. It is part of a link's name, because a link never changes its mode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum XdpMode {
    Native,
    Generic,
}

impl XdpMode {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

/// A direction of TC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    pub(super) fn tcx(self) -> u32 {
        match self {
            Self::Ingress => attach_type::TCX_INGRESS,
            Self::Egress => attach_type::TCX_EGRESS,
        }
    }

    /// The same as aya's type.
    pub(super) fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}
