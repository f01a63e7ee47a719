//! Data of a Service for health checks and metrics.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use lb_common::layout::frontend_flags;

use super::endpoints::Endpoints;
use super::values::port_number;
use super::{NodeConfig, Problems};
use crate::desired::{
    DesiredFrontend, DesiredPort, FrontendKind, HealthCheck, PerFamily, ServiceHealth, TrafficPolicy,
};
use crate::network::Family;

pub(super) fn of(
    service: &Service,
    families: PerFamily<bool>,
    ports: &[DesiredPort],
    endpoints: &Endpoints<'_>,
    node: &NodeConfig,
    problems: &mut Problems,
) -> ServiceHealth {
    let Some(spec) = &service.spec else {
        return ServiceHealth::default();
    };
    let is_internal = |frontend: &DesiredFrontend| {
        frontend.kind == FrontendKind::ClusterIp && frontend.flags & frontend_flags::INSIDE_LOCAL != 0
    };
    let is_external = |frontend: &DesiredFrontend| frontend.external_policy() == Some(TrafficPolicy::Local);
    let internal = PerFamily::of(|family| without_local(ports, family, is_internal));
    let external = PerFamily::of(|family| without_local(ports, family, is_external));
    ServiceHealth {
        check: check_port(spec, problems).map(|port| HealthCheck {
            port,
            families,
            local_endpoints: local_endpoints(ports, endpoints, node),
        }),
        without_local_internal: internal,
        without_local_external: external,
    }
}

/// Returns the port for the health checks of load balancers. It is only needed for load balancers
/// with `externalTrafficPolicy: Local`.
fn check_port(spec: &ServiceSpec, problems: &mut Problems) -> Option<u16> {
    let is_needed = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    let number = spec
        .health_check_node_port
        .filter(|port| is_needed && *port != 0)?;
    match port_number(number) {
        Ok(port) => Some(port),
        Err(fault) => {
            problems.add(format!("spec.healthCheckNodePort: {fault}"));
            None
        }
    }
}

/// Counts the addresses of ready endpoints on this node as kube-proxy does
/// (`EndpointsMap.LocalReadyEndpoints` in its `pkg/proxy/endpointschangetracker.go`). Ports do not
/// matter: an endpoint with several ports counts once. Terminating endpoints do not count, although
/// they may still get flows. kube-proxy runs one proxy for each family, with its own health check
/// server at its family's addresses. So a Pod with two addresses counts once for each family, and a
/// health check at an IPv4 address reports the IPv4 endpoints.
fn local_endpoints(ports: &[DesiredPort], endpoints: &Endpoints<'_>, node: &NodeConfig) -> PerFamily {
    let addresses: BTreeSet<IpAddr> = ports
        .iter()
        .flat_map(|port| endpoints.ready_here(&port.port, node))
        .collect();
    PerFamily::of(|family| {
        let of_family = addresses.iter().filter(|address| Family::of(**address) == family);
        of_family.count()
    })
}

