//! Packet tests: the kernel programs run on one packet at a time (`BPF_PROG_TEST_RUN`).

pub mod build;
pub mod world;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use aya::programs::{Program, ProgramError, TestRun as _, TestRunOptions};
use aya::{Ebpf, Pod};
use lb_agent::datapath::maps::{Counters, KernelMaps};
use lb_agent::datapath::object::{self, Settings};
use lb_agent::maps::{Backend, BackendState, Capacity, FrontendKey, MapOp, Maps as _, Protocol};
use lb_common::layout::{Address4, Address6, Flow, FlowKey, Frontend, Region, ServiceStats, Slot, map};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;

use crate::lab::PinDirectory;

/// The programs with maps of their own.
pub struct Datapath {
    ebpf: Ebpf,
    /// The maps that hold Services.
    pub maps: KernelMaps,
    /// The counters.
    pub counters: Counters,
    backends: BTreeMap<u32, Backend>,
    pins: PinDirectory,
}

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What the program returned.
    pub action: u32,
    /// The packet after the program.
    pub bytes: Vec<u8>,
    /// Time of one run.
    pub duration: Duration,
}

/// The node's addresses in packet tests: they replace the client's in hairpin connections.
pub const NODE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// See [`NODE4`].
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The programs with small tables, or `None` where the kernel would not let this process load them.
pub fn datapath() -> Option<Datapath> {
    privileged().then(|| Datapath::new(1024))
}

/// As [`datapath`], on a node that has no addresses.
pub fn datapath_without_address() -> Option<Datapath> {
    privileged().then(|| Datapath::with_addresses(1024, None, None))
}

fn privileged() -> bool {
    let privileged = nix::unistd::geteuid().is_root();
    if !privileged {
        println!("skipped: needs root (CAP_BPF)");
    }
    privileged
}

impl Datapath {
    /// Loads the programs; flow tables have `flows` entries.
    pub fn new(flows: u32) -> Self {
        Self::with_addresses(flows, Some(NODE4), Some(NODE6))
    }

    fn with_addresses(flows: u32, node_address4: Option<Ipv4Addr>, node_address6: Option<Ipv6Addr>) -> Self {
        // Before anything can fail: pinned maps of a dead test keep their memory.
        let pins = PinDirectory::new("packets").expect("a bpf file system");
        let directory = pins.path();
        let settings = Settings {
            node_address4,
            node_address6,
            capacity: Capacity {
                frontends: 16_384,
                slots: 65_536,
                backends: 65_536,
                services: 16_384,
                source_ranges: 16_384,
            },
            flows,
            ..Settings::default()
        };
        let ebpf = object::load(&settings, directory).expect("the programs load");
        let maps = KernelMaps::open(directory).expect("the maps are pinned");
        let counters = Counters::open(directory).expect("the counters are pinned");
        Self {
            ebpf,
            maps,
            counters,
            backends: BTreeMap::new(),
            pins,
        }
    }

    /// Writes a Service: its frontend rows and one backend row for each address.
    ///
    /// Ids follow from `service`: backends and slots have the numbers from `service * 100` on.
    pub fn service(&mut self, service: u32, keys: &[FrontendKey], backends: &[(IpAddr, u16)]) {
        let base = service * 100;
        let mut slots = Vec::new();
        for (id, (address, port)) in (base..).zip(backends) {
            let backend = Backend {
                address: *address,
                port: *port,
                state: BackendState::Active,
                local: true,
                in_cluster: true,
                in_local: true,
                generation: 1,
                service,
            };
            self.set_backend(id, backend);
            slots.push(Slot {
                backend: id,
                generation: 1,
            });
        }
        let length = u32::try_from(slots.len()).expect("few backends");
        self.apply(&MapOp::SetSlots { base, slots });
        let region = Region { base, length };
        for key in keys {
            let value = Frontend {
                service,
                cluster: region,
                local: region,
                ..Frontend::default()
            };
            self.apply(&MapOp::SetFrontend { key: *key, value });
        }
    }

    fn set_backend(&mut self, id: u32, backend: Backend) {
        self.backends.insert(id, backend);
        self.apply(&MapOp::SetBackend { id, backend });
    }

