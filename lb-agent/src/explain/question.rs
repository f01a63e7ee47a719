//! What is asked.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use lb_common::choose::Origin;

/// What a packet carries.
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

/// Where the sender is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// A Pod of this node
    Pod,
    /// Anywhere else: the packet comes in by a network device
    Outside,
    /// A process of this node
    Node,
}

impl From {
    /// As the decision code knows it.
    pub fn origin(self) -> Origin {
        match self {
            Self::Pod | Self::Node => Origin::Inside,
            Self::Outside => Origin::Outside,
        }
    }
}

/// An address with or without a port, as it is written on the command line.
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
            .map_err(|_| "written ADDRESS or ADDRESS:PORT, IPv6 with a port as [ADDRESS]:PORT".to_owned())?;
        Ok(Self {
            address: with_port.ip(),
            port: Some(with_port.port()),
        })
    }
}

/// Which packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// What it carries.
    pub protocol: PacketProtocol,
    /// Who sends it; port 0 with ICMP.
    pub source: SocketAddr,
    /// Whom to; port 0 with ICMP.
    pub destination: SocketAddr,
}

impl Question {
    /// From the command line. A port of the source that is not given is left 0.
    ///
    /// # Errors
    /// What is wrong, for the person who typed it.
    pub fn new(protocol: PacketProtocol, source: Endpoint, destination: Endpoint) -> Result<Self, String> {
        if source.address.is_ipv4() != destination.address.is_ipv4() {
            return Err(format!(
                "{} and {} are not of the same IP version",
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
    fn ports_are_where_the_protocol_has_them() {
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
