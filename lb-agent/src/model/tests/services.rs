//! The addresses and ports of Services.

use k8s_openapi::api::core::v1::{LoadBalancerIngress, LoadBalancerStatus, ServiceStatus};

use super::*;
use std::net::IpAddr;

use crate::desired::{DesiredVip, FrontendKind};
use crate::maps::FrontendKey;

#[test]
fn services_of_other_proxies_are_not_handled() {
    for (label, owner, is_handled) in [
        (None, None, true),
        (Some("ours"), None, false),
        (Some(""), None, false),
        (None, Some("ours"), false),
        (Some("ours"), Some("ours"), true),
        (Some("other"), Some("ours"), false),
    ] {
        let mut service = service(spec("TCP"));
        service.metadata.labels = label.map(|name| [(PROXY_NAME_LABEL.to_owned(), name.to_owned())].into());
        let node = NodeConfig {
            service_proxy_name: owner.map(str::to_owned),
            ..node()
        };
        let (desired, problems) = desired_on(&node, &service, &[]);
        assert_eq!(desired.is_some(), is_handled, "{label:?} {owner:?}");
        assert_eq!(problems, []);
    }
}

#[test]
fn services_of_other_proxies_hold_their_cluster_ips_in_service_cidrs() {
    let node = NodeConfig {
        service_cidrs: ["10.96.0.0/16", "fd00:96::/112"]
            .map(|cidr| cidr.parse().unwrap())
            .into(),
        ..node()
    };
    for (change, expected) in [
        (
            "{clusterIPs: [10.96.0.7, 'fd00:96::7']}",
            &["10.96.0.7 ClusterIp pass", "fd00:96::7 ClusterIp pass"][..],
        ),
        ("{clusterIP: 10.96.0.7}", &["10.96.0.7 ClusterIp pass"]),
        // Packets to addresses outside of the Service CIDRs are never dropped.
        (
            "{clusterIPs: [10.97.0.7, 'fd00:96::7'], externalIPs: [10.96.0.9]}",
            &["fd00:96::7 ClusterIp pass"],
        ),
        ("{clusterIPs: [10.97.0.7]}", &[]),
        ("{clusterIP: x}", &[]),
        ("{clusterIP: None}", &[]),
        ("{clusterIP: ''}", &[]),
        ("{type: ExternalName, clusterIP: 10.96.0.7}", &[]),
    ] {
        let mut service = service(serde_norway::from_str(change).unwrap());
        service.metadata.labels = Some([(PROXY_NAME_LABEL.to_owned(), "other".to_owned())].into());
        let (desired, problems) = desired_on(&node, &service, &[]);
        let found = desired.as_ref().map(vips).unwrap_or_default();
        assert_eq!(found, expected, "{change}");
        assert!(desired.is_none_or(|desired| desired.ports.is_empty()));
        assert_eq!(problems, []);
    }
}

/// Describes the addresses with a wildcard row: their kind and flags.
fn vips(desired: &DesiredService) -> Vec<String> {
    let text = |vip: &DesiredVip| {
        let words = [
            Some(format!("{} {:?}", vip.address, vip.kind)),
            vip.passes_unknown.then(|| "pass".to_owned()),
            vip.has_endpoints.then(|| "endpoints".to_owned()),
        ];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    };
    desired.vips.iter().map(text).collect()
}

