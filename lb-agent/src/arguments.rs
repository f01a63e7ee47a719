//! Arguments that several commands share.

use std::path::PathBuf;

use clap::Args;

use crate::output::OutputFormat;

/// Where the agent pins.
#[derive(Args, Clone, Debug)]
pub struct PinArguments {
    /// Directory in a bpf file system for maps and links, which outlive the agent
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/lb-agent")]
    pub pin_path: PathBuf,
}

/// Arguments of the commands that show something.
#[derive(Args, Clone, Debug)]
pub struct ShowArguments {
    /// Where the agent pins.
    #[command(flatten)]
    pub pins: PinArguments,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: OutputFormat,
}
