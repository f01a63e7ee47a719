//! The programs that are measured, with Services in their maps.

use aya::Ebpf;
use aya::programs::{Program, ProgramFd};
use lb_agent::datapath::maps::{Counters, KernelMaps};
use lb_agent::datapath::object::{self, DEFAULT_CAPACITY, Settings};
use lb_agent::maps::{Backend, BackendState, Family, FrontendKey, MapOp, Maps as _, Protocol};
use lb_common::layout::{Frontend, Region, Slot, frontend_flags};

use super::case::Hook;
use super::case::{FLOW_ENTRIES, POD_PORT, SERVICES, VIP_PORT, address, block};
use crate::lab::PinDirectory;
use crate::packet::{NODE4, NODE6};

/// The programs, their maps and counters.
pub(super) struct Subject {
    ebpf: Ebpf,
    counters: Counters,
    connections: u64,
    _pins: PinDirectory,
}

impl Subject {
    /// Loads the programs and writes [`SERVICES`] Services with one Pod each.
    pub(super) fn new() -> Self {
        let pins = PinDirectory::new("bench").expect("a bpf file system");
        let directory = pins.path();
        let settings = Settings {
            node_address4: Some(NODE4),
            node_address6: Some(NODE6),
            capacity: DEFAULT_CAPACITY,
            flows: FLOW_ENTRIES,
            ..Settings::default()
        };
        let mut ebpf = object::load(&settings, directory).expect("the programs load");
        for name in [Hook::Xdp.empty(), Hook::FromPod.empty()] {
            load(&mut ebpf, name);
        }
        let mut maps = KernelMaps::open(directory).expect("the maps are pinned");
        for service in 0..SERVICES {
            write_service(&mut maps, service);
        }
        let counters = Counters::open(directory).expect("the counters are pinned");
        Self {
            ebpf,
            counters,
            connections: 0,
            _pins: pins,
        }
    }

    /// A program, for the array of the packet generator.
    pub(super) fn fd(&self, program: &str) -> &ProgramFd {
        match self.ebpf.program(program).expect("the object has the program") {
            Program::Xdp(program) => program.fd(),
            Program::SchedClassifier(program) => program.fd(),
            _ => panic!("{program} is no packet program"),
        }
        .expect("the program is loaded")
    }

    /// Checks that so many connections were made since the last call.
    pub(super) fn expect_new_connections(&mut self, expected: u32, after: &str) {
        let stats = (1..=SERVICES).map(|id| self.counters.service(id).expect("the counters are readable"));
        let connections = stats.map(|stats| stats.connections).sum();
        let before = std::mem::replace(&mut self.connections, connections);
        assert_eq!(
            connections - before,
            u64::from(expected),
            "connections of {after}"
        );
    }
}

fn load(ebpf: &mut Ebpf, name: &str) {
    match ebpf.program_mut(name).expect("the object has the program") {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => panic!("{name} is no packet program"),
    }
    .expect("the program loads");
}

/// Writes the rows of a Service in both families, as the agent would.
fn write_service(maps: &mut KernelMaps, service: u32) {
    let mut apply = |operation| maps.apply(&operation).expect("the map takes it");
    // Id 0 is never valid.
    let id = service + 1;
    apply(MapOp::SetSlots {
        base: service,
        slots: vec![Slot {
            backend: id,
            generation: 1,
        }],
    });
    let region = Region {
        base: service,
        length: 1,
    };
    let frontend = Frontend {
        service: id,
        cluster: region,
        local: region,
        ..Frontend::default()
    };
    let wildcard = Frontend {
        flags: frontend_flags::WILDCARD,
        ..Frontend::default()
    };
    for family in Family::ALL {
        let backend = Backend {
            address: address(family, block::PODS + service),
            port: POD_PORT,
            state: BackendState::Active,
            local: true,
            in_cluster: true,
            in_local: true,
            generation: 1,
            service: id,
        };
        apply(MapOp::SetBackend { id, backend });
        let vip = address(family, block::VIPS + service);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            apply(MapOp::SetFrontend {
                key: FrontendKey::Port(vip, VIP_PORT, protocol),
                value: frontend,
            });
        }
        apply(MapOp::SetFrontend {
            key: FrontendKey::Wildcard(vip),
            value: wildcard,
        });
    }
}
