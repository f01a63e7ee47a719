//! Builds the list of connections from the rows of the maps.

use std::collections::BTreeMap;

use lb_common::layout::{
    Backend, BackendId, Flow, FlowKey, Socket, SocketKey, cookie, flow_flags, flow_state, socket_names,
};
use lb_common::net::protocol;
use lb_common::settings::LoadedSettings;

use super::{Connection, ConnectionKind, ConnectionState, Opener};
use crate::datapath::clock::Clock;
use crate::datapath::convert::backend_state_of;
use crate::datapath::live::{LiveFamily, LiveMaps};
use crate::inspect::{ServicePorts, end};
use crate::maps::{BackendState, MapError, Protocol};

/// The rows of one IP version.
struct Rows<'a, A> {
    flows: &'a BTreeMap<FlowKey<A>, Flow<A>>,
    sockets: &'a BTreeMap<SocketKey<A>, Socket<A>>,
    /// The backends that flows and sockets name.
    backends: BTreeMap<BackendId, Backend<A>>,
    ports: &'a ServicePorts,
    clock: Clock,
    settings: &'a LoadedSettings,
}

/// Reads the connections of both IP versions.
pub(super) fn collect(
    maps: &LiveMaps,
    clock: Clock,
    ports: &ServicePorts,
) -> Result<Vec<Connection>, MapError> {
    let mut connections = of_family::<lb_common::net::Address4>(maps, clock, ports)?;
    connections.extend(of_family::<lb_common::net::Address6>(maps, clock, ports)?);
    Ok(connections)
}

fn of_family<A: LiveFamily>(
    maps: &LiveMaps,
    clock: Clock,
    ports: &ServicePorts,
) -> Result<Vec<Connection>, MapError> {
    let rows = A::rows(maps);
    let (flows, sockets) = (rows.flows()?, rows.sockets()?);
    let named = flows.values().map(|flow| flow.backend);
    let named = named.chain(sockets.values().map(|socket| socket.backend));
    let mut backends = BTreeMap::new();
    for id in named {
        if let std::collections::btree_map::Entry::Vacant(entry) = backends.entry(id)
            && let Some(row) = rows.backend(id)?
        {
            entry.insert(row);
        }
    }
    let rows = Rows {
        flows: &flows,
        sockets: &sockets,
        backends,
        ports,
        clock,
        settings: maps.settings(),
    };
    Ok(rows.connections())
}

impl<A: LiveFamily> Rows<'_, A> {
    fn connections(&self) -> Vec<Connection> {
        // Flows that pass unchanged belong to no Service.
        let is_request = |flow: &Flow<A>| flow.flags & (flow_flags::REPLY | flow_flags::PASS) == 0;
        let requests = self.flows.iter().filter(|(_, flow)| is_request(flow));
        let flows = requests.filter_map(|(key, flow)| self.flow(key, flow));
        let sockets = self.sockets.iter().filter_map(|(key, row)| self.socket(key, row));
        flows.chain(sockets).collect()
    }

    fn flow(&self, key: &FlowKey<A>, flow: &Flow<A>) -> Option<Connection> {
        let client = end(key.source, key.source_port);
        let source = end(flow.source, flow.source_port);
        let reply = self
            .flows
            .get(&flow.peer_key(key.protocol))
            .filter(|reply| reply.is_reply() && reply.answers(key));
        let idle = |flow: &Flow<A>| self.clock.seconds_since_tick(flow.last_seen);
        let idle_seconds = reply.map_or(u64::MAX, idle).min(idle(flow));
        Some(Connection {
            service: self.ports.name(flow.service),
            service_id: flow.service,
            protocol: protocol_of(key.protocol)?,
            client: Opener::Address(client),
            frontend: end(key.destination, key.destination_port),
            backend: end(flow.destination, flow.destination_port),
            backend_state: self.backend_state(flow.backend, flow.generation),
            source: (source != client).then_some(source),
            state: Some(self.state(key.protocol, flow, reply)),
            idle_seconds: Some(idle_seconds),
            kind: kind(flow.flags),
        })
    }

    /// The state as the programs see it: a connection expires only when both directions are idle.
    fn state(&self, protocol: u8, flow: &Flow<A>, reply: Option<&Flow<A>>) -> ConnectionState {
        let now = self.clock.ticks();
        let is_idle = |flow: &Flow<A>| {
            let last_seen = self.clock.past_tick(flow.last_seen);
            Flow { last_seen, ..*flow }.is_expired(protocol, now, |protocol, state| {
                self.settings.lifetime(protocol, state)
            })
        };
        if is_idle(flow) && reply.is_none_or(is_idle) {
            return ConnectionState::Expired;
        }
        if flow.is_closed() {
            return ConnectionState::Closed;
        }
        let is = |bits| flow.state & bits != 0;
        let established = match protocol {
            protocol::UDP => flow_state::ANSWERED,
            _ => flow_state::CONFIRMED,
        };
        if is(flow_state::FIN_REQUEST | flow_state::FIN_REPLY) {
            ConnectionState::Closing
        } else if is(established) {
            ConnectionState::Established
        } else {
            ConnectionState::Opening
        }
    }

    /// The connection of a socket's row. A socket has a row for its backend's address, which names
    /// the frontend. A UDP socket has two more: for the frontend's address and for the unspecified
    /// address. Returns `None` for those two, and for rows without a backend.
    fn socket(&self, key: &SocketKey<A>, row: &Socket<A>) -> Option<Connection> {
        if key.address.is_unspecified() || row.names != socket_names::FRONTEND || row.backend == 0 {
            return None;
        }
        Some(Connection {
            service: self.ports.name(row.service),
            service_id: row.service,
            protocol: protocol_of(key.protocol)?,
            client: Opener::Socket(cookie(key.cookie)),
            frontend: end(row.address, row.port),
            backend: end(key.address, key.port),
            backend_state: self.backend_state(row.backend, row.generation),
            source: None,
            state: None,
            idle_seconds: None,
            kind: ConnectionKind::Socket,
        })
    }

    fn backend_state(&self, id: BackendId, generation: u32) -> BackendState {
        match self.backends.get(&id) {
            Some(row) if row.generation == generation => backend_state_of(row.state),
            _ => BackendState::Gone,
        }
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    Some(match number {
        protocol::TCP => Protocol::Tcp,
        protocol::UDP => Protocol::Udp,
        protocol::SCTP => Protocol::Sctp,
        _ => return None,
    })
}

