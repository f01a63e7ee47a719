//! Tests which clients reach which endpoints: a table of sources and frontends, limited to what the
//! agent's rows decide.
//!
//! The cases are those of kube-proxy (the `packetFlowTest`s of
//! `pkg/proxy/nftables/proxier_test.go`), with one exception: packets to a Pod of this node keep
//! their source under either policy.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic too")]

mod objects;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_agent::controller::Controller;
use lb_agent::maps::testing::FakeMaps;
use lb_agent::maps::{BackendState, Capacity, FrontendKey, MapImage, Maps as _, Protocol, dump};
use lb_agent::model::{NodeConfig, NodePortAddresses, UnknownPort};
use lb_agent::network::Family;
use lb_agent::object::{Change, ObjectKind};
use lb_common::choose::{Origin, region};
use lb_common::layout::{Frontend, Region, frontend_flags};

/// The sender of a packet.
#[derive(Clone, Copy, Debug)]
enum Source {
    Outside(&'static str),
    Pod(&'static str),
    /// A process of the node, at its socket.
    Node,
}

impl Source {
    fn origin(self) -> Origin {
        match self {
            Self::Outside(_) => Origin::Outside,
            Self::Pod(_) | Self::Node => Origin::Inside,
        }
    }
}

/// The verdict for the first packet of a connection.
enum Fate {
    /// It goes to one of these endpoints. The flag is true if it is masqueraded, because the client
    /// is outside and the endpoint is on another node.
    Endpoints(BTreeSet<(SocketAddr, bool)>),
    Reject,
    Drop,
    /// The programs pass it unchanged.
    Pass,
}

impl fmt::Display for Fate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoints(endpoints) => {
                let endpoints = endpoints
                    .iter()
                    .map(|(address, is_masqueraded)| match is_masqueraded {
                        true => format!("{address}(masqueraded)"),
                        false => address.to_string(),
                    });
                formatter.write_str(&endpoints.collect::<Vec<_>>().join(" "))
            }
            Self::Reject => formatter.write_str("reject"),
            Self::Drop => formatter.write_str("drop"),
            Self::Pass => formatter.write_str("pass"),
        }
    }
}

/// Computes the verdict as the eBPF programs do.
fn fate(image: &MapImage, source: Source, to: SocketAddr, protocol: Protocol) -> Fate {
    let port = FrontendKey::Port(to.ip(), to.port(), protocol);
    let wildcard = FrontendKey::Wildcard(to.ip());
    let Some(row) = image
        .frontends
        .get(&port)
        .or_else(|| image.frontends.get(&wildcard))
    else {
        return Fate::Pass;
    };
    if row.flags & frontend_flags::WILDCARD != 0 {
        return match row.flags & frontend_flags::PASS_UNKNOWN {
            0 => Fate::Reject,
            _ => Fate::Pass,
        };
    }
    if row.source_ranges != 0 && !is_allowed(image, row, source) {
        return Fate::Drop;
    }
    match region(row, source.origin()) {
        Ok(region) => Fate::Endpoints(endpoints(image, Family::of(to.ip()), region, source)),
        Err(reason) if reason.is_answered() => Fate::Reject,
        Err(_) => Fate::Drop,
    }
}

fn is_allowed(image: &MapImage, row: &Frontend, source: Source) -> bool {
    let address: IpAddr = match source {
        Source::Node => return row.flags & frontend_flags::NODE_ALLOWED != 0,
        Source::Outside(address) | Source::Pod(address) => address.parse().unwrap(),
    };
    let mut ranges = image
        .source_ranges
        .iter()
        .filter(|(set, _)| *set == row.source_ranges);
    ranges.any(|(_, network)| network.contains(address))
}

fn endpoints(
    image: &MapImage,
    family: Family,
    region: Region,
    source: Source,
) -> BTreeSet<(SocketAddr, bool)> {
    let slots = (region.base..region.base + region.length).map(|index| image.slots[&index]);
    let backends = slots.map(|slot| {
        let backend = image.backends(family)[&slot.backend];
        assert_eq!(
            (backend.state, backend.generation),
            (BackendState::Active, slot.generation)
        );
        backend
    });
    let is_outside = source.origin() == Origin::Outside;
    backends
        .map(|backend| {
            (
                SocketAddr::new(backend.address, backend.port),
                is_outside && !backend.local,
            )
        })
        .collect()
}

