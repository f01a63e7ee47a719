//! Arguments of `lb-agent affinity`.

use std::net::IpAddr;

use clap::{Args, Subcommand};

use super::client::Client;
use crate::arguments::{PinArguments, ShowArguments};
use crate::inspect::ServiceFilter;

/// The commands of `affinity`.
#[derive(Subcommand, Clone, Debug)]
pub enum AffinityCommand {
    /// Show which backend each client stays with
    List(AffinityListArguments),
    /// Send a client's next connection to a backend
    Pin(AffinityPinArguments),
    /// Remove affinity: the clients' next connections choose a backend again
    Clear(AffinityClearArguments),
}

/// Arguments of `affinity list`.
#[derive(Args, Clone, Debug)]
pub struct AffinityListArguments {
    /// Pin path and output format.
    #[command(flatten)]
    pub show: ShowArguments,
    /// Which rows to show.
    #[command(flatten)]
    pub which: AffinityFilter,
}

/// Selects rows by Service and client.
#[derive(Args, Clone, Debug, Default)]
pub struct AffinityFilter {
    /// Only rows of this Service, or of one of its ports, by name or number
    #[arg(long, value_name = "NAMESPACE/NAME[:PORT]")]
    pub service: Option<ServiceFilter>,
    /// Only rows of this client: an address, or the cookie of a network namespace
    #[arg(long, value_name = "CLIENT")]
    pub client: Option<Client>,
}

/// Arguments of `affinity pin`.
#[derive(Args, Clone, Debug)]
pub struct AffinityPinArguments {
    /// Where the agent pins maps and links.
    #[command(flatten)]
    pub pins: PinArguments,
    /// The port of a Service with session affinity, by name or number
    #[arg(value_name = "NAMESPACE/NAME:PORT")]
    pub service: ServiceFilter,
    /// Address of the client; for a client that is translated at its socket, the cookie of its
    /// network namespace
    pub client: Client,
    /// Address of one of the port's active backends
    pub backend: IpAddr,
}

/// Arguments of `affinity clear`.
#[derive(Args, Clone, Debug)]
#[command(group = clap::ArgGroup::new("which").args(["service", "client", "all"]).required(true).multiple(true))]
pub struct AffinityClearArguments {
    /// Where the agent pins maps and links.
    #[command(flatten)]
    pub pins: PinArguments,
    /// Which rows to remove.
    #[command(flatten)]
    pub which: AffinityFilter,
    /// All clients of all Services
    #[arg(long, conflicts_with_all = ["service", "client"])]
    pub all: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::cli::Arguments;

    fn parses(line: &str) -> bool {
        Arguments::try_parse_from(line.split(' ')).is_ok()
    }

    #[test]
    fn clearing_all_affinity_needs_an_explicit_option() {
        for (line, valid) in [
            ("lb-agent affinity clear", false),
            ("lb-agent affinity clear --all", true),
            ("lb-agent affinity clear --service default/web", true),
            ("lb-agent affinity clear --client 10.1.0.2", true),
            (
                "lb-agent affinity clear --service default/web --client 10.1.0.2",
                true,
            ),
            ("lb-agent affinity clear --all --client 10.1.0.2", false),
            ("lb-agent affinity pin default/web:80 10.1.0.2 10.1.0.5", true),
            ("lb-agent affinity pin default/web:80 10.1.0.2", false),
        ] {
            assert_eq!(parses(line), valid, "{line}");
        }
    }
}