#[test]
fn addresses_without_a_node_get_wildcard_rows() {
    let mut spec = spec("TCP");
    spec.type_ = Some("LoadBalancer".to_owned());
    let external = ["192.168.0.1", "203.0.113.1", "10.96.0.1", "fd00:51::1"];
    spec.external_ips = Some(external.map(str::to_owned).into());
    spec.cluster_ips = Some(["10.96.0.1", "fd00:96::1"].map(str::to_owned).into());
    let mut service = service(spec);
    service.status = Some(load_balancer(&[("198.51.100.1", None), ("203.0.113.1", None)]));
    let slices = [slice("TCP", &["1 here"])];
    let own = ["10.96.0.1", "203.0.113.1", "fd00:51::1"];
    let own = BTreeSet::from(own.map(|text| text.parse().unwrap()));
    let node_with_more = NodeConfig {
        device_addresses: own.clone(),
        ..node()
    };
    let beside_others = NodeConfig {
        other_nodes: own,
        ..node()
    };
    for node in [node_with_more, beside_others] {
        let (desired, _) = desired_on(&node, &service, &slices);
        assert_eq!(
            vips(&desired.unwrap()),
            [
                "10.96.0.1 ClusterIp endpoints",
                "198.51.100.1 LoadBalancer endpoints",
                "fd00:96::1 ClusterIp"
            ]
        );
    }
    for (unknown_port, pass) in [(UnknownPort::Reject, ""), (UnknownPort::Pass, " pass")] {
        let node = NodeConfig {
            unknown_port,
            ..node()
        };
        let (desired, problems) = desired_on(&node, &service, &slices);
        assert_eq!(problems, []);
        assert_eq!(
            vips(&desired.unwrap()),
            [
                "10.96.0.1 ClusterIp endpoints".to_owned(),
                format!("198.51.100.1 LoadBalancer{pass} endpoints"),
                format!("203.0.113.1 LoadBalancer{pass} endpoints"),
                // The endpoint is of the other family.
                format!("fd00:51::1 ExternalIp{pass}"),
                "fd00:96::1 ClusterIp".to_owned(),
            ]
        );
    }
    for (endpoints, has_endpoints) in [
        (&["1 there"][..], true),
        (&["1 there unready terminating"], true),
        (&["1 there unready"], false),
        (&[], false),
    ] {
        let (desired, _) = desired_of(&service, &[slice("TCP", endpoints)]);
        assert_eq!(
            desired.unwrap().vips[0].has_endpoints,
            has_endpoints,
            "{endpoints:?}"
        );
    }
}

/// The status of a load balancer with these addresses and their `ipMode`.
fn load_balancer(ingress: &[(&str, Option<&str>)]) -> ServiceStatus {
    let ingress = ingress.iter().map(|(ip, ip_mode)| LoadBalancerIngress {
        ip: Some((*ip).to_owned()),
        ip_mode: ip_mode.map(str::to_owned),
        ..LoadBalancerIngress::default()
    });
    ServiceStatus {
        load_balancer: Some(LoadBalancerStatus {
            ingress: Some(ingress.collect()),
        }),
        conditions: None,
    }
}

#[test]
fn frontends_get_flags_from_the_traffic_policies() {
    let (inside, outside) = (frontend_flags::INSIDE_LOCAL, frontend_flags::OUTSIDE_LOCAL);
    let own = frontend_flags::NODE_ADDRESS;
    for (internal, external, expected_internal, expected_external) in [
        (None, None, 0, 0),
        (Some("Cluster"), Some("Cluster"), 0, 0),
        (Some("Local"), Some("Cluster"), inside | outside, 0),
        (Some("Cluster"), Some("Local"), 0, outside),
        (Some("Local"), Some("Local"), inside | outside, outside),
    ] {
        let mut spec = spec("TCP");
        spec.type_ = Some("NodePort".to_owned());
        spec.internal_traffic_policy = internal.map(str::to_owned);
        spec.external_traffic_policy = external.map(str::to_owned);
        // The node's own address has no wildcard row. An address that occurs twice has one row.
        spec.external_ips = Some(vec!["192.168.0.1".to_owned(), "10.96.0.1".to_owned()]);
        let (desired, problems) = desired_of(&service(spec), &[]);
        assert_eq!(problems, []);
        let desired = desired.unwrap();
        let frontends: Vec<(FrontendKey, FrontendKind, u32)> = desired.ports[0]
            .frontends
            .iter()
            .map(|frontend| (frontend.key, frontend.kind, frontend.flags))
            .collect();
        let key = |address: &str, port| {
            FrontendKey::Port(address.parse().unwrap(), port, crate::maps::Protocol::Tcp)
        };
        assert_eq!(
            frontends,
            [
                (key("10.96.0.1", 80), FrontendKind::ClusterIp, expected_internal),
                (
                    key("192.168.0.1", 30080),
                    FrontendKind::NodePort,
                    expected_external | own
                ),
                (
                    key("192.168.0.1", 80),
                    FrontendKind::ExternalIp,
                    expected_external | own
                ),
            ]
        );
        assert_eq!(vips(&desired), ["10.96.0.1 ClusterIp"]);
    }
}

