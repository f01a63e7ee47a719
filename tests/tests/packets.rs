//! The kernel programs on single packets.

use std::net::SocketAddr;

use lb_tests::packet::build::{see, syn};
use lb_tests::packet::{Datapath, tcp};

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

#[test]
fn programs_load_and_pass() {
    let mut datapath = Datapath::new(1024);
    let vip = socket("10.96.0.10:80");
    datapath.service(
        1,
        &[tcp(vip.ip(), vip.port())],
        &[("10.1.0.5".parse().unwrap(), 8080)],
    );
    let packet = syn(socket("10.1.0.2:40000"), vip).bytes();
    for program in ["lb_xdp", "lb_tc_from_network", "lb_tc_from_pod"] {
        let outcome = datapath.run(program, &packet);
        println!("{program} {} {:?}", outcome.action, see(&outcome.bytes));
    }
}
