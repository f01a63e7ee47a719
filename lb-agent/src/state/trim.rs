//! Removes the parts of objects that the agent does not read. This saves memory, and changes of
//! those parts are ignored.

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus, Service, ServiceSpec, ServiceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The metadata that every object keeps.
fn metadata(metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        labels: metadata.labels,
        creation_timestamp: metadata.creation_timestamp,
        deletion_timestamp: metadata.deletion_timestamp,
        ..ObjectMeta::default()
    }
}

/// Trims a Service. If another proxy serves it, the agent only reads its cluster IPs.
pub(super) fn service(service: Service, is_of_other: bool) -> Service {
    if is_of_other {
        let spec = service.spec.map(|spec| ServiceSpec {
            type_: spec.type_,
            cluster_ip: spec.cluster_ip,
            cluster_ips: spec.cluster_ips,
            ..ServiceSpec::default()
        });
        return Service {
            metadata: metadata(service.metadata),
            spec,
            status: None,
        };
    }
    let load_balancer = service.status.and_then(|status| status.load_balancer);
    Service {
        metadata: metadata(service.metadata),
        spec: service.spec,
        status: load_balancer.map(|balancer| ServiceStatus {
            load_balancer: Some(balancer),
            conditions: None,
        }),
    }
}

pub(super) fn pod(mut pod: Pod) -> Pod {
    let spec = pod.spec.take().map(|spec| PodSpec {
        containers: spec.containers.into_iter().map(container).collect(),
        init_containers: spec
            .init_containers
            .map(|containers| containers.into_iter().map(container).collect()),
        node_name: spec.node_name,
        host_network: spec.host_network,
        ..PodSpec::default()
    });
    let status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        pod_ip: status.pod_ip,
        pod_ips: status.pod_ips,
        host_ip: status.host_ip,
        host_ips: status.host_ips,
        conditions: status.conditions.map(|mut conditions| {
            conditions.retain(|condition| condition.type_ == "Ready");
            conditions
        }),
        ..PodStatus::default()
    });
    Pod {
        metadata: metadata(pod.metadata),
        spec,
        status,
    }
}

fn container(container: k8s_openapi::api::core::v1::Container) -> k8s_openapi::api::core::v1::Container {
    k8s_openapi::api::core::v1::Container {
        name: container.name,
        ports: container.ports,
        restart_policy: container.restart_policy,
        ..Default::default()
    }
}

/// Whether a Service depends on the node's addresses: it has NodePorts, or addresses that the node
/// may have, too.
pub(super) fn depends_on_addresses(service: &Service) -> bool {
    let Some(spec) = &service.spec else {
        return false;
    };
    !matches!(spec.type_.as_deref(), None | Some("" | "ClusterIP")) || spec.external_ips.is_some()
}
