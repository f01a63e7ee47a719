//! The generated Services and endpoints of a benchmark.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::Serialize;
use serde_json::{Value, json};

/// The port of all Services.
pub(super) const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;

/// Endpoints per slice (`--max-endpoints-per-slice` of kube-controller-manager).
const SLICE: u32 = 100;
/// The number of nodes that run the Pods.
const NODES: u32 = 100;

/// A number of Services with a number of endpoints each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Shape {
    /// Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} x {}", self.services, self.endpoints)
    }
}

/// A generated Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Made {
    pub(super) number: u32,
    pub(super) endpoints: Vec<Ipv4Addr>,
    /// `TCP` or `UDP`
    pub(super) protocol: &'static str,
    /// The port of its Pods.
    pub(super) target_port: u16,
    /// The node of its Pods; `None` spreads them over many.
    pub(super) node: Option<String>,
    /// Its load balancer's address.
    pub(super) ingress: Option<Ipv4Addr>,
}

impl Shape {
    /// All Services.
    pub(super) fn all(self) -> impl Iterator<Item = Made> {
        (0..self.services).map(move |number| self.service(number))
    }

    /// One of the Services.
    pub(super) fn service(self, number: u32) -> Made {
        let first = u32::from(Ipv4Addr::new(10, 128, 0, 1)) + number * self.endpoints;
        Made {
            number,
            endpoints: (first..first + self.endpoints).map(Ipv4Addr::from).collect(),
            protocol: "TCP",
            target_port: TARGET_PORT,
            node: None,
            ingress: None,
        }
    }
}

impl Made {
    pub(super) fn namespace(&self) -> String {
        format!("ns{}", self.number % 50)
    }

    pub(super) fn name(&self) -> String {
        format!("svc{}", self.number)
    }

    pub(super) fn vip(&self) -> Ipv4Addr {
        (u32::from(Ipv4Addr::new(10, 96, 0, 10)) + self.number).into()
    }

    /// Replaces the last Pod with another one. Each `turn` gives another Pod.
    pub(super) fn with_other_endpoint(mut self, turn: u16) -> Self {
        let other = u32::from(Ipv4Addr::new(10, 224, 0, 1)) + self.number % 16 * 0x1_0000 + u32::from(turn);
        if let Some(last) = self.endpoints.last_mut() {
            *last = other.into();
        }
        self
    }

    /// The Service object of the API.
    pub(super) fn service(&self) -> Service {
        let (protocol, target_port) = (self.protocol, self.target_port);
        let service_type = match self.ingress {
            Some(_) => "LoadBalancer",
            None => "ClusterIP",
        };
        let ingress: Vec<Value> = self.ingress.iter().map(|ip| json!({"ip": ip})).collect();
        typed(json!({
            "metadata": {"name": self.name(), "namespace": self.namespace()},
            "spec": {
                "type": service_type, "clusterIP": self.vip(), "clusterIPs": [self.vip()], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": protocol, "port": PORT, "targetPort": target_port}],
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        }))
    }

    /// Its EndpointSlices.
    pub(super) fn slices(&self) -> Vec<EndpointSlice> {
        let parts = self.endpoints.chunks(SLICE as usize);
        (0..)
            .zip(parts)
            .map(|(part, endpoints)| self.slice(part, endpoints))
            .collect()
    }

    /// The slice with its last endpoint.
    pub(super) fn last_slice(&self) -> EndpointSlice {
        let last = self.endpoints.len().saturating_sub(1) / SLICE as usize;
        self.slice(last, &self.endpoints[last * SLICE as usize..])
    }

    /// Its protocol in packet filter rules: `tcp` or `udp`.
    pub(super) fn protocol_in_rules(&self) -> String {
        self.protocol.to_lowercase()
    }

    fn slice(&self, part: usize, endpoints: &[Ipv4Addr]) -> EndpointSlice {
        let endpoint = |address: &Ipv4Addr| {
            json!({
                "addresses": [address],
                "nodeName": self.node.clone().unwrap_or_else(|| format!("node-{}", u32::from(*address) % NODES)),
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        };
        typed(json!({
            "metadata": {
                "name": format!("{}-{part}", self.name()), "namespace": self.namespace(),
                "labels": {"kubernetes.io/service-name": self.name()},
            },
            "addressType": "IPv4",
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "http", "protocol": self.protocol, "port": self.target_port}],
        }))
    }
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of its kind")
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn slices_contain_all_endpoints() {
        let shape = Shape {
            services: 2,
            endpoints: 250,
        };
        let made = shape.service(1);
        let slices = made.slices();
        let lengths: Vec<usize> = slices
            .iter()
            .map(|slice| slice.endpoints.iter().flatten().count())
            .collect();
        assert_eq!(lengths, [100, 100, 50]);
        assert_eq!(made.last_slice(), slices[2]);
        let other = made.clone().with_other_endpoint(7);
        assert_eq!(other.endpoints[..249], made.endpoints[..249]);
        assert_ne!(other.endpoints[249], made.endpoints[249]);
    }
}
