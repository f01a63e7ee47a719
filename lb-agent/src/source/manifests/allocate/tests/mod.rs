//! Tests which values Services get.

use std::collections::BTreeSet;

use super::*;
use crate::service_cidr::ServiceCidr;

/// A Service with this name and this specification in YAML.
fn object(name: &str, spec: &str) -> (ObjectReference, Arc<Object>) {
    let service = Service {
        metadata: serde_norway::from_str(&format!("{{namespace: default, name: {name}}}")).unwrap(),
        spec: Some(serde_norway::from_str(spec).unwrap()),
        status: None,
    };
    let object = Object::Service(Box::new(service));
    (object.reference(), Arc::new(object))
}

fn objects(services: &[(&str, &str)]) -> Objects {
    services.iter().map(|(name, spec)| object(name, spec)).collect()
}

fn cidrs(networks: &str) -> ServiceCidrs {
    let networks: Vec<ServiceCidr> = networks.split(',').map(|text| text.parse().unwrap()).collect();
    ServiceCidrs::new(&networks).unwrap()
}

const DEFAULT: &str = "10.96.0.0/16,fd00:10:96::/112";
/// A network with 14 allocatable addresses.
const SMALL: &str = "10.96.0.0/28";
/// A typical Service.
const PLAIN: &str = "{selector: {app: web}, ports: [{port: 80}]}";
const NODE_PORT: &str = "{type: NodePort, selector: {app: web}, ports: [{port: 80}]}";

fn first(services: &[(&str, &str)], networks: &str) -> Allocation {
    allocate(&AllocationState::default(), &objects(services), &cidrs(networks))
}