#[test]
fn messages_truncate_long_values() {
    let mut spec = spec("TCP");
    spec.external_ips = Some(vec!["x".repeat(1_000_000)]);
    let mut service = service(spec);
    let (_, problems) = desired_of(&service, &[]);
    assert!(problems[0].to_string().len() < 300, "{}", problems[0]);
    service.metadata.name = Some("n".repeat(1_000_000));
    assert_eq!(desired_of(&service, &[]).0, None);
}

fn from_yaml<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
    serde_norway::from_str(yaml).unwrap()
}

/// A Service with this spec and these load balancer addresses.
fn balanced(spec: &str, ingress: &str) -> Service {
    let load_balancer = format!("{{loadBalancer: {{ingress: {ingress}}}}}");
    Service {
        status: Some(from_yaml(&load_balancer)),
        ..service(from_yaml(spec))
    }
}

#[test]
fn services_get_frontends_at_all_their_addresses() {
    let cases: &[(&str, &str, Option<&[&str]>)] = &[
        (
            "{clusterIP: 10.96.0.1, ports: [{port: 80}]}",
            "[]",
            Some(&["10.96.0.1:80/TCP"]),
        ),
        // Not for a proxy.
        ("{clusterIP: None, ports: [{port: 80}]}", "[]", None),
        (
            "{clusterIP: None, clusterIPs: [None], ports: [{port: 80}]}",
            "[]",
            None,
        ),
        ("{type: ExternalName, externalName: example.com}", "[]", None),
        // Both families with one address each; `clusterIP` repeats the first one.
        (
            "{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80}]}",
            "[]",
            Some(&["10.96.0.1:80/TCP", "[fd00:96::1]:80/TCP"]),
        ),
        // Old objects.
        (
            "{clusterIP: 010.096.000.001, ports: [{port: 80}]}",
            "[]",
            Some(&["10.96.0.1:80/TCP"]),
        ),
        // A NodePort, at the node's address of each family, if the type has NodePorts.
        (
            "{type: NodePort, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80, nodePort: 30080}]}",
            "[]",
            Some(&[
                "10.96.0.1:80/TCP",
                "[fd00:96::1]:80/TCP",
                "192.168.0.1:30080/TCP",
                "[fd00:168::1]:30080/TCP",
            ]),
        ),
        (
            "{type: ClusterIP, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}",
            "[]",
            Some(&["10.96.0.1:80/TCP"]),
        ),
        // Load balancers.
        (
            "{type: LoadBalancer, loadBalancerClass: example.com/any, clusterIPs: [10.96.0.1, 'fd00:96::1'], \
              ports: [{port: 80, nodePort: 30080}]}",
            "[{ip: 198.51.100.1}, {ip: 198.51.100.2, ipMode: VIP}, {ip: 'fd00:51::1'}]",
            Some(&[
                "10.96.0.1:80/TCP",
                "[fd00:96::1]:80/TCP",
                "192.168.0.1:30080/TCP",
                "[fd00:168::1]:30080/TCP",
                "198.51.100.1:80/TCP",
                "198.51.100.2:80/TCP",
                "[fd00:51::1]:80/TCP",
            ]),
        ),
        (
            "{type: LoadBalancer, allocateLoadBalancerNodePorts: false, clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 0}]}",
            "[{ip: 198.51.100.1, ipMode: Proxy}, {hostname: lb.example.com}]",
            Some(&["10.96.0.1:80/TCP"]),
        ),
        (
            "{type: NodePort, clusterIP: 10.96.0.1, ports: [{port: 80}]}",
            "[{ip: 198.51.100.1}]",
            Some(&["10.96.0.1:80/TCP"]),
        ),
        // External IPs work with every type. Several protocols and ports.
        (
            "{clusterIP: 10.96.0.1, externalIPs: [203.0.113.1], \
              ports: [{name: a, port: 53}, {name: b, port: 53, protocol: UDP}, {name: c, port: 54, protocol: SCTP}]}",
            "[]",
            Some(&[
                "10.96.0.1:53/TCP",
                "203.0.113.1:53/TCP",
                "10.96.0.1:53/UDP",
                "203.0.113.1:53/UDP",
                "10.96.0.1:54/SCTP",
                "203.0.113.1:54/SCTP",
            ]),
        ),
    ];
    for (spec, ingress, expected) in cases {
        let (desired, problems) = desired_of(&balanced(spec, ingress), &[]);
        assert_eq!(problems, [], "{spec}");
        let frontends = desired.map(|desired| {
            let frontends = desired.ports.iter().flat_map(|port| &port.frontends);
            frontends
                .map(|frontend| frontend.key.to_string())
                .collect::<Vec<_>>()
        });
        let expected = expected.map(|keys| keys.iter().map(|key| (*key).to_owned()).collect());
        assert_eq!(frontends, expected, "{spec}");
    }
}

