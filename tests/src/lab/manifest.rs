//! The manifests that the agents of a lab read.

use std::fs;
use std::io::Write;
use std::net::IpAddr;

use anyhow::{Context, Result};
use tempfile::NamedTempFile;

use super::Lab;
use super::machine::Machine;
use super::node::Node;

impl Lab {
    /// Writes a manifest, in one step for those who watch the directory.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn apply(&self, file: &str, yaml: &str) -> Result<()> {
        let path = self.manifests().join(file);
        // Beside the directory: the agents see the finished file only.
        let mut temporary = NamedTempFile::new_in(&self.directory).context("create a manifest")?;
        temporary.write_all(yaml.as_bytes()).context("write a manifest")?;
        temporary
            .persist(&path)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(())
    }

    /// Removes a manifest.
    ///
    /// # Errors
    ///
    /// If there is none of that name.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.manifests().join(file)).with_context(|| format!("remove manifest {file}"))
    }

    /// Writes a manifest of each node and each Pod so far, all Pods being ready: `node-NAME.yaml`, `pod-NAME.yaml`.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn apply_nodes_and_pods(&self) -> Result<()> {
        for node in self.nodes() {
            self.apply(&format!("node-{}.yaml", node.name()), &node.manifest())?;
            for pod in node.pods() {
                self.apply(
                    &format!("pod-{}.yaml", pod.name()),
                    &node.pod_manifest(&pod, true),
                )?;
            }
        }
        Ok(())
    }
}

impl Node {
    /// Its Node object.
    pub fn manifest(&self) -> String {
        let (cidr4, cidr6) = self.pod_cidrs();
        let addresses = self.host().addresses();
        format!(
            "apiVersion: v1
kind: Node
metadata:
  name: {name}
  labels:
    kubernetes.io/hostname: {name}
spec:
  podCIDR: {cidr4}
  podCIDRs: [{cidr4}, '{cidr6}']
status:
  addresses:
  - {{type: InternalIP, address: {ipv4}}}
  - {{type: InternalIP, address: '{ipv6}'}}
  - {{type: Hostname, address: {name}}}
",
            name = self.name(),
            ipv4 = addresses.ipv4,
            ipv6 = addresses.ipv6,
        )
    }

    /// The Pod object of a Pod of this node. Its label `app` is its name without what follows the last dash: `web`
    /// of the Pod `web-1`.
    pub fn pod_manifest(&self, pod: &Machine, ready: bool) -> String {
        let name = pod.name();
        let app = name.rsplit_once('-').map_or(name, |(app, _)| app);
        let ready = if ready { "True" } else { "False" };
        let addresses = pod.addresses();
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: default
  labels:
    app: {app}
spec:
  nodeName: {node}
  containers:
  - name: server
    image: lab-tool
status:
  phase: Running
  hostIP: {host}
  podIP: {ipv4}
  podIPs:
  - ip: {ipv4}
  - ip: '{ipv6}'
  conditions:
  - {{type: Ready, status: '{ready}'}}
",
            node = self.name(),
            host = self.host().addresses().ipv4,
            ipv4 = addresses.ipv4,
            ipv6 = addresses.ipv6,
        )
    }
}

/// A port of a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Its name.
    pub name: &'static str,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// Where clients connect to.
    pub port: u16,
    /// Where the Pods listen.
    pub target_port: u16,
    /// The NodePort, if it has one.
    pub node_port: Option<u16>,
}

/// A Service with one port that selects the Pods of an `app`, as [`Node::pod_manifest`] labels them.
pub fn service_manifest(
    name: &str,
    addresses: &[IpAddr],
    protocol: &'static str,
    port: u16,
    target_port: u16,
) -> String {
    let port = ServicePort {
        name: "port",
        protocol,
        port,
        target_port,
        node_port: None,
    };
    service_manifest_with_ports(name, addresses, &[port])
}

/// The same with any number of ports; of type NodePort if one of them has a NodePort.
pub fn service_manifest_with_ports(name: &str, addresses: &[IpAddr], ports: &[ServicePort]) -> String {
    let list: Vec<String> = addresses.iter().map(|address| format!("'{address}'")).collect();
    let families: Vec<&str> = addresses
        .iter()
        .map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect();
    let kind = match ports.iter().any(|port| port.node_port.is_some()) {
        true => "NodePort",
        false => "ClusterIP",
    };
    let ports: String = ports.iter().map(port_manifest).collect();
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: default
spec:
  type: {kind}
  clusterIP: {first}
  clusterIPs: [{list}]
  ipFamilies: [{families}]
  selector:
    app: {name}
  ports:
{ports}",
        first = list.first().map_or("None", String::as_str),
        list = list.join(", "),
        families = families.join(", "),
    )
}

fn port_manifest(port: &ServicePort) -> String {
    let ServicePort {
        name,
        protocol,
        port,
        target_port,
        node_port,
    } = port;
    let node_port = node_port.map_or_else(String::new, |number| format!(", nodePort: {number}"));
    format!(
        "  - {{name: {name}, protocol: {protocol}, port: {port}, targetPort: {target_port}{node_port}}}\n"
    )
}