    /// Gives a backend row another state.
    pub fn set_state(&mut self, id: u32, state: BackendState) {
        let backend = self.backends[&id];
        self.set_backend(id, Backend { state, ..backend });
    }

    /// Gives a backend row to another endpoint, leaving the slots behind.
    pub fn replace(&mut self, id: u32, address: IpAddr) {
        let backend = self.backends[&id];
        let generation = backend.generation + 1;
        self.set_backend(
            id,
            Backend {
                address,
                generation,
                ..backend
            },
        );
    }

    /// Lets the slots from `base` on name these backend rows.
    pub fn set_slots(&mut self, base: u32, ids: &[u32]) {
        let slots = ids.iter().map(|id| Slot {
            backend: *id,
            generation: self.backends[id].generation,
        });
        let slots = slots.collect();
        self.apply(&MapOp::SetSlots { base, slots });
    }

    /// Where the maps are pinned.
    pub fn directory(&self) -> &Path {
        self.pins.path()
    }

    /// The flow table of IPv4.
    pub fn flows4(&self) -> HashMap<MapData, FlowKey<Address4>, Flow<Address4>> {
        self.flows(map::FLOWS4)
    }

    /// The flow table of IPv6.
    pub fn flows6(&self) -> HashMap<MapData, FlowKey<Address6>, Flow<Address6>> {
        self.flows(map::FLOWS6)
    }

