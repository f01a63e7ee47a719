//! Arguments for the addresses of the HTTP servers.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use clap::Args;

/// Where to serve health checks and metrics.
#[derive(Args, Clone, Copy, Debug)]
pub struct HealthArguments {
    /// Where to serve /healthz and /livez; 0.0.0.0 and :: both mean all IPv4 and IPv6 addresses, ''
    /// disables them
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: BindAddress,
    /// Where to serve /metrics for Prometheus; '' disables it
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: BindAddress,
}

/// An address and port. `None` disables the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindAddress(pub Option<SocketAddr>);

/// The text is neither empty nor an address and port.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("use an IP address and a port, as in 0.0.0.0:10256 or [::1]:10256, or '' to disable it")]
pub struct BindAddressError;

impl FromStr for BindAddress {
    type Err = BindAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Ok(Self(None)),
            text => Ok(Self(Some(text.parse().map_err(|_| BindAddressError)?))),
        }
    }
}

impl fmt::Display for BindAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(formatter),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        health: HealthArguments,
    }

    #[test]
    fn bind_addresses_are_ip_addresses_with_ports_or_empty() {
        let parse = |arguments: &[&str]| {
            let all = ["lb-agent"].iter().chain(arguments);
            let HealthArguments {
                healthz_bind_address,
                metrics_bind_address,
            } = Command::try_parse_from(all).ok()?.health;
            Some(format!("{healthz_bind_address} {metrics_bind_address}"))
        };
        assert_eq!(parse(&[]).as_deref(), Some("0.0.0.0:10256 127.0.0.1:10249"));
        assert_eq!(
            parse(&["--healthz-bind-address=[::1]:1", "--metrics-bind-address="]).as_deref(),
            Some("[::1]:1 ")
        );
        assert_eq!(parse(&["--healthz-bind-address=localhost:1"]), None);
        assert_eq!(parse(&["--metrics-bind-address=127.0.0.1"]), None);
    }
}
