//! The stages of the decision as steps of the explanation.

use std::collections::BTreeMap;

use lb_common::choose::{ENDED, Origin, affinity_backend, find_frontend, is_local_only, region};
use lb_common::connection::{backend_lives, is_idle};
use lb_common::layout::{
    AffinityKey, Backend, BackendId, Flow, FlowKey, Frontend, FrontendKey, Region, backend_state, flow_flags,
    flow_state, frontend_flags,
};
use lb_common::net::{Port, protocol};
use lb_common::tables::Tables as _;

use super::explanation::{Candidate, Explanation, Stage};
use super::programs::call;
use super::question::{From, PacketProtocol};
use super::tables::Recorder;
use crate::datapath::convert::backend_state_of;
use crate::datapath::live::LiveFamily;
use crate::inspect::{ServicePorts, end};
use crate::maps::MapError;

/// Number of slots of each backend.
type Counts = BTreeMap<u32, u32>;

/// Runs the stages and records their results.
pub(super) struct Stages<'a, 'b, A: LiveFamily> {
    pub(super) tables: &'a Recorder<'b, A>,
    pub(super) ports: &'a ServicePorts,
    pub(super) key: FlowKey<A>,
    pub(super) from: From,
    pub(super) explanation: &'a mut Explanation,
}

impl<A: LiveFamily> Stages<'_, '_, A> {
    fn add_stage(&mut self, step: &'static str, finding: impl Into<String>) {
        let finding = finding.into();
        self.explanation.steps.push(Stage { step, finding });
    }

    /// Notes that sockets of Pods are translated when they connect, before there is a packet.
    pub(super) fn note_sockets(&mut self) {
        if self.tables.maps().settings().only_node_sockets == 0 {
            self.add_stage(
                "socket",
                "sockets of Pods are translated when they connect; the following steps are for packets that are not",
            );
        }
    }

    /// Runs the stages for a packet at a device. Returns true if it is the first packet of its
    /// connection.
    pub(super) fn packet_stages(&mut self, packet: PacketProtocol) -> Result<bool, MapError> {
        if !self.tables.may_be_destination(self.key.destination) {
            let address: std::net::IpAddr = self.key.destination.into();
            self.add_stage("filter", format!("no frontend has the address {address}"));
            return Ok(true);
        }
        if packet == PacketProtocol::Icmp {
            self.echo();
            return Ok(true);
        }
        let (is_first, goes_on) = self.flow();
        if !goes_on {
            let origin = self.from.origin();
            if let Some(frontend) = self.frontend() {
                let is_refused = frontend.source_ranges != 0
                    && !self.source_ranges(frontend.source_ranges, self.key.source);
                if !is_refused {
                    let affinity = AffinityKey {
                        client: self.key.source,
                        namespace: [0; 2],
                        service: frontend.service,
                    };
                    self.choice(&frontend, origin, &affinity)?;
                }
            }
        }
        Ok(is_first)
    }

    /// Runs the stages for a process on the node that connects. Returns true if the socket programs
    /// decide.
    pub(super) fn socket_stages(&mut self, packet: PacketProtocol, attached: bool) -> Result<bool, MapError> {
        if !matches!(packet, PacketProtocol::Tcp | PacketProtocol::Udp) {
            self.add_stage("socket", "only TCP and UDP sockets are translated");
            return Ok(false);
        }
        if !attached {
            self.add_stage(
                "socket",
                "no socket programs are attached (`--socket-lb=off`, or no agent has run)",
            );
            return Ok(false);
        }
        let Some(frontend) = self.frontend() else {
            return Ok(true);
        };
        if frontend.source_ranges != 0 {
            let is_allowed = frontend.flags & frontend_flags::NODE_ALLOWED != 0;
            let finding = if is_allowed {
                "an address of this node is in loadBalancerSourceRanges"
            } else {
                "no address of this node is in loadBalancerSourceRanges"
            };
            self.add_stage("source ranges", finding);
            if !is_allowed {
                return Ok(true);
            }
        }
        let call = call(self.tables.maps(), &self.key);
        let affinity = AffinityKey {
            client: A::default(),
            namespace: lb_common::layout::halves(call.namespace),
            service: frontend.service,
        };
        self.choice(&frontend, Origin::Inside, &affinity)?;
        Ok(true)
    }

