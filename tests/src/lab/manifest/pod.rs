//! Manifests of Pods.

use std::fmt::{self, Display};

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use super::{NAMESPACE, write_yaml};
use crate::lab::{Machine, Node};

/// A Pod's manifest.
#[derive(Clone, PartialEq, Debug)]
pub struct PodManifest(Pod);

impl Node {
    /// The Pod object of a Pod of this node, which is ready. Its label `app` is its name up to the
    /// last dash: `web` for the Pod `web-1`.
    pub fn pod_manifest(&self, pod: &Machine) -> PodManifest {
        let name = pod.name();
        let app = name.rsplit_once('-').map_or(name, |(app, _)| app);
        let addresses = pod.addresses().both();
        let manifest = PodManifest(Pod {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(NAMESPACE.to_owned()),
                labels: Some([("app".to_owned(), app.to_owned())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                node_name: Some(self.name().to_owned()),
                containers: vec![Container {
                    name: "server".to_owned(),
                    image: Some("lab-tool".to_owned()),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some("Running".to_owned()),
                host_ip: Some(self.host().addresses().ipv4.to_string()),
                pod_ip: Some(addresses[0].to_string()),
                pod_ips: Some(addresses.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
                ..PodStatus::default()
            }),
        });
        manifest.ready(true)
    }
}

impl PodManifest {
    /// Sets its condition `Ready`.
    pub fn ready(mut self, ready: bool) -> Self {
        let status = self.0.status.get_or_insert_default();
        status.conditions = Some(vec![PodCondition {
            type_: "Ready".to_owned(),
            status: if ready { "True" } else { "False" }.to_owned(),
            ..PodCondition::default()
        }]);
        self
    }

    /// Sets its deletion timestamp, as `kubectl delete pod` does. It may still be ready.
    pub fn terminating(mut self) -> Self {
        self.0.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        self
    }
}

impl Display for PodManifest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_yaml(&self.0, formatter)
    }
}
