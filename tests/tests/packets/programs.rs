//! The kernel loads every program.

use lb_tests::packet::datapath;

#[test]
fn every_program_loads() {
    let Some(mut datapath) = datapath() else { return };
    let refused = datapath.load_all();
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}