    /// Returns whether the packet is the first of a connection, and whether it continues an open
    /// one.
    fn flow(&mut self) -> (bool, bool) {
        let Some(flow) = self.tables.flow(&self.key).map(|entry| entry.get()) else {
            self.add_stage("flow", "none: a new connection");
            return (true, false);
        };
        let (is_first, goes_on, finding) = self.known(&flow);
        // Flows of the node's own datagrams have service id 0.
        if flow.service != 0 {
            self.explanation.service = Some(self.ports.name(flow.service));
        }
        self.add_stage("flow", finding);
        (is_first, goes_on)
    }

    fn known(&self, flow: &Flow<A>) -> (bool, bool, String) {
        let backend = end(flow.destination, flow.destination_port);
        if is_idle(self.tables, &self.key, flow, self.tables.now()) {
            let has_numbers = self.key.protocol != protocol::UDP && flow.state & flow_state::CONFIRMED != 0;
            let finding = if has_numbers && !flow.is_reply() {
                format!("idle for too long: a SYN or INIT opens a new one, others continue with {backend}")
            } else {
                "idle for too long: a new connection".to_owned()
            };
            return (true, false, finding);
        }
        if flow.flags & flow_flags::PASS != 0 {
            let owner = match flow.service {
                0 => "the node's own datagrams use the port",
                _ => "another service proxy opened the connection",
            };
            return (false, true, format!("{owner}: the packet passes"));
        }
        if flow.state & flow_state::CLASH != 0 {
            let finding = "the client has a direct connection to the backend from the same port: a SYN opens a new connection";
            return (true, false, finding.to_owned());
        }
        if flow.is_closed() {
            return (true, false, "closed: a new connection replaces it".to_owned());
        }
        if flow.is_reply() {
            return (false, true, format!("a reply to {backend}"));
        }
        if backend_lives(self.tables, self.key.protocol, flow) {
            return (false, true, format!("an open connection with {backend}"));
        }
        let is_tcp = self.key.protocol == protocol::TCP;
        let is_absent =
            |row: &Backend<A>| row.state == backend_state::ABSENT && row.generation == flow.generation;
        if self
            .tables
            .backend(flow.backend)
            .is_some_and(|row| is_absent(&row))
        {
            return (
                false,
                false,
                format!("backend {backend} is absent and has not answered"),
            );
        }
        let finding = format!("an open connection with {backend}, which is gone");
        if is_tcp && self.tables.settings().keeps_removed != 0 {
            return (
                false,
                true,
                format!("{finding}; it continues (`--on-removed-backend=forward`)"),
            );
        }
        (false, is_tcp, finding)
    }

    /// Looks up the frontend row of the destination. `None` if no Service uses it.
    fn frontend(&mut self) -> Option<Frontend> {
        let key = self.key;
        let row = find_frontend(self.tables, key.destination, key.destination_port, key.protocol);
        let to = end(key.destination, key.destination_port);
        match row {
            None => self.add_stage("frontend", format!("no frontend has the address {}", to.ip())),
            Some(row) if row.flags & frontend_flags::WILDCARD != 0 => {
                let then = if row.flags & frontend_flags::PASS_UNKNOWN == 0 {
                    "only Services use the address"
                } else {
                    "the node uses the address, too"
                };
                let finding = format!("no Service uses port {} of {}; {then}", to.port(), to.ip());
                self.add_stage("frontend", finding);
            }
            Some(row) => {
                let name = self.ports.name(row.service);
                self.add_stage("frontend", format!("{to} of {name}"));
                self.explanation.service = Some(name);
                return Some(row);
            }
        }
        None
    }

    fn source_ranges(&mut self, set: u32, client: A) -> bool {
        let is_allowed = self.tables.allows(set, client);
        let address: std::net::IpAddr = client.into();
        let finding = if is_allowed {
            format!("{address} is in loadBalancerSourceRanges")
        } else {
            format!("{address} is not in loadBalancerSourceRanges")
        };
        self.add_stage("source ranges", finding);
        is_allowed
    }

