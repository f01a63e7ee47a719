//! Arguments of `lb-agent explain`.

use clap::Args;

use super::question::{Endpoint, From, PacketProtocol, Question};
use crate::arguments::ShowArguments;

/// Arguments of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArguments {
    /// Where, and how to print.
    #[command(flatten)]
    pub show: ShowArguments,
    /// What the packet carries
    #[arg(value_enum, value_name = "PROTO")]
    pub protocol: PacketProtocol,
    /// Who sends it; without a port, a client that has no connection yet
    #[arg(value_name = "SRC[:PORT]")]
    pub source: Endpoint,
    /// Whom to; icmp needs no port
    #[arg(value_name = "DST:PORT")]
    pub destination: Endpoint,
    /// Where the sender is; by default `node` if this host has its address, `pod` if it is a
    /// backend of this node or its device is a Pod's, else `outside`
    #[arg(long, value_enum)]
    pub from: Option<From>,
}

impl ExplainArguments {
    /// What is asked.
    ///
    /// # Errors
    /// What is wrong with the arguments together, for the person who typed them.
    pub fn question(&self) -> Result<Question, String> {
        Question::new(self.protocol, self.source, self.destination)
    }
}
