//! Arguments of `lb-agent explain`.

use clap::Args;

use super::question::{Endpoint, From, PacketProtocol, Question};
use crate::arguments::ShowArguments;

/// Arguments of `explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArguments {
    /// Pin path and output format.
    #[command(flatten)]
    pub show: ShowArguments,
    /// Protocol of the packet
    #[arg(value_enum, value_name = "PROTO")]
    pub protocol: PacketProtocol,
    /// Sender of the packet; without a port, a client that has no connection yet
    #[arg(value_name = "SRC[:PORT]")]
    pub source: Endpoint,
    /// Destination of the packet; icmp needs no port
    #[arg(value_name = "DST:PORT")]
    pub destination: Endpoint,
    /// Location of the sender. Default: `node` if this host has the sender's address, `pod` if the
    /// sender is a backend of this node or its route leads to a Pod's device, else `outside`
    #[arg(long, value_enum)]
    pub from: Option<From>,
}

impl ExplainArguments {
    /// The packet that the arguments describe.
    ///
    /// # Errors
    /// A message for the user if the arguments do not fit together.
    pub fn question(&self) -> Result<Question, String> {
        Question::new(self.protocol, self.source, self.destination)
    }
}