/// A Service has addresses in its own families only. Others are problems.
#[test]
fn services_have_addresses_in_their_families_only() {
    let both = [
        "192.168.0.1",
        "[fd00:168::1]",
        "198.51.100.1",
        "[fd00:51::1]",
        "203.0.113.1",
        "[fd00:52::1]",
    ];
    let [ipv4, ipv6] = [0, 1].map(|first| both.iter().copied().skip(first).step_by(2).collect::<Vec<_>>());
    for (families, expected) in [
        ("clusterIPs: [10.96.0.1]", &ipv4[..]),
        ("clusterIPs: ['fd00:96::1']", &ipv6),
        ("clusterIP: 10.96.0.1", &ipv4),
        ("clusterIP: 'fd00:96::1'", &ipv6),
        ("clusterIPs: ['fd00:96::1', 10.96.0.1]", &both),
        // Cluster IPs take precedence over `ipFamilies`.
        ("clusterIPs: [10.96.0.1], ipFamilies: [IPv4, IPv6]", &ipv4),
        ("clusterIPs: ['fd00:96::1'], ipFamilies: [IPv4]", &ipv6),
        // Manifests without allocated cluster IPs.
        ("ipFamilies: [IPv4]", &ipv4),
        ("ipFamilies: [IPv6]", &ipv6),
        ("ipFamilies: [IPv6, IPv4]", &both),
        ("ipFamilies: []", &both),
        ("ipFamilyPolicy: SingleStack", &both),
    ] {
        let spec = format!(
            "{{type: LoadBalancer, {families}, externalTrafficPolicy: Local, healthCheckNodePort: 32000, \
              externalIPs: [203.0.113.1, 'fd00:52::1'], ports: [{{port: 80, nodePort: 30080}}]}}"
        );
        let service = balanced(&spec, "[{ip: 198.51.100.1}, {ip: 'fd00:51::1'}]");
        let (desired, problems) = desired_of(&service, &[]);
        let desired = desired.unwrap();
        let keys = desired.ports[0].frontends.iter();
        let keys = keys.filter(|frontend| frontend.kind != FrontendKind::ClusterIp);
        let text = |key: FrontendKey| key.to_string().rsplit_once(':').unwrap().0.to_owned();
        assert_eq!(
            keys.map(|frontend| text(frontend.key)).collect::<Vec<_>>(),
            expected,
            "{families}"
        );

        let is_taken = |address: IpAddr| expected.iter().any(|taken| taken.contains(&address.to_string()));
        let external =
            ["198.51.100.1", "203.0.113.1", "fd00:51::1", "fd00:52::1"].map(|text| text.parse().unwrap());
        let vips = desired
            .vips
            .iter()
            .filter(|vip| vip.kind != FrontendKind::ClusterIp);
        assert_eq!(
            vips.map(|vip| vip.address).collect::<Vec<_>>(),
            external
                .into_iter()
                .filter(|address| is_taken(*address))
                .collect::<Vec<_>>(),
            "{families}"
        );
        let check = desired.health.check.unwrap();
        assert_eq!(
            (check.families.ipv4, check.families.ipv6),
            (expected.contains(&both[0]), expected.contains(&both[1])),
            "{families}"
        );
        // Every unused address is a problem.
        let unused = external.into_iter().filter(|address| !is_taken(*address));
        assert_eq!(problems.len(), unused.clone().count(), "{families}: {problems:?}");
        for address in unused {
            let is_named = |problem: &Problem| problem.message.contains(&address.to_string());
            assert!(problems.iter().any(is_named), "{families}: {problems:?}");
        }
    }
}

