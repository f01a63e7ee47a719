//! The cost of the kernel programs per packet, compared with the empty program in the same run.
//!
//! Each figure is the difference of two consecutive runs. The packet generator
//! (`lb-ebpf/src/bench.rs`) calls the measured program in one run, and the empty program with the
//! same packets in the other. Each round runs all cases, so that a busy moment of the machine
//! affects a round and not a case. The result is the median.

mod case;
mod generator;
#[path = "../../../../lb-ebpf/src/plan.rs"]
pub mod plan;
mod report;
mod subject;

use lb_agent::maps::Protocol;

pub use case::{Case, Flows, Hook, Traffic};
pub use report::{Figure, Report};

use case::ALL_FLOWS;
use generator::Generator;
use subject::Subject;

/// The length and number of measurements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effort {
    /// The transport protocols.
    pub protocols: &'static [Protocol],
    /// Number of rounds.
    pub rounds: u32,
    /// Packets of each turn.
    pub packets: u32,
    /// Packets of each turn that opens flows. All turns together must fit into the flow table.
    pub openings: u32,
}

impl Effort {
    /// A full run: half a minute on an idle machine.
    pub const FULL: Self = Self {
        protocols: &[Protocol::Tcp, Protocol::Udp],
        rounds: 7,
        packets: 1 << 16,
        openings: 1 << 14,
    };
    /// A short run: a quarter of a minute.
    pub const QUICK: Self = Self {
        protocols: &[Protocol::Tcp],
        rounds: 5,
        packets: 1 << 16,
        openings: 1 << 14,
    };
}

/// Measures all cases.
pub fn run(effort: Effort) -> Report {
    let mut figures = Vec::new();
    for protocol in effort.protocols {
        let cases: Vec<Case> = Case::all(*protocol).collect();
        // Each protocol has its own tables: a million flows of both would fill them.
        let mut bench = Bench::new();
        bench.open_flows(*protocol);
        figures.extend(bench.measure(&cases, effort));
    }
    Report::new(figures)
}

/// The programs and the packet generator.
struct Bench {
    subject: Subject,
    generator: Generator,
}

/// One turn of a case, in nanoseconds per packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Turn {
    empty: u32,
    program: u32,
}

impl Bench {
    fn new() -> Self {
        Self {
            subject: Subject::new(),
            generator: Generator::new(),
        }
    }

    /// Opens the flows that the measurements use.
    fn open_flows(&mut self, protocol: Protocol) {
        for steps in Case::openings(protocol) {
            for (case, mut plan) in steps {
                self.generator
                    .aim(case.hook, self.subject.fd(case.hook.program()));
                let flows = plan.flow_mask + 1;
                self.generator.run(&case, &mut plan, flows);
            }
        }
        // Both families, from outside and from Pods. The connection to another node belongs to
        // another Service.
        self.subject
            .expect_new_connections(4 * ALL_FLOWS, "opening all flows");
    }

    fn measure(&mut self, cases: &[Case], effort: Effort) -> Vec<Figure> {
        let rows = cases
            .iter()
            .flat_map(|case| Flows::of(case.traffic).map(move |flows| (*case, flows)));
        let mut rows: Vec<_> = rows
            .map(|(case, flows)| (case, flows, case.plan(flows), Vec::new()))
            .collect();
        for _ in 0..effort.rounds {
            for (case, _, plan, turns) in &mut rows {
                turns.push(self.turn(case, plan, effort));
            }
        }
        let figures = rows
            .iter()
            .map(|(case, flows, _, turns)| Figure::new(case, *flows, turns));
        figures.collect()
    }

    /// Runs the empty program and the measured one on the same packets. Advances `plan` to the next
    /// packets.
    fn turn(&mut self, case: &Case, plan: &mut plan::Plan, effort: Effort) -> Turn {
        let packets = if case.traffic == Traffic::New {
            effort.openings
        } else {
            effort.packets
        };
        self.generator.aim_at_empty(case);
        let empty = self.generator.run_empty(case, &mut plan.clone(), packets);
        self.generator
            .aim(case.hook, self.subject.fd(case.hook.program()));
        let program = self.generator.run(case, plan, packets);

        // This sends one more packet.
        self.generator.expect_translation(case, plan);
        let opened = if case.traffic == Traffic::New {
            packets + 1
        } else {
            0
        };
        self.subject.expect_new_connections(opened, &case.to_string());
        Turn { empty, program }
    }
}
