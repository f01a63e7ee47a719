//! Packet tests: the kernel programs run on one packet at a time (`BPF_PROG_TEST_RUN`).

pub mod build;
pub mod checksums;
pub mod fragments;
pub mod host;
pub mod network;
mod pool;
pub mod rows;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::{Program, ProgramError, TestRun as _, TestRunOptions};
use lb_agent::datapath::counters::Counters;
use lb_agent::datapath::devices::DeviceTable;
use lb_agent::datapath::maps::KernelMaps;
use lb_agent::datapath::object;
use lb_agent::datapath::object::settings::{DEFAULT_TABLES, Settings, TableSizes};
use lb_agent::devices::{DeviceView, Link, Snapshot};
use lb_agent::maps::{Backend, BackendState, Capacity, FrontendKey, MapOp, Maps as _, Protocol};
use lb_common::budget::Limit;
use lb_common::layout::{Flow, FlowKey, Frontend, Region, ServiceStats, Slot};
use lb_common::map::FamilySpecs as _;
use lb_common::net::{Address4, Address6};
use lb_common::packet::Verdict;
use lb_common::reason::Reason;

pub use self::pool::Borrowed;
use crate::lab::PinDirectory;

/// The programs with separate maps. Each program is loaded when it runs for the first time:
/// verifying all of them takes longer than everything else in a test.
pub struct Datapath {
    settings: Settings,
    ebpf: Ebpf,
    loaded: BTreeSet<String>,
    /// The maps that hold Services.
    pub maps: KernelMaps,
    /// The counters.
    pub counters: Counters,
    backends: BTreeMap<u32, Backend>,
    frontends: BTreeMap<FrontendKey, Frontend>,
    pins: PinDirectory,
    /// Index of the device at which packets arrive or leave, in the network namespace of the thread
    /// that runs the programs. 0 means the loopback device of that namespace.
    pub device: u32,
    /// Packets that may have been answered since all buckets were full.
    answers: u32,
    /// Whether answers are rate-limited. Otherwise the buckets are refilled before they are empty.
    pub limits_answers: bool,
    /// Payload length of each segment if a TC program's packet is a GSO packet; otherwise 0.
    pub segment_size: u32,
}

/// The result of running a program on a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The return value of the program.
    pub action: u32,
    /// The packet after the program.
    pub bytes: Vec<u8>,
    /// Duration of one run.
    pub duration: Duration,
}

/// Length of the link-layer addresses.
pub const LINK: usize = 12;

/// The node's IPv4 address in packet tests. It replaces the client's address in hairpin
/// connections.
pub const NODE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The node's IPv6 address in packet tests.
pub const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The loopback device as a port of a bridge with the node's link-layer address. Packets arrive at
/// it by default, and the programs ignore packets for other link-layer addresses.
fn loopback_as_bridge() -> DeviceView {
    const LOOPBACK: u32 = 1;
    let bridge = Link {
        index: LOOPBACK,
        kind: "bridge".to_owned(),
        up: true,
        ethernet: true,
        address: Some(build::NODE),
        ..Link::default()
    };
    DeviceView {
        snapshot: Snapshot {
            links: [(LOOPBACK, bridge)].into(),
            ..Snapshot::default()
        },
        attachments: BTreeMap::new(),
    }
}

/// Entries of each flow table.
const FLOWS: u32 = 1024;

/// The programs with small tables, or `None` if this process may not load programs.
pub fn datapath() -> Option<Borrowed> {
    datapath_with(|_| {})
}

/// As [`datapath`], on a node without addresses.
pub fn datapath_without_address() -> Option<Borrowed> {
    datapath_with(|settings| (settings.node_address4, settings.node_address6) = (None, None))
}

/// As [`datapath`], with other settings.
pub fn datapath_with(change: impl FnOnce(&mut Settings)) -> Option<Borrowed> {
    let mut settings = small(FLOWS);
    change(&mut settings);
    privileged().then(|| Borrowed::take(settings))
}