/// Counts the ports that drop traffic of this family because all their endpoints are on other
/// nodes. `is_local` returns true for frontends that use only the endpoints of this node.
fn without_local(
    ports: &[DesiredPort],
    family: Family,
    is_local: impl Fn(&DesiredFrontend) -> bool,
) -> usize {
    let drops = |port: &&DesiredPort| {
        let asks = port
            .frontends
            .iter()
            .any(|frontend| Family::of(frontend.key.address()) == family && is_local(frontend));
        let of_family = || {
            let backends = port.backends.iter();
            backends.filter(|backend| Family::of(backend.address.ip()) == family)
        };
        asks && of_family().any(|backend| backend.is_active()) && !of_family().any(|backend| backend.in_local)
    };
    ports.iter().filter(drops).count()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{desired_of, service, slice, spec};
    use super::*;

    /// A load balancer with `externalTrafficPolicy: Local`, a health check port and this
    /// `internalTrafficPolicy`.
    fn load_balancer(internal: &str) -> ServiceSpec {
        ServiceSpec {
            type_: Some("LoadBalancer".to_owned()),
            external_traffic_policy: Some("Local".to_owned()),
            internal_traffic_policy: Some(internal.to_owned()),
            health_check_node_port: Some(32_000),
            ..spec("TCP")
        }
    }

    fn health(spec: ServiceSpec, endpoints: &[&str]) -> ServiceHealth {
        let (desired, problems) = desired_of(&service(spec), &[slice("TCP", endpoints)]);
        assert_eq!(problems, []);
        desired.unwrap().health
    }

    #[test]
    fn a_health_check_counts_ready_local_endpoints() {
        let cases: &[(&[&str], usize)] = &[
            (&[], 0),
            (&["1 here", "2 there", "3 here"], 2),
            (&["1 there"], 0),
            (&["1 here unready"], 0),
            (&["1 here unready terminating"], 0),
            (&["1 here unready terminating", "1 here"], 1),
            // `ready` takes precedence, as with publishNotReadyAddresses.
            (&["1 here unserving terminating"], 1),
        ];
        for (endpoints, expected) in cases {
            let check = health(load_balancer("Cluster"), endpoints).check.unwrap();
            assert_eq!(check.port, 32_000);
            let expected = PerFamily {
                ipv4: *expected,
                ipv6: 0,
            };
            assert_eq!(check.local_endpoints, expected, "{endpoints:?}");
        }
    }

    #[test]
    fn an_address_counts_once_in_its_family() {
        let mut spec = load_balancer("Cluster");
        let mut second = spec.ports.iter().flatten().next().unwrap().clone();
        (second.name, second.port, second.node_port) = (Some("second".to_owned()), 81, None);
        spec.ports.get_or_insert_default().push(second);
        let ipv4 = slice("TCP", &["1 here", "2 here"]);
        let mut of_second = slice("TCP", &["2 here", "3 here"]);
        of_second.ports.iter_mut().flatten().next().unwrap().name = Some("second".to_owned());
        let mut of_none = slice("TCP", &["4 here"]);
        of_none.ports.iter_mut().flatten().next().unwrap().name = Some("unknown".to_owned());
        let mut ipv6 = slice("TCP", &["1 here"]);
        ipv6.address_type = "IPv6".to_owned();
        ipv6.endpoints.iter_mut().flatten().next().unwrap().addresses = vec!["fd00::1".to_owned()];
        let (desired, problems) = desired_of(&service(spec), &[ipv4, of_second, of_none, ipv6]);
        assert_eq!(problems, []);
        let check = desired.unwrap().health.check.unwrap();
        assert_eq!(check.local_endpoints, PerFamily { ipv4: 3, ipv6: 1 });
    }

    #[test]
    fn load_balancers_with_local_policy_have_a_health_check() {
        let with = |change: fn(&mut ServiceSpec)| {
            let mut spec = load_balancer("Cluster");
            change(&mut spec);
            health(spec, &["1 here"]).check.map(|check| check.port)
        };
        assert_eq!(with(|_| {}), Some(32_000));
        assert_eq!(with(|spec| spec.type_ = Some("NodePort".to_owned())), None);
        assert_eq!(with(|spec| spec.external_traffic_policy = None), None);
        assert_eq!(with(|spec| spec.health_check_node_port = None), None);
        assert_eq!(with(|spec| spec.health_check_node_port = Some(0)), None);
    }

    #[test]
    fn a_health_check_port_out_of_range_is_a_problem() {
        let spec = ServiceSpec {
            health_check_node_port: Some(70_000),
            ..load_balancer("Cluster")
        };
        let (desired, problems) = desired_of(&service(spec), &[]);
        assert_eq!(desired.unwrap().health.check, None);
        let [problem] = &problems[..] else {
            panic!("{problems:?}");
        };
        assert!(problem.message.contains("healthCheckNodePort") && problem.message.contains("70000"));
    }

    #[test]
    fn ports_without_local_endpoints_are_counted() {
        let none = PerFamily::default();
        let one = PerFamily { ipv4: 1, ipv6: 0 };
        let cases: &[(&str, &[&str], (PerFamily, PerFamily))] = &[
            ("Cluster", &["1 there"], (none, one)),
            ("Local", &["1 there"], (one, one)),
            ("Local", &["1 here", "2 there"], (none, none)),
            // Without any endpoint, packets are rejected instead of dropped.
            ("Local", &[], (none, none)),
            ("Local", &["1 here unready terminating"], (none, none)),
        ];
        for (internal, endpoints, expected) in cases {
            let health = health(load_balancer(internal), endpoints);
            let found = (health.without_local_internal, health.without_local_external);
            assert_eq!(found, *expected, "{internal} {endpoints:?}");
        }
        let mut cluster = load_balancer("Cluster");
        cluster.external_traffic_policy = None;
        assert_eq!(health(cluster, &["1 there"]).without_local_external, none);
    }
}
