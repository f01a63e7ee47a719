//! Services in the lab: real sockets through the programs of real agents.

use std::net::IpAddr;

use lb_tests::lab::{AgentOptions, Capture, Lab, SocketLb, require_privileges, service_manifest};

const VIPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];

fn vips() -> Vec<IpAddr> {
    VIPS.iter().map(|address| address.parse().unwrap()).collect()
}

/// A node with a client Pod and two servers, and an agent with these options.
#[test]
fn a_pod_reaches_a_cluster_ip() {
    if !require_privileges() {
        return;
    }
    for socket_lb in [SocketLb::Off, SocketLb::Host, SocketLb::All] {
        let lab = Lab::new("cluster-ip").unwrap();
        let node = lab.node("node-1").unwrap();
        let client = node.pod("client").unwrap();
        let servers = [node.pod("web-1").unwrap(), node.pod("web-2").unwrap()];
        let _processes: Vec<_> = servers
            .iter()
            .map(|server| server.serve().http(8080).udp(8081).start().unwrap())
            .collect();
        lab.apply_nodes_and_pods().unwrap();
        lab.apply("web.yaml", &service_manifest("web", &vips(), "TCP", 80, 8080))
            .unwrap();
        let agent = node.start_agent(&AgentOptions {
            socket_lb: Some(socket_lb),
            ..AgentOptions::default()
        });
        let _agent = agent.unwrap();
        let capture = Capture::start(client.namespace()).unwrap();
        for vip in vips() {
            let report = client.http(vip, 80).count(40).run().unwrap();
            println!("{socket_lb} {vip}: {report:?}");
            assert_eq!(report.answered(), 40, "{report:?}");
            assert_eq!(report.answers.len(), 2, "{report:?}");
        }
        println!("{:?}", capture.finish().unwrap());
    }
}
