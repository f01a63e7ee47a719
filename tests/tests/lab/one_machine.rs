//! A machine without a cluster: its own processes serve its Services, and it forwards nothing.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::IpAddr;

use lb_tests::lab::cluster::{HTTP, SERVICE, SERVICE_FILE, SLICES_FILE, UDP, vips};
use lb_tests::lab::{
    AgentOptions, EndpointManifest, EndpointSliceManifest, Lab, Machine, ServiceManifest, SocketLb, Xdp,
    require_privileges,
};

/// Where clients outside find the Service.
fn balanced() -> [IpAddr; 2] {
    [
        IpAddr::from([198, 51, 100, 77]),
        IpAddr::from([0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1]),
    ]
}

#[track_caller]
fn assert_served(from: &Machine, addresses: [IpAddr; 2], [http, udp]: [u16; 2]) {
    for address in addresses {
        let report = from.http(address, http).count(5).run().unwrap();
        assert_eq!(report.answered(), 5, "{address} port {http}: {report:?}");
        let report = from.udp(address, udp).sockets(5).run().unwrap();
        assert_eq!(report.answered(), 5, "{address} port {udp}: {report:?}");
        assert_eq!(report.sources, [(address, udp).into()].into());
    }
}

#[test]
fn its_processes_serve_clients_outside_and_itself() {
    if !require_privileges() {
        return;
    }
    for (xdp, policy) in [
        (Xdp::Off, "Cluster"),
        (Xdp::Generic, "Local"),
        (Xdp::Native, "Cluster"),
    ] {
        let lab = Lab::new("one-machine").unwrap();
        let node = lab.node("node-1").unwrap();
        let outside = lab.outside_client("outside").unwrap();
        let host = node.host();
        let settings = [("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0")];
        host.namespace().sysctl(&settings).unwrap();
        let _server = host
            .serve()
            .http(HTTP.target_port)
            .udp(UDP.target_port)
            .start()
            .unwrap();
        for address in balanced() {
            lab.route(&address.to_string(), &[&node]).unwrap();
        }
        let ports = [HTTP, UDP];
        let service = ServiceManifest::new(SERVICE, &vips(), &ports)
            .of_type("LoadBalancer")
            .external_traffic_policy(policy)
            .ingress(&balanced(), None);
        lab.apply(SERVICE_FILE, service).unwrap();
        let own = host.addresses().both();
        // Nobody says which node it is on.
        let slices = EndpointSliceManifest::new("web-1", SERVICE, &ports);
        lab.apply(SLICES_FILE, slices.endpoint(EndpointManifest::new(&own)))
            .unwrap();
        let options = AgentOptions {
            socket_lb: Some(SocketLb::All),
            xdp: Some(xdp),
            ..AgentOptions::default()
        };
        let _agent = node.start_agent(&options).unwrap();
        let numbers = ports.map(|port| port.port);
        assert_served(&outside, own, ports.map(|port| port.node_port.unwrap()));
        assert_served(&outside, balanced(), numbers);
        assert_served(host, vips(), numbers);
        let shown = node.agent_command("services", &["-o", "json"]).unwrap();
        assert!(!shown.contains("\"local\": false"), "{shown}");
    }
}