    /// Runs the stages for an ICMP echo request.
    fn echo(&mut self) {
        let wildcard = FrontendKey {
            address: self.key.destination,
            port: Port::default(),
            protocol: 0,
            pad: 0,
        };
        let address: std::net::IpAddr = self.key.destination.into();
        let Some(row) = self.tables.frontend(&wildcard) else {
            self.add_stage("frontend", format!("{address} is not a VIP"));
            return;
        };
        if row.flags & frontend_flags::ECHO == 0 {
            self.add_stage("frontend", format!("{address} does not answer pings: no Service of this address has endpoints, or the node itself answers"));
            return;
        }
        self.add_stage("frontend", format!("{address} is a VIP that answers pings"));
        if row.source_ranges != 0 {
            self.source_ranges(row.source_ranges, self.key.source);
        }
    }

    /// Records which backends are eligible, and how one of them is chosen.
    fn choice(
        &mut self,
        frontend: &Frontend,
        origin: Origin,
        affinity: &AffinityKey<A>,
    ) -> Result<(), MapError> {
        let which = policy(frontend, origin);
        let region = match region(frontend, origin) {
            Ok(region) => region,
            Err(_) => {
                self.add_stage("traffic policy", format!("{which}, but there is none"));
                return Ok(());
            }
        };
        self.add_stage("traffic policy", which);
        self.candidates(region)?;
        self.affinity(frontend, origin, affinity);
        Ok(())
    }

    fn affinity(&mut self, frontend: &Frontend, origin: Origin, affinity: &AffinityKey<A>) {
        let from_node = self.from == From::Node;
        if frontend.affinity_seconds == 0 {
            self.explanation.by_chance = origin == Origin::Inside && self.explanation.backends.len() > 1;
            let how = match origin {
                Origin::Inside => "at random",
                Origin::Outside => "by the hash of addresses and ports",
            };
            self.add_stage("choice", how);
            return;
        }
        let id: BackendId = affinity_backend(self.tables, affinity, frontend, origin);
        if let Some(backend) = self.tables.backend(id).filter(|_| id != 0 && id != ENDED) {
            let to = end(backend.address, backend.port);
            self.add_stage("affinity", format!("the client stays with {to}"));
            return;
        }
        let has_ended = id == ENDED;
        let by_chance = from_node || has_ended;
        self.explanation.by_chance = by_chance && self.explanation.backends.len() > 1;
        let what = if has_ended {
            "the client's affinity has ended"
        } else {
            "the client has no usable backend yet"
        };
        let how = if by_chance {
            "chosen at random"
        } else {
            "chosen by the hash of its address"
        };
        self.add_stage("affinity", format!("{what}: {how}"));
    }

    fn candidates(&mut self, region: Region) -> Result<(), MapError> {
        let mut counts = Counts::new();
        for slot in self.tables.maps().slots(region)? {
            *counts.entry(slot.backend).or_default() += 1;
        }
        for (id, count) in counts {
            if let Some(backend) = self.tables.backend(id) {
                self.explanation.backends.push(Candidate {
                    address: end(backend.address, backend.port),
                    state: backend_state_of(backend.state),
                    local: backend.flags & lb_common::layout::backend_flags::LOCAL != 0,
                    share: f64::from(count) / f64::from(region.length.max(1)),
                });
            }
        }
        self.explanation
            .backends
            .sort_by_key(|candidate| candidate.address);
        Ok(())
    }
}

/// Describes which backends clients of an origin may use.
fn policy(frontend: &Frontend, origin: Origin) -> &'static str {
    match (origin, is_local_only(frontend, origin)) {
        (Origin::Inside, false) => "clients inside use backends of all nodes",
        (Origin::Inside, true) => "clients inside use backends of this node (internalTrafficPolicy: Local)",
        (Origin::Outside, false) => "clients outside use backends of all nodes",
        (Origin::Outside, true) => "clients outside use backends of this node (externalTrafficPolicy: Local)",
    }
}
