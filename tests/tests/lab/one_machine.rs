//! A machine without a cluster: its own processes are the backends of its Services, and it does not
//! forward packets.
#![expect(clippy::unwrap_used, reason = "the helpers are parts of the tests")]

use std::net::{IpAddr, SocketAddr};

use lb_tests::lab::cluster::{HTTP, SERVICE, SERVICE_FILE, SLICES_FILE, UDP, vips};
use lb_tests::lab::{
    AgentOptions, EndpointManifest, EndpointSliceManifest, Lab, Machine, Node, ServiceManifest, SocketLb,
    Xdp, require_privileges,
};
use serde_json::Value;

/// The addresses at which clients outside reach the Service.
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

/// Runs `lb-agent explain` for a connection from outside. Asserts this exit code and returns the
/// output.
#[track_caller]
fn explain(node: &Node, client: &Machine, to: SocketAddr, code: i32) -> Value {
    let source = client.addresses().both()[usize::from(to.is_ipv6())];
    let (source, to) = (source.to_string(), to.to_string());
    let line = ["tcp", &source, &to, "--from=outside", "-o", "json"];
    let (ended, said) = node.agent_command_code("explain", &line).unwrap();
    assert_eq!(ended, code, "{said}");
    serde_json::from_str(&said).unwrap()
}

/// The finding of a step of the explanation.
fn finding<'a>(said: &'a Value, step: &str) -> Option<&'a str> {
    let steps = said["steps"].as_array().unwrap();
    let found = steps.iter().find(|found| found["step"] == step)?;
    found["finding"].as_str()
}

#[test]
fn processes_of_the_machine_serve_clients_and_itself() {
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
        // The endpoint has no node name.
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
        for (to, port) in [own, balanced()]
            .concat()
            .into_iter()
            .zip([true, true, false, false])
        {
            let to = SocketAddr::new(to, if port { HTTP.node_port.unwrap() } else { HTTP.port });
            let said = explain(&node, &outside, to, 0);
            let backend = SocketAddr::new(own[usize::from(to.is_ipv6())], HTTP.target_port);
            assert_eq!(said["verdict"], "translated", "{said}");
            assert_eq!(said["newDestination"], backend.to_string(), "{said}");
            assert_eq!(finding(&said, "route"), None, "{said}");
        }
        let shown = node.agent_command("services", &["-o", "json"]).unwrap();
        assert!(!shown.contains("\"local\": false"), "{shown}");
    }
}

/// Connections to a backend on another machine need IP forwarding, which is off on such a machine.
/// `explain` reports that.
#[test]
fn backends_on_another_machine_need_ip_forwarding() {
    if !require_privileges() {
        return;
    }
    let lab = Lab::new("one-machine-on").unwrap();
    let node = lab.node("node-1").unwrap();
    let outside = lab.outside_client("outside").unwrap();
    let server = lab.outside_client("server").unwrap();
    let _server = server.serve().http(HTTP.target_port).start().unwrap();
    let ports = [HTTP];
    lab.apply(SERVICE_FILE, ServiceManifest::new(SERVICE, &vips(), &ports))
        .unwrap();
    let elsewhere = server.addresses().both();
    let slices = EndpointSliceManifest::new("elsewhere", SERVICE, &ports);
    lab.apply(SLICES_FILE, slices.endpoint(EndpointManifest::new(&elsewhere)))
        .unwrap();
    let _agent = node.start_agent(&AgentOptions::default()).unwrap();
    let own = node.host().addresses().both();
    let forwarding = |value: &str| {
        let settings = [("ipv4/ip_forward", value), ("ipv6/conf/all/forwarding", value)];
        node.host().namespace().sysctl(&settings).unwrap();
    };
    for address in own {
        let to = SocketAddr::new(address, HTTP.node_port.unwrap());
        forwarding("0");
        assert_eq!(outside.http(to.ip(), to.port()).run().unwrap().answered(), 0);
        let said = explain(&node, &outside, to, 1);
        assert_eq!(said["reason"], "no_route", "{said}");
        let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
        let sysctl = format!("net/{family}/conf/eth0/forwarding is 0");
        assert!(finding(&said, "route").unwrap().ends_with(&sysctl), "{said}");
        forwarding("1");
        let said = explain(&node, &outside, to, 0);
        assert_eq!(said["verdict"], "forwarded", "{said}");
        assert_eq!(
            outside
                .http(to.ip(), to.port())
                .count(5)
                .run()
                .unwrap()
                .answered(),
            5
        );
    }
}
