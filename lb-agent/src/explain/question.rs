//! The packet that the user asks about.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use lb_common::choose::Origin;

/// Protocol of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PacketProtocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
    /// An echo request (ping)
    Icmp,
}

/// Location of the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// A Pod of this node
    Pod,
    /// Anywhere else: the packet arrives on a network device
    Outside,
    /// A process of this node
    Node,
}

impl From {
    /// The origin in terms of the decision code.
    pub fn origin(self) -> Origin {
        match self {
            Self::Pod | Self::Node => Origin::Inside,
            Self::Outside => Origin::Outside,
        }
    }
}

/// An address with or without a port, as written on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: Option<u16>,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        let with_port: SocketAddr = text
            .parse()
            .map_err(|_| "expected ADDRESS or ADDRESS:PORT, IPv6 with a port as [ADDRESS]:PORT".to_owned())?;
        Ok(Self {
            address: with_port.ip(),
            port: Some(with_port.port()),
        })
    }
}

/// The packet that the user asks about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Its protocol.
    pub protocol: PacketProtocol,
    /// Its source; port 0 with ICMP.
    pub source: SocketAddr,
    /// Its destination; port 0 with ICMP.
    pub destination: SocketAddr,
}

impl Question {
    /// Builds it from command line arguments. A missing source port becomes 0.
    ///
    /// # Errors
    /// A message for the user.
    pub fn new(protocol: PacketProtocol, source: Endpoint, destination: Endpoint) -> Result<Self, String> {
        if source.address.is_ipv4() != destination.address.is_ipv4() {
            return Err(format!(
                "{} and {} have different IP versions",
                source.address, destination.address
            ));
        }
        let has_ports = protocol != PacketProtocol::Icmp;
        if has_ports && destination.port.is_none_or(|port| port == 0) {
            return Err(format!("{} needs a port", destination.address));
        }
        let port = |port: Option<u16>| port.filter(|_| has_ports).unwrap_or_default();
        Ok(Self {
            protocol,
            source: SocketAddr::new(source.address, port(source.port)),
            destination: SocketAddr::new(destination.address, port(destination.port)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(protocol: PacketProtocol, source: &str, destination: &str) -> Result<Question, String> {
        Question::new(protocol, source.parse()?, destination.parse()?)
    }

    #[test]
    fn only_protocols_with_ports_need_a_destination_port() {
        use PacketProtocol::{Icmp, Tcp};
        let shown = |protocol, source, destination| {
            question(protocol, source, destination).map(|question| {
                let Question {
                    source, destination, ..
                } = question;
                format!("{source} {destination}")
            })
        };
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(
            shown(Tcp, "10.0.0.1", "10.0.0.2:80"),
            ok("10.0.0.1:0 10.0.0.2:80")
        );
        assert_eq!(
            shown(Tcp, "10.0.0.1:5", "10.0.0.2:80"),
            ok("10.0.0.1:5 10.0.0.2:80")
        );
        assert_eq!(
            shown(Tcp, "fd00::1", "[fd00::2]:80"),
            ok("[fd00::1]:0 [fd00::2]:80")
        );
        assert_eq!(
            shown(Icmp, "10.0.0.1:5", "10.0.0.2:80"),
            ok("10.0.0.1:0 10.0.0.2:0")
        );
        assert!(shown(Tcp, "10.0.0.1", "10.0.0.2").is_err());
        assert!(shown(Tcp, "10.0.0.1", "[fd00::2]:80").is_err());
        assert!(shown(Tcp, "web", "10.0.0.2:80").is_err());
    }
}