/// The specification of a Service after the allocation.
fn spec(allocation: &Allocation, name: &str) -> k8s_openapi::api::core::v1::ServiceSpec {
    let (reference, _) = object(name, "{}");
    match &*allocation.filled[&reference] {
        Object::Service(service) => service.spec.clone().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn cluster_ips(allocation: &Allocation, name: &str) -> Vec<String> {
    spec(allocation, name).cluster_ips.unwrap_or_default()
}

fn cluster_ip(allocation: &Allocation, name: &str) -> String {
    spec(allocation, name).cluster_ip.unwrap()
}

fn node_ports(allocation: &Allocation, name: &str) -> Vec<Option<i32>> {
    let ports = spec(allocation, name).ports.unwrap();
    ports.into_iter().map(|port| port.node_port).collect()
}

fn texts(notes: &[Note]) -> Vec<String> {
    notes
        .iter()
        .map(|(service, text)| format!("{service}: {text}"))
        .collect()
}

#[test]
fn allocated_values_never_change_between_versions() {
    let load_balancer = "{type: LoadBalancer, externalTrafficPolicy: Local, ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}";
    let allocation = first(&[("web", load_balancer)], DEFAULT);
    let spec = spec(&allocation, "web");
    assert_eq!(spec.cluster_ips.unwrap(), ["10.96.62.64", "fd00:10:96::737b"]);
    assert_eq!(spec.ports.unwrap()[0].node_port, Some(30_100));
    assert_eq!(spec.health_check_node_port, Some(30_590));
}

#[test]
fn allocated_fields_match_the_api_server() {
    let allocation = first(&[("web", PLAIN)], DEFAULT);
    let spec = spec(&allocation, "web");
    let ips = spec.cluster_ips.unwrap();
    assert_eq!((spec.cluster_ip.as_ref(), ips.len()), (ips.first(), 1));
    assert_eq!(spec.ip_families.unwrap(), ["IPv4"]);
    assert_eq!(spec.ip_family_policy.as_deref(), Some("SingleStack"));
    assert_eq!(spec.ports.unwrap()[0].node_port, None);
    assert_eq!(spec.health_check_node_port, None);
    assert_eq!(
        texts(&allocation.new),
        [format!("Service default/web: clusterIP {}", ips[0])]
    );
    assert_eq!(
        (texts(&allocation.moved), texts(&allocation.faults)),
        (vec![], vec![])
    );
}

#[test]
fn families_follow_the_policy() {
    let only_v4 = SMALL;
    let only_v6 = "fd00:10:96::/112";
    let v6_first = "fd00:10:96::/112,10.96.0.0/16";
    let none = "no IPv";
    for (fields, networks, families, fault) in [
        ("", DEFAULT, "4", ""),
        ("", v6_first, "6", ""),
        ("", only_v6, "6", ""),
        ("ipFamilies: [IPv6]", DEFAULT, "6", ""),
        ("ipFamilies: [IPv6]", only_v4, "", none),
        ("ipFamilies: [IPv4]", only_v6, "", none),
        ("ipFamilyPolicy: SingleStack", DEFAULT, "4", ""),
        (
            "ipFamilyPolicy: SingleStack, ipFamilies: [IPv6, IPv4]",
            DEFAULT,
            "6",
            "",
        ),
        ("ipFamilyPolicy: PreferDualStack", DEFAULT, "46", ""),
        ("ipFamilyPolicy: PreferDualStack", v6_first, "64", ""),
        ("ipFamilyPolicy: PreferDualStack", only_v6, "6", ""),
        (
            "ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv6]",
            DEFAULT,
            "64",
            "",
        ),
        ("ipFamilyPolicy: RequireDualStack", DEFAULT, "46", ""),
        ("ipFamilyPolicy: RequireDualStack", only_v4, "4", none),
        ("ipFamilies: [IPv6, IPv4]", DEFAULT, "64", ""),
        ("ipFamilies: [IPv5]", DEFAULT, "4", "\"IPv5\" is unknown"),
        ("ipFamilyPolicy: Both", DEFAULT, "4", "\"Both\" is unknown"),
        // One address is in the manifest, the other one is allocated.
        (
            "clusterIP: 10.96.0.9, ipFamilyPolicy: PreferDualStack",
            DEFAULT,
            "46",
            "",
        ),
        (
            "clusterIPs: ['fd00:10:96::9'], ipFamilyPolicy: RequireDualStack",
            DEFAULT,
            "64",
            "",
        ),
        ("clusterIP: '', clusterIPs: ['']", DEFAULT, "4", ""),
    ] {
        let fields = format!("{{ports: [{{port: 80}}], {fields}}}");
        let allocation = first(&[("web", &fields)], networks);
        let ips = match allocation.filled.is_empty() {
            true => Vec::new(),
            false => cluster_ips(&allocation, "web"),
        };
        let found: String = ips
            .iter()
            .map(|ip| if ip.contains(':') { '6' } else { '4' })
            .collect();
        assert_eq!(found, families, "{fields}, {networks}");
        let faults = texts(&allocation.faults).join("");
        assert!(
            faults.contains(fault) && faults.is_empty() == fault.is_empty(),
            "{fields}: {faults}"
        );
    }
}

#[test]
fn headless_and_addressed_services_get_no_address() {
    for fields in [
        "{clusterIP: None, ports: [{port: 80}]}",
        "{clusterIPs: [None], ports: [{port: 80}]}",
        "{type: ExternalName, externalName: example.com, ports: [{port: 80}]}",
        "{selector: {app: web}}",
        "{clusterIP: 10.96.0.9, ports: [{port: 80}]}",
        "{clusterIP: 10.96.0.999, ports: [{port: 80}]}",
        "{clusterIPs: [10.96.0.9, 'fd00:10:96::9'], ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}",
    ] {
        let allocation = first(&[("web", fields)], DEFAULT);
        assert!(allocation.filled.is_empty(), "{fields}: {allocation:?}");
        assert_eq!(allocation.state, AllocationState::default(), "{fields}");
    }
    // A selector is not necessary.
    assert_eq!(
        first(&[("web", "{ports: [{port: 80}]}")], DEFAULT).filled.len(),
        1
    );
}

#[test]
fn node_ports_depend_on_the_service_type() {
    let policy = "externalTrafficPolicy: Local";
    for (fields, is_given, has_check) in [
        ("type: ClusterIP", false, false),
        ("type: NodePort", true, false),
        ("type: LoadBalancer", true, false),
        (
            "type: LoadBalancer, allocateLoadBalancerNodePorts: true",
            true,
            false,
        ),
        (
            "type: LoadBalancer, allocateLoadBalancerNodePorts: false",
            false,
            false,
        ),
        (
            "type: NodePort, allocateLoadBalancerNodePorts: false",
            true,
            false,
        ),
        (&format!("type: NodePort, {policy}"), true, false),
        (&format!("type: LoadBalancer, {policy}"), true, true),
        (
            &format!("type: LoadBalancer, {policy}, allocateLoadBalancerNodePorts: false"),
            false,
            true,
        ),
    ] {
        let allocation = first(
            &[("web", &format!("{{ports: [{{port: 80}}], {fields}}}"))],
            DEFAULT,
        );
        let ports = node_ports(&allocation, "web");
        assert_eq!(ports[0].is_some(), is_given, "{fields}: {ports:?}");
        let check = spec(&allocation, "web").health_check_node_port;
        assert_eq!(check.is_some(), has_check, "{fields}: {check:?}");
        assert_ne!(check.or(Some(0)), ports[0], "{fields}");
    }
    let written = "{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30001, \
                    ports: [{port: 80, nodePort: 30002}]}";
    let allocation = first(&[("web", written)], DEFAULT);
    assert_eq!(node_ports(&allocation, "web"), [Some(30_002)]);
    assert_eq!(spec(&allocation, "web").health_check_node_port, Some(30_001));
    // Invalid values are not replaced: the model reports them.
    let misspelt = "{type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 300010, \
                     ports: [{port: 80, nodePort: -1}]}";
    let allocation = first(&[("web", misspelt)], DEFAULT);
    assert_eq!(node_ports(&allocation, "web"), [Some(-1)]);
    assert_eq!(spec(&allocation, "web").health_check_node_port, Some(300_010));
}

#[test]
fn ports_with_the_same_number_share_a_node_port() {
    let dns = "{type: NodePort, ports: [{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53}, \
                {name: metrics, port: 9153}]}";
    let ports = node_ports(&first(&[("dns", dns)], DEFAULT), "dns");
    assert!(
        ports[0].is_some() && ports[0] == ports[1] && ports[1] != ports[2],
        "{ports:?}"
    );
    let written = "{type: NodePort, ports: [{name: udp, port: 53, protocol: UDP}, \
                    {name: tcp, port: 53, nodePort: 30053}]}";
    let allocation = first(&[("dns", written)], DEFAULT);
    assert_eq!(node_ports(&allocation, "dns"), [Some(30_053), Some(30_053)]);
    assert_eq!(allocation.new.len(), 1, "{:?}", allocation.new);
    // Ports of different Services never share a NodePort, even if their protocols differ.
    let [udp, tcp] = ["UDP", "TCP"]
        .map(|protocol| format!("{{type: NodePort, ports: [{{port: 53, protocol: {protocol}}}]}}"));
    let names: Vec<String> = (0..1300).map(|number| format!("dns-{number}")).collect();
    let services: Vec<(&str, &str)> = names.iter().flat_map(|name| [(name.as_str(), &*udp)]).collect();
    let others: Vec<String> = names.iter().map(|name| format!("{name}-tcp")).collect();
    let services: Vec<_> = services
        .into_iter()
        .chain(others.iter().map(|name| (name.as_str(), &*tcp)))
        .collect();
    let allocation = first(&services, DEFAULT);
    let distinct: BTreeSet<_> = services
        .iter()
        .flat_map(|(name, _)| node_ports(&allocation, name))
        .collect();
    assert_eq!(distinct.len(), services.len());
}

#[test]
fn sctp_gets_no_node_port_but_a_message() {
    let sctp = "{type: NodePort, ports: [{port: 5000, protocol: SCTP}, {name: tcp, port: 5000}]}";
    let allocation = first(&[("m3ua", sctp)], DEFAULT);
    let ports = node_ports(&allocation, "m3ua");
    assert!(ports[0].is_none() && ports[1].is_some(), "{ports:?}");
    let faults = texts(&allocation.faults);
    assert!(
        faults[0].contains("port 5000, since SCTP needs equal ports"),
        "{faults:?}"
    );
    let balanced = "{type: LoadBalancer, ports: [{port: 5000, protocol: SCTP}]}";
    assert_eq!(texts(&first(&[("m3ua", balanced)], DEFAULT).faults), [""; 0]);
}

#[test]
fn values_in_manifests_are_never_allocated() {
    // Manifests name all addresses except 10.96.0.7, in every field for addresses.
    let services = [
        ("b1", "{clusterIP: 10.96.0.1}"),
        ("b2", "{clusterIPs: [10.96.0.2], ports: [{port: 80}]}"),
        (
            "b3",
            "{clusterIP: 10.96.0.3, externalIPs: [10.96.0.4, 10.96.0.5, 10.96.0.6], ports: [{port: 80}]}",
        ),
        (
            "b4",
            "{clusterIP: 010.096.000.008, externalIPs: [10.96.0.9, 10.96.0.10], ports: [{port: 80}]}",
        ),
        (
            "b5",
            "{clusterIP: 10.96.0.11, externalIPs: [10.96.0.12, 10.96.0.13, 10.96.0.14], ports: [{port: 80}]}",
        ),
        ("a", PLAIN),
    ];
    assert_eq!(cluster_ip(&first(&services, SMALL), "a"), "10.96.0.7");

    let alone = first(&[("web", NODE_PORT)], DEFAULT);
    let (address, port) = (cluster_ip(&alone, "web"), node_ports(&alone, "web")[0].unwrap());
    let other = format!("{{type: NodePort, clusterIP: {address}, ports: [{{port: 1, nodePort: {port}}}]}}");
    let both = first(&[("web", NODE_PORT), ("zoo", &other)], DEFAULT);
    assert_ne!(cluster_ip(&both, "web"), address);
    assert_ne!(node_ports(&both, "web"), [Some(port)]);
    // NodePorts of a Service without NodePorts are not claimed.
    let other = format!("{{clusterIP: 10.96.0.9, ports: [{{port: 1, nodePort: {port}}}]}}");
    let both = first(&[("web", NODE_PORT), ("zoo", &other)], DEFAULT);
    assert_eq!(node_ports(&both, "web"), [Some(port)]);
}

#[test]
fn of_two_clashing_services_the_first_by_name_wins() {
    // Of 15 Services in a network with 14 addresses, some clash. The last one by name gets no
    // address.
    let names: Vec<String> = (10..25).map(|number| format!("s{number}")).collect();
    let services: Vec<_> = names.iter().map(|name| (name.as_str(), PLAIN)).collect();
    let allocation = first(&services, SMALL);
    let addresses: BTreeSet<String> = names[..14]
        .iter()
        .map(|name| cluster_ip(&allocation, name))
        .collect();
    assert_eq!(addresses.len(), 14);
    assert!(!addresses.contains("10.96.0.0") && !addresses.contains("10.96.0.15"));
    assert_eq!(
        texts(&allocation.faults),
        [
            "Service default/s24: no address is left for it in 10.96.0.0/28, which has 14: name a larger network with \
             --service-cidr, or remove Services"
        ]
    );
    assert_eq!(
        cluster_ip(&allocation, "s10"),
        cluster_ip(&first(&services[..1], SMALL), "s10")
    );
}

#[test]
fn ten_thousand_services_exhaust_a_small_network() {
    let names: Vec<String> = (0..10_000).map(|number| format!("s{number:05}")).collect();
    let services: Vec<_> = names.iter().map(|name| (name.as_str(), NODE_PORT)).collect();
    let objects = objects(&services);
    let allocation = allocate(&AllocationState::default(), &objects, &cidrs(SMALL));
    assert_eq!(allocation.faults.len(), 10_000 - 14 + 10_000 - 2768);
    assert_eq!(allocation.state.services.len(), 2768);
    let again = allocate(&allocation.state, &objects, &cidrs(SMALL));
    assert_eq!(
        (again.state, again.new, again.moved),
        (allocation.state, vec![], vec![])
    );
}

#[test]
fn manual_addresses_are_allocated_last() {
    let names: Vec<String> = (0..30).map(|number| format!("s{number}")).collect();
    let services: Vec<_> = names.iter().map(|name| (name.as_str(), PLAIN)).collect();
    let last = |address: &String| address.rsplit('.').next().unwrap().parse::<u8>().unwrap();
    let given = |count: usize| -> BTreeSet<u8> {
        let allocation = first(&services[..count], "10.96.0.0/27");
        names[..count]
            .iter()
            .map(|name| last(&cluster_ip(&allocation, name)))
            .collect()
    };
    assert_eq!(given(14), (17..=30).collect());
    assert_eq!(given(30), (1..=30).collect());
}

mod kept;
