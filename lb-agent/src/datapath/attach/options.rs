//! How programs are attached, according to the command line.

/// How XDP is attached to network devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpAttach {
    /// In the driver if it supports that. Not on veth, tun and tap, whose packets may carry partial
    /// checksums.
    #[default]
    Auto,
    /// In the driver. A device whose driver does not support that is an error.
    Native,
    /// In the kernel's generic hook, for tests.
    Generic,
    /// Not at all. TC does the work instead.
    Off,
}

/// How TC programs are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TcAttach {
    /// By TCX links if the kernel supports them (6.6), otherwise as clsact filters.
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
