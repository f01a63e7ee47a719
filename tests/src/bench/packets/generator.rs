//! Runs the packet generator and checks its results.
#![expect(unsafe_code, reason = "aya requires a promise that a plan is plain bytes")]

use aya::Ebpf;
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{Program, ProgramFd, TestRun as _, TestRunOptions, TestRunResult};

use super::case::{Case, Hook};
use super::plan::{End, EndAt, Plan};
use crate::test_programs;

// SAFETY: `repr(C)`, only integers, no padding.
unsafe impl aya::Pod for Plan {}

/// The programs of the generator and their maps.
pub(super) struct Generator {
    ebpf: Ebpf,
    plan: Array<MapData, Plan>,
    xdp_target: ProgramArray<MapData>,
    tc_target: ProgramArray<MapData>,
}

impl Generator {
    /// Loads the generator.
    pub(super) fn new() -> Self {
        let mut ebpf = test_programs::open().expect("the maps are made");
        for (name, program) in ebpf.programs_mut() {
            match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => panic!("{name} is no packet program"),
            }
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let mut map = |name| ebpf.take_map(name).expect("the object has the map");
        let (plan, xdp, tc) = (map("PLAN"), map("XDP_TARGET"), map("TC_TARGET"));
        Self {
            plan: plan.try_into().expect("an array"),
            xdp_target: xdp.try_into().expect("a program array"),
            tc_target: tc.try_into().expect("a program array"),
            ebpf,
        }
    }

    /// Chooses the program that the packets go to.
    pub(super) fn aim(&mut self, hook: Hook, program: &ProgramFd) {
        let target = match hook {
            Hook::Xdp => &mut self.xdp_target,
            Hook::FromPod | Hook::ToPod => &mut self.tc_target,
        };
        target.set(0, program, 0).expect("a program of the array's type");
    }

    /// Chooses the empty program.
    pub(super) fn aim_at_empty(&mut self, case: &Case) {
        let fd = fd(&self.ebpf, case.empty()).try_clone();
        self.aim(case.hook, &fd.expect("a free file descriptor"));
    }

    /// Sends the next `packets` packets of a plan; returns the nanoseconds that one took.
    pub(super) fn run(&mut self, case: &Case, plan: &mut Plan, packets: u32) -> u32 {
        let result = self.test_run(case, plan, packets, &mut []);
        assert_eq!(result.return_value, case.action(), "the action of {case}");
        nanoseconds(&result)
    }

    /// As [`Self::run`], with the empty program.
    pub(super) fn run_empty(&mut self, case: &Case, plan: &mut Plan, packets: u32) -> u32 {
        let result = self.test_run(case, plan, packets, &mut []);
        assert_eq!(
            result.return_value,
            case.empty_action(),
            "the action without {case}"
        );
        nanoseconds(&result)
    }

    /// Sends the next packet of a plan and checks its translation.
    pub(super) fn expect_translation(&mut self, case: &Case, plan: &mut Plan) {
        let mut bytes = case.template();
        self.test_run(case, plan, 1, &mut bytes);
        let (first, port) = case.translated_end();
        let service = End {
            address: plan.service().address - plan.service + first,
            port,
        };
        assert_eq!(
            end(&bytes, plan.client_at),
            case.translated_client(plan.client()),
            "the client's end: {case}"
        );
        assert_eq!(end(&bytes, plan.service_at), service, "the service's end: {case}");
    }

    fn test_run(&mut self, case: &Case, plan: &mut Plan, repeat: u32, out: &mut [u8]) -> TestRunResult {
        let packet = case.template();
        self.plan.set(0, *plan, 0).expect("the array has the row");
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: (!out.is_empty()).then_some(out),
            repeat,
            ..TestRunOptions::new()
        };
        let program = match case.hook {
            Hook::Xdp => "lb_bench_xdp",
            Hook::FromPod | Hook::ToPod => "lb_bench_tc",
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
        *plan = self.plan.get(&0, 0).expect("the array has the row");
        result
    }
}

/// The file descriptor of a loaded packet program.
pub(super) fn fd<'ebpf>(ebpf: &'ebpf Ebpf, program: &str) -> &'ebpf ProgramFd {
    match ebpf.program(program).expect("the object has the program") {
        Program::Xdp(program) => program.fd(),
        Program::SchedClassifier(program) => program.fd(),
        _ => panic!("{program} is no packet program"),
    }
    .expect("the program is loaded")
}

fn nanoseconds(result: &TestRunResult) -> u32 {
    let nanoseconds = result.duration.as_nanos();
    nanoseconds
        .try_into()
        .expect("a packet takes less than four seconds")
}

/// The end whose fields are at these offsets.
fn end(bytes: &[u8], at: EndAt) -> End {
    End {
        address: u32::from_be_bytes(field(bytes, at.address)),
        port: u16::from_be_bytes(field(bytes, at.port)),
    }
}

fn field<const N: usize>(bytes: &[u8], at: u32) -> [u8; N] {
    let at = usize::try_from(at).expect("fits");
    bytes[at..at + N].try_into().expect("N bytes")
}
