//! Kernel programs for tests and benchmarks (`lb-ebpf/src/bench.rs`), which the agent does not
//! contain.

use aya::{Ebpf, EbpfError, include_bytes_aligned};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf-bench"));

/// An XDP program that passes every packet.
pub const EMPTY_XDP: &str = "lb_empty_xdp";
/// An XDP program that looks up the route of every packet and passes it.
pub const EMPTY_ROUTE_XDP: &str = "lb_empty_route_xdp";
/// A TC program that passes every packet on to the next program (`TC_ACT_UNSPEC`).
pub const EMPTY_TC: &str = "lb_empty_tc";
/// A TC program that passes every packet and ends the chain of programs (`TC_ACT_OK`).
pub const EMPTY_TC_PASS: &str = "lb_empty_tc_pass";
/// A TC program that drops every packet (`TC_ACT_SHOT`).
pub const EMPTY_TC_DROP: &str = "lb_empty_tc_drop";

/// Creates the maps of the programs, and loads no program yet.
///
/// # Errors
/// If the kernel refuses.
pub fn open() -> Result<Ebpf, EbpfError> {
    Ebpf::load(OBJECT)
}
