//! `lb-agent connections`: shows flows, and sockets that were translated at `connect`.

mod collect;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use lb_common::layout::ServiceId;
use serde::Serialize;

use self::collect::collect;
use crate::arguments::ShowArguments;
use crate::datapath::clock::Clock;
use crate::datapath::live::LiveMaps;
use crate::datapath::pins::Pins;
use crate::inspect::{ServiceFilter, ServicePorts};
use crate::maps::{BackendState, Protocol};
use crate::output::{self, Table};
use crate::privileges;

/// Arguments of `connections`.
#[derive(Args, Clone, Debug)]
pub struct ConnectionsArguments {
    /// Pin path and output format.
    #[command(flatten)]
    pub show: ShowArguments,
    /// Only connections of this Service, or of one of its ports, by name or number
    #[arg(long, value_name = "NAMESPACE/NAME[:PORT]")]
    pub service: Option<ServiceFilter>,
    /// Only connections whose client or backend has this address
    #[arg(long, value_name = "ADDRESS")]
    pub pod: Option<IpAddr>,
    /// Only connections in this state; excludes translated sockets, which have no state
    #[arg(long, value_enum)]
    pub state: Option<ConnectionState>,
}

/// State of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// The backend has not answered, or the client has not acknowledged the answer.
    Opening,
    /// The client has acknowledged the backend's answer; for UDP, the backend has answered.
    Established,
    /// One side has sent FIN.
    Closing,
    /// Both sides have sent FIN, or one side has sent RST.
    Closed,
    /// Idle for longer than its lifetime: the next packet starts a new connection.
    Expired,
}

/// How the packets of a connection reach its backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum ConnectionKind {
    /// The programs rewrite them, and the node's network stack delivers them.
    Flow,
    /// The programs forward them to another node.
    Forwarded,
    /// The client is the chosen backend: the programs send them back.
    Hairpin,
    /// The socket was translated at `connect` and sends to the backend's address itself.
    Socket,
}

/// The client that opened a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Opener {
    /// An address and port.
    Address(SocketAddr),
    /// The cookie of a socket on this node. The programs do not know its address.
    Socket(u64),
}

/// A connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    service: String,
    service_id: ServiceId,
    protocol: Protocol,
    client: Opener,
    frontend: SocketAddr,
    backend: SocketAddr,
    backend_state: BackendState,
    /// The source that the backend sees, if it differs from the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SocketAddr>,
    /// Unknown for sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<ConnectionState>,
    /// Seconds since the last packet in either direction; unknown for sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_seconds: Option<u64>,
    kind: ConnectionKind,
}

/// Prints the connections.
pub fn run(arguments: &ConnectionsArguments) -> anyhow::Result<ExitCode> {
    privileges::require("connections", &privileges::MAPS)?;
    let pins = Pins::new(&arguments.show.pins.pin_path);
    let maps = LiveMaps::open(&pins.maps()).with_context(|| pins.no_agent_message())?;
    let clock = Clock::read().context("cannot read the clock")?;
    let ports = ServicePorts::read(&maps)?;
    let filter = Filter::new(arguments, &ports)?;
    let mut connections = collect(&maps, clock, &ports)?;
    connections.retain(|connection| filter.matches(connection));
    connections.sort();
    output::print(arguments.show.output, &connections, |rows| table(rows))?;
    Ok(ExitCode::SUCCESS)
}

/// Selects the connections to show.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Filter {
    services: Option<std::collections::BTreeSet<ServiceId>>,
    pod: Option<IpAddr>,
    state: Option<ConnectionState>,
}

impl Filter {
    fn new(arguments: &ConnectionsArguments, ports: &ServicePorts) -> anyhow::Result<Self> {
        let of_service = |wanted: &ServiceFilter| ports.require(wanted);
        Ok(Self {
            services: arguments.service.as_ref().map(of_service).transpose()?,
            pod: arguments.pod,
            state: arguments.state,
        })
    }

