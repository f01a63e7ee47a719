//! Packet tests: the kernel programs run on one packet at a time (`BPF_PROG_TEST_RUN`).

pub mod build;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::Ebpf;
use aya::programs::{Program, TestRun as _, TestRunOptions};
use lb_agent::datapath::maps::{Counters, KernelMaps};
use lb_agent::datapath::object::{self, Settings};
use lb_agent::maps::{Backend, BackendState, Capacity, FrontendKey, MapOp, Maps as _, Protocol};
use lb_common::layout::{Frontend, Region, Slot};

/// The programs with maps of their own.
pub struct Datapath {
    ebpf: Ebpf,
    /// The maps that hold Services.
    pub maps: KernelMaps,
    /// The counters.
    pub counters: Counters,
    directory: PathBuf,
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
pub const NODE4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 1);
/// See [`NODE4`].
pub const NODE6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

impl Datapath {
    /// Loads the programs; flow tables have `flows` entries.
    pub fn new(flows: u32) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = PathBuf::from(format!("/sys/fs/bpf/lb-packets-{}-{number}", std::process::id()));
        let settings = Settings {
            node_address4: Some(NODE4),
            node_address6: Some(NODE6),
            socket_namespace: None,
            capacity: Capacity {
                frontends: 16_384,
                slots: 65_536,
                backends: 65_536,
                services: 16_384,
            },
            flows,
        };
        let ebpf = object::load(&settings, &directory).expect("the programs load");
        let maps = KernelMaps::open(&directory).expect("the maps are pinned");
        let counters = Counters::open(&directory).expect("the counters are pinned");
        Self {
            ebpf,
            maps,
            counters,
            directory,
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
                generation: 1,
                service,
            };
            self.apply(&MapOp::SetBackend { id, backend });
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

    /// Executes a map operation.
    pub fn apply(&mut self, operation: &MapOp) {
        self.maps.apply(operation).expect("the map takes it");
    }

    /// Runs a program on a packet.
    pub fn run(&mut self, program: &str, packet: &[u8]) -> Outcome {
        self.repeat(program, packet, 1)
    }

    /// Runs a program on the same packet again and again; `duration` is that of one run.
    pub fn repeat(&mut self, program: &str, packet: &[u8], repeat: u32) -> Outcome {
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
        let result = result.unwrap_or_else(|error| panic!("{program}: {error}"));
        bytes.truncate(usize::try_from(result.data_size_out).expect("fits"));
        Outcome {
            action: result.return_value,
            bytes,
            duration: result.duration,
        }
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

impl Drop for Datapath {
    fn drop(&mut self) {
        // Nothing to do about a pin that is gone already.
        let _ = std::fs::remove_dir_all(&self.directory);
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
