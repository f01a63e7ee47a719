//! Source addresses and ports of clients.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

#[derive(clap::Args)]
pub(crate) struct Source {
    /// The client's source address; if given several times, connections or sockets take them in
    /// turn
    #[arg(long)]
    source_address: Vec<IpAddr>,
    /// The client's source port; each further connection or socket takes the next one; 0 means any
    #[arg(long, default_value_t = 0)]
    source_port: u16,
}

impl Source {
    /// Whether an address or port is set.
    pub(crate) fn is_chosen(&self) -> bool {
        self.source_port != 0 || !self.source_address.is_empty()
    }

    /// The source of the connection or socket with this number, from 0.
    pub(crate) fn of(&self, number: u32, to: SocketAddr) -> SocketAddr {
        let addresses = &self.source_address;
        let address = match addresses.get(number as usize % addresses.len().max(1)) {
            Some(address) => *address,
            None if to.is_ipv4() => Ipv4Addr::UNSPECIFIED.into(),
            None => Ipv6Addr::UNSPECIFIED.into(),
        };
        let port = match self.source_port {
            0 => 0,
            // There are enough ports for any test. Beyond the last one `bind` fails.
            first => u16::try_from(u32::from(first) + number).unwrap_or(u16::MAX),
        };
        SocketAddr::new(address, port)
    }

    /// Opens the connection with this number.
    pub(crate) async fn connect(&self, number: u32, to: SocketAddr) -> io::Result<TcpStream> {
        if !self.is_chosen() {
            return TcpStream::connect(to).await;
        }
        let socket = match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // Connections to several servers may share a port.
        socket.set_reuseaddr(true)?;
        socket.bind(self.of(number, to))?;
        socket.connect(to).await
    }
}