    fn matches(&self, connection: &Connection) -> bool {
        let is_pod = |pod: IpAddr| {
            connection.backend.ip() == pod
                || matches!(connection.client, Opener::Address(client) if client.ip() == pod)
        };
        let is_service = |services: &std::collections::BTreeSet<_>| services.contains(&connection.service_id);
        self.services.as_ref().is_none_or(is_service)
            && self.pod.is_none_or(is_pod)
            && self.state.is_none_or(|state| connection.state == Some(state))
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Expired => "expired",
        })
    }
}

impl fmt::Display for ConnectionKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Flow => "flow",
            Self::Forwarded => "forwarded",
            Self::Hairpin => "hairpin",
            Self::Socket => "socket",
        })
    }
}

impl fmt::Display for Opener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Socket(cookie) => write!(formatter, "socket {cookie}"),
        }
    }
}

impl Serialize for Opener {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn table(connections: &[Connection]) -> Table {
    let mut table = Table::new(&[
        "service", "protocol", "client", "frontend", "backend", "source", "state", "idle", "kind",
    ]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for connection in connections {
        let backend = match connection.backend_state {
            BackendState::Active => connection.backend.to_string(),
            state => format!("{} ({state})", connection.backend),
        };
        table.row([
            connection.service.clone(),
            connection.protocol.to_string(),
            connection.client.to_string(),
            connection.frontend.to_string(),
            backend,
            or_dash(connection.source.map(|source| source.to_string())),
            or_dash(connection.state.map(|state| state.to_string())),
            or_dash(connection.idle_seconds.map(|seconds| format!("{seconds} s"))),
            connection.kind.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(client: &str, state: ConnectionState) -> Connection {
        Connection {
            service: "default/web:http".to_owned(),
            service_id: 1,
            protocol: Protocol::Tcp,
            client: Opener::Address(client.parse().unwrap()),
            frontend: "10.96.0.10:80".parse().unwrap(),
            backend: "10.1.0.5:8080".parse().unwrap(),
            backend_state: BackendState::Draining,
            source: None,
            state: Some(state),
            idle_seconds: Some(3),
            kind: ConnectionKind::Flow,
        }
    }

    #[test]
    fn filters_select_by_pod_state_and_service() {
        let opening = connection("10.1.0.9:1000", ConnectionState::Opening);
        let is_shown = |filter: Filter| filter.matches(&opening);
        let pod = |text: &str| Filter {
            pod: Some(text.parse().unwrap()),
            ..Filter::default()
        };
        assert!(is_shown(Filter::default()));
        assert!(is_shown(pod("10.1.0.9")) && is_shown(pod("10.1.0.5")) && !is_shown(pod("10.96.0.10")));
        for (state, shown) in [(ConnectionState::Opening, true), (ConnectionState::Closed, false)] {
            let filter = Filter {
                state: Some(state),
                ..Filter::default()
            };
            assert_eq!(is_shown(filter), shown, "{state}");
        }
        for (service, shown) in [(1, true), (2, false)] {
            let filter = Filter {
                services: Some([service].into()),
                ..Filter::default()
            };
            assert_eq!(is_shown(filter), shown, "{service}");
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_connection() {
        let socket = Connection {
            client: Opener::Socket(77),
            state: None,
            idle_seconds: None,
            kind: ConnectionKind::Socket,
            backend_state: BackendState::Active,
            ..connection("10.1.0.9:1000", ConnectionState::Opening)
        };
        let text = table(&[connection("10.1.0.9:1000", ConnectionState::Opening), socket]).to_string();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1].join(" "),
            "default/web:http TCP 10.1.0.9:1000 10.96.0.10:80 10.1.0.5:8080 (draining) - opening 3 s flow"
        );
        assert_eq!(
            lines[2].join(" "),
            "default/web:http TCP socket 77 10.96.0.10:80 10.1.0.5:8080 - - - socket"
        );
    }

    #[test]
    fn json_output_omits_unknown_fields() {
        let shown = serde_json::to_value(connection("10.1.0.9:1000", ConnectionState::Opening)).unwrap();
        assert_eq!(shown["client"], "10.1.0.9:1000");
        assert_eq!(shown["idleSeconds"], 3);
        assert_eq!(shown["backendState"], "draining");
        assert!(shown.get("source").is_none(), "{shown}");
    }
}