/// Settings with small tables.
fn small(flows: u32) -> Settings {
    Settings {
        node_address4: Some(NODE4),
        node_address6: Some(NODE6),
        capacity: Capacity {
            frontends: 16_384,
            slots: 65_536,
            backends: 8_192,
            services: 1_024,
            source_ranges: 16_384,
        },
        tables: TableSizes {
            flows,
            ..DEFAULT_TABLES
        },
        ..Settings::default()
    }
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
        Self::with_settings(small(flows))
    }

    fn with_settings(settings: Settings) -> Self {
        // Created before anything can fail, because pinned maps of a dead test keep their memory.
        let pins = PinDirectory::new("packets").expect("a bpf file system");
        let directory = pins.path();
        let ebpf = object::prepare(&settings, directory).expect("the maps are made");
        let mut devices = DeviceTable::open(directory).expect("the maps are pinned");
        let maps = KernelMaps::open(directory).expect("the maps are pinned");
        devices
            .set(&loopback_as_bridge(), &BTreeSet::new(), maps.filter())
            .expect("the maps accept it");
        let counters = Counters::open(directory).expect("the counters are pinned");
        Self {
            settings,
            ebpf,
            loaded: BTreeSet::new(),
            maps,
            counters,
            backends: BTreeMap::new(),
            frontends: BTreeMap::new(),
            pins,
            device: 0,
            segment_size: 0,
            answers: 0,
            limits_answers: false,
        }
    }

    /// Writes a Service: its frontend rows and one backend row for each address.
    ///
    /// Backends and slots have the numbers from `service * 100` on.
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
                maglev: region,
                ..Frontend::default()
            };
            self.frontend(*key, value);
        }
    }

    fn set_backend(&mut self, id: u32, backend: Backend) {
        self.backends.insert(id, backend);
        self.apply(&MapOp::SetBackend { id, backend });
    }

    /// Changes a backend row.
    pub fn change_backend(&mut self, id: u32, change: impl FnOnce(&mut Backend)) {
        let mut backend = self.backends[&id];
        change(&mut backend);
        self.set_backend(id, backend);
    }

    /// Sets the state of a backend row.
    pub fn set_state(&mut self, id: u32, state: BackendState) {
        self.change_backend(id, |backend| backend.state = state);
    }

    /// Reuses a backend row for another endpoint. The slots still name the previous generation.
    pub fn replace(&mut self, id: u32, address: IpAddr) {
        self.change_backend(id, |backend| {
            backend.address = address;
            backend.generation += 1;
        });
    }

    /// Makes the slots from `base` on name these backend rows.
    pub fn set_slots(&mut self, base: u32, ids: &[u32]) {
        let slots = ids.iter().map(|id| Slot {
            backend: *id,
            generation: self.backends[id].generation,
        });
        let slots = slots.collect();
        self.apply(&MapOp::SetSlots { base, slots });
    }

    /// The directory where the maps are pinned.
    pub fn directory(&self) -> &Path {
        self.pins.path()
    }

    /// The flow table of IPv4.
    pub fn flows4(&self) -> HashMap<MapData, FlowKey<Address4>, Flow<Address4>> {
        self.table(Address4::FLOWS.name)
    }

    /// The flow table of IPv6.
    pub fn flows6(&self) -> HashMap<MapData, FlowKey<Address6>, Flow<Address6>> {
        self.table(Address6::FLOWS.name)
    }

    /// The number of flow entries of both families.
    pub fn flow_count(&self) -> usize {
        self.flows4().keys().count() + self.flows6().keys().count()
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
        self.maps.apply(operation).expect("the map accepts it");
    }

    /// Runs a program on a packet.
    pub fn run(&mut self, program: &str, packet: &[u8]) -> Outcome {
        self.repeat(program, packet, 1)
    }

    /// Runs a program on a packet and returns its action as a verdict. Panics for other actions.
    pub fn verdict(&mut self, program: &str, packet: &[u8]) -> (Verdict, Vec<u8>) {
        let outcome = self.run(program, packet);
        let verdict = match (program, outcome.action) {
            // linux/bpf.h: XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT.
            ("lb_xdp", 1) => Verdict::Drop,
            ("lb_xdp", 2) => Verdict::Pass,
            ("lb_xdp", 3) => Verdict::Bounce,
            ("lb_xdp", 4) => Verdict::Redirect,
            // linux/pkt_cls.h: TC_ACT_UNSPEC (-1), TC_ACT_SHOT, TC_ACT_REDIRECT.
            (_, u32::MAX) => Verdict::Pass,
            (_, 2) => Verdict::Drop,
            // The kernel sets the link-layer addresses of a forwarded packet after the program.
            (_, 7) if outcome.bytes.get(..LINK) == packet.get(..LINK) => Verdict::Redirect,
            (_, 7) => Verdict::Bounce,
            (_, action) => panic!("{program} returned {action}: {:02x?}", outcome.bytes),
        };
        // An answer that cannot be built counts too.
        if matches!(verdict, Verdict::Bounce | Verdict::Drop) && !self.limits_answers {
            self.answers += 1;
            if self.answers == Limit::Errors.rate().burst {
                self.forget_answers();
            }
        }
        (verdict, outcome.bytes)
    }

    /// Asserts that a program passes a packet; returns the packet after the program.
    pub fn pass(&mut self, program: &str, packet: &[u8]) -> Vec<u8> {
        let (verdict, bytes) = self.verdict(program, packet);
        assert_eq!(verdict, Verdict::Pass, "{program}: {packet:02x?} -> {bytes:02x?}");
        bytes
    }

    /// Asserts that a program sends a packet back; returns the packet after the program.
    pub fn bounce(&mut self, program: &str, packet: &[u8]) -> Vec<u8> {
        let (verdict, bytes) = self.verdict(program, packet);
        assert_eq!(
            verdict,
            Verdict::Bounce,
            "{program}: {packet:02x?} -> {bytes:02x?}"
        );
        bytes
    }

    /// Asserts that a program drops a packet.
    pub fn dropped(&mut self, program: &str, packet: &[u8]) {
        let (verdict, bytes) = self.verdict(program, packet);
        assert_eq!(verdict, Verdict::Drop, "{program}: {packet:02x?} -> {bytes:02x?}");
    }

    /// Asserts that a program passes a packet unchanged.
    pub fn untouched(&mut self, program: &str, packet: &[u8]) {
        let bytes = self.pass(program, packet);
        assert_eq!(bytes, packet, "{program}: {packet:02x?} -> {bytes:02x?}");
    }

    /// Runs a program `repeat` times on the same packet. `duration` is that of one run.
    pub fn repeat(&mut self, program: &str, packet: &[u8], repeat: u32) -> Outcome {
        self.try_repeat(program, packet, repeat)
            .unwrap_or_else(|error| panic!("{program}: {error}: {packet:02x?}"))
    }

    /// Runs a program on a packet that may be too short. Returns `None` if the kernel rejects it:
    /// `BPF_PROG_TEST_RUN` needs an Ethernet header, and for TC also a whole IP header.
    pub fn try_run(&mut self, program: &str, packet: &[u8]) -> Option<Outcome> {
        match self.try_repeat(program, packet, 1) {
            Ok(outcome) => Some(outcome),
            Err(_) if packet.len() < 14 + 40 => None,
            Err(error) => panic!("{program}: {error}: {packet:02x?}"),
        }
    }

    fn try_repeat(&mut self, program: &str, packet: &[u8], repeat: u32) -> Result<Outcome, ProgramError> {
        let mut bytes = vec![0; packet.len() + 256];
        let context = self.context(program, packet);
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut bytes),
            ctx_in: context.as_deref(),
            repeat,
            ..TestRunOptions::new()
        };
        let result = match self.program(program) {
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

    /// The context of a test run: the ingress device and the segment size. `None` for a packet
    /// without GSO on the loopback device.
    fn context(&self, program: &str, packet: &[u8]) -> Option<Vec<u8>> {
        if (self.device, self.segment_size) == (0, 0) {
            return None;
        }
        let words = if program == "lb_xdp" {
            // linux/bpf.h, struct xdp_md: data, data_end, data_meta, ingress_ifindex,
            // rx_queue_index, egress_ifindex.
            let end = u32::try_from(packet.len()).expect("fits");
            vec![0, end, 0, self.device, 0, 0]
        } else {
            // Words of struct __sk_buff in linux/bpf.h.
            const IFINDEX: usize = 10;
            const GSO_SIZE: usize = 44;
            let mut words = vec![0; GSO_SIZE + 1];
            (words[IFINDEX], words[GSO_SIZE]) = (self.device, self.segment_size);
            words
        };
        Some(words.into_iter().flat_map(u32::to_ne_bytes).collect())
    }

    /// Loads all programs. Returns an error for each program that the kernel rejects.
    pub fn load_all(&mut self) -> Vec<String> {
        let mut refused = Vec::new();
        for (name, program) in self.ebpf.programs_mut() {
            if self.loaded.contains(name) {
                continue;
            }
            match object::load_program(name, program) {
                Ok(()) => drop(self.loaded.insert(name.to_owned())),
                Err(error) => refused.push(error.to_string()),
            }
        }
        refused
    }

    /// A loaded program.
    fn program(&mut self, name: &str) -> &mut Program {
        let program = self.ebpf.program_mut(name).expect("the object has the program");
        if self.loaded.insert(name.to_owned()) {
            object::load_program(name, program).expect("the program loads");
        }
        program
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