    fn flows<K: Pod, V: Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        let map = MapData::from_pin(self.pins.path().join(name)).and_then(Map::from_map_data);
        HashMap::try_from(map.expect("the map is pinned")).expect("a hash map")
    }

    /// The number of flow entries of both families.
    pub fn flow_count(&self) -> usize {
        self.flows4().keys().count() + self.flows6().keys().count()
    }

    /// Makes all flows look as if they had been seen that many ticks earlier.
    pub fn age(&self, ticks: u32) {
        self.age_if(ticks, |_, _| true);
    }

    /// Makes the flows between some sources and destinations look as if they had been seen that many ticks earlier.
    pub fn age_if(&self, ticks: u32, which: impl Fn(SocketAddr, SocketAddr) -> bool) {
        age(self.flows4(), ticks, &which);
        age(self.flows6(), ticks, &which);
    }

    /// How often a reason was counted.
    pub fn reason(&self, reason: Reason) -> u64 {
        self.counters.reason(reason).expect("a counter")
    }

    /// All reasons that were counted.
    pub fn reasons(&self) -> Vec<(Reason, u64)> {
        let counted = Reason::ALL.map(|reason| (reason, self.reason(reason)));
        counted.into_iter().filter(|(_, count)| *count != 0).collect()
    }

    /// The counters of a Service: connections and rejected packets.
    pub fn stats(&self, service: u32) -> (u64, u64) {
        let ServiceStats {
            connections,
            rejected,
        } = self.counters.service(service).expect("counters");
        (connections, rejected)
    }

    /// Executes a map operation.
    pub fn apply(&mut self, operation: &MapOp) {
        self.maps.apply(operation).expect("the map takes it");
    }

    /// Runs a program on a packet.
    pub fn run(&mut self, program: &str, packet: &[u8]) -> Outcome {
        self.repeat(program, packet, 1)
    }

    /// Runs a program on a packet and reads its action as a verdict; panics for an action that means none.
    pub fn verdict(&mut self, program: &str, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let outcome = self.run(program, packet);
        let verdict = match (program, outcome.action) {
            // linux/bpf.h: XDP_DROP, XDP_PASS, XDP_TX.
            ("lb_xdp", 1) => Verdict::Drop,
            ("lb_xdp", 2) => Verdict::Pass,
            ("lb_xdp", 3) => Verdict::Bounce,
            // linux/pkt_cls.h: TC_ACT_UNSPEC (-1), TC_ACT_SHOT, TC_ACT_REDIRECT.
            (_, u32::MAX) => Verdict::Pass,
            (_, 2) => Verdict::Drop,
            (_, 7) => Verdict::Bounce,
            (_, action) => panic!("{program} returned {action}: {:02x?}", outcome.bytes),
        };
        (verdict, outcome.bytes)
    }

    /// Runs a program on a packet that it passes; returns the packet after it.
    pub fn pass(&mut self, program: &str, packet: &[u8]) -> Vec<u8> {
        let (verdict, bytes) = self.verdict(program, packet);
        assert_eq!(verdict, Verdict::Pass, "{program}: {packet:02x?} -> {bytes:02x?}");
        bytes
    }

    /// Runs a program on a packet that it sends back; returns the packet after it.
    pub fn bounce(&mut self, program: &str, packet: &[u8]) -> Vec<u8> {
        let (verdict, bytes) = self.verdict(program, packet);
        assert_eq!(
            verdict,
            Verdict::Bounce,
            "{program}: {packet:02x?} -> {bytes:02x?}"
        );
        bytes
    }

    /// Runs a program on a packet that it drops.
    pub fn dropped(&mut self, program: &str, packet: &[u8]) {
        let (verdict, bytes) = self.verdict(program, packet);
        assert_eq!(verdict, Verdict::Drop, "{program}: {packet:02x?} -> {bytes:02x?}");
    }

    /// Runs a program on a packet that it leaves alone.
    pub fn untouched(&mut self, program: &str, packet: &[u8]) {
        let bytes = self.pass(program, packet);
        assert_eq!(bytes, packet, "{program}: {packet:02x?} -> {bytes:02x?}");
    }

    /// Runs a program on the same packet again and again; `duration` is that of one run.
    pub fn repeat(&mut self, program: &str, packet: &[u8], repeat: u32) -> Outcome {
        self.try_repeat(program, packet, repeat)
            .unwrap_or_else(|error| panic!("{program}: {error}: {packet:02x?}"))
    }

    /// Runs a program on a packet that may be too short: `None` if the kernel does not take it for a test run
    /// (`BPF_PROG_TEST_RUN` wants an Ethernet header, and for TC that of the IP version in it).
    pub fn try_run(&mut self, program: &str, packet: &[u8]) -> Option<Outcome> {
        match self.try_repeat(program, packet, 1) {
            Ok(outcome) => Some(outcome),
            Err(_) if packet.len() < 14 + 40 => None,
            Err(error) => panic!("{program}: {error}: {packet:02x?}"),
        }
    }

    fn try_repeat(&mut self, program: &str, packet: &[u8], repeat: u32) -> Result<Outcome, ProgramError> {
        let mut bytes = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut bytes),
            repeat,
            ..TestRunOptions::new()
        };
        let result = match self
            .ebpf
            .program_mut(program)
            .expect("the object has the program")
        {
            Program::Xdp(program) => program.test_run(options),
            Program::SchedClassifier(program) => program.test_run(options),
            _ => panic!("{program} is no packet program"),
        };
        let result = result?;
        bytes.truncate(usize::try_from(result.data_size_out).expect("fits"));
        Ok(Outcome {
            action: result.return_value,
            bytes,
            duration: result.duration,
        })
    }

    /// Loads a program that the agent does not attach (the benchmark's empty ones).
    pub fn load(&mut self, program: &str) {
        match self
            .ebpf
            .program_mut(program)
            .expect("the object has the program")
        {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => panic!("{program} is no packet program"),
        }
        .expect("the program loads");
    }
}

fn age<A: Pod + Into<IpAddr>>(
    mut flows: HashMap<MapData, FlowKey<A>, Flow<A>>,
    ticks: u32,
    which: impl Fn(SocketAddr, SocketAddr) -> bool,
) where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    let rows: Vec<_> = flows.iter().map(|row| row.expect("a flow")).collect();
    for (key, mut flow) in rows {
        let source = SocketAddr::new(key.source.into(), key.source_port.get());
        let destination = SocketAddr::new(key.destination.into(), key.destination_port.get());
        if which(source, destination) {
            flow.last_seen = flow.last_seen.wrapping_sub(ticks);
            flows.insert(key, flow, 0).expect("the map takes it");
        }
    }
}

/// A frontend key.
pub fn tcp(address: impl Into<IpAddr>, port: u16) -> FrontendKey {
    FrontendKey::Port(address.into(), port, Protocol::Tcp)
}

/// A frontend key.
pub fn udp(address: impl Into<IpAddr>, port: u16) -> FrontendKey {
    FrontendKey::Port(address.into(), port, Protocol::Udp)
}