/// Returns the rows for these objects on `node-a`.
fn rows(yaml: &str, unknown_port: UnknownPort) -> MapImage {
    let capacity = Capacity {
        frontends: 1000,
        slots: 100_000,
        backends: 1000,
        services: 1000,
        source_ranges: 1000,
    };
    let node = NodeConfig {
        name: "node-a".to_owned(),
        addresses: ["192.168.0.10", "fd00:168::10"]
            .map(|text| text.parse().unwrap())
            .into(),
        device_addresses: ["192.168.0.10", "fd00:168::10", "203.0.113.99"]
            .map(|text| text.parse().unwrap())
            .into(),
        node_port_addresses: vec![NodePortAddresses::Primary, NodePortAddresses::Localhost],
        unknown_port,
        ..NodeConfig::default()
    };
    let kinds = [ObjectKind::Service, ObjectKind::EndpointSlice];
    let mut controller = Controller::new(FakeMaps::new(capacity), node, kinds, Duration::ZERO).unwrap();
    for kind in kinds {
        let of_kind = |object: &lb_agent::object::Object| object.reference().kind == kind;
        controller.change(Change::Replace {
            kind,
            objects: objects::parse(yaml).into_iter().filter(of_kind).collect(),
        });
    }
    controller.tick(Instant::now());
    assert_eq!(controller.problems(), []);
    controller.maps().image().unwrap()
}

/// A Service with cluster IP 10.96.0.`n`, NodePort 30000 + `n`, load balancer address
/// 198.51.100.`n` and external IP 203.0.113.`n`, all with port 80. `more` is appended to its spec.
/// Of its endpoints, `here` is 10.1.0.2 on this node, and `there` is 10.1.1.3 on another node.
fn service(n: u8, more: &str, endpoints: &[&str]) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|endpoint| match *endpoint {
            "here" => "{addresses: [10.1.0.2], nodeName: node-a}".to_owned(),
            "there" => "{addresses: [10.1.1.3], nodeName: node-b}".to_owned(),
            "leaving" => "{addresses: [10.1.0.4], nodeName: node-a, \
                          conditions: {ready: false, serving: true, terminating: true}}"
                .to_owned(),
            "broken" => "{addresses: [10.1.0.5], nodeName: node-a, conditions: {ready: false}}".to_owned(),
            other => panic!("{other}"),
        })
        .collect();
    format!(
        "---
kind: Service
metadata: {{name: service-{n}, namespace: default}}
spec: {{type: LoadBalancer, clusterIP: 10.96.0.{n}, externalIPs: [203.0.113.{n}], ports: [{{port: 80, nodePort: {}}}]{more}}}
status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.{n}}}]}}}}
---
kind: EndpointSlice
metadata: {{name: service-{n}, namespace: default, labels: {{kubernetes.io/service-name: service-{n}}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{}]
",
        30000 + u32::from(n),
        endpoints.join(", ")
    )
}

/// A client outside, in 192.0.2.0/24.
const CLIENT: Source = Source::Outside("192.0.2.9");
/// A Pod of this node.
const POD: Source = Source::Pod("10.1.0.9");

const BOTH: &str = "10.1.0.2:8080 10.1.1.3:8080";
const BOTH_FROM_OUTSIDE: &str = "10.1.0.2:8080 10.1.1.3:8080(masqueraded)";
const HERE: &str = "10.1.0.2:8080";
const THERE: &str = "10.1.1.3:8080";
const THERE_FROM_OUTSIDE: &str = "10.1.1.3:8080(masqueraded)";

#[track_caller]
fn check(image: &MapImage, source: Source, to: &str, expected: &str) {
    let found = fate(image, source, to.parse().unwrap(), Protocol::Tcp).to_string();
    assert_eq!(found, expected, "{source:?} to {to}\n{}", dump(image));
}

