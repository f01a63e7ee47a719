//! Determines which Services a change of a Node or of the Service CIDRs affects.

use k8s_openapi::api::core::v1::Node;

use super::{ClusterState, nodes, trim};
use crate::model::{NodeConfig, Slice, is_of_this_proxy};

/// The label that contains the zone of a Node.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

impl ClusterState {
    /// Records another Node. Marks the Services with an address that a Node gained or lost as
    /// changed.
    pub(super) fn set_other_node(&mut self, name: &str, node: Option<&Node>) {
        self.set_pod_networks(name, node);
        let (added, gone) = self.other_nodes.set(name, node);
        for address in added.iter().chain(&gone) {
            self.dirty.extend(self.by_address.at(*address).cloned());
        }
        let known = &mut self.node.other_nodes;
        known.extend(added);
        for address in &gone {
            known.remove(address);
        }
    }

    pub(super) fn set_pod_networks(&mut self, name: &str, node: Option<&Node>) {
        if self.cidrs.set_node(name, node) {
            self.cidrs_changed();
        }
    }

    /// Updates the Service CIDRs in force. If they change, Services of other proxies may start or
    /// stop to hold their cluster IPs.
    pub(super) fn cidrs_changed(&mut self) {
        let new = self.cidrs.in_force(&self.configured.service_cidrs);
        if self.node.service_cidrs == new {
            return;
        }
        self.node.service_cidrs = new;
        let others = self.services.iter();
        let others = others.filter(|(_, service)| !is_of_this_proxy(service, &self.node));
        self.dirty.extend(others.map(|(name, _)| name.clone()));
    }

    pub(super) fn node_changed(&mut self) {
        self.pod_addresses.set_networks(self.node_object.as_ref());
        let new = self.effective_node();
        let old = std::mem::replace(&mut self.node, new);
        let new_addresses = self.node.addresses != old.addresses
            || self.node.device_addresses != old.device_addresses
            || self.node.node_port_addresses != old.node_port_addresses;
        let moved = self.node.differing_addresses(&old);
        let new_zone = self.node.zone != old.zone;
        self.node.other_nodes = old.other_nodes;
        self.node.service_cidrs = old.service_cidrs;
        // This is rare: the node's addresses or zone changed.
        let concerned = self.services.iter().filter(|(name, service)| {
            let slices = self.slices.get(name);
            let any_slice = |is: &dyn Fn(&Slice) -> bool| {
                slices.is_some_and(|slices| slices.values().any(|slice| is(slice)))
            };
            new_addresses && trim::depends_on_addresses(service)
                || !moved.is_empty() && any_slice(&|slice| slice.is_at(&moved))
                || new_zone && any_slice(&Slice::has_hints)
        });
        self.dirty.extend(concerned.map(|(name, _)| name.clone()));
    }

    fn effective_node(&self) -> NodeConfig {
        let mut node = self.configured.clone();
        let Some(object) = &self.node_object else {
            return node;
        };
        if let Some(zone) = object
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(ZONE_LABEL))
        {
            node.zone = Some(zone.clone());
        }
        for is_family in [std::net::IpAddr::is_ipv4, std::net::IpAddr::is_ipv6] {
            let of_type = |type_| nodes::typed(object, type_).find(is_family);
            if let Some(primary) = of_type("InternalIP").or_else(|| of_type("ExternalIP")) {
                node.addresses.retain(|address| !is_family(address));
                node.addresses.insert(primary);
            }
        }
        node
    }
}
