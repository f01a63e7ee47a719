//! Additional Services, with Pods that the test chooses.

use std::net::IpAddr;

use anyhow::Result;

use super::cluster::Cluster;
use super::machine::Machine;
use super::manifest::{EndpointManifest, EndpointSliceManifest, ServiceManifest, ServicePort};
use super::node::Node;

/// A Service with chosen Pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// Its name.
    pub name: &'static str,
    /// The last component of its addresses.
    pub number: u8,
}

impl Published {
    /// The Service of this name.
    pub const fn new(name: &'static str, number: u8) -> Self {
        Self { name, number }
    }

    /// Its ClusterIPs.
    pub fn cluster_ips(&self) -> [IpAddr; 2] {
        [
            IpAddr::from([10, 96, 0, self.number]),
            IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(self.number)]),
        ]
    }

    /// Its load balancer addresses. The load balancer sends everything to the first node.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [
            IpAddr::from([198, 51, 100, self.number]),
            IpAddr::from([0x2001, 0xdb8, 0x1b, 0, 0, 0, 0, u16::from(self.number)]),
        ]
    }

    /// Its manifest.
    pub fn manifest(&self, ports: &[ServicePort]) -> ServiceManifest {
        ServiceManifest::new(self.name, &self.cluster_ips(), ports).ingress(&self.addresses(), None)
    }
}

impl Cluster {
    /// Publishes a Service with these Pods on their nodes as its endpoints.
    ///
    /// # Errors
    ///
    /// If the file system or the kernel refuses.
    pub fn publish(
        &self,
        service: Published,
        ports: &[ServicePort],
        pods: &[(&Machine, &Node)],
    ) -> Result<()> {
        let name = service.name;
        let slices = pods.iter().fold(
            EndpointSliceManifest::new(name, name, ports),
            |slices, (pod, node)| slices.endpoint(EndpointManifest::of(pod).node(node.name())),
        );
        self.lab.apply(&format!("{name}-slices.yaml"), slices)?;
        self.lab.apply(&format!("{name}.yaml"), service.manifest(ports))?;
        let [node, ..] = &self.nodes;
        service
            .addresses()
            .iter()
            .try_for_each(|address| self.lab.route(&address.to_string(), &[node]))
    }
}
