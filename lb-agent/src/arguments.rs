//! Arguments that several commands share.

use std::path::PathBuf;

use clap::Args;

use crate::output::OutputFormat;

/// Where the agent pins maps and links.
#[derive(Args, Clone, Debug)]
pub struct PinArguments {
    /// Directory in a bpf file system where the agent pins its maps and links; they stay there when
    /// the agent exits
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lb-agent")]
    pub pin_path: PathBuf,
}

/// Arguments of the commands that print information.
#[derive(Args, Clone, Debug)]
pub struct ShowArguments {
    /// Where the agent pins maps and links.
    #[command(flatten)]
    pub pins: PinArguments,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    pub output: OutputFormat,
}