#[test]
fn the_affinity_timeout_is_validated() {
    let config = |seconds| format!("sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}");
    for (affinity, config, expected, n_problems) in [
        ("None", String::new(), 0, 0),
        ("None", config(60), 0, 0),
        ("ClientIP", String::new(), 10_800, 0),
        (
            "ClientIP",
            "sessionAffinityConfig: {clientIP: {}}".to_owned(),
            10_800,
            0,
        ),
        ("ClientIP", config(1), 1, 0),
        ("ClientIP", config(86_400), 86_400, 0),
        ("ClientIP", config(0), 10_800, 1),
        ("ClientIP", config(-1), 10_800, 1),
        ("ClientIP", config(86_401), 10_800, 1),
        ("Cookie", config(60), 0, 1),
    ] {
        let spec =
            format!("{{clusterIP: 10.96.0.1, ports: [{{port: 80}}], sessionAffinity: {affinity}, {config}}}");
        let (desired, problems) = desired_of(&service(from_yaml(&spec)), &[]);
        assert_eq!(desired.unwrap().ports[0].affinity_seconds, expected, "{spec}");
        assert_eq!(problems.len(), n_problems, "{spec}: {problems:?}");
    }
}

/// Returns the backends of all ports as `port address:port regions`, with `C` and `L` for the
/// regions.
fn backends(service: &Service, slices: &[&str]) -> Vec<String> {
    let slices: Vec<EndpointSlice> = slices.iter().map(|slice| from_yaml(slice)).collect();
    let (desired, problems) = desired_of(service, &slices);
    assert_eq!(problems, []);
    let of_port = |port: &DesiredPort| {
        let name = port.port.name.clone();
        let text = move |backend: &DesiredBackend| {
            let regions = [(backend.in_cluster, "C"), (backend.in_local, "L")];
            let regions: String = regions
                .into_iter()
                .filter(|(is_in, _)| *is_in)
                .map(|(_, letter)| letter)
                .collect();
            format!("{name} {} {regions}", backend.address)
        };
        port.backends.iter().map(text).collect::<Vec<_>>()
    };
    desired.unwrap().ports.iter().flat_map(of_port).collect()
}

#[test]
fn endpoints_are_selected_by_family_port_name_and_slice() {
    let service = service(from_yaml(
        "{clusterIPs: [10.96.0.1, 'fd00:96::1'], internalTrafficPolicy: Local, \
          ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}]}",
    ));
    let v4 = "{addressType: IPv4, metadata: {name: a}, \
        ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}], \
        endpoints: [{addresses: [10.1.0.2], nodeName: node-a}, {addresses: [010.001.000.003], nodeName: node-b}]}";
    // Pods of another template use another port number. One endpoint is still in the other slice,
    // too.
    let moved = "{addressType: IPv4, metadata: {name: b}, \
        ports: [{name: http, port: 8081}, {name: dns, port: 53, protocol: UDP}], \
        endpoints: [{addresses: [10.1.0.3], nodeName: node-b}, {addresses: [10.1.0.4], nodeName: node-b}]}";
    // The other family has its own readiness, fallback and hints.
    let v6 = "{addressType: IPv6, metadata: {name: c}, ports: [{name: http, port: 8080}], \
        endpoints: [{addresses: ['fd00:1::2'], nodeName: node-a, conditions: {ready: false, terminating: true}}, \
                    {addresses: ['fd00:1::3'], nodeName: node-b, conditions: {ready: false, serving: false}}]}";
    assert_eq!(
        backends(&service, &[v4, moved, v6]),
        [
            "http 10.1.0.2:8080 CL",
            "http 10.1.0.3:8080 C",
            "http 10.1.0.3:8081 C",
            "http 10.1.0.4:8081 C",
            "http [fd00:1::2]:8080 CL",
            "http [fd00:1::3]:8080 ",
            "dns 10.1.0.2:53 CL",
            "dns 10.1.0.3:53 C",
            "dns 10.1.0.4:53 C",
        ]
    );
    // Slices of host names, without these ports, and with ports without numbers.
    let others = [
        "{addressType: FQDN, metadata: {name: d}, ports: [{name: http, port: 80}], endpoints: [{addresses: [example.com]}]}",
        "{addressType: IPv4, metadata: {name: e}, ports: [{name: other, port: 80}], endpoints: [{addresses: [10.1.0.9]}]}",
        "{addressType: IPv4, metadata: {name: f}, ports: [{name: http}], endpoints: [{addresses: [10.1.0.9]}]}",
        "{addressType: IPv4, metadata: {name: g}, endpoints: [{addresses: [10.1.0.9]}]}",
    ];
    assert_eq!(backends(&service, &others), [""; 0]);
}