/// One line of a table: the rest of the spec, the endpoints, and the expected verdicts at the
/// cluster IP and at other addresses.
struct Line {
    more: &'static str,
    endpoints: &'static [&'static str],
    inside_at_cluster_ip: &'static str,
    outside_at_cluster_ip: &'static str,
    inside_elsewhere: &'static str,
    outside_elsewhere: &'static str,
}

#[test]
fn traffic_policies_select_the_endpoints() {
    let lines = [
        Line {
            more: "",
            endpoints: &["here", "there"],
            inside_at_cluster_ip: BOTH,
            outside_at_cluster_ip: BOTH_FROM_OUTSIDE,
            inside_elsewhere: BOTH,
            outside_elsewhere: BOTH_FROM_OUTSIDE,
        },
        Line {
            more: ", internalTrafficPolicy: Local",
            endpoints: &["here", "there"],
            inside_at_cluster_ip: HERE,
            outside_at_cluster_ip: HERE,
            inside_elsewhere: BOTH,
            outside_elsewhere: BOTH_FROM_OUTSIDE,
        },
        Line {
            more: ", externalTrafficPolicy: Local",
            endpoints: &["here", "there"],
            inside_at_cluster_ip: BOTH,
            outside_at_cluster_ip: BOTH_FROM_OUTSIDE,
            inside_elsewhere: BOTH,
            outside_elsewhere: HERE,
        },
        // There are endpoints, but none on this node.
        Line {
            more: ", internalTrafficPolicy: Local, externalTrafficPolicy: Local",
            endpoints: &["there"],
            inside_at_cluster_ip: "drop",
            outside_at_cluster_ip: "drop",
            inside_elsewhere: THERE,
            outside_elsewhere: "drop",
        },
        Line {
            more: ", externalTrafficPolicy: Cluster",
            endpoints: &["there"],
            inside_at_cluster_ip: THERE,
            outside_at_cluster_ip: THERE_FROM_OUTSIDE,
            inside_elsewhere: THERE,
            outside_elsewhere: THERE_FROM_OUTSIDE,
        },
        // There is no usable endpoint.
        Line {
            more: "",
            endpoints: &[],
            inside_at_cluster_ip: "reject",
            outside_at_cluster_ip: "reject",
            inside_elsewhere: "reject",
            outside_elsewhere: "reject",
        },
        Line {
            more: ", internalTrafficPolicy: Local, externalTrafficPolicy: Local",
            endpoints: &["broken"],
            inside_at_cluster_ip: "reject",
            outside_at_cluster_ip: "reject",
            inside_elsewhere: "reject",
            outside_elsewhere: "reject",
        },
        // Terminating endpoints are used if there is no other one, separately for each policy.
        Line {
            more: ", externalTrafficPolicy: Local",
            endpoints: &["leaving", "there"],
            inside_at_cluster_ip: THERE,
            outside_at_cluster_ip: THERE_FROM_OUTSIDE,
            inside_elsewhere: THERE,
            outside_elsewhere: "10.1.0.4:8080",
        },
        Line {
            more: "",
            endpoints: &["leaving", "broken"],
            inside_at_cluster_ip: "10.1.0.4:8080",
            outside_at_cluster_ip: "10.1.0.4:8080",
            inside_elsewhere: "10.1.0.4:8080",
            outside_elsewhere: "10.1.0.4:8080",
        },
    ];
    let numbered = || (1_u8..).zip(&lines);
    let yaml: String = numbered()
        .map(|(n, line)| service(n, line.more, line.endpoints))
        .collect();
    let image = rows(&yaml, UnknownPort::Reject);
    for (n, line) in numbered() {
        let cluster_ip = format!("10.96.0.{n}:80");
        check(&image, CLIENT, &cluster_ip, line.outside_at_cluster_ip);
        for source in [POD, Source::Node] {
            check(&image, source, &cluster_ip, line.inside_at_cluster_ip);
        }
        let node_port = 30000 + u32::from(n);
        for to in [
            format!("192.168.0.10:{node_port}"),
            format!("198.51.100.{n}:80"),
            format!("203.0.113.{n}:80"),
        ] {
            check(&image, CLIENT, &to, line.outside_elsewhere);
            for source in [POD, Source::Node] {
                check(&image, source, &to, line.inside_elsewhere);
            }
        }
        check(
            &image,
            Source::Node,
            &format!("127.0.0.1:{node_port}"),
            line.inside_elsewhere,
        );
    }
}

