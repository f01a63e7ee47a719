//! How programs are attached, as the command line says.

/// How XDP is attached to network devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpAttach {
    /// In the driver where it can; not on veth, tun and tap, whose packets may carry partial
    /// checksums.
    #[default]
    Auto,
    /// In the driver; a device whose driver cannot is an error.
    Native,
    /// In the kernel's generic hook: for tests.
    Generic,
    /// Not at all: TC does its work.
    Off,
}

/// How TC programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TcAttach {
    /// By TCX links where the kernel has them (6.6), else as clsact filters.
    #[default]
    Auto,
    /// As clsact filters.
    Clsact,
}

/// How programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct AttachOptions {
    /// XDP on network devices.
    pub(crate) xdp: XdpAttach,
    /// TC everywhere.
    pub(crate) tc: TcAttach,
}
