//! Flows of connections to Services that another proxy has translated before these programs were
//! attached. The programs let their packets pass, and the other proxy keeps translating them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use lb_common::layout::{Flow, FlowKey, Frontend, FrontendKey, flow_flags, flow_state, hook};
use lb_common::net::{Address4, Address6, Port};

use super::clock::Clock;
use super::live::{LiveFamily, LiveMaps};
use crate::maps::{MapError, Protocol};

/// A connection whose destination address was translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translated {
    /// Its protocol.
    pub protocol: Protocol,
    /// The client's address.
    pub client: SocketAddr,
    /// The frontend's address, to which the client sends.
    pub frontend: SocketAddr,
    /// The backend's address.
    pub backend: SocketAddr,
}

/// The key of a flow.
type Tuple = (Protocol, SocketAddr, SocketAddr);

/// The flows of translated connections.
pub struct PassingFlows {
    maps: LiveMaps,
    present: BTreeSet<Tuple>,
}

impl PassingFlows {
    /// Opens the maps pinned in `directory`.
    ///
    /// # Errors
    /// If a map is missing or of another kind.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        Ok(Self {
            maps: LiveMaps::open(directory)?,
            present: BTreeSet::new(),
        })
    }

    /// Finds the flows that an earlier agent has written, so that the next [`Self::set`] removes
    /// those of connections that are over. Reads all flows.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn recall(&mut self) -> Result<(), MapError> {
        let v4 = self.maps.ipv4().passing_flows()?;
        self.present.extend(v4.iter().filter_map(tuple_of));
        let v6 = self.maps.ipv6().passing_flows()?;
        self.present.extend(v6.iter().filter_map(tuple_of));
        Ok(())
    }

    /// Lets the packets of those connections pass that are to Services, and of no others. Returns
    /// the number of these connections.
    pub fn set(&mut self, connections: &[Translated], clock: Clock) -> Result<usize, MapError> {
        let mut serving = BTreeMap::new();
        let mut wanted = BTreeSet::new();
        for connection in connections {
            let is_written = match connection.frontend.ip() {
                IpAddr::V4(_) => self.write::<Address4>(connection, clock, &mut serving)?,
                IpAddr::V6(_) => self.write::<Address6>(connection, clock, &mut serving)?,
            };
            if is_written {
                wanted.insert((connection.protocol, connection.client, connection.frontend));
            }
        }
        for tuple in self.present.difference(&wanted) {
            match tuple.2.ip() {
                IpAddr::V4(_) => remove::<Address4>(&mut self.maps, *tuple)?,
                IpAddr::V6(_) => remove::<Address6>(&mut self.maps, *tuple)?,
            }
        }
        self.present = wanted;
        Ok(self.present.len())
    }

    /// Writes or refreshes the flows of a connection. Returns false if the connection is not to a
    /// Service, or if these programs already translate it.
    fn write<A: LiveFamily>(
        &mut self,
        connection: &Translated,
        clock: Clock,
        serving: &mut BTreeMap<SocketAddr, BTreeSet<SocketAddr>>,
    ) -> Result<bool, MapError> {
        let tuple = (connection.protocol, connection.client, connection.frontend);
        let Some(keys) = keys::<A>(tuple) else {
            return Ok(false);
        };
        let key = FrontendKey {
            address: keys[0].destination,
            port: keys[0].destination_port,
            protocol: keys[0].protocol,
            pad: 0,
        };
        let Some(frontend) = A::rows(&self.maps).frontend(&key)? else {
            return Ok(false);
        };
        // Only the other proxy can redirect datagrams away from a removed Pod, and it may no longer
        // run.
        if connection.protocol == Protocol::Udp {
            let backends = match serving.entry(connection.frontend) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(backends::<A>(&self.maps, &frontend)?),
            };
            if !backends.contains(&connection.backend) {
                return Ok(false);
            }
        }
        let mut is_written = false;
        for key in &keys {
            let present = A::rows(&self.maps).flow(key)?;
            if present.is_none_or(|flow| flow.flags & flow_flags::PASS != 0) {
                A::rows_mut(&mut self.maps)
                    .set_flow(key, &flow(key, frontend.service, clock.passed_ticks()))?;
                is_written = true;
            }
        }
        Ok(is_written)
    }
}

/// The addresses of a frontend's backends.
fn backends<A: LiveFamily>(maps: &LiveMaps, frontend: &Frontend) -> Result<BTreeSet<SocketAddr>, MapError> {
    let mut found = BTreeSet::new();
    for region in [frontend.cluster, frontend.local] {
        for slot in maps.slots(region)? {
            if let Some(backend) = A::rows(maps).backend(slot.backend)? {
                found.insert(SocketAddr::new(backend.address.into(), backend.port.get()));
            }
        }
    }
    Ok(found)
}

/// The keys of the hooks where packets of a connection may enter.
fn keys<A: LiveFamily>((protocol, client, frontend): Tuple) -> Option<[FlowKey<A>; 2]> {
    let (source, destination) = (A::of(client.ip())?, A::of(frontend.ip())?);
    Some([hook::INGRESS_INSIDE, hook::INGRESS_OUTSIDE].map(|hook| FlowKey {
        source,
        destination,
        source_port: Port::new(client.port()),
        destination_port: Port::new(frontend.port()),
        protocol: protocol.number(),
        hook,
        pad: 0,
    }))
}

fn tuple_of<A: LiveFamily>(key: &FlowKey<A>) -> Option<Tuple> {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = protocols
        .into_iter()
        .find(|protocol| protocol.number() == key.protocol)?;
    let end = |address: A, port: Port| SocketAddr::new(address.into(), port.get());
    Some((
        protocol,
        end(key.source, key.source_port),
        end(key.destination, key.destination_port),
    ))
}

/// The flow of an established connection. It gets the same idle time as other established
/// connections.
fn flow<A: LiveFamily>(key: &FlowKey<A>, service: u32, now: u32) -> Flow<A> {
    let mut flow = Flow {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        service,
        backend: 0,
        generation: 0,
        last_seen: now,
        acknowledged: 0,
        state: flow_state::ANSWERED | flow_state::CONFIRMED,
        flags: flow_flags::PASS | flow_flags::REPLY,
        difference: 0,
    };
    flow.set_peer_hook(hook::EGRESS);
    flow
}

/// Removes the flows of a connection, unless these programs translate it now.
fn remove<A: LiveFamily>(maps: &mut LiveMaps, tuple: Tuple) -> Result<(), MapError> {
    for key in keys::<A>(tuple).into_iter().flatten() {
        let present = A::rows(maps).flow(&key)?;
        if present.is_some_and(|flow| flow.flags & flow_flags::PASS != 0) {
            A::rows_mut(maps).remove_flow(&key)?;
        }
    }
    Ok(())
}