#[test]
fn packets_to_unknown_ports_are_rejected_or_passed() {
    let yaml = service(1, ", externalIPs: [203.0.113.1, 203.0.113.99]", &["here"])
        .replace("externalIPs: [203.0.113.1], ", "");
    for (unknown_port, expected) in [(UnknownPort::Reject, "reject"), (UnknownPort::Pass, "pass")] {
        let image = rows(&yaml, unknown_port);
        for source in [CLIENT, POD, Source::Node] {
            check(&image, source, "10.96.0.1:81", "reject");
            check(&image, source, "198.51.100.1:81", expected);
            check(&image, source, "203.0.113.1:81", expected);
            // At the node's own address, other ports belong to the node.
            check(&image, source, "203.0.113.99:80", HERE);
            check(&image, source, "203.0.113.99:22", "pass");
            check(&image, source, "192.168.0.10:22", "pass");
            // The same number with another protocol is another port.
            let found = fate(&image, source, "10.96.0.1:80".parse().unwrap(), Protocol::Udp).to_string();
            assert_eq!(found, "reject");
            // Another node's NodePort, and an unused address.
            check(&image, source, "192.168.0.11:30001", "pass");
            check(&image, source, "10.96.0.99:80", "pass");
        }
    }
}

#[test]
fn source_ranges() {
    let ranges = [
        ", loadBalancerSourceRanges: [' 192.0.2.0/24 ', 'fd00::/8']",
        ", loadBalancerSourceRanges: [192.168.0.0/16]",
    ];
    let yaml: String = (1_u8..)
        .zip(ranges)
        .map(|(n, more)| service(n, more, &["here", "there"]))
        .collect();
    let image = rows(&yaml, UnknownPort::Reject);
    let stranger = Source::Outside("198.18.0.9");
    // Only load balancer addresses are filtered, but for all clients.
    for (source, expected) in [
        (CLIENT, BOTH_FROM_OUTSIDE),
        (stranger, "drop"),
        (POD, "drop"),
        (Source::Pod("192.0.2.77"), BOTH),
        (Source::Node, "drop"),
    ] {
        check(&image, source, "198.51.100.1:80", expected);
    }
    // A range contains the node's address, so processes of the node are allowed, also with the load
    // balancer address as their source.
    for (source, expected) in [
        (CLIENT, "drop"),
        (Source::Outside("192.168.0.77"), BOTH_FROM_OUTSIDE),
        (POD, "drop"),
        (Source::Node, BOTH),
        (Source::Pod("198.51.100.2"), BOTH),
    ] {
        check(&image, source, "198.51.100.2:80", expected);
    }
    for n in [1, 2] {
        for (source, expected) in [(stranger, BOTH_FROM_OUTSIDE), (POD, BOTH), (Source::Node, BOTH)] {
            check(&image, source, &format!("10.96.0.{n}:80"), expected);
            check(&image, source, &format!("192.168.0.10:{}", 30000 + n), expected);
            check(&image, source, &format!("203.0.113.{n}:80"), expected);
        }
    }
}

#[test]
fn families() {
    let yaml = "kind: Service
metadata: {name: both, namespace: default}
spec: {type: NodePort, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80, nodePort: 30001}]}
---
kind: EndpointSlice
metadata: {name: both-6, namespace: default, labels: {kubernetes.io/service-name: both}}
addressType: IPv6
ports: [{port: 8080}]
endpoints: [{addresses: ['fd00:1::2'], nodeName: node-a}]
";
    let image = rows(yaml, UnknownPort::Reject);
    for to in ["10.96.0.1:80", "192.168.0.10:30001", "127.0.0.1:30001"] {
        check(&image, Source::Node, to, "reject");
    }
    for to in ["[fd00:96::1]:80", "[fd00:168::10]:30001", "[::1]:30001"] {
        check(&image, Source::Node, to, "[fd00:1::2]:8080");
    }
    check(
        &image,
        Source::Outside("2001:db8::9"),
        "[fd00:168::10]:30001",
        "[fd00:1::2]:8080",
    );
}