fn kind(flags: u8) -> ConnectionKind {
    if flags & flow_flags::FORWARD != 0 {
        ConnectionKind::Forwarded
    } else if flags & flow_flags::HAIRPIN != 0 {
        ConnectionKind::Hairpin
    } else {
        ConnectionKind::Flow
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lb_common::layout::{backend_state, hook};
    use lb_common::net::{Address4, Port};

    use super::*;

    const NOW: u32 = 1_000_000;

    fn address(last: u8) -> Address4 {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn key() -> FlowKey<Address4> {
        FlowKey {
            source: address(50),
            destination: address(1),
            source_port: Port::new(4000),
            destination_port: Port::new(80),
            protocol: protocol::TCP,
            hook: hook::INGRESS_INSIDE,
            pad: 0,
        }
    }

    fn request(state: u8, flags: u8, seen: u32) -> Flow<Address4> {
        Flow {
            source: address(50),
            destination: address(11),
            source_port: Port::new(4000),
            destination_port: Port::new(8080),
            service: 5,
            backend: 1,
            generation: 3,
            last_seen: seen,
            acknowledged: 0,
            state,
            flags: flags | hook::EGRESS << flow_flags::PEER_HOOK_SHIFT,
            difference: 0,
        }
    }

    /// A flow and its reply flow, which was last seen at `replied`.
    fn with_reply(flow: Flow<Address4>, replied: u32) -> BTreeMap<FlowKey<Address4>, Flow<Address4>> {
        let reply = Flow {
            source: address(1),
            destination: address(50),
            source_port: Port::new(80),
            destination_port: Port::new(4000),
            last_seen: replied,
            flags: flow.flags | flow_flags::REPLY,
            ..flow
        };
        [(key(), flow), (flow.peer_key(protocol::TCP), reply)].into()
    }

    fn backend(state: u8, generation: u32) -> Backend<Address4> {
        Backend {
            address: address(11),
            port: Port::new(8080),
            state,
            flags: 0,
            generation,
            service: 5,
        }
    }

    #[derive(Default)]
    struct Case {
        flows: BTreeMap<FlowKey<Address4>, Flow<Address4>>,
        sockets: BTreeMap<SocketKey<Address4>, Socket<Address4>>,
        backends: BTreeMap<BackendId, Backend<Address4>>,
    }

    impl Case {
        fn connections(&self) -> Vec<Connection> {
            let rows = Rows {
                flows: &self.flows,
                sockets: &self.sockets,
                backends: self.backends.clone(),
                ports: &ServicePorts::default(),
                clock: Clock {
                    jiffies: u64::from(NOW) << 8,
                    jiffies_per_second: 256,
                },
                settings: &LoadedSettings::DEFAULT,
            };
            rows.connections()
        }
    }

    #[test]
    fn flow_bits_and_age_determine_the_state() {
        let both = flow_state::FIN_REQUEST | flow_state::FIN_REPLY;
        let open = flow_state::ANSWERED | flow_state::CONFIRMED;
        for (bits, seen, expected) in [
            (0, NOW, ConnectionState::Opening),
            (flow_state::ANSWERED, NOW, ConnectionState::Opening),
            (open, NOW, ConnectionState::Established),
            (open | flow_state::FIN_REPLY, NOW, ConnectionState::Closing),
            (open | both, NOW, ConnectionState::Closed),
            (flow_state::RESET, NOW, ConnectionState::Closed),
            (flow_state::RESET, NOW - 11, ConnectionState::Expired),
            (0, NOW - 61, ConnectionState::Expired),
            (0, NOW - 60, ConnectionState::Opening),
            // The kernel's clock may be slightly ahead.
            (0, NOW + 1, ConnectionState::Opening),
        ] {
            let case = Case {
                flows: with_reply(request(bits, 0, seen), seen),
                ..Case::default()
            };
            let connections = case.connections();
            assert_eq!(connections.len(), 1, "{connections:?}");
            assert_eq!(connections[0].state, Some(expected), "{bits} {seen}");
        }
    }

    #[test]
    fn packets_of_the_reply_keep_a_connection_alive() {
        let case = Case {
            flows: with_reply(request(0, 0, NOW - 100), NOW - 3),
            ..Case::default()
        };
        let connection = &case.connections()[0];
        assert_eq!(
            (connection.idle_seconds, connection.state),
            (Some(3), Some(ConnectionState::Opening))
        );
    }

    #[test]
    fn connections_show_their_kind_and_source() {
        for (flags, expected) in [
            (0, ConnectionKind::Flow),
            (flow_flags::HAIRPIN, ConnectionKind::Hairpin),
            (flow_flags::FORWARD, ConnectionKind::Forwarded),
        ] {
            let mut flow = request(0, flags, NOW);
            flow.source_port = Port::new(61_000);
            let case = Case {
                flows: with_reply(flow, NOW),
                ..Case::default()
            };
            let connection = &case.connections()[0];
            assert_eq!(connection.kind, expected);
            assert_eq!(connection.source, Some("10.0.0.50:61000".parse().unwrap()));
        }
    }

    #[test]
    fn a_backend_of_another_generation_is_gone() {
        for (row, expected) in [
            (Some(backend(backend_state::ACTIVE, 3)), BackendState::Active),
            (Some(backend(backend_state::DRAINING, 3)), BackendState::Draining),
            (Some(backend(backend_state::ABSENT, 3)), BackendState::Absent),
            (Some(backend(backend_state::ACTIVE, 4)), BackendState::Gone),
            (None, BackendState::Gone),
        ] {
            let case = Case {
                flows: with_reply(request(0, 0, NOW), NOW),
                backends: row.map(|row| (1, row)).into_iter().collect(),
                ..Case::default()
            };
            assert_eq!(case.connections()[0].backend_state, expected);
        }
    }

    #[test]
    fn an_unconnected_socket_is_shown_once() {
        let (frontend, pod) = ((address(1), Port::new(53)), (address(11), Port::new(8080)));
        let row = |known_by: (Address4, Port), other: (Address4, Port), names| {
            let key = SocketKey {
                cookie: [7, 1],
                address: known_by.0,
                port: known_by.1,
                protocol: protocol::UDP,
                pad: 0,
            };
            let socket = Socket {
                address: other.0,
                port: other.1,
                names,
                service: 5,
                backend: 1,
                generation: 3,
            };
            (key, socket)
        };
        let case = Case {
            sockets: [
                row(pod, frontend, socket_names::FRONTEND),
                row(frontend, pod, socket_names::BACKEND),
            ]
            .into(),
            backends: [(1, backend(backend_state::ACTIVE, 3))].into(),
            ..Case::default()
        };
        let connections = case.connections();
        assert_eq!(connections.len(), 1, "{connections:?}");
        assert_eq!(connections[0].client, Opener::Socket(7 + (1 << 32)));
        assert_eq!(connections[0].frontend, "10.0.0.1:53".parse().unwrap());
        assert_eq!(connections[0].backend, "10.0.0.11:8080".parse().unwrap());
        assert_eq!(connections[0].state, None);
    }
}