#[test]
fn source_ranges_apply_to_their_family() {
    let both = "[{ip: 198.51.100.1}, {ip: 'fd00:51::1'}]";
    for (ranges, ingress, filtered, networks, node_allowed) in [
        ("[]", both, "", "", ""),
        ("[' ', '']", both, "", "", ""),
        ("[10.0.0.0/8]", both, "IPv4", "10.0.0.0/8", ""),
        (
            "[' 10.1.2.3/8 ', 10.0.0.0/8, 'fd00:9::/32']",
            both,
            "IPv4 IPv6",
            "10.0.0.0/8 fd00:9::/32",
            "",
        ),
        ("['fd00:9::/32']", both, "IPv6", "fd00:9::/32", ""),
        // The node's own addresses are 192.168.0.1 and fd00:168::1.
        (
            "[192.168.0.0/16, 'fd00:9::/32']",
            both,
            "IPv4 IPv6",
            "192.168.0.0/16 198.51.100.1/32 fd00:9::/32",
            "IPv4",
        ),
        ("['fd00::/8']", both, "IPv6", "fd00::/8 fd00:51::1/128", "IPv6"),
        // The load balancer has no address of that family.
        (
            "[10.0.0.0/8, 'fd00:9::/32']",
            "[{ip: 'fd00:51::1'}]",
            "IPv6",
            "fd00:9::/32",
            "",
        ),
        ("[10.0.0.0/8]", "[]", "", "", ""),
    ] {
        let spec =
            format!("{{type: LoadBalancer, loadBalancerSourceRanges: {ranges}, ports: [{{port: 80}}]}}");
        let (desired, _) = desired_of(&balanced(&spec, ingress), &[]);
        let found = desired.unwrap().source_ranges;
        assert_eq!(text(&found.filtered), filtered, "{ranges}");
        assert_eq!(text(&found.networks), networks, "{ranges}");
        assert_eq!(text(&found.node_allowed), node_allowed, "{ranges}");
    }
}

fn text<T: ToString>(values: &BTreeSet<T>) -> String {
    let texts: Vec<String> = values.iter().map(T::to_string).collect();
    texts.join(" ")
}

#[test]
fn malformed_source_ranges_block_all_clients() {
    let both = "[{ip: 198.51.100.1}, {ip: 'fd00:51::1'}]";
    for (ranges, networks, n_problems) in [
        ("[10.0.0.0]", "", 1),
        ("[10.0.0.0/33, 'fd00::/129', nonsense]", "", 3),
        ("[10.0.0.0/33, 10.0.0.0/8]", "10.0.0.0/8", 1),
    ] {
        let spec =
            format!("{{type: LoadBalancer, loadBalancerSourceRanges: {ranges}, ports: [{{port: 80}}]}}");
        let (desired, problems) = desired_of(&balanced(&spec, both), &[]);
        assert_eq!(problems.len(), n_problems, "{problems:?}");
        let found = desired.unwrap().source_ranges;
        assert_eq!(
            (text(&found.filtered).as_str(), text(&found.networks).as_str()),
            ("IPv4 IPv6", networks)
        );
    }
}
